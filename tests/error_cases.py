"""What goes wrong with files and paths, and what its exception has to tell."""

from __future__ import annotations

import os
import re
import resource
import socket
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import bad_files
from oracle import OURS, Api, Entry, write_raw, write_sparse
from safetensors import SafetensorError
from safetensors_streaming import load_checkpoint, load_file, stream
from test_bad_files import HINTS
from test_disturbed import shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

#: What somebody can do about it, in the words of any advice.
AGAIN = r"(fetch|download|load|open|write|written|save|run) .*\b(again|anew|itself)|\bagain\b"
FILE = "model.safetensors"
MIB = 1 << 20
NOBODY = 65534


@dataclass(frozen=True, eq=False)
class Case:
    """Something that goes wrong.

    Attributes:
        kind: What it is of.
        name: Which of them.
        make: Brings it about in an empty folder; gives the call that fails.
        told: Patterns of what the text has to tell, by what that is: the file (a text, in which
            {folder} stands for the folder), the offset, the tensor, the cause, the advice.
        error: The exception, or what it is a subclass of.
        stock: Whether stock has the case too: then ours is its exception, or a subclass.
    """

    kind: str
    name: str
    make: Callable[[Path], Callable[[Api], object]]
    told: Mapping[str, str]
    error: type[BaseException] = SafetensorError
    stock: bool = False

    @property
    def id(self) -> str:
        return f"{self.kind}: {self.name}"


def missing(told: Mapping[str, str], folder: Path, text: str) -> list[str]:
    """What a text has to tell and does not."""
    found = {
        what: re.escape(pattern.format(folder=folder)) if what == "file" else pattern
        for what, pattern in told.items()
    }
    return [what for what, pattern in found.items() if not re.search(pattern, text, re.DOTALL)]


def ours(call: Callable[[Path], object]) -> Callable[[Path], Callable[[Api], object]]:
    """A call of a function that stock does not have."""
    return lambda folder: lambda _api: call(folder)


# Files that are none, by stock's words for them.

NUMBER = r"\d+"
OF_A_HEADER = {
    "header too small": {"offset": r"\d+ bytes", "advice": AGAIN},
    "header too large": {"offset": rf"{NUMBER} bytes", "advice": AGAIN},
    "invalid header length": {"offset": rf"{NUMBER} bytes.* {NUMBER}", "advice": AGAIN},
    "invalid UTF-8 in header": {"offset": rf"byte {NUMBER}", "advice": AGAIN},
    "invalid JSON in header": {"offset": r"line \d+ column \d+", "advice": AGAIN},
    "invalid shape, data type, or offset for tensor": {
        "tensor": "tensor `.*`",
        "offset": rf"{NUMBER} to {NUMBER}",
        "advice": AGAIN,
    },
    "invalid offset for tensor": {
        "tensor": "tensor `.*`",
        "offset": rf"{NUMBER} to {NUMBER}",
        "advice": AGAIN,
    },
    "incomplete metadata": {
        "offset": rf"wanted {NUMBER} bytes, found {NUMBER}",
        "advice": AGAIN,
    },
    "overflow computing buffer size": {"tensor": "tensor `.*`", "advice": AGAIN},
    "The slice is slicing for subbytes": {"tensor": "tensor `.*`", "advice": AGAIN},
    "duplicate key": {"tensor": "tensor `.*`", "advice": AGAIN},
}


def of_bad_files() -> Iterator[Case]:
    """Files of the corpus that are refused, opened in every way."""
    for case in bad_files.cases():
        if case.group == "valid" or not refused(case):
            continue
        for backend in ("mmap", "pread"):
            yield Case(
                f"bad file ({backend})",
                case.id,
                partial(_opened, case, backend),
                told_of(case),
                stock=case.difference is not bad_files.Difference.DUPLICATE,
            )


def refused(case: bad_files.Case) -> bool:
    """Whether the bytes are no safetensors file; what torch has no type for is one."""
    try:
        OURS.load(case.data())
    except SafetensorError as error:
        return str(error).startswith("Error while deserializing")
    except Exception:  # noqa: BLE001 - torch's, of a file that is one
        return False
    return False


def told_of(case: bad_files.Case) -> dict[str, str]:
    """What has to be told of a bad file: of one of another kind that kind, else its fault."""
    if case.group == "foreign" and case.name in HINTS and "truncated" not in HINTS[case.name]:
        kind = re.escape(HINTS[case.name][0])
        advice = rf"{AGAIN}|load it with|decompress|not the weights"
        return {"file": f"{{folder}}/{FILE}", "cause": kind, "advice": advice}
    try:
        OURS.load(case.data())
    except SafetensorError as error:
        words = str(error).removeprefix("Error while deserializing: ")
    [cause] = [cause for cause in OF_A_HEADER if words.startswith(cause)]
    return {"file": f"{{folder}}/{FILE}", "cause": re.escape(cause)} | OF_A_HEADER[cause]


def _opened(case: bad_files.Case, backend: str, folder: Path) -> Callable[[Api], object]:
    path = folder / FILE
    path.write_bytes(case.data())
    return lambda api: api.safe_open(path, framework="pt", backend=backend)


# Paths.


def _load(name: str) -> Callable[[Path], Callable[[Api], object]]:
    """Loads a file of a folder that has one of every kind."""

    def make(folder: Path) -> Callable[[Api], object]:
        (folder / "plain").touch()
        (folder / "folder").mkdir()
        (folder / "loop").symlink_to("loop")
        os.mkfifo(folder / "fifo")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "socket"))
        return lambda api: api.load_file(folder / name)

    return make


def _unreadable(folder: Path) -> Callable[[Api], object]:
    path = write_raw(folder / FILE, {"a": Entry("U8", [4])})
    path.chmod(0)

    def call(_api: Api) -> object:
        before = os.geteuid()
        if before == 0:
            os.seteuid(NOBODY)
        try:
            return load_file(path)
        finally:
            os.seteuid(before)

    return call


def _no_descriptors(folder: Path) -> Callable[[Api], object]:
    path = write_raw(folder / FILE, {"a": Entry("U8", [4])})

    def call(_api: Api) -> object:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            return load_file(path)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    return call


def of_paths() -> Iterator[Case]:
    """Paths that lead to no file that can be read."""
    for name, path, cause, advice in (
        ("missing", "nothing", "No such file", ""),
        ("a folder", "folder", "Is a directory", "load_checkpoint"),
        ("a loop of links", "loop", "Too many levels of symbolic links", ""),
        ("below a file", "plain/inside", "Not a directory", ""),
        ("too long a name", "n" * 300, "File name too long", ""),
        ("a NUL in its name", "a\0b", "No such file", ""),
        ("a FIFO", "fifo", "Not a regular file but a FIFO", ""),
        ("a socket", "socket", "No such device", ""),
        ("a device", "/dev/zero", "Not a regular file but a device", ""),
        ("text of the kernel's", "/proc/self/status", "text of the kernel's", ""),
    ):
        told = {"file": path if path[0] == "/" else f"{{folder}}/{path}", "cause": cause}
        if advice:
            told["advice"] = advice
        # Declared: of others stock says that they are missing, or waits for them for ever.
        known = name in {"missing", "a folder", "a NUL in its name"}
        yield Case("path", name, _load(path), told, OSError, stock=known)
    named = {"file": f"{{folder}}/{FILE}"}
    told = named | {"cause": "Permission denied"}
    yield Case("path", "unreadable", _unreadable, told, PermissionError)
    told = named | {"cause": "Too many open files", "advice": "ulimit -n"}
    yield Case("path", "too many descriptors", _no_descriptors, told, OSError)


# Files that change.


def _changed(backend: str, change: Callable[[Path], None]) -> Callable[[Path], Any]:
    def make(folder: Path) -> Callable[[Api], object]:
        path = write_raw(folder / FILE, {"a": Entry("U8", [MIB]), "b": Entry("U8", [MIB])})
        handle = OURS.safe_open(path, "pt", backend=backend)
        change(path)
        return lambda _api: handle.get_tensor("b")

    return make


def _changed_under_a_load(folder: Path) -> object:
    path = write_sparse(folder / FILE, 4, 64 * MIB)
    return load_checkpoint(path, backend="pread", progress=lambda *_: os.utime(path, (1, 1)))


def _shortened_under_a_stream(folder: Path) -> object:
    flow = stream(write_sparse(folder / FILE, 8, 64 * MIB))
    taken = [next(flow)]
    shorten(folder / FILE)
    return [*taken, *flow]


def of_changes() -> Iterator[Case]:
    """Files that are others than they were when they were opened."""
    named = {"file": f"{{folder}}/{FILE}", "advice": AGAIN}
    offset = r"wanted \d+ bytes at offset \d+.* got \d+"
    cut = {"offset": offset, "tensor": "tensor `b`", "cause": "become shorter"}
    cut_to_half = partial(os.truncate, length=MIB)
    told = named | cut
    yield Case("changed", "cut before a tensor", _changed("pread", cut_to_half), told, OSError)
    written = named | {"offset": offset, "cause": "written to, or touched, since it was opened"}
    yield Case("changed", "written to under a load", ours(_changed_under_a_load), written, OSError)
    cut = {"offset": offset, "cause": "become shorter|written to"}
    told = named | cut
    yield Case("changed", "cut under a stream", ours(_shortened_under_a_stream), told, OSError)
    digest = {"cause": "sha256 is [0-9a-f]{64}.*0{64}"}
    yield Case("changed", "not what is known", ours(_verified), named | digest)
    no_manifest = {"file": "{folder}/m.json", "cause": "is no manifest of digests: .*format"}
    yield Case("changed", "no manifest", ours(_no_manifest), no_manifest)


def _verified(folder: Path) -> object:
    path = write_raw(folder / FILE, {"a": Entry("U8", [4])})
    return load_file(path, verify="0" * 64)


def _no_manifest(folder: Path) -> object:
    from safetensors_streaming._verify import check_manifest  # noqa: PLC0415

    (folder / "m.json").write_text("{}")
    return check_manifest(write_raw(folder / FILE, {"a": Entry("U8", [4])}), folder / "m.json")


# Memory.


def _no_memory(folder: Path) -> object:
    return load_file(write_sparse(folder / FILE, 2, 4 << 40), backend="pread")


def of_memory() -> Iterator[Case]:
    """More than this machine has."""
    told = {
        "file": f"{{folder}}/{FILE}",
        "tensor": "tensor `t000[01]`",
        "cause": f"out of host memory: wanted {4 << 40} bytes",
        "advice": "mmap|filter",
    }
    yield Case("memory", "a tensor too large", ours(_no_memory), told, MemoryError)
