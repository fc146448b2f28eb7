"""What a process may not do: io_uring, locked memory, descriptors."""

# What a scenario checks, it asserts.
# ruff: noqa: S101, PT017

from __future__ import annotations

import ctypes
import errno
import os
import resource
from functools import partial
from typing import TYPE_CHECKING

from safetensors_streaming import last_report

from faulting.checks import READ, WAYS, by_stock, check_right, check_same, evict, nothing_left
from faulting.checks import write_weights as write
from faulting.machine import MissingError, need_root

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from faulting.checks import Tensors

NOBODY = 65534
PR_SET_DUMPABLE = 4
SPARE_MAX = 24


def without_io_uring(folder: Path, refusal: str) -> dict[str, str]:
    """Threads read directly instead, and the report says why; run by ci/without_io_uring."""
    path = write(folder / "model.safetensors")
    expected = by_stock(path)
    with nothing_left(folder):
        check_right(path, expected)
        return {"reader": direct_reader(path, refusal)}


def direct_reader(path: Path, reason: str) -> str:
    """What reads a cold file past the page cache; the report gives the reason."""
    evict(path)
    dict(READ)["bypass"](path)
    report = last_report()
    assert report is not None
    assert reason in report.reason, report.reason
    return report.reader


def memlock(folder: Path, limit_bytes: int) -> dict[str, str]:
    """An ordinary user whose memory may not be locked: io_uring reads into it all the same."""
    need_root()
    path = write(folder / "model.safetensors")
    expected = by_stock(path)
    folder.chmod(0o755)
    with nothing_left(folder):
        become_nobody(limit_bytes)
        if not os.access(path, os.R_OK):
            raise MissingError("a folder that every user may enter")
        check_right(path, expected)
        return {"reader": direct_reader(path, "")}


def become_nobody(locked_bytes_max: int) -> None:
    """Makes this process an ordinary user's, which it stays."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (locked_bytes_max, locked_bytes_max))
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    # Who becomes another user may not look at itself, as one that begins as that user may.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


def few_descriptors(folder: Path) -> dict[str, int]:
    """Whatever number is left: all tensors, or an error that names file and cause."""
    path = write(folder / "model.safetensors")
    expected = by_stock(path)
    refused = 0
    with nothing_left(folder):
        for name, load in WAYS:
            refusals = [
                with_spare(spare, partial(load, path), path, expected, name)
                for spare in range(SPARE_MAX)
            ]
            assert refusals[0], f"{name}: opens a file without a descriptor"
            assert not refusals[-1], f"{name}: {SPARE_MAX} descriptors are not enough"
            refused += sum(refusals)
    return {"loads_refused": refused}


def with_spare(
    spare: int, load: Callable[[], Tensors], path: Path, expected: Tensors, name: str
) -> bool:
    """One load with so many descriptors left; whether it was refused, in the promised way."""
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    evict(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare, hard))
    try:
        loaded = load()
    except OSError as error:
        said = str(error)
        assert error.errno == errno.EMFILE, f"{name}, {spare} left: {said}"
        assert str(path) in said, f"{name}, {spare} left: no file is named: {said}"
        assert "Too many open files" in said, f"{name}, {spare} left: no cause: {said}"
        return True
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    check_same(f"{name}, {spare} left", loaded, expected)
    return False
