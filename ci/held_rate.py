"""Loads of one warm file: one at a time, by many threads at once, and by many processes."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING

import safetensors_streaming
import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from pathlib import Path

    Say = Callable[[str], None]

LOADS, PROCESSES = 64, 8
TENSORS, TENSOR_BYTES = 16, 4 << 20
BLOCKS = 7


def load(path: str, wanted: dict[str, torch.Tensor] | None = None) -> int:
    """One load; 1 if it failed, or is not what is wanted."""
    try:
        tensors = safetensors_streaming.load_file(path, backend="pread")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
        print(f"held: {type(error).__name__}: {error}", flush=True)
        return 1
    same = wanted is None or all(torch.equal(tensors[name], wanted[name]) for name in wanted)
    return 0 if same and len(tensors) == TENSORS else 1


def serve(path: str, pipe: Connection, threads: int) -> None:
    """A process that loads by so many threads at once, whenever it is told to."""
    with ThreadPoolExecutor(threads) as pool:
        while pipe.recv() == "load":
            errors = sum(pool.map(load, [path] * threads))
            pipe.send((time.monotonic(), errors))


class Processes:
    """Processes that wait to load."""

    def __init__(self, path: str) -> None:
        """Starts them."""
        context = get_context("spawn")
        pairs = [context.Pipe() for _ in range(PROCESSES)]
        self.pipes = [ours for ours, _ in pairs]
        threads = LOADS // PROCESSES
        self.all = [context.Process(target=serve, args=(path, far, threads)) for _, far in pairs]
        for process in self.all:
            process.start()

    def load(self) -> tuple[float, int]:
        """All loads at once; seconds and errors."""
        began = time.monotonic()
        for pipe in self.pipes:
            pipe.send("load")
        ended, errors = zip(*(pipe.recv() for pipe in self.pipes), strict=True)
        return max(ended) - began, sum(errors)

    def end(self) -> None:
        """Ends them."""
        for pipe, process in zip(self.pipes, self.all, strict=True):
            pipe.send("end")
            process.join()


def timed(load_all: Callable[[], int]) -> tuple[float, int]:
    """Seconds and errors."""
    began = time.monotonic()
    errors = load_all()
    return time.monotonic() - began, errors


def rates(folder: Path, say: Say) -> tuple[dict[str, float], int]:
    """The rate of many loads at once, as a part of that of one at a time; and errors in all."""
    file = folder / "warm.safetensors"
    made = {f"t{n:02}": torch.randint(256, (TENSOR_BYTES,)).byte() for n in range(TENSORS)}
    safetensors_streaming.save_file(made, file)
    path = str(file)
    seconds: dict[str, list[float]] = {"alone": [], "threads": [], "processes": []}
    processes = Processes(path)
    with ThreadPoolExecutor(LOADS) as pool:
        errors = sum(pool.map(lambda _: load(path, made), range(LOADS)))
        ways = {
            "alone": lambda: timed(lambda: sum(load(path) for _ in range(LOADS))),
            "threads": lambda: timed(lambda: sum(pool.map(load, [path] * LOADS))),
            "processes": processes.load,
        }
        for block in range(BLOCKS + 1):  # the first warms up
            for way in sorted(ways, reverse=block % 2 == 1):
                taken, failed = ways[way]()
                errors += failed
                if block > 0:
                    seconds[way].append(taken)
    processes.end()
    for way, of_way in seconds.items():
        rate = LOADS * TENSORS * TENSOR_BYTES / statistics.median(of_way) / 1e9
        say(f"{LOADS} loads of 64 MiB, {way}: {rate:.2f} GB/s, of {BLOCKS} runs the median")
    ratio = {}
    for way in ("threads", "processes"):
        of_blocks = [one / many for one, many in zip(seconds["alone"], seconds[way], strict=True)]
        ratio[f"{way}_ratio"] = round(statistics.median(of_blocks), 3)
    return ratio, errors
