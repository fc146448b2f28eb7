"""Where the median of what a few values were drawn from lies."""

import math
from collections.abc import Sequence
from typing import NamedTuple

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """Where a median lies, and in how many of such intervals it does."""

    low: float
    high: float
    confidence: float


def median_interval(values: Sequence[float]) -> Interval:
    """Tells where the median of what the values were drawn from lies, with 95 % confidence.

    The interval of the sign test reaches from the d-th smallest value to the d-th largest. It holds
    the median with a confidence that depends on nothing but d and the number of values, yet hits
    95 % for hardly any number: of seven, 98.4 % or 87.5 %. Between the two next to 95 % it is
    interpolated as by Hettmansperger and Sheather, "Confidence intervals based on interpolated
    order statistics", Statistics & Probability Letters 4 (1986), 75-79, which comes within a
    percent of 95 % whatever the values' distribution. (The percentile bootstrap of the median of
    seven comes to the second smallest and the second largest: 87.5 %.)

    Args:
        values: At least one. Of fewer than six even the whole range has less than 95 %; it
            is given, with the confidence that it has.
    """
    ordered = sorted(values)
    count = len(ordered)
    if _confidence(count, 1) <= CONFIDENCE:
        return Interval(ordered[0], ordered[-1], max(0.0, _confidence(count, 1)))
    depth = max(d for d in range(1, count // 2 + 1) if _confidence(count, d) >= CONFIDENCE)
    wider, narrower = _confidence(count, depth), _confidence(count, depth + 1)
    share = (wider - CONFIDENCE) / (wider - narrower)
    inwards = (count - depth) * share / (depth + (count - 2 * depth) * share)
    low = ordered[depth - 1] + inwards * (ordered[depth] - ordered[depth - 1])
    high = ordered[-depth] + inwards * (ordered[-depth - 1] - ordered[-depth])
    return Interval(low, high, CONFIDENCE)


def _confidence(count: int, depth: int) -> float:
    """How often the interval from the depth-th value to the depth-th last holds the median."""
    outside: int = sum(math.comb(count, below) for below in range(depth))
    return 1 - outside / (1 << (count - 1))
