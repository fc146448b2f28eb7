"""The benchmark's sizes, files and loaders; the files as upstream reads them."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open

from bench import models, records, single_files
from bench.__main__ import COMMANDS, main
from bench.cases import Row
from bench.loaders import LOADERS
from bench.measure import Job
from bench.sampling import FailedError, check_answers, run, run_row

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE_GB = 0.004
MEMORY_FOLDER = Path("/dev/shm")  # noqa: S108 - a file system that lives in the page cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for the benchmark's files."""
    monkeypatch.setattr(models, "CACHE", tmp_path / "models")
    return tmp_path / "models"


@pytest.mark.parametrize(
    ("text", "size_gb"),
    [("2G", 2.0), ("512M", 0.512), ("1.5G", 1.5), ("3.09", 3.09), (".5", 0.5), ("2.", 2.0)],
)
def test_size(text: str, size_gb: float) -> None:
    assert models.gigabytes(text) == size_gb


@pytest.mark.parametrize(
    "text", ["", "G", "0", "0M", "-1", "1e3", "inf", "nan", "2GB", "2g", "1,5G", " 1"]
)
def test_no_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no size such as 2G, 512M"):
        models.gigabytes(text)


def test_no_room(cache: Path) -> None:
    words = r"few-\d+ needs 1000000000\.00 GB; .* has \d+\.\d\d GB free"
    with pytest.raises(SystemExit, match=words):
        models.single_file("few", 1e9)
    assert list(cache.iterdir()) == []


def tensors(kind: str) -> Iterator[tuple[str, str, list[int]]]:
    """Makes a file, and gives what upstream reads of it: names, dtypes and shapes."""
    path = models.single_file(kind, SIZE_GB)
    assert path.stat().st_size == pytest.approx(SIZE_GB * 1e9, rel=0.5) or kind == "moe"
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - no dict
            part = file.get_slice(name)
            yield name, part.get_dtype(), part.get_shape()


@pytest.mark.usefixtures("cache")
def test_few() -> None:
    facts = list(tensors("few"))
    assert [name for name, _, _ in facts] == [f"layers.{layer}.weight" for layer in range(8)]
    assert {(dtype, tuple(shape)) for _, dtype, shape in facts} == {("BF16", (61, 4096))}


@pytest.mark.usefixtures("cache")
def test_moe() -> None:
    facts = list(tensors("moe"))
    assert len({name for name, _, _ in facts}) == len(facts) == 50_000
    assert {dtype for _, dtype, _ in facts} == {"BF16"}
    shapes = {name.split(".")[-2]: tuple(shape) for name, _, shape in facts}
    assert shapes == {"gate_proj": (4, 8), "up_proj": (4, 8), "down_proj": (8, 4)}


@pytest.mark.usefixtures("cache")
def test_mixed() -> None:
    facts = list(tensors("mixed"))
    assert Counter(dtype for _, dtype, _ in facts) == {
        "F8_E4M3": 2 * 32,
        "F32": 3 * 32,
        "U8": 32,
        "I32": 32,
    }
    assert sum(shape == [] for _, _, shape in facts) == 2 * 32


@pytest.mark.usefixtures("cache")
def test_misaligned() -> None:
    facts = list(tensors("misaligned"))
    assert Counter(dtype for _, dtype, _ in facts) == {"U8": 21, "BF16": 21}
    assert all(torch.Size(shape).numel() % 2 for _, _, shape in facts)
    path = models.single_file("misaligned", SIZE_GB)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert single_files.data_begin(path) == 8 + length
    assert (8 + length) % 16 == 8
    assert len(data) % 512
    header = json.loads(data[8 : 8 + length])
    begins = [entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"]
    assert sum(begin % 2 for begin in begins) == 10
    assert sum(begin % 4 for begin in begins) > 20


@pytest.mark.parametrize("kind", single_files.KINDS)
def test_same_bytes_again(tmp_path: Path, kind: str) -> None:
    paths = [tmp_path / "one", tmp_path / "other"]
    for path in paths:
        single_files.save(kind, 1_000_000, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_rows_name_loaders() -> None:
    for command in COMMANDS.values():
        rows = [row for row in command.rows if not row.consumer]
        assert {name for row in rows for name in (row.ours, *row.others)} <= set(LOADERS)
        assert len({row.name for row in command.rows}) == len(command.rows)


ROW = Row("row", "reads", "engine", ours="null-2", others=("null-4", "link"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file for readers that know no format."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1 << 20))
    return path


def broken_torch(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Gives one of the loaders a torch that runs ``source`` when it is imported."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(source)
    monkeypatch.setitem(LOADERS, "link", LOADERS["link"]._replace(folder=str(folder)))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise RuntimeError('no luck')", r"link failed in engine \(exit 1\):[\s\S]*no luck"),
        ("import os; os.abort()", r"link failed in engine \(SIGABRT\)"),
    ],
)
def test_crash_of_another(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, words: str
) -> None:
    broken_torch(tmp_path, monkeypatch, source)
    (taken,) = run_row(ROW, [file], 2)
    assert {name: len(samples) for name, samples in taken.samples.items()} == {
        "null-2": 2,
        "null-4": 2,
    }
    assert list(taken.failed) == ["link"]
    assert re.match(words, taken.failed["link"])


def test_crash_of_ours(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_torch(tmp_path, monkeypatch, "import os; os.abort()")
    with pytest.raises(FailedError, match="SIGABRT"):
        run_row(replace(ROW, ours="link", others=("null-2",)), [file], 1)


def test_hang(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_torch(tmp_path, monkeypatch, "import threading; threading.Event().wait()")
    with pytest.raises(FailedError, match=r"link took more than 0\.5 s in engine"):
        run(Job("link", "engine", "warm", [str(file)]), limit_s=0.5)


def test_page_cache_that_cannot_be_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "result.json"
    words = ["bench", "cpu", "--size", "4M", "--rows", "few-cold", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    with TemporaryDirectory(dir=MEMORY_FOLDER) as folder:
        monkeypatch.setattr(models, "CACHE", Path(folder))
        main()
    said = capsys.readouterr().out
    reason = "the files should be cold, but 100.0000% is cached"
    assert f"no ceiling, disk: {reason}" in said
    assert f"skipped: few-cold ({reason})" in said
    assert records.read(output).rows == []


def test_answers_that_differ() -> None:
    def sample(answer: str) -> list[list[Any]]:
        return [[{"seconds": 1.0, "foreign_cores": 0.0, "processes": [{"answer": answer}]}]]

    check_answers(ROW, {"null-2": sample("a"), "null-4": sample("a"), "link": sample("")})
    with pytest.raises(SystemExit, match="row: the answers differ"):
        check_answers(ROW, {"null-2": sample("a"), "null-4": sample("b")})
