"""Every odd file gets stock's verdict, and a message that says what is wrong and where."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from dataclasses import dataclass, field, replace
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import bad_files
import pytest
from bad_files import Case, Difference
from oracle import OURS, STOCK, Api, bits
from process import run_python
from safetensors import SafetensorError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

CASES = list(bad_files.cases())
BACKENDS = ("mmap", "pread")
WAYS = (*BACKENDS, "load")

# What a library may raise for one tensor of a file that it has opened.
TENSOR_ERRORS = (SafetensorError, KeyError, OverflowError, RuntimeError, TypeError, ValueError)


class Fact(NamedTuple):
    """All that can be seen of a tensor."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes


@dataclass(frozen=True)
class Verdict:
    """What a library makes of a file: accept, open-only (a tensor then fails), or reject."""

    outcome: str
    tensors: dict[str, Fact | None] = field(default_factory=dict)
    metadata: dict[str, str] | None = None
    message: str = ""


def judge(api: Api, way: str, path: Path, data: bytes) -> Verdict:
    """Opens the file, or the same bytes, and takes every tensor."""
    return _judge_bytes(api, data) if way == "load" else _judge_file(api, path, way)


def _judge_file(api: Api, path: Path, backend: str) -> Verdict:
    try:
        handle = api.safe_open(path, framework="pt", backend=backend)
    except SafetensorError as error:
        return Verdict("reject", message=str(error))
    with handle:
        tensors = {name: _take(handle, name) for name in handle.keys()}  # noqa: SIM118
        outcome = "open-only" if None in tensors.values() else "accept"
        return Verdict(outcome, tensors, handle.metadata())


def _judge_bytes(api: Api, data: bytes) -> Verdict:
    try:
        tensors = api.load(data)
    except TENSOR_ERRORS as error:
        refused = str(error).startswith("Error while deserializing: ")
        return Verdict("reject" if refused else "open-only", message=str(error))
    return Verdict("accept", {name: _fact(tensor) for name, tensor in tensors.items()})


def _take(handle: Any, name: str) -> Fact | None:  # noqa: ANN401
    try:
        return _fact(handle.get_tensor(name))
    except TENSOR_ERRORS:
        return None


def _fact(tensor: torch.Tensor) -> Fact:
    return Fact(str(tensor.dtype), tuple(tensor.shape), bits(tensor) if tensor.numel() else b"")


def leading_words(message: str) -> str:
    """Cuts what may differ: serde's detail, and which of several wrong offsets is named."""
    for mark in ("invalid JSON in header:", "invalid offset for tensor `"):
        before, found, _ = message.partition(mark)
        if found:
            return before + found
    return message


def faults(ours: Verdict, wanted: Verdict) -> list[str]:
    """Says in what our verdict is not the one wanted."""
    found = []
    if ours.outcome != wanted.outcome:
        found.append(f"{ours.outcome} ({ours.message}), wanted {wanted.outcome}")
    if ours.tensors != wanted.tensors:
        found.append(f"tensors {ours.tensors}, wanted {wanted.tensors}"[:500])
    if ours.metadata != wanted.metadata:
        found.append(f"metadata {ours.metadata}, wanted {wanted.metadata}"[:500])
    words = leading_words(wanted.message) if wanted.outcome == "reject" else ""
    if not ours.message.startswith(words):
        found.append(f"message {ours.message!r}, wanted {words!r} first")
    return found


class Comparison(NamedTuple):
    """A case judged in every way by both."""

    stock_outcome: str
    stock_differs: bool
    faults: list[str]


@cache
def compare(case: Case) -> Comparison:
    """Judges a case in every way by both libraries."""
    data = case.data()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "case.safetensors")
        path.write_bytes(data)
        stock = {way: judge(STOCK, way, path, data) for way in WAYS}
        ours = {way: judge(OURS, way, path, data) for way in WAYS}
    wanted = {way: _wanted(case.difference, stock, way) for way in WAYS}
    found = [f"{way}: {text}" for way in WAYS for text in faults(ours[way], wanted[way])]
    if case.difference is Difference.DUPLICATE:
        silent = [way for way in WAYS if "duplicate" not in ours[way].message]
        found += [f"{way}: {ours[way].message!r} says nothing of a duplicate" for way in silent]
    return Comparison(stock["mmap"].outcome, stock != wanted, found)


def _wanted(difference: Difference | None, stock: dict[str, Verdict], way: str) -> Verdict:
    """Gives stock's verdict, or where a difference is declared the one in its place."""
    if difference is Difference.DUPLICATE:
        return Verdict("reject")
    if difference is Difference.F8_E8M0 and way == "load":
        return replace(stock["mmap"], metadata=None)
    if difference is Difference.F4:
        return replace(stock["mmap"], metadata=None) if way == "load" else stock["mmap"]
    return stock[way]


@pytest.mark.parametrize("case", CASES, ids=attrgetter("id"))
def test_the_verdict_is_stocks(case: Case) -> None:
    assert compare(case).faults == []


def test_every_declared_difference_is_of_a_case_and_real() -> None:
    assert bad_files.DECLARED.keys() <= {case.id for case in CASES}
    stale = [case.id for case in CASES if case.difference and not compare(case).stock_differs]
    assert stale == []


def test_the_corpus_is_the_same_each_time() -> None:
    small = [case for case in CASES if case.group != "cost"]
    again = [case for case in bad_files.cases() if case.group != "cost"]
    assert small == again
    assert len({case.id for case in CASES}) == len(CASES)


def test_no_difference_is_undeclared(
    pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    compared = {case: compare(case) for case in CASES}
    outcomes = [comparison.stock_outcome for comparison in compared.values()]
    counts = {name: outcomes.count(name) for name in ("accept", "open-only", "reject")}
    declared = sum(1 for case in CASES if case.difference)
    undeclared = [case.id for case, comparison in compared.items() if comparison.faults]
    with capsys.disabled():
        pytestconfig.get_terminal_writer().line(
            f"\nbad files: {len(CASES)} cases (stock: {counts}), {declared} declared differences, "
            f"{len(undeclared)} undeclared"
        )
    assert len(CASES) >= 150
    assert undeclared == []


HINTS = {
    "empty": ["empty"],
    "lfs_pointer": ["Git LFS pointer", "548118077"],
    "html_page": ["HTML"],
    "html_without_doctype": ["HTML"],
    "xml_error": ["XML"],
    "json_index": ["JSON"],
    "json_error": ["JSON"],
    "zip": ["zip", "torch.load"],
    "pickle_protocol_2": ["pickle", "torch.load"],
    "pickle_protocol_4": ["pickle", "torch.load"],
    "gguf": ["gguf"],
    "gzip": ["gzip"],
    "gzip_long": ["gzip"],
    "numpy": ["NumPy"],
    "hdf5": ["HDF5"],
    "cut_in_length": ["truncated", "5 bytes"],
    "cut_in_header": ["truncated", "{header_end} bytes", "40"],
    "cut_before_data": ["truncated", "wanted {file_end} bytes", "found {file_bytes}"],
    "cut_in_data": ["truncated", "wanted {file_end} bytes", "found {file_bytes}"],
}
FOREIGN = {case.name: case for case in CASES if case.group == "foreign"}


def openers() -> dict[str, Callable[[Any], object]]:
    """Gives every call that opens a file."""
    return {
        "safe_open_mmap": lambda path: OURS.safe_open(path, framework="pt"),
        "safe_open_pread": lambda path: OURS.safe_open(path, framework="pt", backend="pread"),
        "load_file_mmap": OURS.load_file,
        "load_file_pread": lambda path: OURS.load_file(path, backend="pread"),
    }


each_opener = pytest.mark.parametrize("open_file", openers().values(), ids=openers().keys())


@each_opener
@pytest.mark.parametrize("name", HINTS)
def test_a_foreign_file_is_told_by_its_kind(
    name: str, open_file: Callable[[Any], object], tmp_path: Path
) -> None:
    data = FOREIGN[name].data()
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(SafetensorError) as raised:
        open_file(path)
    header_end = int.from_bytes(data[:8], "little") + 8
    sizes = {
        "header_end": header_end,
        "file_end": header_end + bad_files.CUT_DATA_BYTES,
        "file_bytes": len(data),
    }
    for hint in (str(path), *HINTS[name]):
        assert hint.format(**sizes) in str(raised.value)


@each_opener
@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        ("missing", FileNotFoundError, errno.ENOENT),
        ("", FileNotFoundError, errno.ENOENT),
        ("folder", IsADirectoryError, errno.EISDIR),
        ("loop", OSError, errno.ELOOP),
        ("plain/inside", NotADirectoryError, errno.ENOTDIR),
        ("n" * 300, OSError, errno.ENAMETOOLONG),
    ],
)
def test_a_wrong_path_is_the_true_error(
    name: str, kind: type[OSError], code: int, open_file: Callable[[Any], object], tmp_path: Path
) -> None:
    (tmp_path / "plain").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    path = str(tmp_path / name) if name else ""
    with pytest.raises(OSError, match=os.strerror(code)) as raised:
        open_file(path)
    assert type(raised.value) is kind
    assert path in str(raised.value)


@each_opener
def test_a_missing_file_has_stocks_message(
    open_file: Callable[[Any], object], tmp_path: Path
) -> None:
    path = tmp_path / "missing.safetensors"
    with pytest.raises(FileNotFoundError) as stock:
        STOCK.safe_open(path, framework="pt")
    with pytest.raises(FileNotFoundError) as ours:
        open_file(path)
    assert str(ours.value) == str(stock.value)


OPEN_EACH = """
import sys
from functools import partial
from safetensors_streaming import load_file, safe_open
for path in sys.argv[1:]:
    for open_file in (partial(safe_open, framework="pt"), load_file):
        for backend in ("mmap", "pread"):
            try:
                open_file(path, backend=backend)
            except OSError as error:
                named = not isinstance(error, FileNotFoundError) and path in str(error)
                print(path, "refused" if named else repr(error), flush=True)
"""


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    fifo, link, bound = tmp_path / "fifo", tmp_path / "link_to_fifo", tmp_path / "socket"
    os.mkfifo(fifo)
    link.symlink_to(fifo)
    paths = [fifo, link, bound, "/dev/null", "/dev/zero", "/dev/full"]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(bound))
        # A process of its own: what blocks in opening a FIFO may hold the interpreter's lock.
        printed = run_python(OPEN_EACH, *paths, wrapper=("timeout", "60"))
    assert printed == "".join(f"{path} refused\n" * 4 for path in paths)


OPEN_AS_NOBODY = """
import os, sys
import safetensors_streaming
good, unreadable = sys.argv[1:]
safetensors_streaming.load_file(good)
if os.getuid() == 0:
    os.setuid(65534)
for backend in ("mmap", "pread"):
    try:
        safetensors_streaming.safe_open(unreadable, framework="pt", backend=backend)
    except OSError as error:
        print(type(error).__name__, error)
"""


def test_an_unreadable_file_is_a_permission_error(tmp_path: Path) -> None:
    good, unreadable = tmp_path / "good.safetensors", tmp_path / "unreadable.safetensors"
    good.write_bytes(bad_files.file("{}"))
    unreadable.write_bytes(bad_files.file("{}"))
    unreadable.chmod(0)
    printed = run_python(OPEN_AS_NOBODY, good, unreadable)
    assert printed == f"PermissionError Permission denied: {unreadable}\n" * len(BACKENDS)


class PathLike:
    """A path that is neither str nor Path."""

    def __init__(self, path: Path | bytes) -> None:
        self.path = path

    def __fspath__(self) -> str | bytes:
        return os.fspath(self.path)


@each_opener
def test_every_kind_of_path_opens(open_file: Callable[[Any], object], tmp_path: Path) -> None:
    path = tmp_path / "\u00e9\u4e2d \U0001f600 '\"\\.safetensors"
    path.write_bytes(bad_files.file("{}"))
    for form in (path, str(path), PathLike(path)):
        open_file(form)


@each_opener
def test_bytes_and_numbers_are_no_paths(open_file: Callable[[Any], object], tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "good.safetensors")
    Path(os.fsdecode(path)).write_bytes(bad_files.file("{}"))
    for form in (path, PathLike(path), 3, None):
        with pytest.raises(TypeError):
            STOCK.safe_open(form, framework="pt")
        with pytest.raises(TypeError):
            open_file(form)


PEAK_GROWTH = """
import sys
from pathlib import Path
import torch
from safetensors_streaming import safe_open
tiny, large, backend = sys.argv[1:]
def peak_bytes():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
with safe_open(tiny, framework="pt", backend=backend):
    pass
Path("/proc/self/clear_refs").write_text("5")
before = peak_bytes()
with safe_open(large, framework="pt", backend=backend):
    print(peak_bytes() - before)
"""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", [bad_files.many_tensors, bad_files.many_metadata_keys])
def test_memory_stays_in_proportion_to_the_header(
    make: Callable[[], bytes], backend: str, tmp_path: Path
) -> None:
    tiny, large = tmp_path / "tiny.safetensors", tmp_path / "large.safetensors"
    tiny.write_bytes(bad_files.file("{}"))
    header_bytes = large.write_bytes(make())
    grown = int(run_python(PEAK_GROWTH, tiny, large, backend))
    assert grown <= 8 * header_bytes + (4 << 20)
