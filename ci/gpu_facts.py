"""Prints the facts of a GPU host that decide how weights are best loaded there, as JSON lines."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

MIB = 1 << 20
DEVICE = "cuda:0"
CACHED_BYTES = 1 << 30
ALLOCATIONS = 8
ALLOCATED_BYTES = 1 << 30
MADV_POPULATE_READ = 22  # since Linux 5.14
READ_ONLY = 0x08  # CU_MEMHOSTREGISTER_READ_ONLY
#: Numbers of CUdevice_attribute.
ATTRIBUTES = {
    "async_engine_count": 40,
    "integrated": 18,
    "host_register_supported": 99,
    "read_only_host_register_supported": 113,
    "pageable_memory_access": 88,
    "host_numa_id": 134,
}


def tell(fact: str, value: object) -> None:
    """Prints one fact."""
    print(json.dumps({"fact": fact, "value": value}), flush=True)


def driver_facts(driver: ctypes.CDLL) -> None:
    """Version and attributes, as the driver tells them."""
    number = ctypes.c_int()
    driver.cuInit(0)
    driver.cuDriverGetVersion(ctypes.byref(number))
    tell("driver_version", number.value)
    for name, attribute in ATTRIBUTES.items():
        code = driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, 0)
        tell(name, number.value if code == 0 else f"error {code}")


def host_facts() -> None:
    """Processors, memory, limits, file systems."""
    tell("kernel", platform.release())
    tell("processors", len(os.sched_getaffinity(0)))
    tell("memory_bytes", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in ("io_uring_disabled", "overcommit_memory"):
        for folder in ("kernel", "vm"):
            path = Path("/proc/sys") / folder / name
            if path.is_file():
                tell(name, path.read_text().strip())
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    tell("transparent_huge_pages", path.read_text().strip() if path.is_file() else None)
    cache = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    tell("last_level_cache", cache.read_text().strip() if cache.is_file() else None)
    tell("gpu", torch.cuda.get_device_name(0))
    tell("torch", torch.__version__)


def rate(copies: int, size: int, stream: torch.cuda.Stream) -> float:
    """GB/s of so many pinned copies of a size."""
    source = torch.empty(size, dtype=torch.uint8).pin_memory()
    target = torch.empty(size, dtype=torch.uint8, device=DEVICE)
    with torch.cuda.stream(stream):
        target.copy_(source, non_blocking=True)
        stream.synchronize()
        began = time.perf_counter()
        for _ in range(copies):
            target.copy_(source, non_blocking=True)
        stream.synchronize()
    return copies * size / (time.perf_counter() - began) / 1e9


def call_costs(driver: ctypes.CDLL, stream: torch.cuda.Stream) -> None:
    """Microseconds to give the driver a small copy, and until it is done."""
    source = torch.empty(MIB, dtype=torch.uint8).pin_memory()
    target = torch.empty(MIB, dtype=torch.uint8, device=DEVICE)
    addresses = ctypes.c_uint64(target.data_ptr()), ctypes.c_void_p(source.data_ptr())
    handle = ctypes.c_void_p(stream.cuda_stream)
    for size in (512, 4096, 32_768, 65_536, 131_072, MIB):
        stream.synchronize()
        began, count = time.perf_counter(), 2000
        for _ in range(count):
            driver.cuMemcpyHtoDAsync_v2(*addresses, ctypes.c_size_t(size), handle)
        given = time.perf_counter() - began
        stream.synchronize()
        whole = time.perf_counter() - began
        tell(f"copy_us_{size}", {"call": given / count * 1e6, "done": whole / count * 1e6})


def pinning(driver: ctypes.CDLL) -> None:
    """GB/s at which the driver pins 256 MiB: plain and huge pages, touched or not."""
    size = 256 * MIB
    for huge in (False, True):
        for touched in (False, True):
            with mmap.mmap(-1, size) as area:
                if huge:
                    area.madvise(mmap.MADV_HUGEPAGE)
                view = (ctypes.c_char * size).from_buffer(area)
                address = ctypes.c_void_p(ctypes.addressof(view))
                if touched:
                    ctypes.memset(address, 1, size)
                began = time.perf_counter()
                code = driver.cuMemHostRegister_v2(address, ctypes.c_size_t(size), 0)
                pinned = size / (time.perf_counter() - began) / 1e9
                if code == 0:
                    driver.cuMemHostUnregister(address)
                del view
            tell(f"pin_huge_{huge}_touched_{touched}", pinned if code == 0 else f"error {code}")


def allocating(driver: ctypes.CDLL, stream: torch.cuda.Stream) -> None:
    """Milliseconds to get a GiB of the GPU, alone and while the link is busy, and to free it."""
    source = torch.empty(64 * MIB, dtype=torch.uint8).pin_memory()
    target = torch.empty(64 * MIB, dtype=torch.uint8, device=DEVICE)
    for busy in (False, True):
        got, freed, refused = [], [], 0
        addresses = [ctypes.c_uint64() for _ in range(ALLOCATIONS)]
        with torch.cuda.stream(stream):
            for _ in range(400 if busy else 0):
                target.copy_(source, non_blocking=True)
        for address in addresses:
            began = time.perf_counter()
            code = driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(ALLOCATED_BYTES))
            refused = refused or code
            got.append((time.perf_counter() - began) * 1e3)
        still_busy = not stream.query()
        stream.synchronize()
        for address in addresses:
            began = time.perf_counter()
            driver.cuMemFree_v2(address)
            freed.append((time.perf_counter() - began) * 1e3)
        name = "allocation_ms_while_copies_run" if busy else "allocation_ms"
        times = {"get": got, "free_afterwards": freed, "copies_still_ran": still_busy}
        tell(name, f"error {refused}" if refused else times)


def straight_from_the_cache(driver: ctypes.CDLL) -> None:
    """GB/s at which threads map, pin and copy a file's cached pages, a block after the other.

    That would take no copy to a slot.
    """
    context = ctypes.c_void_p()
    driver.cuCtxGetCurrent(ctypes.byref(context))
    with tempfile.TemporaryFile(dir=".") as file:
        for _ in range(CACHED_BYTES // MIB):
            file.write(os.urandom(MIB))
        file.flush()
        for threads in (1, 2, 4, 8):
            share = CACHED_BYTES // threads
            jobs = [(driver, file.fileno(), share * thread, share) for thread in range(threads)]
            began = time.perf_counter()
            with ThreadPoolExecutor(threads, "moving", driver.cuCtxSetCurrent, (context,)) as pool:
                done = list(pool.map(move_cached, jobs))
            elapsed = time.perf_counter() - began
            name = f"mapped_pinned_copied_by_{threads}_gb_per_second"
            if refused := [one.refused for one in done if one.refused]:
                tell(name, f"error {refused[0]}")
                continue
            spent = {step: sum(one.seconds[step] for one in done) for step in done[0].seconds}
            rates = {step: CACHED_BYTES / seconds / 1e9 for step, seconds in spent.items()}
            tell(name, {"all": CACHED_BYTES / elapsed / 1e9, "each_by_a_thread": rates})


class Moved(NamedTuple):
    """What a thread spent on each step, and the driver's refusal."""

    seconds: dict[str, float]
    refused: int


def move_cached(job: tuple[ctypes.CDLL, int, int, int]) -> Moved:
    """Copies a part of a file to the GPU out of the page cache."""
    driver, file, start, size = job
    block = 16 * MIB
    seconds, refused = dict.fromkeys(("map", "pin", "copy", "unpin"), 0.0), 0
    libc = ctypes.CDLL(None)
    stream: Any = torch.cuda.Stream(DEVICE)  # type: ignore[no-untyped-call]
    target = torch.empty(block, dtype=torch.uint8, device=DEVICE)
    to, handle = ctypes.c_uint64(target.data_ptr()), ctypes.c_void_p(stream.cuda_stream)
    with mmap.mmap(file, size, prot=mmap.PROT_READ, offset=start) as area:
        view = np.frombuffer(area, np.uint8)
        for offset in range(0, size, block):
            address, length = ctypes.c_void_p(view.ctypes.data + offset), ctypes.c_size_t(block)
            times = [time.perf_counter()]
            libc.madvise(address, length, MADV_POPULATE_READ)  # Python's own keeps its lock
            times.append(time.perf_counter())
            refused = driver.cuMemHostRegister_v2(address, length, READ_ONLY)
            if refused:
                break
            times.append(time.perf_counter())
            driver.cuMemcpyHtoDAsync_v2(to, address, length, handle)
            stream.synchronize()
            times.append(time.perf_counter())
            driver.cuMemHostUnregister(address)
            times.append(time.perf_counter())
            for step, began, ended in zip(seconds, times, times[1:], strict=False):
                seconds[step] += ended - began
        del view  # else the mapping cannot be closed
    return Moved(seconds, refused)


def main() -> None:
    """Prints everything."""
    driver: Any = ctypes.CDLL("libcuda.so.1")
    torch.empty(1, device=DEVICE)
    host_facts()
    driver_facts(driver)
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    for mebibytes in (1, 2, 4, 8, 16, 64):
        copies = max(8, 2048 // mebibytes)
        tell(f"link_{mebibytes}_mib_gb_per_second", rate(copies, mebibytes * MIB, stream))
    call_costs(driver, stream)
    pinning(driver)
    allocating(driver, stream)
    straight_from_the_cache(driver)


if __name__ == "__main__":
    main()
