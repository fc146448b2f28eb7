"""From samples to figures: medians, ratios, verdicts, and the table on a terminal."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table
from safetensors_streaming._statistics import median_interval

from bench import wording
from bench.cases import CEILINGS
from bench.records import Record, Sample, Samples, sample_records
from bench.statistics import (
    CONFIDENCE_MIN,
    TOO_NOISY,
    noisy,
    paired_ratios,
    too_noisy,
)

if TYPE_CHECKING:
    from bench.cases import Row

CEILING_MARGIN = 1.1  # a ceiling is a measurement too
TOO_FEW = "too few blocks"


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
    """Time of ours over time of the reference, paired by block; with the interval of its median.

    Attributes:
        reference: The loader compared with.
        median: Of the blocks' ratios.
        low: Where the interval begins.
        high: Where it ends.
        confidence: How often such intervals hold the median; 0.95, or less for few blocks.
    """

    reference: str
    median: float
    low: float
    high: float
    confidence: float


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
    """What a row came to.

    Attributes:
        row: The row.
        file_bytes: The size of its files.
        loaders: Where the samples of each loader lie.
        ratio: Ours against the fastest of the others, or the slowest where they are bounds; None
            where there is nothing to compare.
        reached: None where there is no target, nothing to compare, or a doubt.
        doubt: Why nothing is said: too much noise, or too few blocks for the target.
        impossible: The loaders above the row's ceiling.
        samples: All of them.
        weights: The parts of a library's call.
        failed: The last words of the loaders that are missing in the samples, by name.
    """

    row: Row
    file_bytes: int
    loaders: dict[str, Spread]
    ratio: Ratio | None
    reached: bool | None
    doubt: str | None
    impossible: list[str]
    samples: Samples
    weights: Weights | None = None
    failed: dict[str, str] = field(default_factory=dict)


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
    reached_by_others = [rate for name, rate in fastest.items() if name in CEILINGS]
    bound = min([bound, *reached_by_others]) if row.bounds else max([bound, *reached_by_others])
    judged = {row.ours} if row.bounds else fastest.keys()
    impossible = [name for name in judged if fastest.get(name, 0) > bound * CEILING_MARGIN]
    doubt = _doubt(row, samples, ratio)
    reached = None if doubt else _reached(row, ratio, weights)
    if reached and impossible:
        reached = False
    return Result(row, file_bytes, loaders, ratio, reached, doubt, impossible, samples, weights)


def _doubt(row: Row, samples: Samples, ratio: Ratio | None) -> str | None:
    if too_noisy(samples):
        return TOO_NOISY
    if ratio and ratio.confidence < CONFIDENCE_MIN and row.target and row.target.certain:
        return TOO_FEW
    return None


def _reached(row: Row, ratio: Ratio | None, weights: Weights | None) -> bool | None:
    if row.target and row.target.weights:
        return bool(weights and weights.share and weights.share * row.target.ratio >= 1)
    if row.target and ratio:
        decisive = ratio.high if row.target.certain else ratio.median
        return decisive <= row.target.ratio
    return None


def _spread(taken: list[Sample], read_bytes: int) -> Spread:
    seconds = [sample["seconds"] for sample in taken]
    lower, median, upper = np.percentile(seconds, [25, 50, 75]).tolist()
    rate = read_bytes / median / 1e9 if read_bytes else None
    return Spread(median, min(seconds), lower, upper, rate, sum(map(noisy, taken)))


def _ratio(row: Row, samples: Samples) -> Ratio | None:
    medians = {
        name: float(np.median([sample["seconds"] for sample in taken]))
        for name, taken in samples.items()
    }
    others = [name for name in row.others if name in medians]
    lacking = row.bounds and len(others) < len(row.others)  # one of them might be the slower
    if row.ours not in medians or not others or lacking:
        return None
    decides = max if row.bounds else min
    reference = decides(others, key=medians.__getitem__)
    ratios = paired_ratios(samples[row.ours], samples[reference])
    return Ratio(reference, float(np.median(ratios)), *median_interval(ratios))


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


def lines(result: Result) -> list[Record]:
    """The lines of a result in a result file: the samples, then the row, which makes them count."""
    figures = asdict(result)
    definition = figures.pop("row")
    del figures["samples"]
    row = {"kind": "row", "name": result.row.name, "definition": definition, **figures}
    return [*sample_records(result.row.name, result.samples), row]


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
        told = wording.ratio_of_times(
            asdict(ratio) if ratio else None, result.doubt, len(result.samples[row.ours])
        )
        reference = ratio.reference if ratio else next(n for n in row.others if n in result.loaders)
        grid.add_row(
            row.name,
            row.says,
            _cell(result, row.ours),
            *(_apart(result) if apart else ()),
            f"{reference}: {_cell(result, reference)}",
            told,
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
    doubt = result.doubt if result.row.target else ""
    return {None: doubt or "", True: "[green]reached", False: "[yellow]missed"}[result.reached]
