"""Intervals: their coverage, that draws count as random too, and what is too little for one."""

from __future__ import annotations

import math

import pytest
import torch

from unboxed.engine.intervals import (
    CONFIDENCE_LEVEL,
    GRADING_LEVEL,
    Interval,
    bootstrap_mean_interval,
    percentile_interval,
    proportion_interval,
)
from unboxed.engine.proportion import Proportion


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "tolerance"), [(8, 0.03), (30, 0.03)])
def test_it_covers_the_mean_as_often_as_it_says(n: int, tolerance: float) -> None:
    trials = 600
    intervals = [bootstrap_mean_interval(h[:, None]) for h in normal(trials, n)]
    covered = sum(i.low <= 0 <= i.high for i in intervals) / trials
    assert abs(covered - GRADING_LEVEL) < tolerance


def test_it_covers_where_draws_differ() -> None:
    """Each draw shifts all examples alike: resampling examples alone would be sure of the wrong mean."""
    trials, n_draws = 300, 8
    shifts = normal(trials, 1, n_draws)
    intervals = [
        bootstrap_mean_interval(s + 0.1 * h) for s, h in zip(shifts, normal(trials, 20, n_draws, seed=1), strict=True)
    ]
    covered = sum(i.low <= 0 <= i.high for i in intervals) / trials
    assert covered > GRADING_LEVEL - 0.12  # of eight draws the bootstrap's own intervals are a little narrow
    alone = [
        bootstrap_mean_interval((s + 0.1 * h).mean(1, keepdim=True))
        for s, h in zip(shifts, normal(trials, 20, n_draws, seed=1), strict=True)
    ]
    assert sum(i.low <= 0 <= i.high for i in alone) / trials < 0.5


@pytest.mark.parametrize("level", [GRADING_LEVEL, CONFIDENCE_LEVEL])
def test_an_interval_has_the_level_that_was_asked_for(level: float) -> None:
    resampled, n = normal(200_000), 10_000
    interval = percentile_interval(0.0, resampled, n, 1, level)
    within = (resampled >= interval.low) & (resampled <= interval.high)
    assert float(within.double().mean()) == pytest.approx(level, abs=1e-3)
    assert interval.level == level


def test_shares_that_are_printed_have_one_level() -> None:
    interval = proportion_interval(torch.arange(50) < 12, CONFIDENCE_LEVEL)
    assert (interval.low, interval.high) == Proportion(12, 50).wilson_interval


def test_nan_and_infinite_values_are_left_out() -> None:
    values = torch.tensor([[1.0, 3.0], [math.nan, 5.0], [math.nan, math.inf]])
    found = bootstrap_mean_interval(values)
    assert found.mean == pytest.approx((1 + 3 + 5) / 3)
    assert (found.n_examples, found.n_draws) == (2, 2)
    assert 1 <= found.low <= found.mean <= found.high <= 5


def test_equal_values_have_no_width() -> None:
    found = bootstrap_mean_interval(torch.ones(8, 2))
    assert (found.low, found.high) == (1, 1)


def test_one_example_has_no_interval_and_none_has_no_mean() -> None:
    assert bootstrap_mean_interval(torch.ones(1, 5)) == Interval(1.0, -math.inf, math.inf, 1, 5)
    found = bootstrap_mean_interval(torch.full((3, 2), math.nan))
    assert math.isnan(found.mean)
    assert found.n_examples == 0


def test_same_seed_same_interval() -> None:
    values = normal(8, 3)
    assert bootstrap_mean_interval(values, 1) == bootstrap_mean_interval(values, 1)
    assert bootstrap_mean_interval(values, 1) != bootstrap_mean_interval(values, 2)


def test_examples_that_would_decide() -> None:
    interval = Interval(0.5, 0.3, 0.7, 8, 1)
    assert interval.n_examples_needed_to_exclude(0.6) == pytest.approx(32)
    assert interval.n_examples_needed_to_exclude(0.5) == math.inf
    assert Interval(0.5, -math.inf, math.inf, 1, 1).n_examples_needed_to_exclude(0.6) == math.inf
