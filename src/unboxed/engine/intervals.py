"""Intervals of a mean over examples and draws, by the bootstrap.

Efron & Tibshirani 1993, "An Introduction to the Bootstrap"; the percentiles are expanded for few examples as Hesterberg
2015, "What Teachers Should Know About the Bootstrap", arXiv:1411.5279, section 4.4, proposes. Examples and draws are
resampled independently of each other (Owen 2007, "The pigeonhole bootstrap", arXiv:0712.1111): both are random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import scipy
import torch
from scipy import special
from torch import Tensor

from .. import rng
from .proportion import CONFIDENCE_LEVEL as CONFIDENCE_LEVEL

GRADING_LEVEL = 0.9  # of intervals that are held to a bound: each side is exceeded with a probability of 5 %
N_BOOTSTRAP_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean with its interval; from -inf to inf where there are too few examples for one, NaN where there are none."""

    mean: float
    low: float
    high: float
    n_examples: int  # that have a value
    n_draws: int
    level: float = GRADING_LEVEL

    def widened_to_assumed_std(self, spread: float) -> Interval:
        """At least as wide as examples with this standard deviation make it: few examples may be alike by chance."""
        if not self.n_examples:
            return self
        half_width = float(special.ndtri((1 + self.level) / 2)) * spread / math.sqrt(self.n_examples)
        low, high = (x if math.isfinite(x) else self.mean for x in (self.low, self.high))
        return replace(self, low=min(low, self.mean - half_width), high=max(high, self.mean + half_width))

    def clamped_to_range(self, lowest: float, highest: float) -> Interval:
        """The part of it in a figure's range; where nothing is known, as it is."""
        known = math.isfinite(self.low) and math.isfinite(self.high)
        return replace(self, low=max(self.low, lowest), high=min(self.high, highest)) if known else self

    def n_examples_needed_to_exclude(self, bound: float) -> float:
        """About how many examples would give an interval that excludes the bound."""
        half_width = max(self.mean - self.low, self.high - self.mean)
        distance = abs(self.mean - bound)
        return math.inf if not distance or math.isinf(half_width) else self.n_examples * (half_width / distance) ** 2


def bootstrap_mean_interval(values: Tensor, seed: int = 0) -> Interval:
    """The mean of values (N, D), one per example and draw, with its 90% interval; without NaN and infinite ones."""
    values = values.detach().double().cpu()
    values = values.masked_fill(~values.isfinite(), math.nan)[values.isfinite().any(1)]
    n, n_draws = values.shape
    if n == 0:
        return Interval(math.nan, -math.inf, math.inf, 0, n_draws)
    mean = float(values.nanmean())
    if n == 1:
        return Interval(mean, -math.inf, math.inf, 1, n_draws)
    known = values.isfinite().double()
    rows, draws = (bootstrap_counts(size, seed, name) for size, name in ((n, "examples"), (n_draws, "draws")))
    sums, counts = (((rows @ h) * draws).sum(1) for h in (values.nan_to_num(), known))
    return percentile_interval(mean, (sums / counts)[counts > 0], n, n_draws, GRADING_LEVEL)


def percentile_interval(mean: float, resampled: Tensor, n: int, n_draws: int, level: float) -> Interval:
    """The interval of a mean from its values (B,) in resamples of n examples, or of the fewest of what is resampled."""
    tail = _tail_probability(n, level)
    low, high = torch.quantile(resampled, torch.tensor([tail, 1 - tail], dtype=resampled.dtype)).tolist()
    return Interval(mean, min(low, mean), max(high, mean), n, n_draws, level)


def proportion_interval(is_true: Tensor, level: float) -> Interval:
    """The share of True in (N,) bool, with Wilson's interval (1927), which has a width for shares of 0 and 1, too."""
    n, count = len(is_true), int(is_true.sum())
    if n == 0:
        return Interval(math.nan, -math.inf, math.inf, 0, 1, level)
    bounds = scipy.stats.binomtest(count, n).proportion_ci(level, "wilson")
    return Interval(count / n, float(bounds.low), float(bounds.high), n, 1, level)


def bootstrap_counts(size: int, seed: int, name: str) -> Tensor:
    """How often each of `size` items is drawn in each resample, (N_BOOTSTRAP_RESAMPLES, size)."""
    generator = rng.keyed_generator(rng.CPU, "bootstrap", name, seed)
    index = torch.randint(size, (N_BOOTSTRAP_RESAMPLES, size), generator=generator)
    ones = torch.ones_like(index, dtype=torch.float64)
    return torch.zeros(N_BOOTSTRAP_RESAMPLES, size, dtype=torch.float64).scatter_add_(1, index, ones)


def _tail_probability(n: int, level: float) -> float:
    """The probability of each tail, smaller for few examples, so that the interval is as wide as Student's t says."""
    return float(special.ndtr(math.sqrt(n / (n - 1)) * special.stdtrit(n - 1, (1 - level) / 2)))
