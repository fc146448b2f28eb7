from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors_streaming._statistics import median_interval

from bench import null
from bench.cases import NEVER_SLOWER, Row, Target
from bench.report import TOO_FEW, evaluate
from bench.statistics import TOO_NOISY, too_noisy

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.records import Sample, Samples

stats = pytest.importorskip("scipy.stats")
RUNS = 4_000
DRAWS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "normal": lambda random, shape: random.normal(0, 1, shape),
    "skewed": lambda random, shape: random.lognormal(0, 0.5, shape) - 1,
    "heavy tails": lambda random, shape: random.standard_t(2, shape),
}


def taken(*seconds: float, foreign: float = 0.0) -> list[Sample]:
    return [{"seconds": one, "foreign_cores": foreign, "processes": [{}]} for one in seconds]


@pytest.mark.parametrize("blocks", [6, 7, 8, 9, 15, 30])
def test_the_interval_lies_between_the_exact_ones(blocks: int) -> None:
    values = np.random.default_rng(blocks).normal(1, 0.1, blocks)
    low, high, confidence = median_interval(values.tolist())
    assert confidence == 0.95
    exact = stats.quantile_test(values, q=1, p=0.5).confidence_interval(0.95)
    assert exact.low <= low
    assert high <= exact.high
    ordered = np.sort(values)
    inner = int(np.searchsorted(ordered, exact.low)) + 1
    assert low <= ordered[inner]
    assert high >= ordered[-1 - inner]


def test_the_interval_of_seven_is_interpolated() -> None:
    low, high, _ = median_interval([1, 2, 3, 4, 5, 6, 7])
    between = (0.984375 - 0.95) / (0.984375 - 0.875)
    inwards = 6 * between / (1 + 5 * between)
    assert low == pytest.approx(1 + inwards)
    assert high == pytest.approx(7 - inwards)


@pytest.mark.parametrize(("blocks", "confidence"), [(1, 0.0), (2, 0.5), (4, 0.875), (5, 0.9375)])
def test_of_few_the_range_and_what_it_is_worth(blocks: int, confidence: float) -> None:
    values = [float(value) for value in range(blocks)]
    assert median_interval(values) == (0, blocks - 1, confidence)


@pytest.mark.parametrize("blocks", [5, 6, 7, 9, 15])
@pytest.mark.parametrize("name", DRAWS)
def test_intervals_hold_the_median_as_often_as_they_say(name: str, blocks: int) -> None:
    runs = DRAWS[name](np.random.default_rng(1), (RUNS, blocks))
    intervals = [median_interval(run) for run in runs.tolist()]
    assert 0.93 < sum(one.low <= 0 <= one.high for one in intervals) / RUNS < 0.97


def test_a_percentile_bootstrap_of_seven_does_not() -> None:
    runs = DRAWS["normal"](np.random.default_rng(1), (1_000, 7))
    bootstrap = stats.bootstrap(
        (runs,), np.median, axis=-1, n_resamples=999, method="percentile", rng=0
    )
    low, high = bootstrap.confidence_interval
    assert np.mean((low <= 0) & (high >= 0)) < 0.93


@pytest.mark.parametrize(("noisy_blocks", "blocks"), [(0, 5), (2, 5), (3, 5), (2, 4), (3, 4)])
def test_more_than_half_of_the_blocks_make_a_row_too_noisy(noisy_blocks: int, blocks: int) -> None:
    quiet = taken(*[1.0] * blocks)
    some = taken(*[1.0] * noisy_blocks, foreign=0.3) + quiet[noisy_blocks:]
    assert too_noisy({"ours": quiet, "stock": some}) is (2 * noisy_blocks > blocks)


def test_noise_of_different_loaders_in_one_block_counts_once() -> None:
    some = taken(1.0, foreign=0.3) + taken(1.0, 1.0)
    assert not too_noisy({"ours": some, "stock": some})


def row(target: Target | None) -> Row:
    return Row(name="a", says="a", action="load", target=target)


def samples(count: int, foreign: float = 0.0) -> Samples:
    return {"ours": taken(*[1.0] * count, foreign=foreign), "stock": taken(*[2.0] * count)}


@pytest.mark.parametrize("target", [NEVER_SLOWER, Target(0.6, "faster"), None])
@pytest.mark.parametrize(
    ("count", "foreign", "doubt"),
    [(7, 0.0, None), (5, 0.0, None), (4, 0.0, TOO_FEW), (7, 0.3, TOO_NOISY)],
)
def test_in_doubt_a_target_is_neither_reached_nor_missed(
    target: Target | None, count: int, foreign: float, doubt: str | None
) -> None:
    if doubt == TOO_FEW and target is not NEVER_SLOWER:
        doubt = None  # the median decides
    result = evaluate(row(target), samples(count, foreign), 10, {})
    assert result.doubt == doubt
    assert result.reached is (None if doubt or target is None else True)
    assert result.ratio is not None
    assert result.ratio.median == 0.5


def test_intervals_of_runs_drawn_from_a_pool_hold_its_median() -> None:
    pool = np.random.default_rng(2).lognormal(0, 0.1, 140).tolist()
    for blocks in null.COVERED_BLOCKS:
        assert 0.92 < null.coverage(pool, blocks) < 0.98
