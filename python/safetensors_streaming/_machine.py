"""What the machine has and allows, what that means for loads, and what to do about it."""

import mmap
import re
import resource
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

from safetensors_streaming import _native
from safetensors_streaming._addresses import Located
from safetensors_streaming._verify import FileFacts
from safetensors_streaming.cuda import GpuFacts, gpu_facts

CGROUPS = Path("/sys/fs/cgroup")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
#: Control groups of version 1 call a number near this no limit.
NO_LIMIT_BYTES = 1 << 62
#: The bit of the capability that locks memory without a limit.
LOCKS_MEMORY = 1 << 14
#: From here on a checkpoint counts as cached.
MOSTLY = 0.5
#: What is in these file systems is in memory already.
IN_MEMORY = frozenset({"tmpfs", "ramfs"})


@dataclass(frozen=True)
class Machine:
    """The host, and what it lets this process do.

    Attributes:
        processors: Processors that this process may use.
        memory_available_bytes: Memory to be had without swapping, the container's limit counted.
        last_level_cache_bytes: The last caches of these processors together.
        memlock_bytes: The limit on locked memory, None where there is none.
        memlock_binds: Whether it holds for this process, which may be privileged.
        io_uring_refusal: Why the kernel does not let io_uring be used, None where it does.
        transparent_huge_pages: "always", "madvise" or "never", None where the kernel has none.
        container_processors: The processors that the container's quota is worth, None without one.
        container_memory_bytes: The container's limit on memory, None without one.
        load_ring_bytes: What this package uses at most to carry the bytes of a load.
        ring_bytes: The same for all loads of a process at once.
    """

    processors: int
    memory_available_bytes: int
    last_level_cache_bytes: int
    memlock_bytes: int | None
    memlock_binds: bool
    io_uring_refusal: str | None
    transparent_huge_pages: str | None
    container_processors: float | None
    container_memory_bytes: int | None
    load_ring_bytes: int
    ring_bytes: int


@dataclass(frozen=True)
class Files:
    """The files of a checkpoint, and where they lie.

    Attributes:
        count: How many there are.
        bytes: Their size in all.
        file_systems: The types of the file systems that they are in.
        direct_alignment_bytes: What reads past the page cache must keep to, None where one of the
            file systems has no such reads, or the kernel does not tell.
        cached_fraction: The share of the bytes that the page cache holds, None where the kernel
            cannot tell.
    """

    count: int
    bytes: int
    file_systems: list[str]
    direct_alignment_bytes: int | None
    cached_fraction: float | None


@dataclass(frozen=True)
class Prediction:
    """What the first load of a process takes, CUDA and torch started before.

    Attributes:
        seconds: How long.
        bound: What it waits for, by the names of `Report.bound`.
    """

    seconds: float
    bound: str


@dataclass(frozen=True)
class Diagnosis:
    """All that is known.

    Attributes:
        machine: The host.
        device: What the rates and predictions are for: "cpu" or "cuda:N".
        gpu: That GPU and its link.
        gpu_refusal: Why there is no GPU, where none was named and there is none.
        files: The checkpoint.
        bytes_per_second: What was measured, by the names of `Report.bound`.
        pin_seconds: What pinning a slot takes.
        not_measured: Why other parts were not.
        predictions: By "cold" and "warm".
    """

    machine: Machine
    device: str
    gpu: GpuFacts | None
    gpu_refusal: str | None
    files: Files | None
    bytes_per_second: dict[str, float]
    pin_seconds: float | None
    not_measured: dict[str, str]
    predictions: dict[str, Prediction]

    def to_dict(self) -> dict[str, object]:
        """All of it with the advice, for JSON."""
        return {**asdict(self), "advice": advice(self)}


def diagnose(paths: list[Located], device: int | None, *, any_gpu: bool = False) -> Diagnosis:
    """Look at the machine, and measure it.

    Args:
        paths: Those of a checkpoint, or none.
        device: The number of the GPU, None for the CPU.
        any_gpu: Take the first GPU where there is one.

    Raises:
        SafetensorError: A file is not a valid safetensors file, or names disagree.
        OSError: A file cannot be opened or read.
        ValueError: A file is remote.
        RuntimeError: There is no such GPU, or its driver refuses.
    """
    if not all(isinstance(path, str | PathLike) for path in paths):
        raise ValueError("an address is on a network: this machine's disks do not bound it")
    described = _native.describe(paths) if paths else []
    files = files_of(described) if described else None
    refusal = None
    try:
        if any_gpu:
            gpu_facts(0)
            device = 0
        rates, predictions = _native.measure_ceilings(paths, device)
    except RuntimeError as error:
        if not any_gpu:
            raise
        device, refusal = None, str(error)
        rates, predictions = _native.measure_ceilings(paths, None)
    pin_seconds = rates.pop("pin_seconds", None)
    not_measured = {}
    if files is None:
        not_measured = dict.fromkeys(("disk", "page cache"), "no PATH was named")
    elif "disk" not in rates:
        not_measured["disk"] = "the file system has no direct reads"
    return Diagnosis(
        machine=machine(),
        device="cpu" if device is None else f"cuda:{device}",
        # Only now: a link that idles is slow.
        gpu=None if device is None else gpu_facts(device),
        gpu_refusal=refusal,
        files=files,
        bytes_per_second=rates,
        pin_seconds=pin_seconds,
        not_measured=not_measured,
        predictions={name: Prediction(*told) for name, told in predictions.items()},
    )


def machine() -> Machine:
    """Look at the host."""
    memlock, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    groups = _text(Path("/proc/self/cgroup")) or ""
    return Machine(
        **_native.machine_facts(),
        memlock_bytes=None if memlock == resource.RLIM_INFINITY else memlock,
        memlock_binds=not _locks_memory(_text(Path("/proc/self/status")) or ""),
        transparent_huge_pages=_chosen(_text(HUGE_PAGES)),
        container_processors=container_processors(CGROUPS, groups),
        container_memory_bytes=container_memory_bytes(CGROUPS, groups),
    )


def container_processors(cgroups: Path, groups: str) -> float | None:
    """The processors that quotas leave, None without a quota.

    Args:
        cgroups: Where control groups are mounted.
        groups: Those of the process, as `/proc/self/cgroup` tells them.
    """
    quotas = []
    for folder in _folders(cgroups, groups, "cpu"):
        texts = [_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
        words = (_text(folder / "cpu.max") or " ".join(filter(None, texts))).split()
        if len(words) == len(texts) and words[0].isdigit():
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def container_memory_bytes(cgroups: Path, groups: str) -> int | None:
    """The limit on the memory of the process and those it is with; arguments as above."""
    limits = [
        int(text)
        for folder in _folders(cgroups, groups, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := _text(folder / name)) and text.isdigit()
    ]
    return min((limit for limit in limits if limit < NO_LIMIT_BYTES), default=None)


def _folders(cgroups: Path, groups: str, controller: str) -> Iterator[Path]:
    """The folders of a process's control groups, of both versions, up to where they are mounted."""
    for line in groups.splitlines():
        number, controllers, path = line.split(":", maxsplit=2)
        if number == "0":
            mount = cgroups
        elif controller in controllers.split(","):
            mount = cgroups / controller
        else:
            continue
        folder = mount / path.lstrip("/")
        yield folder
        while folder != mount:
            folder = folder.parent
            yield folder


def files_of(described: list[FileFacts]) -> Files:
    """Look at the files of a checkpoint."""
    facts = [(_native.file_facts(path), Path(path), total) for path, total, *_ in described]
    alignments = [alignment for (alignment, _), *_ in facts]
    pages = [pages for (_, pages), *_ in facts]
    pages_in_all = sum(-(-total // mmap.PAGESIZE) for *_, total in facts)
    mounts = _text(Path("/proc/self/mountinfo")) or ""
    known = [alignment for alignment in alignments if alignment is not None]
    counted = [count for count in pages if count is not None]
    return Files(
        count=len(facts),
        bytes=sum(total for *_, total in facts),
        file_systems=sorted({file_system(mounts, path) for _, path, _ in facts}),
        direct_alignment_bytes=max(known) if len(known) == len(facts) else None,
        cached_fraction=sum(counted) / pages_in_all if len(counted) == len(facts) else None,
    )


def file_system(mounts: str, path: Path) -> str:
    """The type of the file system that a file is in.

    Args:
        mounts: All of them, as `/proc/self/mountinfo` tells them.
        path: The file.
    """
    real = path.resolve()
    found, kind = Path("/"), "unknown"
    for line in mounts.splitlines():
        place, _, source = line.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", _octal, place.split()[4]))
        # Of several in one place, the last one hides the others.
        if real.is_relative_to(point) and point.is_relative_to(found):
            found, kind = point, source.split()[0]
    return kind


def _octal(escaped: re.Match[str]) -> str:
    return chr(int(escaped[1], 8))


def _text(path: Path) -> str | None:
    try:
        # Names of mount points are bytes.
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return None


def _locks_memory(status: str) -> bool:
    """Whether the effective capabilities have the one that no limit on locked memory binds."""
    held = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    return held is not None and int(held[1], 16) & LOCKS_MEMORY != 0


def _chosen(text: str | None) -> str | None:
    """The word that the kernel has put in brackets."""
    return text.partition("[")[2].partition("]")[0] or None if text else None


def advice(told: Diagnosis) -> list[str]:
    """What to change, a sentence each; nothing where all is well."""
    return [
        *_advice_on_machine(told.machine),
        *_advice_on_gpu(told.gpu, told.gpu_refusal),
        *_advice_on_files(told.files, told.machine),
    ]


def _advice_on_machine(machine: Machine) -> Iterator[str]:
    if machine.io_uring_refusal is not None:
        yield f"{machine.io_uring_refusal}. Threads read instead, with more processor time."
    limit, ring = machine.memlock_bytes, machine.load_ring_bytes
    binds = machine.memlock_binds and machine.io_uring_refusal is None
    if limit is not None and binds and limit < ring:
        yield (
            f"The limit on locked memory is {limit >> 10} KiB: raise it (ulimit -l {ring >> 10}), "
            "so that io_uring need not pin its buffers for every read."
        )
    if machine.transparent_huge_pages == "never":
        yield (
            "Huge pages are off, and memory costs more to touch and to pin: write madvise to "
            f"{HUGE_PAGES}."
        )
    memory, twice = machine.container_memory_bytes, 2 * machine.ring_bytes
    if memory is not None and memory < twice:
        yield (
            f"The container may have {memory >> 20} MiB of memory: give it {twice >> 20} MiB or "
            "more, twice what this package may keep to carry bytes."
        )
    if machine.processors == 1:
        yield "There is one processor: reading and copying take turns. Two or more overlap."


def _advice_on_gpu(gpu: GpuFacts | None, refusal: str | None) -> Iterator[str]:
    if refusal is not None:
        yield f"No GPU can be used: {refusal}."
    if gpu is None:
        return
    now, most = gpu.pcie_width, gpu.pcie_width_max
    if now is not None and most is not None and now < most:
        yield (
            f"The GPU's link has {now} of {most} lanes: look at its slot and riser, and at what "
            "else shares the lanes."
        )
    now, most = gpu.pcie_generation, gpu.pcie_generation_max
    if now is not None and most is not None and now < most:
        yield (
            f"The GPU's link runs as PCIe {now} and could as PCIe {most}, right after copies: "
            "look at the firmware's settings and at power limits."
        )


def _advice_on_files(files: Files | None, machine: Machine) -> Iterator[str]:
    if files is None:
        return
    if files.direct_alignment_bytes is None and not IN_MEMORY.issuperset(files.file_systems):
        yield (
            f"The file system ({', '.join(files.file_systems)}) has no reads past the page cache: "
            "cold loads cost more processor time. A local ext4 or xfs has them, from Linux 6.1 on."
        )
    cached = files.cached_fraction
    if cached is not None and cached < MOSTLY and files.bytes <= machine.memory_available_bytes / 2:
        yield (
            f"The page cache holds {cached:.0%} of the checkpoint, so the next load is a cold one; "
            'where others will follow, load with cache="keep".'
        )
