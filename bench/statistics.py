"""What samples allow to be said: which are noisy, and where the median of paired ratios lies."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.records import Sample, Samples

NOISY_CORES = 0.25
CONFIDENCE = 0.95
#: What is still told as an interval: the range of five values, which holds the median in 93.75 %.
CONFIDENCE_MIN = 0.93
#: What a row is called of whose blocks more than half hold a noisy sample.
TOO_NOISY = "too noisy"


class Interval(NamedTuple):
    """Where a median lies, and in how many of such intervals it does."""

    low: float
    high: float
    confidence: float


def noisy(sample: Sample) -> bool:
    """Whether others took more than a quarter of a core during a sample."""
    return sample["foreign_cores"] > NOISY_CORES


def too_noisy(samples: Samples) -> bool:
    """Whether more than half of a row's blocks hold a noisy sample, of whichever loader."""
    blocks = list(zip(*samples.values(), strict=True))
    return 2 * sum(any(map(noisy, block)) for block in blocks) > len(blocks)


def paired_ratios(ours: Sequence[Sample], reference: Sequence[Sample]) -> list[float]:
    """The time of ours over the reference's, block by block."""
    return [one["seconds"] / other["seconds"] for one, other in zip(ours, reference, strict=True)]


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
    ordered = np.sort(values)
    count = ordered.size
    if _confidence(count, 1) <= CONFIDENCE:
        return Interval(float(ordered[0]), float(ordered[-1]), max(0.0, _confidence(count, 1)))
    depth = max(d for d in range(1, count // 2 + 1) if _confidence(count, d) >= CONFIDENCE)
    wider, narrower = _confidence(count, depth), _confidence(count, depth + 1)
    share = (wider - CONFIDENCE) / (wider - narrower)
    inwards = (count - depth) * share / (depth + (count - 2 * depth) * share)
    low = ordered[depth - 1] + inwards * (ordered[depth] - ordered[depth - 1])
    high = ordered[-depth] + inwards * (ordered[-depth - 1] - ordered[-depth])
    return Interval(float(low), float(high), CONFIDENCE)


def _confidence(count: int, depth: int) -> float:
    """How often the interval from the depth-th value to the depth-th last holds the median."""
    outside: int = sum(math.comb(count, below) for below in range(depth))
    return 1 - outside / (1 << (count - 1))
