"""How fast this machine is, told by code that shares nothing with the loader.

The null reader sets the bar for the engine: threads of ``preadv`` with O_DIRECT, each filling one
pre-faulted huge-page buffer over and over. The null source does the same through the page cache.
The null digest bounds whatever digests bytes.
``memory_rate`` bounds whatever reads cached bytes.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BLOCK = 8 << 20
HUGE_PAGE = 2 << 20
MEMORY_BYTES = 1 << 30


class NullReader:
    """Reads files past the page cache and throws the bytes away."""

    flags = os.O_DIRECT

    def __init__(self, depth: int) -> None:
        """Allocates and touches ``depth`` buffers of 8 MiB each."""
        size = depth * BLOCK
        area = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        area.madvise(mmap.MADV_HUGEPAGE)
        whole = np.frombuffer(area, np.uint8)
        whole[:] = 1
        start = -whole.ctypes.data % HUGE_PAGE
        ring = memoryview(area)[start : start + size]
        self._buffers = [ring[offset : offset + BLOCK] for offset in range(0, size, BLOCK)]

    def engine(self, paths: Sequence[Path]) -> int:
        """Reads every byte of the files.

        Args:
            paths: The files to read.

        Returns:
            How many bytes came in.
        """
        files = [os.open(path, os.O_RDONLY | self.flags) for path in paths]
        try:
            blocks: SimpleQueue[tuple[int, int]] = SimpleQueue()
            for file in files:
                for offset in range(0, os.fstat(file).st_size, BLOCK):
                    blocks.put((file, offset))
            with ThreadPoolExecutor(len(self._buffers)) as pool:
                return sum(pool.map(lambda buffer: _drain(blocks, buffer), self._buffers))
        finally:
            for file in files:
                os.close(file)

    def load_cuda(self, paths: Sequence[Path]) -> None:
        """Reads every byte of the files, for nobody."""
        self.engine(paths)

    def digest(self, paths: Sequence[Path]) -> int:
        """Reads what a digest is made of, and makes none."""
        return self.engine(paths)


class NullSource(NullReader):
    """Reads files as they come, the throttled ones at the throttle's rate."""

    flags = 0


class NullDigest:
    """Digests as many bytes as files have, without reading any of them."""

    def digest(self, paths: Sequence[Path]) -> int:
        """Makes SHA-256 digests of one block in memory, over and over, on all processors.

        Args:
            paths: The files whose size counts.

        Returns:
            How many bytes they have.
        """
        total = sum(path.stat().st_size for path in paths)
        cores = len(os.sched_getaffinity(0))
        share = -(-total // cores)
        block = memoryview(bytes(BLOCK))

        def work(size: int) -> None:
            digest = hashlib.sha256()
            for begin in range(0, size, BLOCK):
                digest.update(block[: min(BLOCK, size - begin)])

        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(work, [share] * cores))
        return total


def _drain(blocks: SimpleQueue[tuple[int, int]], buffer: memoryview) -> int:
    total = 0
    while True:
        try:
            file, offset = blocks.get_nowait()
        except Empty:
            return total
        total += os.preadv(file, [buffer], offset)


def memory_rate() -> float:
    """Measures how fast all cores together can read memory.

    Returns:
        The best of five passes over 1 GiB, in bytes per second.
    """
    cores = os.cpu_count() or 1
    parts = np.array_split(np.ones(MEMORY_BYTES // 8, np.uint64), cores)
    seconds = []
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(np.bitwise_xor.reduce, parts))
            seconds.append(time.perf_counter() - start)
    return MEMORY_BYTES / min(seconds)
