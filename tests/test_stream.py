"""``stream``: tensors as they arrive, and its early end."""

from __future__ import annotations

import gc
import itertools
from typing import TYPE_CHECKING

import pytest
from oracle import (
    SLOW_BYTES,
    SLOW_TENSORS,
    STOCK,
    by_stock,
    evict,
    same,
    shards,
    write_sparse,
)
from process import allocated_bytes, busy, descriptors, eventually, memory_kib, threads
from safetensors_streaming import load_file, release, stream

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
CACHES = ["auto", "keep", "bypass"]


@pytest.mark.parametrize("cache", CACHES)
def test_stream_yields_every_tensor_once(checkpoint: Path, cache: str) -> None:
    for file in shards(checkpoint):
        evict(file)
    pairs = list(stream(checkpoint, cache=cache))
    assert len({name for name, _ in pairs}) == len(pairs)
    expected = by_stock(checkpoint)
    assert same(dict(sorted(pairs)), dict(sorted(expected.items())))


def test_stream_of_mapped_tensors(checkpoint: Path) -> None:
    assert same(dict(stream(checkpoint, backend="mmap")), by_stock(checkpoint))


def test_stream_with_filter(checkpoint: Path) -> None:
    names = {name for name, _ in stream(checkpoint, filter=lambda name: name.startswith("s1."))}
    assert names == set(STOCK.load_file(shards(checkpoint)[1]))


def test_closing_a_stream_ends_its_threads(slow: Path) -> None:
    flow = stream(slow)
    name, tensor = next(flow)
    assert tensor.nbytes == SLOW_BYTES
    assert threads() != []
    flow.close()
    assert eventually(lambda: not busy())
    with pytest.raises(StopIteration):
        next(flow)
    assert name
    assert not tensor.any()


def test_dropping_a_stream_ends_its_threads(slow: Path) -> None:
    for taken in (0, 1):
        flow = stream(slow)
        for _ in range(taken):
            next(flow)
        del flow
        gc.collect()
        assert eventually(lambda: not busy())
        assert str(slow) not in descriptors()


def test_a_closed_stream_frees_what_was_read(slow: Path) -> None:
    release()
    before = memory_kib("RssAnon")
    flow = stream(slow)
    next(flow)
    flow.close()
    release()
    assert eventually(lambda: memory_kib("RssAnon") - before < 32 * 1024)


def test_a_stream_reads_a_bounded_way_ahead(tmp_path: Path) -> None:
    """256 MiB wait for a caller who takes nothing, and no more of them for one who takes."""
    path = write_sparse(tmp_path / "long.safetensors", 64, 16 * MIB)
    before = allocated_bytes()
    flow = stream(path)
    next(flow)
    assert eventually(lambda: allocated_bytes() - before > 224 * MIB)
    most = 0
    for _ in flow:
        most = max(most, allocated_bytes() - before)
    assert most < (256 + 3 * 16) * MIB  # and the one that is taken, and those begun


def test_two_streams_in_turn(large: Path, checkpoint: Path) -> None:
    pairs = itertools.zip_longest(stream(large), stream(checkpoint))
    one, other = zip(*pairs, strict=True)
    first = dict(pair for pair in one if pair is not None)
    second = dict(pair for pair in other if pair is not None)
    assert same(dict(sorted(first.items())), dict(sorted(STOCK.load_file(large).items())))
    assert same(dict(sorted(second.items())), dict(sorted(by_stock(checkpoint).items())))


def test_a_load_beside_an_open_stream(large: Path, slow: Path) -> None:
    flow = stream(slow)
    next(flow)
    assert same(load_file(large, backend="pread"), STOCK.load_file(large))
    assert len(list(flow)) == SLOW_TENSORS - 1


class MineError(Exception):
    """Raised by the caller's own code."""


def raise_mine(*_: object) -> bool:
    raise MineError


def test_what_a_streams_filter_raises_comes_out(sample: Path) -> None:
    with pytest.raises(MineError):
        list(stream(sample, filter=raise_mine))
    assert len(list(stream(sample))) == 5
