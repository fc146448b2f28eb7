"""Loads through the engine: ``backend="pread"`` and ``load_checkpoint``."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors
import safetensors_streaming
import torch
from oracle import (
    SLOW_BYTES,
    SLOW_TENSORS,
    STOCK,
    Entry,
    bits,
    by_stock,
    evict,
    same,
    shards,
    write_raw,
)
from process import busy, eventually, memory_kib, run_python
from safetensors.torch import save_file
from safetensors_streaming import last_report, load_checkpoint, load_file, release, stream

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
BACKENDS = ["mmap", "pread"]
CACHES = ["auto", "keep", "bypass"]
WITHOUT_IO_URING = Path(__file__).resolve().parent.parent / "ci" / "without_io_uring"


# What is loaded.


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("warm", [True, False])
def test_every_byte_is_stocks(large: Path, *, warm: bool, cache: str) -> None:
    if not warm:
        evict(large)
    loaded = load_checkpoint(large, backend="pread", cache=cache)
    assert same(loaded, STOCK.load_file(large))


@pytest.mark.parametrize("misalign", [0, 1, 8, 61])
@pytest.mark.parametrize("cache", CACHES)
def test_tensors_at_every_offset(tmp_path: Path, cache: str, misalign: int) -> None:
    """Small, large, empty, and over the ends of reads and pages."""
    sizes = [0, 1, 4095, 4096, 4097, 3, 0, 2 * MIB - 1, 2 * MIB + 1, 17 * MIB + 5, 7, 0]
    entries = {f"t{i}": Entry("U8", [size]) for i, size in enumerate(sizes)}
    path = write_raw(tmp_path / "sizes.safetensors", entries, misalign=misalign)
    evict(path)
    loaded = load_checkpoint(path, backend="pread", cache=cache)
    expected = STOCK.load_file(path)
    assert {name: bits(tensor) for name, tensor in loaded.items()} == {
        name: bits(tensor) for name, tensor in expected.items()
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "place",
    [
        lambda folder: folder,
        lambda folder: str(folder) + "/",
        lambda folder: folder / "model.safetensors.index.json",
        lambda folder: str(folder / "model-*-of-00003.safetensors"),
        shards,
        lambda folder: [str(file) for file in shards(folder)],
        lambda folder: tuple(shards(folder)),
    ],
)
def test_places(checkpoint: Path, place: Callable[[Path], Any], backend: str) -> None:
    assert same(load_checkpoint(place(checkpoint), backend=backend), by_stock(checkpoint))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_file(checkpoint: Path, backend: str) -> None:
    file = shards(checkpoint)[1]
    assert same(load_checkpoint(file, backend=backend), STOCK.load_file(file))


def test_a_folder_without_index(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors.index.json").unlink()
    (checkpoint / "notes.txt").write_text("not a shard")
    assert same(load_checkpoint(checkpoint), by_stock(checkpoint))


def test_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "model[1].safetensors", {"a": Entry("U8", [3])})
    assert list(load_checkpoint(path)) == ["a"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_filter(checkpoint: Path, backend: str) -> None:
    expected = {name: part for name, part in by_stock(checkpoint).items() if "F16" in name}
    asked: list[str] = []

    def wanted(name: str) -> int:
        asked.append(name)
        return "F16" in name

    assert same(load_checkpoint(checkpoint, filter=wanted, backend=backend), expected)
    assert sorted(asked) == sorted(by_stock(checkpoint))
    assert load_checkpoint(checkpoint, filter=lambda _: False, backend=backend) == {}


def test_filtered_tensors_are_not_read(slow: Path) -> None:
    before = memory_kib("RssAnon")
    kept = load_checkpoint(slow, filter=lambda name: name == "t0003", backend="pread")
    assert [tensor.nbytes for tensor in kept.values()] == [SLOW_BYTES]
    report = last_report()
    assert report is not None
    assert report.bytes == SLOW_BYTES
    assert memory_kib("RssAnon") - before < 3 * SLOW_BYTES // 1024


# What is refused, before any weight is read.


@pytest.mark.parametrize("load", [load_checkpoint, lambda path: list(stream(path))])
def test_missing_shard_is_named(checkpoint: Path, load: Callable[[Path], object]) -> None:
    gone = shards(checkpoint)[1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(gone.name)):
        load(checkpoint)


@pytest.mark.parametrize("load", [load_checkpoint, lambda path: list(stream(path))])
def test_index_and_headers_disagree(checkpoint: Path, load: Callable[[Path], object]) -> None:
    index = checkpoint / "model.safetensors.index.json"
    known = json.loads(index.read_text())
    extra = {**known["weight_map"], "ghost.weight": shards(checkpoint)[0].name}
    index.write_text(json.dumps({**known, "weight_map": extra}))
    with pytest.raises(safetensors.SafetensorError, match=r"ghost\.weight"):
        load(checkpoint)
    fewer = {name: file for name, file in known["weight_map"].items() if name != "s1.F64"}
    index.write_text(json.dumps({**known, "weight_map": fewer}))
    with pytest.raises(safetensors.SafetensorError, match=r"s1\.F64"):
        load(checkpoint)
    moved = {**known["weight_map"], "s1.F64": shards(checkpoint)[2].name}
    index.write_text(json.dumps({**known, "weight_map": moved}))
    with pytest.raises(safetensors.SafetensorError, match=r"s1\.F64"):
        load(checkpoint)


def test_a_name_in_two_shards(checkpoint: Path, tmp_path: Path) -> None:
    twin = write_raw(tmp_path / "twin.safetensors", {"s0.F64": Entry("F64", [2])})
    with pytest.raises(safetensors.SafetensorError, match=r"s0\.F64"):
        load_checkpoint([shards(checkpoint)[0], twin])


def test_a_broken_shard_is_named(checkpoint: Path) -> None:
    broken = shards(checkpoint)[2]
    os.truncate(broken, broken.stat().st_size - 1)
    for backend in BACKENDS:
        with pytest.raises(safetensors.SafetensorError, match=re.escape(broken.name)):
            load_checkpoint(checkpoint, backend=backend)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": 3}'])
def test_a_broken_index_is_named(checkpoint: Path, text: str) -> None:
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(safetensors.SafetensorError, match=re.escape(index.name)):
        load_checkpoint(checkpoint)


def test_shards_in_a_folder_below_the_index(checkpoint: Path) -> None:
    below = checkpoint / "weights"
    below.mkdir()
    index = checkpoint / "model.safetensors.index.json"
    known = json.loads(index.read_text())
    for file in shards(checkpoint):
        file.rename(below / file.name)
    moved = {name: f"weights/{file}" for name, file in known["weight_map"].items()}
    index.write_text(json.dumps({"weight_map": moved}))
    assert same(load_checkpoint(checkpoint), by_stock(below))


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/secret.safetensors", ""])
def test_shards_outside_the_folder_are_refused(checkpoint: Path, file: str) -> None:
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(safetensors.SafetensorError, match=re.escape(f"`{file}`")):
        load_checkpoint(checkpoint)


def test_places_that_are_not_there(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "no.safetensors", str(tmp_path / "no-*.safetensors")):
        with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
            load_checkpoint(place)
        with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
            list(stream(place))


@pytest.mark.parametrize(
    "keywords", [{"backend": "x"}, {"device": "tpu"}, {"backend": "pread", "cache": "x"}]
)
def test_unknown_arguments(sample: Path, keywords: dict[str, str]) -> None:
    with pytest.raises((ValueError, safetensors.SafetensorError)):
        load_checkpoint(sample, **keywords)
    with pytest.raises((ValueError, safetensors.SafetensorError)):
        list(stream(sample, **keywords))


# Progress, and code of the caller's that raises.


@pytest.mark.parametrize("backend", BACKENDS)
def test_progress(slow: Path, backend: str) -> None:
    told: list[tuple[int, int]] = []
    load_checkpoint(slow, backend=backend, progress=lambda *numbers: told.append(numbers))
    total = SLOW_TENSORS * SLOW_BYTES
    assert {of for _, of in told} == {total}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (total, total)
    assert len(told) > 1 or backend == "mmap"


def test_progress_bar(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_checkpoint(sample, backend="pread", progress=True)
    assert "100%" in capsys.readouterr().err
    load_checkpoint(sample, backend="pread", progress=False)
    assert capsys.readouterr().err == ""


class MineError(Exception):
    """Raised by the caller's own code."""


def raise_mine(*_: object) -> bool:
    raise MineError


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("callback", ["progress", "filter"])
def test_what_a_callback_raises_comes_out(slow: Path, callback: str, backend: str) -> None:
    keywords: dict[str, Any] = {callback: raise_mine}
    with pytest.raises(MineError):
        load_checkpoint(slow, backend=backend, **keywords)
    assert eventually(lambda: not busy())
    assert len(load_checkpoint(slow, backend=backend)) == SLOW_TENSORS


# What it gives back.


def test_release_gives_the_slots_back(large: Path) -> None:
    load_file(large, backend="pread")
    held = memory_kib("RssAnon")
    release()
    assert eventually(lambda: held - memory_kib("RssAnon") > 8 * 1024)
    assert same(load_file(large, backend="pread"), STOCK.load_file(large))


def test_read_through_reads_every_byte(checkpoint: Path) -> None:
    paths = [str(file) for file in shards(checkpoint)]
    report = safetensors_streaming._native.read_through(paths)  # noqa: SLF001
    weights = sum(tensor.nbytes for tensor in by_stock(checkpoint).values())
    assert weights <= report.bytes <= sum(file.stat().st_size for file in shards(checkpoint))


def test_small_reads_are_answered_when_they_are_done(sample: Path) -> None:
    """A lost wake-up would make each of them wait for the next look at signals (50 ms)."""
    handle = safetensors_streaming.safe_open(sample, "pt", backend="pread")
    handle.get_tensor("b")
    took = []
    for _ in range(41):
        began = time.perf_counter()
        handle.get_tensor("b")
        took.append(time.perf_counter() - began)
    assert sorted(took)[20] < 0.02


# Where io_uring is not to be had.

READ_AND_COMPARE = """
    import json, sys
    from oracle import STOCK, same
    from safetensors_streaming import last_report, load_checkpoint

    loaded = load_checkpoint(sys.argv[1], backend="pread", cache="bypass")
    print(json.dumps(last_report().to_dict()))
    assert same(loaded, STOCK.load_file(sys.argv[1]))
"""


@pytest.mark.skipif(
    os.uname().machine not in {"x86_64", "aarch64"}, reason="ci/without_io_uring knows two machines"
)
@pytest.mark.parametrize("refusal", ["EPERM", "ENOSYS", "ENTER"])
def test_without_io_uring(large: Path, refusal: str) -> None:
    evict(large)
    output = run_python(READ_AND_COMPARE, large, wrapper=[str(WITHOUT_IO_URING), refusal])
    facts = json.loads(output)
    assert "io_uring" not in facts["reader"].split("+")
    assert "io_uring" in facts["reason"]


def test_pread_by_choice(large: Path) -> None:
    evict(large)
    output = run_python(READ_AND_COMPARE, large, env={"SAFETENSORS_STREAMING_READER": "pread"})
    facts = json.loads(output)
    assert "io_uring" not in facts["reader"].split("+")
    assert "asked for" in facts["reason"]


def test_a_file_that_stock_wrote_a_moment_ago(tmp_path: Path) -> None:
    """Its pages are dirty in the cache; a direct read must see them all the same."""
    for turn in range(5):
        tensors = {"a": torch.full((3 * MIB + turn,), float(turn))}
        save_file(tensors, tmp_path / "fresh.safetensors")
        for cache in CACHES:
            loaded = load_checkpoint(tmp_path / "fresh.safetensors", backend="pread", cache=cache)
            assert same(loaded, tensors)
