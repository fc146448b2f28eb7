"""What ``python -m bench null`` measures and concludes: whether the harness can be believed.

Where a loader is compared with itself, an interval should hold 1.0; where the same loader is made
slower by a tenth, it should not. From the ratios recorded where nothing differs, runs are drawn
anew: how many of their intervals hold the median of all?
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from safetensors_streaming._statistics import Interval, median_interval

from bench.cases import Row
from bench.null_loaders import SLOWDOWN
from bench.statistics import TOO_NOISY, paired_ratios

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.records import Document, Record, Recorded

RUNS = 20
#: Of each run; the runs are also looked at as if they had ended after fewer.
BLOCKS = 11
JUDGED_BLOCKS = (7, BLOCKS)
RESAMPLINGS = 1_000
#: The numbers of blocks for which intervals are drawn anew.
COVERED_BLOCKS = (5, 7, 9, 15)
REFERENCE = "stock-read"
_WHO = SAME, SLOWED = "stock-again", "stock-slowed"


def _row(run: int, name: str, ours: str, says: str) -> Row:
    return Row(
        name=f"{name}-{run}",
        says=f"stock against {says}: numpy.load_file + read of every byte, warm, run {run}",
        action="load_and_read",
        ours=ours,
        others=(REFERENCE,),
        files="peft",  # of float32, which NumPy knows
        blocks=BLOCKS,
    )


#: In turns, so that what the machine does meanwhile meets both.
ROWS = tuple(
    row
    for run in range(1, RUNS + 1)
    for row in (
        _row(run, "same", SAME, "itself"),
        _row(run, "slowed", SLOWED, f"itself and {SLOWDOWN:.0%} more"),
    )
)


def coverage(pool: Sequence[float], blocks: int) -> float:
    """Draws runs of so many blocks from recorded ratios: whose intervals hold the pool's median?

    Returns:
        Their share.
    """
    drawn = np.random.default_rng(0).choice(pool, (RESAMPLINGS, blocks))
    median = float(np.median(pool))
    intervals = [median_interval(run) for run in drawn.tolist()]
    return sum(one.low <= median <= one.high for one in intervals) / RESAMPLINGS


def conclusion(document: Document) -> Record | None:
    """What the rows of a whole null test come to; None while some are missing."""
    rows = {recorded.row["name"]: recorded for recorded in document.rows}
    if not {row.name for row in ROWS} <= set(rows):
        return None
    same, slowed = ([_ratios(rows[row.name]) for row in ROWS if row.ours == who] for who in _WHO)
    pool = [ratio for run in same for ratio in run]
    return {
        "runs": RUNS,
        "slowdown": SLOWDOWN,
        "too_noisy": sum(rows[row.name].row["doubt"] == TOO_NOISY for row in ROWS),
        "same_held": {str(blocks): _count(same, blocks, _holds_one) for blocks in JUDGED_BLOCKS},
        "found": {str(blocks): _count(slowed, blocks, _slower) for blocks in JUDGED_BLOCKS},
        "slowed_median": float(np.median([ratio for run in slowed for ratio in run])),
        "coverage": {str(blocks): coverage(pool, blocks) for blocks in COVERED_BLOCKS},
    }


def _ratios(recorded: Recorded) -> list[float]:
    ours = recorded.row["definition"]["ours"]
    return paired_ratios(recorded.samples[ours], recorded.samples[REFERENCE])


def _holds_one(interval: Interval) -> bool:
    return interval.low <= 1 <= interval.high


def _slower(interval: Interval) -> bool:
    return interval.low > 1


def _count(runs: Sequence[list[float]], blocks: int, judge: Callable[[Interval], bool]) -> int:
    """Of how many runs the interval is so, had they had so many blocks."""
    return sum(judge(median_interval(run[:blocks])) for run in runs)


def sentence(record: Record) -> str:
    """The conclusion in words."""
    same, found = (
        " and ".join(f"{count} ({blocks} blocks)" for blocks, count in record[name].items())
        for name in ("same_held", "found")
    )
    covered = ", ".join(
        f"{100 * share:.1f} % ({n} blocks)" for n, share in record["coverage"].items()
    )
    runs, slowdown = record["runs"], 100 * record["slowdown"]
    return (
        f"{runs} runs of the stock loader against itself: the interval holds 1.0 in {same}. "
        f"{runs} runs with {slowdown:.0f} % more time planted: the slowdown is found in {found}; "
        f"the median of all ratios is {record['slowed_median']:.3f}. {record['too_noisy']} of the "
        f"{2 * runs} runs were too noisy and count all the same. {RESAMPLINGS:,} runs drawn anew "
        f"from the ratios without the slowdown: intervals hold the median of all in {covered}."
    )
