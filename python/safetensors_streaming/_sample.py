"""One load in a fresh process, timed: `python -m safetensors_streaming._sample`, a job on stdin.

Imports, the CUDA context, the state of the page cache and a full garbage collection come before the
timer, the digests of what was loaded after it. The last line of stdout is JSON: a `Sample`, or
`failed` with the words of what went wrong.
"""

import ctypes
import gc
import hashlib
import json
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors_streaming import _native, last_report, load_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = dict[str, Tensor]

WORD_BYTES = 8
FETCH_BYTES = 8 << 20
#: What is under way to or from the disk cannot be dropped yet.
CACHE_TRIES = 10
CACHE_PAUSE_SECONDS = 0.1
#: Each of a tensor that is copied from the GPU.
DIGESTS_AT_ONCE = 4


class CacheError(RuntimeError):
    """The page cache does not let go of files, does not hold them, or its contents are not told."""


@dataclass(frozen=True)
class Job:
    """What a process shall load.

    Attributes:
        loader: "ours" or "stock".
        device: "cpu" or "cuda:N".
        cold: Whether nothing of the files shall be in the page cache; else all of them shall be.
        paths: The files.
    """

    loader: str
    device: str
    cold: bool
    paths: list[str]


@dataclass(frozen=True)
class Sample:
    """What came of it.

    Attributes:
        seconds: From the call until every byte was read, or is on the GPU.
        digests: By tensor, the SHA-256 of dtype, shape and bytes.
        explained: What bound the load, where it is ours.
    """

    seconds: float
    digests: dict[str, str]
    explained: str | None


def measure(job: Job) -> Sample:
    """Carry out a job in this process.

    Raises:
        CacheError: The page cache cannot be brought into the state that is wanted.
    """
    import torch  # noqa: PLC0415 - seconds that are none of the load's

    load = _loader(job)
    if job.device == "cpu":
        _read([torch.zeros(1 << 20)])  # torch starts its threads
    else:
        torch.empty(1, device=job.device)
    set_cache(job.paths, cold=job.cold)
    gc.collect()  # else the garbage of imports is collected in the midst of somebody's load
    began = time.perf_counter()
    tensors = load()
    if job.device == "cpu":
        _read(tensors.values())
    else:
        torch.cuda.synchronize(job.device)
    seconds = time.perf_counter() - began
    report = last_report() if job.loader == "ours" else None
    return Sample(seconds, _digests(tensors), report.explain() if report else None)


def _loader(job: Job) -> "Callable[[], Tensors]":
    if job.loader == "ours":
        return lambda: load_checkpoint(job.paths, job.device)
    from safetensors.torch import load_file  # noqa: PLC0415 - ours does without it

    def load_one_after_the_other() -> "Tensors":
        tensors: Tensors = {}
        for path in job.paths:
            tensors |= load_file(path, device=job.device)
        return tensors

    return load_one_after_the_other


def set_cache(paths: Sequence[str], *, cold: bool) -> None:
    """Bring files out of the page cache or into it, until the kernel says that they are.

    Raises:
        CacheError: They are not.
        OSError: A file cannot be read.
    """
    pages = sum(-(-Path(path).stat().st_size // mmap.PAGESIZE) for path in paths)
    for _ in range(CACHE_TRIES):
        held = sum(map(_cached_pages, paths))
        if held == (0 if cold else pages):
            return
        for path in paths:
            _evict(path) if cold else _fetch(path)
        time.sleep(CACHE_PAUSE_SECONDS)
    only = "" if cold else "only "
    raise CacheError(f"the page cache keeps {only}{held:,} of {pages:,} pages")


def _evict(path: str) -> None:
    # Where a file system refuses, the pages that stay tell it.
    with Path(path).open("rb") as file, suppress(OSError):
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _fetch(path: str) -> None:
    buffer = bytearray(FETCH_BYTES)
    with Path(path).open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _cached_pages(path: str) -> int:
    _, pages = _native.file_facts(path)
    if pages is not None:
        return pages
    if Path(path).stat().st_uid != os.geteuid() and not os.access(path, os.W_OK):
        raise CacheError(f"only who may write to {path} is told what the page cache holds of it")
    return mincore_pages(path)


def mincore_pages(path: str) -> int:
    """How many pages of a file the page cache holds, by the call that every kernel has."""
    with (
        Path(path).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as area,
    ):
        held = (ctypes.c_char * -(-len(area) // mmap.PAGESIZE))()
        first = ctypes.c_char.from_buffer(area)
        address, length = ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(area))
        status = ctypes.CDLL(None, use_errno=True).mincore(address, length, held)
        del first  # else the mapping cannot be closed
    if status:
        raise OSError(ctypes.get_errno(), "mincore", path)
    return len(held) - held.raw.count(b"\0")


def _read(tensors: "Iterable[Tensor]") -> None:
    """Read every byte of tensors in host memory, at any alignment."""
    import torch  # noqa: PLC0415 - imported before the timer

    for tensor in tensors:
        octets, words = _octets(tensor), tensor.nbytes // WORD_BYTES
        if words:
            torch.frombuffer(octets, dtype=torch.int64, count=words).sum()
        _rest = octets[words * WORD_BYTES :]  # this reads it


def _octets(tensor: "Tensor") -> "ctypes.Array[ctypes.c_char]":
    """The bytes of a contiguous tensor in host memory, where they lie."""
    return (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())


def _digests(tensors: "Tensors") -> dict[str, str]:
    with ThreadPoolExecutor(DIGESTS_AT_ONCE) as pool:
        return dict(zip(tensors, pool.map(_digest, tensors.values()), strict=True))


def _digest(tensor: "Tensor") -> str:
    on_host = tensor.cpu()
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(_octets(on_host))
    return digest.hexdigest()


def main() -> None:
    """Carry out the job on stdin, and tell what came of it."""
    job = Job(**json.load(sys.stdin))
    try:
        told = asdict(measure(job))
    except Exception as error:  # noqa: BLE001 - whatever a loader raises is what is told
        words = str(error).strip().partition("\n")[0]
        told = {"failed": f"{type(error).__name__}: {words}"}
    print(json.dumps(told))  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
