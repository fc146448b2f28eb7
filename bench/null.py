"""What ``python -m bench null`` measures and concludes: whether the harness can be believed.

Where a loader is compared with itself, an interval should hold 1.0; where the same loader is made
slower by a tenth, it should not. From the ratios recorded where nothing differs, runs are drawn
anew: how many of their intervals hold the median of all?
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bench.cases import Row
from bench.null_loaders import SLOWDOWN
from bench.statistics import TOO_NOISY, median_interval, paired_ratios

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.records import Document, Record, Recorded

RUNS = 20
BLOCKS = 11  # where a ratio strays by 7 %, these find a slowdown of 10 % nine times of ten
RESAMPLINGS = 1_000
#: The numbers of blocks for which intervals are drawn anew.
COVERED_BLOCKS = (5, 7, 9, 15)
SAME, SLOWED = "stock-again", "stock-slowed"


def _row(run: int, name: str, ours: str, says: str) -> Row:
    return Row(
        name=f"{name}-{run}",
        says=f"stock against {says}: numpy.load_file + read of every byte, warm, run {run}",
        action="load_and_read",
        ours=ours,
        others=("stock-read",),
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
    same, slowed = ([rows[row.name] for row in ROWS if row.ours == who] for who in (SAME, SLOWED))
    pool = [ratio for row in same for ratio in _ratios(row, SAME)]
    return {
        "runs": RUNS,
        "blocks": sorted({row.blocks for row in (*same, *slowed)}),
        "slowdown": SLOWDOWN,
        "too_noisy": sum(row.row["doubt"] == TOO_NOISY for row in (*same, *slowed)),
        "same_held": sum(row.row["ratio"]["low"] <= 1 <= row.row["ratio"]["high"] for row in same),
        "slowdown_found": sum(row.row["ratio"]["low"] > 1 for row in slowed),
        "slowdown_median": float(np.median([r for row in slowed for r in _ratios(row, SLOWED)])),
        "coverage": {str(blocks): coverage(pool, blocks) for blocks in COVERED_BLOCKS},
    }


def _ratios(recorded: Recorded, ours: str) -> list[float]:
    return paired_ratios(recorded.samples[ours], recorded.samples["stock-read"])


def sentence(record: Record) -> str:
    """The conclusion in words."""
    blocks = " or ".join(map(str, record["blocks"]))
    covered = ", ".join(f"{share:.1%} for {n}" for n, share in record["coverage"].items())
    noise = f" {record['too_noisy']} of these runs were too noisy." if record["too_noisy"] else ""
    return (
        f"The stock loader against itself, {record['runs']} runs of {blocks} blocks: the interval "
        f"held 1.0 in {record['same_held']}. With a slowdown of {record['slowdown']:.0%} planted "
        f"in it: found in {record['slowdown_found']} of {record['runs']} (median of all ratios "
        f"{record['slowdown_median']:.3f}).{noise} Of {RESAMPLINGS:,} runs drawn anew from the "
        f"ratios without it, the intervals held the median of all: {covered} blocks."
    )
