"""One sample in a fresh process: ``python -m bench.measure JOB`` prints a line of JSON a call.

Imports, the state of the page cache and a full garbage collection come before the timer; the
checksum of the answer comes after it.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import mmap
import os
import resource
import sys
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.loaders import LOADERS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO

    from torch import Tensor

PAGE = mmap.PAGESIZE
WARMING_BYTES = 8 << 20
SLACK_BYTES = 1 << 30
CACHE_TRIES = 20
CACHE_PAUSE_S = 0.1
#: How a process ends that could not bring the files into or out of the page cache.
UNSTEERED = 3


@dataclass(frozen=True)
class Job:
    """What one process shall do.

    Attributes:
        loader: A name in ``LOADERS``.
        action: The name of a method of that loader.
        cache: "cold" evicts the files first, "warm" reads them first, "left" changes nothing.
        paths: The files to load.
        read: Whether reading every byte of the answer belongs to the timed part.
        rehearse: Whether the same call is made once before, untimed.
        again: Whether the same call is timed once more, after its answer is gone.
        consumer: The library that loads by the loader, if it is not called itself.
        device: Where the library shall put the tensors.
    """

    loader: str
    action: str
    cache: str
    paths: list[str]
    read: bool = False
    rehearse: bool = False
    consumer: str | None = None
    device: str = "cpu"
    again: bool = False


@dataclass(frozen=True)
class Sample:
    """What one call came to; counters cover the timed part only.

    ``weights_...`` are what our loads to a GPU took of a library's call, see ``consumers.Patched``.
    """

    seconds: float
    answer: str
    cached_before: float
    cpu_seconds: float
    minor_faults: int
    major_faults: int
    disk_bytes: int
    peak_rss_bytes: int
    driver_calls: int
    weights_seconds: float = 0.0
    weights_loads: int = 0
    weights_reports: int = 0
    weights_seconds_reported: float = 0.0


def cached_fraction(paths: list[Path]) -> float:
    """Tells which part of the files is in the page cache, by mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    resident = pages = 0
    for path in paths:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as area:
            view = np.frombuffer(area, np.uint8)
            states = np.empty(-(-view.size // PAGE), np.uint8)
            address, length = ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(view.size)
            if libc.mincore(address, length, ctypes.c_void_p(states.ctypes.data)):
                raise OSError(ctypes.get_errno(), "mincore", str(path))
            resident += int((states & 1).sum())
            pages += states.size
            del view  # else the mapping cannot be closed
    return resident / pages


class UnsteeredError(Exception):
    """The page cache does not do as it is told, as on a file system that lives in it."""


def set_cache(state: str, paths: list[Path]) -> float:
    """Brings the files into or out of the page cache until that is verified.

    Returns:
        The cached fraction found afterwards.

    Raises:
        UnsteeredError: If it does not come about in 2 seconds.
    """
    for _ in range(CACHE_TRIES):  # the kernel reclaims at will, and another process may hold pages
        fraction = cached_fraction(paths)
        if fraction == {"cold": 0.0, "warm": 1.0}.get(state, fraction):
            return fraction
        for path in paths:
            with path.open("rb", buffering=0) as file:
                _steer_cache(state, file)
        time.sleep(CACHE_PAUSE_S)
    raise UnsteeredError(f"the files should be {state}, but {fraction:.4%} is cached")


def back_memory(size: int) -> None:
    """Has free memory backed by the machine, by touching and freeing as much as a load will fill.

    The host of a virtual machine takes free memory away and gives it back page by page, at a third
    of the disk's rate. Whose load meets how much of that is chance.
    """
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        area.madvise(mmap.MADV_HUGEPAGE)
        touched = np.frombuffer(area, np.uint8)
        touched[::PAGE] = 1
        del touched  # else the mapping cannot be closed


def _steer_cache(state: str, file: FileIO) -> None:
    if state == "cold":
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    elif state == "warm":
        buffer = bytearray(WARMING_BYTES)
        while file.readinto(buffer):
            pass


def xor(tensor: Tensor) -> int:
    """Reads every byte of a tensor: the exclusive or of its 8-byte words, then of the rest."""
    import torch  # noqa: PLC0415  (the null reader's processes need none)

    octets = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()
    words = octets.size // 8 * 8
    folded = int(np.bitwise_xor.reduce(octets[:words].view(np.uint64)))
    return folded ^ int(np.bitwise_xor.reduce(octets[words:]))


def digest(tensor: Tensor) -> str:
    """Digests the bytes of a tensor where they lie: the sums of its stretches of 4 KiB, in order.

    A GPU sums its own; its 15 GB would take longer back to the host than any loader took.
    """
    import torch  # noqa: PLC0415  (the null reader's processes need none)

    octets = tensor.detach().reshape(-1).view(torch.uint8)
    if simulated_driver() is not None:  # which has none of torch's kernels
        octets = octets.cpu()
    whole = octets.numel() // PAGE * PAGE
    if octets.is_cuda:
        if octets.data_ptr() % 8 or octets.storage_offset() % 8:
            octets = octets.clone()
        words: Any = octets[:whole].view(torch.int64)
        sums = words.view(-1, PAGE // 8).sum(1).cpu().numpy()
    else:
        words = octets.numpy()[:whole].view(np.int64)
        sums = words.reshape(-1, PAGE // 8).sum(1)
    return hashlib.sha256(sums.tobytes() + octets[whole:].cpu().numpy().tobytes()).hexdigest()


def checksum(answer: dict[str, Tensor] | list[str] | int | None) -> str:
    """Digests an answer: names, dtypes, shapes, places and contents of tensors, or the value.

    None, the answer of what only moves bytes, agrees with every other.
    """
    if answer is None:
        return ""
    facts: Any = answer
    if isinstance(answer, dict):
        facts = sorted(
            (name, str(tensor.dtype), list(tensor.shape), str(tensor.device), digest(tensor))
            for name, tensor in answer.items()
        )
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


@cache
def _driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def has_driver() -> bool:
    """Tells whether there is a CUDA driver, a real or a simulated one."""
    return _driver() is not None


def simulated_driver() -> ctypes.CDLL | None:
    """Gives the CUDA driver of this process, if it is the simulated one."""
    driver = _driver()
    return driver if driver and hasattr(driver, "simcuda_statistics") else None


def driver_calls(driver: ctypes.CDLL | None) -> int:
    """Tells how often the simulated driver was called; 0 where there is none."""
    if driver is None:
        return 0
    buffer = ctypes.create_string_buffer(1 << 16)
    driver.simcuda_statistics(buffer, ctypes.c_size_t(len(buffer)))
    counted: int = json.loads(buffer.value)["calls_total"]
    return counted


def _cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _disk_bytes() -> int:
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def _peak_rss_bytes() -> int:
    """Of this program: what getrusage(2) tells begins with the peak of the one that started it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(":", 1) for line in lines)["VmHWM"].split()[0]) * 1024


def measure(job: Job) -> Iterator[Sample]:
    """Carries out a job in this process: a sample for each timed call."""
    paths = [Path(path) for path in job.paths]
    loader: Any = LOADERS[job.loader].make()
    if job.consumer:
        loader = loader.consumer(job.consumer, job.device, paths)
    if job.rehearse:
        getattr(loader, job.action)(paths)
    for _ in range(1 + job.again):
        yield timed(job, loader, paths)


def timed(job: Job, loader: Any, paths: list[Path]) -> Sample:  # noqa: ANN401 - any of LOADERS
    """Makes one call."""
    action = getattr(loader, job.action)
    cached = set_cache(job.cache, paths)
    driver = simulated_driver()
    to_gpu = job.action.endswith("_cuda") or job.device != "cpu"
    fills_memory = driver is not None or not to_gpu  # a simulated GPU's is the host's
    if fills_memory and (driver is not None or job.cache == "cold"):
        back_memory(sum(path.stat().st_size for path in paths) + SLACK_BYTES)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    gc.collect()  # else the imports' garbage decides in whose timed part a full collection falls
    disk, before = _disk_bytes(), resource.getrusage(resource.RUSAGE_SELF)
    cpu_before = _cpu_seconds()
    calls = driver_calls(driver)
    start = time.perf_counter()
    answer = action(paths)
    if job.read and isinstance(answer, dict):
        for tensor in answer.values():
            xor(tensor)
    seconds = time.perf_counter() - start
    peak = _peak_rss_bytes()
    after, cpu = resource.getrusage(resource.RUSAGE_SELF), _cpu_seconds() - cpu_before
    calls = driver_calls(driver) - calls
    weights = loader.weights() if hasattr(loader, "weights") else {}
    return Sample(
        **weights,
        driver_calls=calls,
        seconds=seconds,
        disk_bytes=_disk_bytes() - disk,
        answer=checksum(answer),
        cached_before=cached,
        cpu_seconds=cpu,
        minor_faults=after.ru_minflt - before.ru_minflt,
        major_faults=after.ru_majflt - before.ru_majflt,
        peak_rss_bytes=peak,
    )


def main() -> None:
    """Carries out the job that the command line holds as JSON, and prints its samples."""
    try:
        for one in measure(Job(**json.loads(sys.argv[1]))):
            print(json.dumps(asdict(one)))
    except UnsteeredError as failure:
        print(failure, file=sys.stderr)
        sys.exit(UNSTEERED)


if __name__ == "__main__":
    main()
