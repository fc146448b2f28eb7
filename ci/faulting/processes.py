"""Other processes: children of fork, and neighbours that are killed."""

# What a scenario checks, it asserts.
# ruff: noqa: S101

from __future__ import annotations

import itertools
import os
import random
import sys
import threading
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from oracle import write_slow  # type: ignore[import-not-found]
from safetensors_streaming import load_checkpoint, stream

from faulting.checks import (
    READ,
    WAYS,
    by_stock,
    check_same,
    eventually,
    in_order,
    nothing_left,
    write_weights,
)
from faulting.machine import hear, started

if TYPE_CHECKING:
    from faulting.checks import Tensors

FORKS = 8
KILLS = 6


def fork(folder: Path) -> dict[str, int]:
    """In the thread that loads, beside one that loads, and with a stream open."""
    path = write_weights(folder / "model.safetensors", tensors=96)
    expected = by_stock(path)
    with nothing_left(folder):
        for cache in ("keep", "bypass"):
            fork_in_progress(folder, path, expected, cache)
        fork_beside_a_stream(path, expected)
        fork_beside(path, expected)
    return {"forks": FORKS + 3}


def fork_in_progress(folder: Path, path: Path, expected: Tensors, cache: str) -> None:
    """The process forks in the thread that carries the load; the load goes on.

    The load is one that takes several of the intervals in which progress is told.
    """
    long = write_slow(folder / "long.safetensors")
    expected_of_long = by_stock(long)
    forks: list[int] = []

    def progress(done: int, total: int) -> None:
        if not forks and done < total:
            forks.append(done)
            fork_and_check(path, expected)

    loaded = load_checkpoint(long, backend="pread", cache=cache, progress=progress)  # type: ignore[arg-type]
    assert forks, "the load was over before the fork"
    check_same("the parent's load", loaded, expected_of_long)


def fork_beside_a_stream(path: Path, expected: Tensors) -> None:
    """The process forks while a stream is open, and takes the rest of it."""
    flow = stream(path)
    first = next(flow)
    fork_and_check(path, expected)
    check_same("the parent's stream", in_order(iter([first, *flow])), expected)


def fork_beside(path: Path, expected: Tensors) -> None:
    """The process forks at random moments while another thread loads."""
    ended, moments = threading.Event(), random.Random(3)  # noqa: S311 - moments, not secrets
    failures: list[BaseException] = []

    def load_again_and_again() -> None:
        try:
            while not ended.is_set():
                for name, load in READ:
                    check_same(f"the parent's {name}", load(path), expected)
        except BaseException as error:  # noqa: BLE001 - told by the other thread
            failures.append(error)

    loading = threading.Thread(target=load_again_and_again)
    loading.start()
    for _ in range(FORKS):
        ended.wait(moments.random() / 20)
        fork_and_check(path, expected)
    ended.set()
    loading.join()
    if failures:
        raise failures[0]


def fork_and_check(path: Path, expected: Tensors) -> None:
    """The child loads the file each way, and says whether it was right."""
    child = os.fork()
    if child == 0:
        try:
            for name, load in WAYS:
                check_same(f"the child's {name}", load(path), expected)
        except BaseException:  # noqa: BLE001 - nothing of the parent's may go on here
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    codes: list[int] = []

    def has_ended() -> bool:
        ended, code = os.waitpid(child, os.WNOHANG)
        codes.append(code)
        return ended == child

    assert eventually(has_ended), "a child of fork hangs"
    assert codes[-1] == 0, f"a child of fork: status {codes[-1]}"


def killed_neighbour(folder: Path) -> dict[str, int]:
    """A process that loads the same file is killed at random moments."""
    path = write_weights(folder / "model.safetensors", tensors=96)
    expected = by_stock(path)
    moments, pause = random.Random(4), threading.Event()  # noqa: S311 - moments, not secrets
    ways = itertools.cycle(WAYS)
    with nothing_left(folder):
        for number in range(KILLS // 3):
            with ExitStack() as stack:
                begun = [stack.enter_context(started("processes", path)) for _ in range(3)]
                assert [hear(neighbour) for neighbour in begun] == ["loading"] * 3
                for neighbour in begun:
                    pause.wait(moments.random() / 20)
                    neighbour.kill()
                    name, load = next(ways)
                    check_same(f"{name} after kill {number}", load(path), expected)
    return {"kills": KILLS}


def main() -> None:
    """The neighbour: loads until it is killed."""
    path = Path(sys.argv[1])
    print("loading", flush=True)
    while True:
        for _, load in WAYS:
            load(path)


if __name__ == "__main__":
    main()
