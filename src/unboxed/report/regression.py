"""How far off numbers are: errors beside a baseline, bias by range of the true value, and groups with larger errors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from scipy import special
from torch import Tensor

from .. import rng
from .finding import METADATA_OF_FIELD_NOT_IN_JSON

SIGNIFICANCE_LEVEL = 0.05  # of all intervals of one table together
N_RANGES, MIN_EXAMPLES_PER_RANGE = 5, 10  # of the true value
N_COLUMN_BINS, MIN_EXAMPLES_PER_GROUP, MIN_EXAMPLES_FOR_GROUPS = 5, 15, 100  # of one half of the examples: see below
MAX_TESTED_GROUPS = 3  # each the best of its column; more make each test stricter


@dataclass(frozen=True)
class ErrorRange:
    """The errors of the examples whose value is from `low` to `high`; of all ranges the intervals hold together."""

    low: float
    high: float
    n_examples: int
    mean_error: float  # predicted minus true
    interval: tuple[float, float]

    @property
    def sign(self) -> int:
        """1 where predictions are too high on average, -1 where too low, 0 where neither is certain."""
        return int(self.interval[0] > 0) - int(self.interval[1] < 0)


@dataclass(frozen=True, eq=False)
class RegressionOutputErrors:
    """The errors of one output of a regression."""

    name: str
    mae: float  # mean absolute error
    rmse: float  # root of the mean squared error
    r2: float  # coefficient of determination: 1 is exact, 0 as good as always predicting the mean; NaN of a constant
    median: float  # of the true values: the best constant prediction
    median_mae: float  # the mean absolute error of always predicting it
    by_true_value: list[ErrorRange]
    by_prediction: list[ErrorRange]
    predicted: Tensor = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # (n,)
    true: Tensor = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # (n,)


@dataclass(frozen=True)
class ErrorGroup:
    """Rows whose column is from `low` to `high`, and their errors on examples that they were not found with."""

    column: str
    low: float  # -inf where it is open
    high: float  # inf where it is open
    n_examples: int
    mean_error: float  # predicted minus true; NaN of several outputs
    mean_absolute_error: float
    others_absolute_error: float
    interval: tuple[float, float]  # of the difference of the two; of all groups tested the intervals hold together


def output_errors(predicted: Tensor, true: Tensor, names: Sequence[str]) -> list[RegressionOutputErrors]:
    """The errors of each output, given (n, K) and (n, K)."""
    return [_errors_of_output(name, predicted[:, k], true[:, k]) for k, name in enumerate(names)]


def _errors_of_output(name: str, predicted: Tensor, true: Tensor) -> RegressionOutputErrors:
    error, spread, median = predicted - true, float((true - true.mean()).square().mean()), true.quantile(0.5)
    squared = float(error.square().mean())
    return RegressionOutputErrors(
        name,
        float(error.abs().mean()),
        math.sqrt(squared),
        1 - squared / spread if spread > 0 else math.nan,
        float(median),
        float((true - median).abs().mean()),
        errors_by_range(true, error),
        errors_by_range(predicted, error),
        predicted,
        true,
    )


# -- bias --------------------------------------------------------------------------------------------------------------


def errors_by_range(values: Tensor, error: Tensor) -> list[ErrorRange]:
    """The errors (n,) in ranges of the values (n,), about as many examples in each; none of too few examples.

    Equal values are in one range. The intervals are Student's, with Bonferroni's correction over the ranges.
    """
    n_ranges = min(N_RANGES, len(values) // MIN_EXAMPLES_PER_RANGE)
    if n_ranges < 2:
        return []
    index = _bin_indices(values, n_ranges)
    members = [(index == i).nonzero().flatten() for i in torch.unique(index).tolist()]
    return [_error_range(values[m], error[m], len(members)) for m in members] if len(members) > 1 else []


def _bin_indices(values: Tensor, n_bins: int) -> Tensor:
    """The bin (n,) of each value, about as many in each; equal values are in one."""
    ordered = values.sort().values
    cuts = torch.unique(ordered[[i * len(values) // n_bins for i in range(1, n_bins)]])
    return torch.searchsorted(cuts, values.contiguous(), right=True)


def _error_range(values: Tensor, error: Tensor, n_ranges: int) -> ErrorRange:
    n, mean = len(error), float(error.mean())
    half_width = math.inf
    if n > 1:
        t = float(special.stdtrit(n - 1, 1 - SIGNIFICANCE_LEVEL / n_ranges / 2))
        half_width = t * float(error.std()) / math.sqrt(n)
    return ErrorRange(float(values.min()), float(values.max()), n, mean, (mean - half_width, mean + half_width))


def biased_ranges(ranges: Sequence[ErrorRange]) -> list[list[ErrorRange]]:
    """Neighboring ranges of which all predictions are too high, or too low, on average."""
    runs = list[list[ErrorRange]]()
    for i, r in enumerate(ranges):
        if r.sign and i and ranges[i - 1].sign == r.sign:
            runs[-1].append(r)
        elif r.sign:
            runs.append([r])
    return runs


# -- groups ------------------------------------------------------------------------------------------------------------


class _RangeOfColumn(NamedTuple):
    """A range of one column, and by how many standard errors its rows are further off than the others."""

    statistic: float
    column: int
    low: float
    high: float


def error_groups(
    columns: Tensor, names: Sequence[str], error: Tensor, absolute_error: Tensor, seed: int
) -> list[ErrorGroup]:
    """Ranges of a column of (n, F) whose rows are further off than the others, the largest difference first.

    They are found on one half of the examples and tested on the other: of each column the range that stands out most,
    of these the first three. Welch's interval of the difference, with Bonferroni's correction over those tested.
    """
    if len(error) < MIN_EXAMPLES_FOR_GROUPS:
        return []
    order = torch.randperm(len(error), generator=rng.keyed_generator(rng.CPU, "error groups", seed))
    search, held_out = order[: len(order) // 2], order[len(order) // 2 :]
    ranges = [_range_that_stands_out(columns[search, k], absolute_error[search], k) for k in range(len(names))]
    tested = sorted((r for r in ranges if r.statistic > 0), key=lambda r: -r.statistic)[:MAX_TESTED_GROUPS]
    held = columns[held_out], error[held_out], absolute_error[held_out]
    groups = [_group_on_held_out(r, names[r.column], *held, len(tested)) for r in tested]
    found = (group for group in groups if group.interval[0] > 0)
    return sorted(found, key=lambda g: g.others_absolute_error - g.mean_absolute_error)


def _range_that_stands_out(values: Tensor, absolute_error: Tensor, column: int) -> _RangeOfColumn:
    """Of all ranges of neighboring bins, of few values each by itself, the one with the largest Welch statistic.

    It has half of the rows at most: one of more would say that the others are less far off.
    """
    distinct = torch.unique(values)
    is_discrete = len(distinct) <= N_COLUMN_BINS
    index = torch.searchsorted(distinct, values.contiguous()) if is_discrete else _bin_indices(values, N_COLUMN_BINS)
    best, last = _RangeOfColumn(0.0, column, -math.inf, math.inf), int(index.max())
    for first, final in itertools.combinations_with_replacement(range(last + 1), 2):
        is_member = (index >= first) & (index <= final)
        n = int(is_member.sum())
        if (is_discrete and first != final) or not MIN_EXAMPLES_PER_GROUP <= n <= len(values) // 2:
            continue
        difference, error, _ = _welch(absolute_error[is_member], absolute_error[~is_member])
        if error > 0 and difference / error > best.statistic:
            low, high = (float(end) for end in values[is_member].aminmax())
            low, high = low if is_discrete or first else -math.inf, high if is_discrete or final < last else math.inf
            best = _RangeOfColumn(difference / error, column, low, high)
    return best


def _group_on_held_out(
    r: _RangeOfColumn, name: str, columns: Tensor, error: Tensor, absolute_error: Tensor, n_tested: int
) -> ErrorGroup:
    is_member = (columns[:, r.column] >= r.low) & (columns[:, r.column] <= r.high)
    inside, outside = absolute_error[is_member], absolute_error[~is_member]
    means = float(error[is_member].mean()), float(inside.mean()), float(outside.mean())
    interval = (-math.inf, math.inf)
    if min(len(inside), len(outside)) > 1:
        difference, standard_error, degrees = _welch(inside, outside)
        half_width = float(special.stdtrit(degrees, 1 - SIGNIFICANCE_LEVEL / n_tested / 2)) * standard_error
        interval = (difference - half_width, difference + half_width)
    return ErrorGroup(name, r.low, r.high, len(inside), *means, interval)


def _welch(a: Tensor, b: Tensor) -> tuple[float, float, float]:
    """The difference of the means of (n,) and (m,), its standard error, and its degrees of freedom (Welch 1947)."""
    va, vb = float(a.var()) / len(a), float(b.var()) / len(b)
    degrees = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1)) if va + vb > 0 else 1.0
    return float(a.mean() - b.mean()), math.sqrt(va + vb), degrees
