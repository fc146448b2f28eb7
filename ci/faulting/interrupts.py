"""Ctrl-C at random moments of loads: how long until the exception, and what is left."""

# What a scenario checks, it asserts.
# ruff: noqa: S101

from __future__ import annotations

import hashlib
import math
import random
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import oracle  # type: ignore[import-not-found]
import simulator  # type: ignore[import-not-found]
import torch
from safetensors_streaming import load_checkpoint, load_file, safe_open, stream

from faulting.checks import eventually, is_loading, nothing_left
from faulting.machine import hear, started, tell

if TYPE_CHECKING:
    from collections.abc import Callable

EACH = 40
PAUSE_S_MAX = 0.2
GOAL_MS = 200


def by_handle(path: Path, device: str) -> None:
    """Tensor by tensor."""
    with safe_open(path, "pt", device=device, backend="pread") as handle:
        for name in handle.offset_keys():
            handle.get_tensor(name)


def digested(path: Path) -> None:
    """A mapped file, all of which is read to make its digest."""
    load_file(path, verify=DIGESTS[path])


def drained(path: Path, device: str) -> None:
    """A stream to its end."""
    for _ in stream(path, device):
        pass


DIGESTS: dict[Path, str] = {}
HOST: dict[str, Callable[[Path], object]] = {
    "keep": lambda path: load_checkpoint(path, backend="pread", cache="keep"),
    "bypass": lambda path: load_checkpoint(path, backend="pread", cache="bypass"),
    "stream": partial(drained, device="cpu"),
    "handle": partial(by_handle, device="cpu"),
    "mapped": digested,
}
GPU: dict[str, Callable[[Path], object]] = {
    "cuda": lambda path: load_file(path, "cuda"),
    "cuda stream": partial(drained, device="cuda"),
}


def on_the_host(folder: Path) -> dict[str, float]:
    """200 interrupts."""
    return figures("interrupt", [ms for name in HOST for ms in interrupt(folder, name)])


def on_a_gpu(folder: Path) -> dict[str, float]:
    """Fewer, with tensors on the GPU of the simulated driver."""
    times = [ms for name in GPU for ms in interrupt(folder, name, EACH // len(GPU))]
    return figures("interrupt_cuda", times)


def interrupt(folder: Path, name: str, count: int = EACH) -> list[float]:
    """Interrupts a process that loads again and again; milliseconds until the exception."""
    moments, pause = random.Random(name), threading.Event()  # noqa: S311 - moments, not secrets
    times = []
    (folder / name).mkdir()
    with started("interrupts", folder / name, name, count) as child:
        for _ in range(count):
            assert hear(child) == "loading"
            pause.wait(moments.random() * PAUSE_S_MAX)
            sent = time.monotonic_ns()
            child.send_signal(signal.SIGINT)
            times.append((int(hear(child)) - sent) / 1e6)
        assert hear(child) == "nothing is left"
        tell(child)
    return times


def figures(name: str, times: list[float]) -> dict[str, float]:
    """Their percentiles, by nearest rank; the goal is one of them."""
    ordered = sorted(times)

    def percentile(share: float) -> float:
        return round(ordered[math.ceil(share * len(ordered)) - 1], 1)

    p99 = percentile(0.99)
    assert p99 < GOAL_MS, f"p99 {p99} ms of {len(times)}, the slowest {ordered[-3:]}"
    return {
        f"{name}_count": len(times),
        f"{name}_p50_ms": percentile(0.5),
        f"{name}_p99_ms": p99,
        f"{name}_max_ms": percentile(1.0),
    }


def main() -> None:
    """The process that is interrupted: tells when it was, by the clock of the whole machine."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    folder, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    load = (HOST | GPU)[name]
    path = oracle.write_slow(folder / "slow.safetensors")
    DIGESTS[path] = hashlib.sha256(path.read_bytes()).hexdigest()
    load(path)
    with nothing_left(folder):
        for _ in range(int(count)):
            print(interrupted(load, path), flush=True)
            assert eventually(lambda: not is_loading()), "threads of the load go on"
    if name in GPU:
        check_driver()
    print("nothing is left", flush=True)
    sys.stdin.readline()


def check_driver() -> None:
    """Nothing was out of order for the simulated driver, and torch has all of its memory back."""
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == 0
    violations = simulator.statistics()["violations"]
    assert violations["count"] == 0, violations


def interrupted(load: Callable[[Path], Any], path: Path) -> int:
    """Loads until it is interrupted; the time of the exception."""
    try:
        print("loading", flush=True)
        while True:
            load(path)
    except KeyboardInterrupt:
        return time.monotonic_ns()


if __name__ == "__main__":
    main()
