"""What child processes share that find a GPU, its driver or their own state unfit for a load."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import simulator
import torch
from oracle import OURS, STOCK, Outcome, outcome, same
from process import busy, eventually
from safetensors_streaming import cuda, load_checkpoint, load_file, stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ACTIVE = 1  # CU_STREAM_CAPTURE_STATUS_ACTIVE
#: As in src/config.rs.
IDLE_STREAMS_MAX = 8

#: Ways to a GPU that need no torch, and those whose memory torch allocates.
DRIVER_WAYS = ["load_file", "load_checkpoint", "stream", "arrays"]
TORCH_WAYS = ["torch load_file", "torch load_checkpoint", "torch stream", "torch handle"]


def ways(path: str, ordinal: int = 0) -> dict[str, Callable[[], object]]:
    """Every way to load a file to a GPU, by its name."""
    device = f"cuda:{ordinal}"
    return {
        "load_file": lambda: load_file(path, device, allocator="driver"),
        "load_checkpoint": lambda: load_checkpoint(path, device, allocator="driver"),
        "stream": lambda: dict(stream(path, device, allocator="driver")),
        "arrays": lambda: cuda.load_file(path, ordinal),
        "torch load_file": lambda: load_file(path, device),
        "torch load_checkpoint": lambda: load_checkpoint(path, device),
        "torch stream": lambda: dict(stream(path, device)),
        "torch handle": lambda: OURS.safe_open(path, "pt", device).get_tensors(),
    }


def tell(path: str, ordinal: int = 0) -> None:
    """Tries every way and stock's, prints what each answers; nothing may be left of them."""
    before = held()
    told = {way: row(outcome(call)) for way, call in ways(path, ordinal).items()}
    nothing_but(before)
    is_fit_for_the_cpu(path)
    told["stock"] = row(outcome(lambda: STOCK.load_file(path, device=f"cuda:{ordinal}")))
    print(json.dumps(told))  # noqa: T201 - to the parent


def row(told: Outcome) -> tuple[list[str], str]:
    """The names of the exception's classes, and its words."""
    classes = told.error.__mro__ if told.error is not None else ()
    return [known.__name__ for known in classes], told.words


def refused(way: str, told: Outcome) -> None:
    """Asserts that a way ended in an exception that users of torch catch, naming the GPU."""
    assert told.error is not None, f"{way} loaded"
    assert issubclass(told.error, RuntimeError), (way, told)
    assert "cuda:0" in told.words, (way, told)


def held() -> dict[str, object]:
    """What is alive in the simulated driver, pinned slots apart; nothing where there is none."""
    if simulator.DRIVER is None:
        return {}
    counted = simulator.statistics()
    assert counted["violations"] == {"count": 0, "texts": []}
    devices = [(device["live_allocations"], device["live_bytes"]) for device in counted["devices"]]
    return {"devices": devices, "streams": counted["streams"], "events": counted["events"]}


def nothing_but(before: dict[str, object]) -> None:
    """Asserts that no more is held than before, once streams have done what they were given.

    A few of these that idle are kept, and one that does not idle yet is not.
    """

    def is_all() -> bool:
        now = held()
        if not now:
            return not before
        streams = cast("int", now.pop("streams")), cast("int", before["streams"])
        kept = streams[0] - streams[1] <= IDLE_STREAMS_MAX
        return kept and all(before[kind] == known for kind, known in now.items())

    assert eventually(is_all), (held(), before)


def is_fit_for_the_cpu(path: str) -> None:
    """Asserts that no thread is left of a load, and that the CPU gets what stock gives."""
    assert eventually(lambda: not busy()), busy()
    expected = STOCK.load_file(path)
    for backend in ("mmap", "pread"):
        assert same(load_file(path, backend=backend), expected), backend


@contextmanager
def capture(mode: int) -> Iterator[Callable[[], bool]]:
    """Captures on a stream of its own, torch's current one meanwhile.

    What it gives tells whether it can still become a graph: nothing that it forbids has happened.
    """
    driver: Any = simulator.DRIVER
    side = torch.cuda.Stream()
    stream, status, graph = ctypes.c_void_p(side.cuda_stream), ctypes.c_int(), ctypes.c_void_p()

    def goes_on() -> bool:
        assert driver.cuStreamIsCapturing(stream, ctypes.byref(status)) == 0
        return status.value == ACTIVE

    with torch.cuda.stream(side):
        assert driver.cuStreamBeginCapture_v2(stream, mode) == 0
        try:
            yield goes_on
        finally:
            driver.cuStreamEndCapture(stream, ctypes.byref(graph))


def in_a_child(work: Callable[[], object]) -> None:
    """Does the work in a child of fork, and asserts that it succeeds and does not hang."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            work()
            sys.stderr.flush()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - whatever it is, the child ends here
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
