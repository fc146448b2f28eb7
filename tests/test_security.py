"""What docs/security.md promises and no other test holds; and that each test it names exists."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import bad_files
import pytest
from oracle import OURS, STOCK, Entry, same, write_raw
from process import run_python
from safetensors import SafetensorError
from safetensors.torch import save
from safetensors_streaming import load_checkpoint, load_file
from web_server import WebServer, part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python/safetensors_streaming"
INDEX = "model.safetensors.index.json"
MIB = 1 << 20


# The page.


def named_tests() -> list[tuple[str, str]]:
    """Files and names of tests, as the page writes them: `file::name`."""
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    return re.findall(r"`([\w/]+\.(?:py|rs))::(\w+)`", page)


def test_every_test_that_the_page_names_exists() -> None:
    named = named_tests()
    assert len(named) > 30
    for file, name in named:
        folder = ROOT / ("tests" if file.endswith(".py") else "src")
        text = (folder / file).read_text(encoding="utf-8")
        assert re.search(rf"\b(def|fn) {name}\(", text), f"{file}::{name}"


def test_every_promise_of_the_page_names_a_test() -> None:
    lines = (ROOT / "docs/security.md").read_text(encoding="utf-8").splitlines()
    heads = [number for number, line in enumerate(lines) if line.startswith("| ---")]
    rows = [line for line in lines if line.startswith("| ") and "---" not in line]
    promises = [row for row in rows if row not in {lines[number - 1] for number in heads}]
    assert len(promises) > 20
    for promise in promises:
        held_by = promise.strip("| ").rpartition("|")[2]
        assert re.search(r"`[\w/]+\.(py|rs)::\w+`", held_by), promise


# A header.

COST = """
    import json, sys, time
    from pathlib import Path
    import torch
    from oracle import OURS, STOCK
    api = {"ours": OURS, "stock": STOCK}[sys.argv[1]]
    def peak_bytes():
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    def open_one(path):
        try:
            with api.safe_open(path, framework="pt"):
                return True
        except Exception:
            return False
    open_one(sys.argv[2])
    Path("/proc/self/clear_refs").write_text("5")
    before, began = peak_bytes(), time.process_time()
    opened = open_one(sys.argv[3])
    print(json.dumps([opened, time.process_time() - began, peak_bytes() - before]))
"""
#: A million of whatever a header can have, and one of 100 MB.
COSTLY = {
    "a million names": lambda: bad_files.many_tensors(1_000_000),
    "a million metadata keys": bad_files.many_metadata_keys,
    "100 MB of white space": lambda: bad_files.file(b"{}".ljust(bad_files.HEADER_BYTES_MAX)),
    "a million names of one tensor": lambda: bad_files.file(
        "{" + ",".join([f'"a":{bad_files.entry()}'] * 1_000_000) + "}", bad_files.FOUR
    ),
    "a million unknown fields": lambda: bad_files.beside(",".join(['"x":[]'] * 1_000_000)),
    "a million dimensions": lambda: bad_files.shaped("[" + "1," * 999_999 + "4]", 4),
    "a million nested arrays": lambda: bad_files.beside('"x":' + "[" * 1_000_000),
    "a million nested objects": lambda: bad_files.beside('"x":' + '{"y":' * 1_000_000),
    "names that begin alike": lambda: bad_files.file(
        bad_files.table(
            **{
                "n" * 9000 + str(number): bad_files.entry('"U8"', "[0]", 0, 0)
                for number in range(1, 10_001)
            }
        )
    ),
}


@pytest.mark.parametrize("make", COSTLY.values(), ids=COSTLY)
def test_a_header_costs_about_what_it_costs_with_stock(
    make: Callable[[], bytes], tmp_path: Path
) -> None:
    tiny, large = tmp_path / "tiny.safetensors", tmp_path / "large.safetensors"
    tiny.write_bytes(bad_files.file("{}"))
    header_bytes = large.write_bytes(make())
    ours, stock = (json.loads(run_python(COST, who, tiny, large)) for who in ("ours", "stock"))
    print(f"{header_bytes} bytes; opened, seconds, bytes: {ours}, stock {stock}")  # noqa: T201
    assert ours[0] == stock[0] or make is COSTLY["a million names of one tensor"]
    assert ours[1] <= 3 * stock[1] + 1
    assert ours[2] <= 6 * header_bytes + 4 * MIB


# An index.

INDEX_COST = """
    import sys, time
    from pathlib import Path
    import safetensors_streaming
    from safetensors_streaming import _native
    def peak_bytes():
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    before, began = peak_bytes(), time.process_time()
    try:
        _native.describe([sys.argv[1]])
    except Exception as error:
        assert sys.argv[1] in str(error), error
    print(peak_bytes() - before)
"""


def test_an_index_costs_in_proportion_to_its_bytes(tmp_path: Path) -> None:
    names = {f"{number:05x}": "s" for number in range(500_000)}
    index = tmp_path / INDEX
    index_bytes = index.write_text(json.dumps({"weight_map": names}))
    grown = int(run_python(INDEX_COST, index))
    print(f"{index_bytes} bytes of index, {grown} bytes of memory")  # noqa: T201
    assert grown <= 16 * index_bytes + 4 * MIB


@pytest.mark.parametrize("nested", ["[" * 100_000, '{"a":' * 100_000])
def test_an_index_nested_without_end_is_refused(nested: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(f'{{"metadata":{nested}')
    with pytest.raises(SafetensorError, match="invalid index"):
        load_checkpoint(tmp_path)


def test_an_index_without_end_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / INDEX).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="are the most") as caught:
        load_checkpoint(tmp_path)
    assert str(tmp_path / INDEX) in str(caught.value)


NOT_WAITED_FOR = """
    import sys
    from safetensors_streaming import load_checkpoint
    try:
        load_checkpoint(sys.argv[1])
    except OSError as error:
        print(error)
"""


def test_an_index_that_is_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / INDEX)
    told = run_python(NOT_WAITED_FOR, tmp_path, wrapper=("timeout", "60"))
    assert "Not a regular file but a FIFO" in told
    assert str(tmp_path / INDEX) in told


@pytest.fixture
def elsewhere() -> Iterator[WebServer]:
    """A server that nobody may ask."""
    content = save({"a": STOCK.load(bad_files.one(bad_files.entry()))["a"]})
    with WebServer(lambda request: part(request, content)) as running:
        yield running


@pytest.mark.parametrize(
    "shard",
    [
        "{outside}/secret.safetensors",
        "../secret.safetensors",
        "m/../../secret.safetensors",
        "./own.safetensors",
        "..",
        ".",
        "",
        "/",
        "own.safetensors\0",
        "..\\secret.safetensors",
        "own\n.safetensors",
        "{address}",
        "file://{outside}/secret.safetensors",
        "s3://bucket/key",
        "gs://bucket/key",
        "az://container/key",
        "hf://organisation/model",
    ],
)
@pytest.mark.parametrize("named", ["folder", "path", "from its own folder"])
def test_an_index_reaches_nothing_but_files_below_its_folder(
    shard: str,
    named: str,
    tmp_path: Path,
    elsewhere: WebServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (tmp_path / "secret.safetensors", folder / "own.safetensors"):
        file.write_bytes(bad_files.one(bad_files.entry()))
    shard = shard.format(outside=tmp_path, address=elsewhere.url())
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("AWS_ENDPOINT_URL", elsewhere.url(""))
    path = {"folder": str(folder), "path": str(folder / INDEX), "from its own folder": INDEX}[named]
    with pytest.raises(SafetensorError, match="no file below its folder") as caught:
        load_checkpoint(path)
    assert INDEX in str(caught.value)
    assert elsewhere.requests == []


def test_links_are_followed_as_stock_does(tmp_path: Path) -> None:
    """Not promised otherwise: the hub's cache is made of them."""
    (tmp_path / "model").mkdir()
    target = write_raw(tmp_path / "outside.safetensors", {"a": Entry("F32", [3])})
    link = tmp_path / "model/link.safetensors"
    link.symlink_to(target)
    (link.parent / INDEX).write_text(json.dumps({"weight_map": {"a": link.name}}))
    assert same(load_checkpoint(link.parent), STOCK.load_file(link))


# No code.

#: Calls and modules that run what a file says, and where each may be nevertheless.
RUNS_CODE = {
    "eval": set(),
    "exec": set(),
    "compile": {"re"},
    "pickle": set(),
    "marshal": set(),
    "shelve": set(),
    "yaml": set(),
    "subprocess": {"_comparison.py"},  # `bench` runs this interpreter again
    "system": set(),
    "popen": set(),
}


def code_that_runs_code(path: Path) -> Iterator[str]:
    """What of a module is in the table, by how it is called or imported."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            yield from (names if isinstance(node, ast.Import) else [node.module or "", *names])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            if (of, node.func.attr) != ("re", "compile"):
                yield node.func.attr
            if (of, node.func.attr) == ("torch", "load"):
                yield "pickle"


def test_no_part_of_the_package_runs_what_a_file_says() -> None:
    modules = sorted(PACKAGE.rglob("*.py"))
    assert len(modules) > 30
    for path in modules:
        for name in {name.split(".")[0] for name in code_that_runs_code(path)} & RUNS_CODE.keys():
            assert path.name in RUNS_CODE[name], f"{path}: {name}"
    for path in sorted((ROOT / "src").rglob("*.rs")):
        assert "process::Command" not in path.read_text(encoding="utf-8"), path


class Hostile:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return (os.mkdir, (str(self.folder),))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    run, path = tmp_path / "run", tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Hostile(run), protocol=protocol))
    calls: list[Callable[[], object]] = [
        lambda: OURS.safe_open(path, "pt"),
        lambda: load_file(path),
        lambda: load_file(path, backend="pread"),
        lambda: load_checkpoint(tmp_path),
        lambda: OURS.load(path.read_bytes()),
    ]
    for call in calls:
        with pytest.raises(SafetensorError):
            call()
    assert not run.exists()


# What is not promised.

TOUCHED = """
    import os, sys
    from oracle import OURS, STOCK
    path, who, backend = sys.argv[1:]
    api = {"ours": OURS, "stock": STOCK}[who]
    handle = api.safe_open(path, framework="pt", backend=backend)
    os.truncate(path, 4096)
    handle.get_tensor("a").sum()
"""


@pytest.mark.parametrize(("backend", "end"), [("mmap", -signal.SIGBUS), ("pread", 1)])
def test_a_mapped_file_that_is_cut_ends_the_process_as_with_stock(
    backend: str, end: int, tmp_path: Path
) -> None:
    for who in ("ours", "stock"):
        path = write_raw(tmp_path / f"{who}.safetensors", {"a": Entry("U8", [4 * MIB])})
        with pytest.raises(AssertionError, match=rf"^exit {end}\n"):
            run_python(TOUCHED, path, who, backend)
