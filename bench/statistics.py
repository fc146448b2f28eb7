"""What samples allow to be said: which are noisy, and where the median of paired ratios lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.records import Sample, Samples

NOISY_CORES = 0.25
#: What is still told as an interval: the range of five values, which holds the median in 93.75 %.
CONFIDENCE_MIN = 0.93
#: What a row is called of whose blocks more than half hold a noisy sample.
TOO_NOISY = "too noisy"


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
