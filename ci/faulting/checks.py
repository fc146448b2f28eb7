"""What every scenario looks at: the bytes, the promised exception, and what is left behind."""

# What a scenario checks, it asserts.
# ruff: noqa: S101, PT017

from __future__ import annotations

import gc
import os
import random
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import oracle  # type: ignore[import-not-found]
import process  # type: ignore[import-not-found]
from safetensors_streaming import load_checkpoint, load_file, release, safe_open, stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

Tensors = dict[str, "Tensor"]
Way = tuple[str, "Callable[[Path], Tensors]"]

TENSOR_BYTES = 1 << 20
FIELDS_WITHOUT_NAME = 5  # of a line of /proc/self/maps
#: Less than the smallest tensor.
DRIFT_BYTES_MAX = TENSOR_BYTES // 2


def by_handle(path: Path, backend: str) -> Tensors:
    """Tensor by tensor."""
    with safe_open(path, "pt", backend=backend) as handle:
        return {name: handle.get_tensor(name) for name in handle.offset_keys()}


def in_order(pairs: Iterator[tuple[str, Tensor]]) -> Tensors:
    """A stream's tensors by name."""
    return dict(sorted(pairs))


#: The ways of a load into memory of its own.
READ: tuple[Way, ...] = (
    ("load_file", lambda path: load_file(path, backend="pread")),
    ("keep", lambda path: load_checkpoint(path, backend="pread", cache="keep")),
    ("bypass", lambda path: load_checkpoint(path, backend="pread", cache="bypass")),
    ("stream", lambda path: in_order(stream(path, cache="bypass"))),
    ("handle", lambda path: by_handle(path, "pread")),
)
#: The ways that map the file.
MAPPED: tuple[Way, ...] = (
    ("mapped", load_file),
    ("mapped handle", lambda path: by_handle(path, "mmap")),
)
WAYS = READ + MAPPED


def write_weights(path: Path, tensors: int = 16) -> Path:
    """A file of random tensors of 1 MiB, in the order of their names."""
    seed = random.Random(path.name)  # noqa: S311 - bytes, not secrets
    entries = {
        f"t{index:02}": oracle.Entry("U8", [TENSOR_BYTES], seed.randbytes(TENSOR_BYTES))
        for index in range(tensors)
    }
    written: Path = oracle.write_raw(path, entries)
    with written.open("rb") as file:
        os.fsync(file.fileno())
    return written


def evict(path: Path) -> None:
    """Takes a file that is on its disk out of the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def by_stock(path: Path) -> Tensors:
    """The tensors as stock reads them, in memory of their own."""
    loaded = oracle.STOCK.load_file(path)
    return {name: tensor.clone() for name, tensor in loaded.items()}


def check_same(what: str, loaded: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Every tensor, and every bit of it."""
    assert oracle.same(dict(loaded), dict(expected)), f"{what}: other bytes than stock's"


def check_right(path: Path, expected: Tensors, ways: tuple[Way, ...] = WAYS) -> None:
    """Loads a file each way, cold and warm."""
    for name, load in ways:
        evict(path)
        check_same(f"{name}, cold", load(path), expected)
        check_same(f"{name}, warm", load(path), expected)


def check_refused(
    what: str, load: Callable[[], object], path: Path, cause: str, errno: int | None = None
) -> re.Match[str]:
    """The promised exception: an OSError that names the file, where it was, and why."""
    try:
        load()
    except OSError as error:
        said = str(error)
        assert str(path) in said, f"{what}: no file is named: {said}"
        assert error.errno == errno, f"{what}: errno {error.errno}: {said}"
        place = re.search(r"wanted (\d+) bytes at offset (\d+)(?: \(tensor `(\w+)`\))?", said)
        assert place is not None, f"{what}: no offset is named: {said}"
        assert re.search(cause, said), f"{what}: the cause is not named: {said}"
        return place
    raise AssertionError(f"{what}: the load went on")


@dataclass(frozen=True)
class Holdings:
    """What this process holds when all that may end has ended.

    Attributes:
        threads: Threads of ours; the network's stay.
        descriptors: What they point at; connections are kept.
        slot_kib: Memory of slots, after the idle ones were given back.
        allocated_bytes: What malloc has given out.
    """

    threads: list[str]
    descriptors: list[str]
    slot_kib: int
    allocated_bytes: int

    @classmethod
    def now(cls) -> Holdings:
        """Waits for what ends beside a load."""
        gc.collect()
        process.eventually(lambda: not of_loads(process.threads()))
        release()
        descriptors = [name for name in process.descriptors() if "/socket:" not in name]
        return cls(
            of_loads(process.threads()), sorted(descriptors), slot_kib(), process.allocated_bytes()
        )


def of_loads(threads: list[str]) -> list[str]:
    """Those that shall end with a load or with its mapping."""
    return [name for name in threads if not name.startswith("sst-network")]


def slot_kib() -> int:
    """Anonymous memory that no child inherits: of what is in this process, slots alone."""
    kib = size = 0
    named = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            named = len(words) > FIELDS_WITHOUT_NAME
        elif words[0] == "Size:":
            size = int(words[1])
        elif words[0] == "VmFlags:" and "dc" in words and not named:
            kib += size
    return kib


@contextmanager
def nothing_left(folder: Path, kept_bytes: int = 0) -> Iterator[None]:
    """Afterwards a healthy file is loaded rightly, and the process holds what it did before.

    It may hold so many bytes more that are kept for what comes next, as connections are.
    """
    healthy = write_weights(folder / "healthy.safetensors")
    expected = by_stock(healthy)
    check_right(healthy, expected)
    assert slot_kib() > 0, "slots are not told from other memory"
    before = Holdings.now()
    yield
    check_right(healthy, expected)
    after = Holdings.now()
    assert not after.threads, f"threads are left: {after.threads}"
    assert after.descriptors == before.descriptors, f"were {before}, are {after}"
    assert after.slot_kib == 0, f"{after.slot_kib} KiB of slots are left"
    drift = after.allocated_bytes - before.allocated_bytes
    assert drift < DRIFT_BYTES_MAX + kept_bytes, f"{drift} bytes of memory are left"


def eventually(condition: Callable[[], Any]) -> bool:
    """Whether a condition comes to hold."""
    held: bool = process.eventually(condition)
    return held


def descriptors() -> list[str]:
    """What the open descriptors of this process point at."""
    paths: list[str] = process.descriptors()
    return paths


def is_loading() -> bool:
    """Whether threads of a load are there."""
    return bool(process.busy())
