"""Takes the samples of a row: each in a fresh process, the loaders in turn."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil  # type: ignore[import-untyped]
from rich.console import Console

from bench import models
from bench.loaders import LOADERS, PEERS, missing
from bench.measure import UNSTEERED, Job, UnsteeredError
from bench.network import serving

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.cases import Row
    from bench.records import Sample, Samples

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = os.environ | {
    "HF_HUB_OFFLINE": "1",
    "PYTHONDONTWRITEBYTECODE": "",  # compiled once here, torch imports in half the time
    "PYTHONPYCACHEPREFIX": str(ROOT / ".cache" / "pyc"),
}
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
LINK_GBPS = "2"
#: For a row on the CPU, as on a machine without a GPU: a library may use one that it finds.
NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "SIMCUDA_DEVICES": "0"}
#: A process that would be slower than this, with a minute besides for imports, is held to hang. It
#: reads its files up to five times: for the page cache, for itself, once more, and for the digests.
SLOWEST_BYTES_PER_SECOND = 10e6
BESIDES_S = 60.0
LAST_WORDS = 2000

say = Console(highlight=False, width=None if sys.stdout.isatty() else 150).print


def busy_seconds() -> float:
    """Tells how long all cores together have worked since boot, for whomever.

    What the host of a virtual machine did on them for others is among it.
    """
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text(encoding="ascii").split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / CLOCK_TICKS


def own_seconds() -> float:
    """Tells how long this process, its finished children and its servers have worked."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    servers = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    finished = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    return finished + sum(float(times.user + times.system) for times in servers)


class FailedError(Exception):
    """A loader could not do its job; the text says which, and its last words."""


def throttle() -> dict[str, str]:
    """Builds what makes a source as slow as the simulated link; gives what preloads it.

    io_uring's reads pass no function that could be replaced, so the reader has to be ``pread``.
    """
    library, source = models.CACHE / "throttle.so", ROOT / "bench" / "throttle.c"
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    subprocess.run(["gcc", *flags, "-o", str(library), str(source)], check=True)  # noqa: S603, S607
    preloaded = [str(library), *os.environ.get("LD_PRELOAD", "").split()]
    return {
        "LD_PRELOAD": " ".join(preloaded),
        "THROTTLE_GBPS": LINK_GBPS,
        "SAFETENSORS_STREAMING_READER": "pread",
    }


def total_bytes(files: Sequence[Path]) -> int:
    """The size of some files."""
    return sum(file.stat().st_size for file in files)


def run(
    job: Job, variables: dict[str, str] | None = None, limit_s: float | None = None
) -> list[dict[str, float | str]]:
    """Carries out one job in a fresh process, with environment variables of its own: its calls.

    Args:
        job: The job.
        variables: Those variables.
        limit_s: How long it may take; by default long enough for the slowest on these files.

    Raises:
        FailedError: If the loader fails, crashes or takes too long.
        UnsteeredError: If the files could not be brought into or out of the page cache.
    """
    if limit_s is None:
        size = total_bytes([Path(path) for path in job.paths])
        limit_s = BESIDES_S + size / SLOWEST_BYTES_PER_SECOND
    folder = LOADERS[job.loader].folder
    known = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    path = os.pathsep.join([str(PEERS / folder), *known] if folder else known)
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "bench.measure", json.dumps(asdict(job))],
            cwd=ROOT,
            env=ENVIRONMENT | {"PYTHONPATH": path} | (variables or {}),
            capture_output=True,
            text=True,
            check=False,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired as late:
        words = (late.stderr or b"").decode(errors="replace")  # bytes, whatever was asked for
        said = f"{job.loader} took more than {limit_s:g} s in {job.action}:\n{words[-LAST_WORDS:]}"
        raise FailedError(said) from None
    if done.returncode == UNSTEERED:
        raise UnsteeredError(done.stderr.splitlines()[-1])
    if done.returncode:
        how = f"exit {done.returncode}"
        if done.returncode < 0:
            how = signal.Signals(-done.returncode).name
        said = f"{job.loader} failed in {job.action} ({how}):\n{done.stderr[-LAST_WORDS:]}"
        raise FailedError(said)
    lines = done.stdout.splitlines()  # a library may say something, too
    return [json.loads(line) for line in lines if line.startswith('{"seconds":')]


def as_loaded(loader: str, files: list[Path]) -> list[Path]:
    """The files that a loader shall load: in a format of its own, it makes them on first use."""
    suffix = LOADERS[loader].suffix
    if suffix is None:
        return files
    own = models.in_format(files, suffix)
    if not own.exists():
        say(f"{loader} makes {own} (once)")
        run(Job(loader, "convert", "left", [str(file) for file in files]))
    return [own]


def sample(row: Row, loader: str, files: list[Path], variables: dict[str, str]) -> list[Sample]:
    """Takes one sample: the row's processes one after the other, and the noise meanwhile.

    Of processes that call twice, a sample of the first and one of the second calls.
    """
    paths = [str(file) for file in as_loaded(loader, files)]
    start, busy, own = time.monotonic(), busy_seconds(), own_seconds()
    how = (row.read, row.rehearse, row.consumer, row.device, row.again is not None)
    processes = [run(Job(loader, row.action, cache, paths, *how), variables) for cache in row.cache]
    foreign = max(0.0, busy_seconds() - busy - own_seconds() + own)
    foreign /= time.monotonic() - start
    return [
        {
            "seconds": sum(float(call[row.counts]) for call in calls),
            "foreign_cores": foreign,
            "processes": list(calls),
        }
        for calls in zip(*processes, strict=True)
    ]


class Taken(NamedTuple):
    """What was measured for a row.

    Attributes:
        samples: By loader; the n-th of each belong to the same block.
        failed: The last words of the loaders that are missing in them, by name.
    """

    samples: Samples
    failed: dict[str, str]


def run_row(row: Row, files: list[Path], blocks: int) -> list[Taken]:
    """Takes the samples of a row in blocks, each loader once per block in random order.

    Returns:
        What was measured for the row, then for that of the second calls if it has such.

    Raises:
        FailedError: If ours fails. Another loader is left out of the row then.
        UnsteeredError: If the files could not be brought into or out of the page cache.
        SystemExit: If two loaders give different answers.
    """
    loaders = [name for name in (row.ours, *row.others) if not missing(name)]
    samples: dict[str, list[list[Sample]]] = {name: [] for name in loaders}
    variables = throttle() if row.throttled else {}
    if row.consumer and row.device == "cpu":
        variables |= NO_GPU
    with serving(row.network, files) as served:
        failed = take_blocks(row, files, blocks, samples, variables | served)
    check_answers(row, samples)
    return [
        Taken({name: [calls[number] for calls in taken] for name, taken in samples.items()}, failed)
        for number in range(1 + (row.again is not None))
    ]


def take_blocks(
    row: Row,
    files: list[Path],
    blocks: int,
    samples: dict[str, list[list[Sample]]],
    variables: dict[str, str],
) -> dict[str, str]:
    """Adds the samples of all blocks; gives the last words of loaders that are left out.

    Raises:
        FailedError: If ours fails.
    """
    failed: dict[str, str] = {}
    order = random.Random(row.name)  # noqa: S311  (a shuffle, reproducible)
    for block in range(blocks):
        say(f"{row.name}: block {block + 1} of {blocks}")
        for name in order.sample(list(samples), len(samples)):
            try:
                samples[name].append(sample(row, name, files, variables))
            except FailedError as failure:  # noqa: PERF203 - beside a process, nothing
                if name == row.ours:
                    raise
                say(f"left out of {row.name}: {failure}", markup=False)
                failed[name] = str(failure)
                del samples[name]
    return failed


def check_answers(row: Row, samples: dict[str, list[list[Sample]]]) -> None:
    """Compares what the loaders of a row gave.

    Raises:
        SystemExit: If two differ.
    """
    answers = {
        process["answer"]: name
        for name, taken in samples.items()
        for calls in taken
        for one in calls
        for process in one["processes"]
        if process["answer"]
    }
    if len(answers) > 1:
        raise SystemExit(f"{row.name}: the answers differ: {answers}")
