"""From samples to figures: medians, confidence intervals, the table and the JSON file."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from rich.table import Table

from bench.cases import CEILINGS

if TYPE_CHECKING:
    from bench.cases import Row

SCHEMA = 2  # 1: the peak of memory covered what came before the timed part, too
RESAMPLES = 10_000
CEILING_MARGIN = 1.1  # a ceiling is a measurement too
NOISY_CORES = 0.25
PACKAGES = (
    "safetensors-streaming-gpu",
    "safetensors",
    "torch",
    "numpy",
    "transformers",
    "diffusers",
    "sentence-transformers",
    "accelerate",
    "peft",
)


class Sample(TypedDict):
    """One sample of one loader: its processes in order, and what the machine did meanwhile."""

    seconds: float
    foreign_cores: float
    processes: list[dict[str, float | str]]


Samples = dict[str, list[Sample]]


@dataclass(frozen=True)
class Spread:
    """Where the samples of one loader lie; a rate only where every byte was read."""

    median: float
    minimum: float
    lower_quartile: float
    upper_quartile: float
    gb_per_second: float | None
    noisy_samples: int


@dataclass(frozen=True)
class Ratio:
    """Time of ours over time of the reference, paired by block; with its 95 % interval."""

    reference: str
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Weights:
    """What the weights took of a library's call by ours, in the median, and what the rest took.

    Attributes:
        seconds: The weights' part.
        rest_seconds: The library's own part.
        gb_per_second: Their rate.
        share: That rate's share of the slowest ceiling; None where none was measured.
    """

    seconds: float
    rest_seconds: float
    gb_per_second: float
    share: float | None


@dataclass(frozen=True)
class Result:
    """What a row came to; ``reached`` is None where there is no target or nothing to compare."""

    row: Row
    file_bytes: int
    loaders: dict[str, Spread]
    ratio: Ratio | None
    reached: bool | None
    impossible: list[str]
    samples: Samples
    weights: Weights | None = None


def evaluate(row: Row, samples: Samples, file_bytes: int, ceilings: dict[str, float]) -> Result:
    """Turns the samples of a row into its result.

    Args:
        row: The row.
        samples: By loader; the n-th of each belong to the same block.
        file_bytes: The size of the row's files.
        ceilings: The measured bounds in bytes per second, by name.

    Returns:
        The result; a loader above the row's ceiling is listed as impossible.
    """
    loaders = {
        name: _spread(taken, file_bytes if row.ceilings else 0) for name, taken in samples.items()
    }
    ratio, weights = _ratio(row, samples), _weights(row, samples, file_bytes, ceilings)
    fastest = {name: file_bytes / spread.minimum for name, spread in loaders.items()}
    bound = min((ceilings[name] for name in row.ceilings if name in ceilings), default=float("inf"))
    bound = max([bound, *(rate for name, rate in fastest.items() if name in CEILINGS)])
    impossible = [name for name, rate in fastest.items() if rate > bound * CEILING_MARGIN]
    reached = None
    if row.target and row.target.weights:
        reached = bool(weights and weights.share and weights.share * row.target.ratio >= 1)
    elif row.target and ratio:
        decisive = ratio.high if row.target.certain else ratio.median
        reached = decisive <= row.target.ratio
    if reached and impossible:
        reached = False
    return Result(row, file_bytes, loaders, ratio, reached, impossible, samples, weights)


def _spread(taken: list[Sample], read_bytes: int) -> Spread:
    seconds = [sample["seconds"] for sample in taken]
    lower, median, upper = np.percentile(seconds, [25, 50, 75]).tolist()
    noisy = sum(sample["foreign_cores"] > NOISY_CORES for sample in taken)
    rate = read_bytes / median / 1e9 if read_bytes else None
    return Spread(median, min(seconds), lower, upper, rate, noisy)


def _ratio(row: Row, samples: Samples) -> Ratio | None:
    seconds = {name: np.array([s["seconds"] for s in taken]) for name, taken in samples.items()}
    others = [name for name in row.others if name in seconds]
    if row.ours not in seconds or not others:
        return None
    reference = min(others, key=lambda name: float(np.median(seconds[name])))
    paired = seconds[row.ours] / seconds[reference]
    draws = np.random.default_rng(0).choice(paired, (RESAMPLES, paired.size))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5]).tolist()
    return Ratio(reference, float(np.median(paired)), low, high)


def _weights(
    row: Row, samples: Samples, file_bytes: int, ceilings: dict[str, float]
) -> Weights | None:
    processes = [one["processes"][-1] for one in samples.get(row.ours, [])]
    parts = [float(one.get("weights_seconds", 0)) for one in processes]
    if not parts or not all(parts):
        return None
    rest = [float(one["seconds"]) - part for one, part in zip(processes, parts, strict=True)]
    rate = file_bytes / float(np.median(parts))
    bound = min((ceilings[name] for name in row.ceilings if name in ceilings), default=None)
    return Weights(
        seconds=float(np.median(parts)),
        rest_seconds=float(np.median(rest)),
        gb_per_second=rate / 1e9,
        share=rate / bound if bound else None,
    )


def environment(folder: Path) -> dict[str, object]:
    """Describes the machine, the file system under ``folder`` and the packages."""
    device = folder.stat().st_dev
    queue = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/queue/read_ahead_kb")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "kernel": platform.release(),
        "cpu": _field(Path("/proc/cpuinfo"), "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
        "file_system": _mount(folder),
        "read_ahead_kb": _text(queue),
        "transparent_huge_pages": _text(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "governor": _text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "python": platform.python_version(),
        "gpu": _gpu(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _gpu() -> str | None:
    """Names the GPU as torch sees it; simulated ones say so."""
    torch = import_module("torch")
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _mount(folder: Path) -> list[str]:
    """Finds device, mount point, type and options of the file system a folder lies on."""
    mounts = [line.split()[:4] for line in (_text(Path("/proc/self/mounts")) or "").splitlines()]
    return max((m for m in mounts if folder.is_relative_to(m[1])), key=lambda m: len(m[1]))


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _field(path: Path, name: str) -> str | None:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def document(
    earlier: list[dict[str, object]],
    results: list[Result],
    ceilings: dict[str, float],
    folder: Path,
) -> dict[str, object]:
    """Gives everything that was measured, every sample included, ready for JSON."""
    return {
        "schema": SCHEMA,
        "environment": environment(folder),
        "ceilings_bytes_per_second": ceilings,
        "rows": earlier + [asdict(result) for result in results],
    }


def table(results: list[Result]) -> Table:
    """Lays out the results for a terminal."""
    grid = Table(
        title="time from call to result: median, quartiles in brackets", title_justify="left"
    )
    apart = any(result.weights for result in results)
    headings = ["row", "what", "ours", *(["weights", "rest"] if apart else []), "against"]
    for heading in (*headings, "ratio, 95 % CI", "target", ""):
        grid.add_column(heading, max_width=34 if heading == "what" else None)
    for result in results:
        row, ratio = result.row, result.ratio
        reference = ratio.reference if ratio else next(n for n in row.others if n in result.loaders)
        grid.add_row(
            row.name,
            row.says,
            _cell(result, row.ours),
            *(_apart(result) if apart else ()),
            f"{reference}: {_cell(result, reference)}",
            f"{ratio.median:.3f} [{ratio.low:.3f}..{ratio.high:.3f}]" if ratio else "-",
            f"<= {row.target.ratio:.3f}\n{row.target.says}" if row.target else "report only",
            _verdict(result),
        )
    return grid


def _cell(result: Result, name: str) -> str:
    spread = result.loaders.get(name)
    if spread is None:
        return "skipped"
    times = f"{spread.median * 1e3:.1f} ms "
    times += f"[{spread.lower_quartile * 1e3:.1f}..{spread.upper_quartile * 1e3:.1f}]"
    rate = f"\n{spread.gb_per_second:.2f} GB/s" if spread.gb_per_second else ""
    noise = f"\n{spread.noisy_samples} noisy" if spread.noisy_samples else ""
    calls = result.samples[name][0]["processes"][0].get("driver_calls")
    asked = f"\n{calls:,} driver calls" if calls else ""
    return times + rate + noise + asked


def _apart(result: Result) -> tuple[str, str]:
    weights = result.weights
    if weights is None:
        return "-", "-"
    rate = f"{weights.gb_per_second:.2f} GB/s"
    share = f"\n{weights.share:.0%} of ceiling" if weights.share else ""
    return f"{weights.seconds * 1e3:.1f} ms\n{rate}{share}", f"{weights.rest_seconds * 1e3:.1f} ms"


def _verdict(result: Result) -> str:
    if result.impossible:
        return f"[red]impossible: {', '.join(result.impossible)}"
    return {None: "", True: "[green]reached", False: "[yellow]not reached"}[result.reached]
