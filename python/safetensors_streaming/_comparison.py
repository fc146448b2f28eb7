"""Loads of the same files by the stock package and by this one, each in a fresh process."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, median_low
from typing import Any

from safetensors_streaming import SafetensorError, _native
from safetensors_streaming._patch import CHILDREN_VARIABLE
from safetensors_streaming._sample import CacheError, Job, set_cache
from safetensors_streaming._statistics import median_interval

LOADERS = ("ours", "stock")
STATES = ("cold", "warm")
#: Fewer blocks say nothing of how far off their median may be.
BLOCKS_OF_INTERVAL = 5
#: From here on a load was disturbed by others.
NOISY_CORES = 0.25
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Loads:
    """Loads by one of the two packages from one state of the page cache, a block each.

    Attributes:
        seconds: What each took.
        foreign_cores: How many processors others kept busy meanwhile.
        explained: What bound each, where it is ours.
        failed: Why there are no more of them.
    """

    seconds: list[float] = field(default_factory=list)
    foreign_cores: list[float] = field(default_factory=list)
    explained: list[str | None] = field(default_factory=list)
    failed: str | None = None

    def to_dict(self, total: int) -> dict[str, object]:
        """All of it, for JSON; of a checkpoint of so many bytes."""
        seconds = median(self.seconds) if self.seconds else None
        rate = total / seconds if seconds else None
        return {**asdict(self), "median_seconds": seconds, "bytes_per_second": rate}


@dataclass(frozen=True)
class Ratio:
    """Seconds of ours over seconds of stock: the median of the blocks, with its 95 % interval.

    Attributes:
        median: That median.
        low: The interval's lower end, None for fewer than five blocks.
        high: Its upper end, likewise.
        confidence: How often such an interval holds the median, likewise.
    """

    median: float
    low: float | None = None
    high: float | None = None
    confidence: float | None = None


@dataclass(frozen=True)
class Row:
    """Loads from one state of the page cache.

    Attributes:
        ours: Loads by this package.
        stock: Loads by the stock package.
        left_out: Why there are none.
    """

    ours: Loads = field(default_factory=Loads)
    stock: Loads = field(default_factory=Loads)
    left_out: str | None = None

    @property
    def blocks(self) -> int:
        """How many blocks have loads by both."""
        return min(len(self.ours.seconds), len(self.stock.seconds))

    @property
    def noisy_blocks(self) -> int:
        """How many of these were disturbed by others."""
        pairs = zip(self.ours.foreign_cores, self.stock.foreign_cores, strict=False)
        return sum(max(pair) > NOISY_CORES for pair in pairs)

    @property
    def ratio(self) -> Ratio | None:
        """What the blocks say, unless one of the two failed or most blocks are noisy."""
        failed = self.ours.failed or self.stock.failed
        if self.left_out or failed or 2 * self.noisy_blocks > self.blocks:
            return None
        return ratio_of(self.ours.seconds, self.stock.seconds)

    @property
    def explained(self) -> str | None:
        """What bound the load of ours that took the median time."""
        if not self.ours.seconds:
            return None
        return self.ours.explained[self.ours.seconds.index(median_low(self.ours.seconds))]

    def to_dict(self, total: int) -> dict[str, object]:
        """All of it, for JSON; of a checkpoint of so many bytes."""
        ratio = self.ratio
        return {
            "left_out": self.left_out,
            "ours": self.ours.to_dict(total),
            "stock": self.stock.to_dict(total),
            "ratio": None if ratio is None else asdict(ratio),
            "noisy_blocks": self.noisy_blocks,
            "explained": self.explained,
        }


def ratio_of(ours: Sequence[float], stock: Sequence[float]) -> Ratio:
    """The ratio of times that stand in blocks of two, at least one; with its interval."""
    paired = [one / other for one, other in zip(ours, stock, strict=True)]
    if len(paired) < BLOCKS_OF_INTERVAL:
        return Ratio(median(paired))
    return Ratio(median(paired), *median_interval(paired))


class Agreement:
    """What was loaded first, and that all loads after it gave the same."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._first: tuple[str, dict[str, str]] | None = None

    def check(self, loader: str, digests: dict[str, str]) -> None:
        """Compare a load with the first one.

        Raises:
            SafetensorError: They differ; the text names a tensor.
        """
        whose, known = self._first = self._first or (loader, digests)
        if known != digests:
            names = sorted(known.keys() | digests.keys())
            name = next(name for name in names if known.get(name) != digests.get(name))
            text = f"a load by {loader} differs from one by {whose}, first in tensor {name!r}"
            raise SafetensorError(text)


def compare(
    paths: list[str],
    device: str,
    blocks: int,
    timeout_seconds: float,
    tell: Callable[[], object],
) -> dict[str, Row]:
    """Load files again and again, by both packages in turns of random order.

    Args:
        paths: The files.
        device: "cpu" or "cuda:N".
        blocks: How often each package loads them, cold and warm.
        timeout_seconds: The most that a load may take with the start of its process.
        tell: Called after each load.

    Returns:
        What they took, by "cold" and "warm".

    Raises:
        SafetensorError: Two loads gave different tensors.
        MemoryError: The files do not fit into memory.
    """
    _check_memory(sum(Path(path).stat().st_size for path in paths))
    agreement, rows = Agreement(), {}
    for state in STATES:
        cold = state == "cold"
        try:
            set_cache(paths, cold=cold)
        except CacheError as error:
            rows[state] = Row(left_out=str(error))
            continue
        jobs = [Job(loader, device, cold, paths) for loader in LOADERS]
        loads = {loader: Loads() for loader in LOADERS}
        for _ in range(blocks):
            for job in random.sample(jobs, len(jobs)):
                if loads[job.loader].failed is None:
                    _add(loads[job.loader], job, timeout_seconds, agreement)
                tell()
        rows[state] = Row(loads["ours"], loads["stock"])
    return rows


def _check_memory(total: int) -> None:
    facts = _native.machine_facts()
    needed, available = total + facts["ring_bytes"], facts["memory_available_bytes"]
    if needed > available:
        raise MemoryError(
            f"a warm load has all files in the page cache: with {facts['ring_bytes']:,} bytes for "
            f"slots that is {needed:,} bytes, and {available:,} bytes of memory are available"
        )


def _add(loads: Loads, job: Job, timeout_seconds: float, agreement: Agreement) -> None:
    """Take one sample."""
    began, before = time.monotonic(), _foreign_seconds()
    told = _run(job, timeout_seconds)
    foreign = (_foreign_seconds() - before) / (time.monotonic() - began)
    loads.failed = told.get("failed")
    if loads.failed is None:
        agreement.check(job.loader, told["digests"])
        loads.seconds.append(told["seconds"])
        loads.foreign_cores.append(max(0.0, foreign))
        loads.explained.append(told["explained"])


def _run(job: Job, timeout_seconds: float) -> dict[str, Any]:
    """What a fresh process tells of a job: a `Sample`, or `failed`."""
    # Stock shall be stock, and what lies in the current folder no module of anybody.
    variables = {**os.environ, CHILDREN_VARIABLE: "", "PYTHONSAFEPATH": "1"}
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "safetensors_streaming._sample"],
            input=json.dumps(asdict(job)),
            capture_output=True,
            text=True,
            errors="replace",
            env=variables,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"no end within {timeout_seconds:g} s"}
    if ended.returncode == 0:
        told: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
        return told
    code, last_words = ended.returncode, ended.stderr.strip().splitlines()[-1:]
    death = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return {"failed": ": ".join([death, *last_words])}


def _foreign_seconds() -> float:
    """The time that processors worked since boot, but for this process and its finished children.

    What the host of a virtual machine did on them for others is among it.
    """
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text(encoding="ascii").split()[1:9]
    )
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    return (user + nice + system + irq + softirq + steal) / CLOCK_TICKS - own
