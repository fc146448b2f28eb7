"""Files that another process changes during loads."""

# What a scenario checks, it asserts.
# ruff: noqa: S101

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import oracle  # type: ignore[import-not-found]
import test_disturbed  # type: ignore[import-not-found]
from safetensors_streaming import load_checkpoint, load_file, stream

from faulting.checks import in_order, nothing_left
from faulting.machine import hear, started, tell

if TYPE_CHECKING:
    from collections.abc import Callable

    from faulting.checks import Tensors

ROUNDS = 2
#: Changes after which the file that was opened is what it was.
HARMLESS = {"replace", "unlink"}
CHANGES: dict[str, Any] = {change.__name__: change for change in test_disturbed.CHANGES}


def changed(folder: Path, *changes: str) -> dict[str, int]:
    """Everything and right, or an OSError that says where; whenever the change comes."""
    moments = random.Random(2)  # noqa: S311 - moments, not secrets
    refused = 0
    with nothing_left(folder):
        for change in changes:
            with started("files", change) as other:
                for number in range(ROUNDS):
                    for name, load in WAYS.items():
                        path = oracle.write_slow(folder / f"{change}.safetensors")
                        begin = Beginning(other, path, moments.randrange(1, 8))
                        right = test_disturbed.check_outcome(path, lambda: load(path, begin))  # noqa: B023
                        assert hear(other) == "changed"
                        refused += not right
                        assert right or change not in HARMLESS, f"{name}, {number}: {change}"
                tell(other)
            if change in HARMLESS:
                check_mapped(folder, change)
    assert refused > 0 or HARMLESS.issuperset(changes), "no load was disturbed"
    return {"loads_refused": refused}


class Beginning:
    """Tells another process to change the file when a load has come so far; the load goes on."""

    def __init__(self, other: Any, path: Path, eighths: int) -> None:  # noqa: ANN401 - Popen[str]
        """Nothing is told yet."""
        self.other, self.path, self.eighths = other, path, eighths
        self.told = False

    def __call__(self, done: int, total: int) -> None:
        """A load's progress."""
        if not self.told and done * 8 >= total * (self.eighths - 1):
            self.told = True
            tell(self.other, str(self.path))


def by_engine(cache: Any) -> Callable[[Path, Beginning], Tensors]:  # noqa: ANN401 - a policy's name
    """A load of the engine's, by its cache policy."""
    return lambda path, begin: load_checkpoint(path, backend="pread", cache=cache, progress=begin)


def by_stream(path: Path, begin: Beginning) -> Tensors:
    """A stream, whose caller sees how far it has come."""
    taken = []
    for pair in stream(path):
        taken.append(pair)
        begin(len(taken), oracle.SLOW_TENSORS)
    return in_order(iter(taken))


WAYS = {"keep": by_engine("keep"), "bypass": by_engine("bypass"), "stream": by_stream}


def check_mapped(folder: Path, change: str) -> None:
    """A mapped file stays what it was."""
    path = oracle.write_slow(folder / "mapped.safetensors")
    mapped = load_file(path)
    CHANGES[change](path)
    assert test_disturbed.check_outcome(path, lambda: mapped)


def main() -> None:
    """The other process: changes files whose paths it is told."""
    change = CHANGES[sys.argv[1]]
    for line in sys.stdin:
        if not line.strip():
            return
        change(Path(line.strip()))
        print("changed", flush=True)


if __name__ == "__main__":
    main()
