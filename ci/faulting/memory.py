"""A group of processes with little memory: a container's limit."""

# What a scenario checks, it asserts.
# ruff: noqa: S101

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import oracle  # type: ignore[import-not-found]
from safetensors_streaming import load_file, release, stream

from faulting.checks import eventually, nothing_left
from faulting.machine import MEMORY_GROUPS, memory_group

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

MIB = 1 << 20
TENSORS, TENSOR_BYTES = 64, 64 * MIB
MARK = b"\xa5" * 4096
MAPPED_LIMIT_BYTES = 64 * MIB
STREAM_LIMIT_BYTES = 512 * MIB


def mapped(folder: Path) -> dict[str, int]:
    """Every tensor of a mapped file is looked at; what the group cannot hold is dropped again."""
    return in_group(folder, MAPPED_LIMIT_BYTES, lambda path: iter(load_file(path).items()))


def streamed(folder: Path) -> dict[str, int]:
    """Of a stream the group holds the slots, what is read ahead, and the tensors that are taken."""
    return in_group(folder, STREAM_LIMIT_BYTES, slowly)


def slowly(path: Path) -> Iterator[tuple[str, Tensor]]:
    """A stream whose taker waits at first, until nothing more is read ahead."""
    flow = iter(stream(path))
    yield next(flow)
    usage = [0]

    def has_settled() -> bool:
        threading.Event().wait(0.3)
        usage.append(int((MEMORY_GROUPS / "memory.usage_in_bytes").read_text()))
        return usage[-1] == usage[-2]

    assert eventually(has_settled), f"a stream reads on without being taken: {usage}"
    yield from flow


def in_group(
    folder: Path, limit_bytes: int, load: Callable[[Path], Iterator[tuple[str, Tensor]]]
) -> dict[str, int]:
    """Loads 4 GiB where so much memory is left to a process that has torch already."""
    path = write(folder / "large.safetensors")
    with nothing_left(folder):
        release()
        with memory_group(limit_bytes) as group:
            check(load(path))
            peak = int((group / "memory.max_usage_in_bytes").read_text())
    return {"limit_mib": limit_bytes // MIB, "peak_mib": peak // MIB}


def write(path: Path) -> Path:
    """A file that takes little disk: zeros, with a mark at the end of each tensor."""
    oracle.write_sparse(path, TENSORS, TENSOR_BYTES)
    size = path.stat().st_size
    with path.open("r+b") as file:
        for index in range(TENSORS):
            file.seek(size - index * TENSOR_BYTES - len(MARK))
            file.write(MARK)
        file.flush()
        os.fsync(file.fileno())
    return path


def check(pairs: Iterator[tuple[str, Tensor]]) -> None:
    """Looks at every byte, and keeps nothing."""
    names = set()
    for name, tensor in pairs:
        names.add(name)
        flat = tensor.reshape(-1)
        assert flat.nbytes == TENSOR_BYTES
        assert bytes(flat[-len(MARK) :].numpy()) == MARK, name
        assert not flat[: -len(MARK)].any(), name
    assert len(names) == TENSORS
