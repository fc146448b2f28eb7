"""Many remote loads in one process, with faults at random: nothing wrong, nothing left behind."""

from __future__ import annotations

import os
import random

import pytest
import safetensors_streaming
import torch
from network_faults import FAULTS
from process import busy, descriptors, eventually, threads
from safetensors.torch import save
from safetensors_streaming import _native
from web_server import Request, WebServer, part

#: What ``ci/long network`` asks for instead.
LOADS = int(os.environ.get("NETWORK_SOAK_LOADS", "40"))

TENSORS = {"a": torch.arange(400_000, dtype=torch.int32), "b": torch.rand(300, 1000)}
CONTENT = save(TENSORS)
#: Faults of a connection that any request may meet; those that end a load are among them.
NAMES = (
    "reset before an answer",
    "reset in the middle",
    "an answer ends early",
    "stalls in the middle",
    "busy once",
    "an error of the server's",
    "another range",
    "another ETag",
    "gone in the middle",
    "more bytes than it said",
)


@pytest.mark.timeout(1800)
def test_hundreds_of_loads_with_faults_at_random() -> None:
    draw = random.Random(11)  # noqa: S311 - faults, not secrets
    shift = 0

    def answer(request: Request) -> object:
        local = Request(request.method, request.target, request.headers, request.number - shift)
        return chosen(local)

    chosen = FAULTS["busy once"].answer(CONTENT)
    right = failed = 0
    with WebServer(answer) as server:  # type: ignore[arg-type]
        before: tuple[int, int] | None = None
        for number in range(LOADS):
            shift = len(server.requests)
            name = draw.choice(NAMES)
            chosen = FAULTS[name].answer(CONTENT) if draw.random() < 0.7 else _rightly
            try:
                tensors = safetensors_streaming.load_file(server.url())
            except OSError:
                assert FAULTS[name].error is not None
                failed += 1
            else:
                assert all(torch.equal(tensors[key], TENSORS[key]) for key in TENSORS)
                right += 1
            if number == LOADS // 4:
                before = _held()
        assert right + failed == LOADS
        assert before is not None
        after = _held()
    told = f"{LOADS} loads: {right} right, {failed} failed as they should"
    print(f"{told}; threads and descriptors {before}, later {after}")  # noqa: T201 - the figures
    assert after[0] <= before[0]
    assert after[1] <= before[1]


def _rightly(request: Request) -> list[bytes]:
    return part(request, CONTENT)


def _held() -> tuple[int, int]:
    """Threads, and descriptors but those of connections: the pool keeps these for the next load."""
    assert eventually(lambda: not busy())
    _native.release()
    held = [name for name in descriptors() if "socket" not in name]
    return len(threads()), len(held)
