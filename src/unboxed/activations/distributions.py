"""Running moments and histograms of all units at once; they do not depend on how the data are split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..engine.cpu_cache import cpu_rows_per_chunk

MAX_BIN_RESOLUTION_BITS = 20  # bins of a histogram are at least 2^-20 of the largest magnitude
VALUES_PER_CPU_CACHE_CHUNK = 2**19  # of a chunk that a CPU's cache holds
# A smaller ratio of variance to squared mean is not computed by their difference
MIN_ONE_PASS_VARIANCE_TO_SQUARED_MEAN = 1e-3
MIN_BIN_WIDTH_EXPONENT = -100  # of the width of a bin, as a power of 2


@dataclass(frozen=True, eq=False)
class PerExampleUnitMoments:
    """Moments of one batch per example and unit, each (n, C), over the unit's positions."""

    mean: Tensor
    maximum: Tensor
    minimum: Tensor
    squared_deviations: Tensor  # the sum of squared differences from the mean
    n_positions: int

    @classmethod
    def from_values(cls, h: Tensor) -> PerExampleUnitMoments:  # (n, C, P)
        """On a CPU in chunks that fit its cache: each is read several times."""
        chunks = torch.split(h, cpu_rows_per_chunk(h, VALUES_PER_CPU_CACHE_CHUNK))
        parts = [(p.mean(2), p.amax(2), p.amin(2), _l2_norm_over_positions(p)) for p in chunks]
        mean, maximum, minimum, l2_norm = (
            parts[0] if len(parts) == 1 else (torch.cat(f) for f in zip(*parts, strict=True))
        )
        return cls(mean, maximum, minimum, _squared_deviations(h, mean, l2_norm), h.shape[2])

    @classmethod
    def concat(cls, parts: Sequence[PerExampleUnitMoments]) -> PerExampleUnitMoments:
        names = ("mean", "maximum", "minimum", "squared_deviations")
        mean, maximum, minimum, squared_deviations = (
            torch.cat([getattr(rows, name) for rows in parts]) for name in names
        )
        return cls(mean, maximum, minimum, squared_deviations, parts[0].n_positions)

    @property
    def is_finite(self) -> Tensor:
        """(n, C) bool: no value is NaN or infinite."""
        return self.minimum.isfinite() & self.maximum.isfinite()


def _l2_norm_over_positions(h: Tensor) -> Tensor:  # (n, C)
    norm: Tensor = torch.linalg.vector_norm(h, dim=2)
    return norm


def _squared_deviations(h: Tensor, mean: Tensor, l2_norm: Tensor) -> Tensor:
    """sum (h - mean)^2 of each row and unit, (n, C)."""
    if h.device.type != "cpu":
        return _l2_norm_over_positions(h - mean[..., None]).square()
    mean_part = h.shape[2] * mean.square()
    deviations = l2_norm.square() - mean_part  # one pass less, but inaccurate where the mean is large
    cancelled_units = (deviations < MIN_ONE_PASS_VARIANCE_TO_SQUARED_MEAN * mean_part).any(0).nonzero()[:, 0]
    if len(cancelled_units):
        deviations[:, cancelled_units] = _l2_norm_over_positions(
            h[:, cancelled_units] - mean[:, cancelled_units, None]
        ).square()
    return deviations


@dataclass(frozen=True, eq=False)
class RunningUnitMoments:
    """Moments of all values so far, each (C,): Chan, Golub & LeVeque 1979, "Updating Formulae", equation 2.1."""

    n_examples: Tensor  # examples without NaN or infinite values
    mean: Tensor
    squared_deviations: Tensor
    maximum: Tensor
    minimum: Tensor
    n_active: Tensor  # examples in which it is above zero somewhere
    n_positions: int

    @classmethod
    def empty(cls, n_units: int, n_positions: int, like: Tensor) -> RunningUnitMoments:
        zeros = torch.zeros(n_units, dtype=accumulator_dtype(like), device=like.device)
        return cls(zeros, zeros, zeros, zeros - torch.inf, zeros + torch.inf, zeros, n_positions)

    def update(self, batch: PerExampleUnitMoments) -> RunningUnitMoments:
        is_finite = batch.is_finite
        n = is_finite.sum(0).to(self.n_examples)
        mean = _sum_where_true(batch.mean, is_finite) / n.clamp_min(1)  # (C,) of this batch
        mean_deviations = torch.where(is_finite, batch.mean.to(mean) - mean, 0).square().sum(0)
        squared_deviations = _sum_where_true(batch.squared_deviations, is_finite) + batch.n_positions * mean_deviations
        total_n = self.n_examples + n
        mean_shift, weight = mean - self.mean, n / total_n.clamp_min(1)
        return RunningUnitMoments(
            total_n,
            self.mean + mean_shift * weight,
            self.squared_deviations
            + squared_deviations
            + batch.n_positions * mean_shift.square() * self.n_examples * weight,
            torch.maximum(self.maximum, _fill_where_false(batch.maximum, is_finite, -torch.inf).amax(0)),
            torch.minimum(self.minimum, _fill_where_false(batch.minimum, is_finite, torch.inf).amin(0)),
            self.n_active + (is_finite & (batch.maximum > 0)).sum(0),
            self.n_positions,
        )

    @property
    def std(self) -> Tensor:
        return (self.squared_deviations / (self.n_examples * self.n_positions).clamp_min(1)).sqrt()


def accumulator_dtype(like: Tensor) -> torch.dtype:
    """The dtype of sums: double precision, where the device has it."""
    return torch.float32 if like.device.type == "mps" else torch.float64


def _sum_where_true(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0).sum(0, dtype=accumulator_dtype(values))


def _fill_where_false(values: Tensor, mask: Tensor, fill_value: float) -> Tensor:
    return torch.where(mask, values, fill_value).to(accumulator_dtype(values))


@dataclass(frozen=True, eq=False)
class UnitHistograms:
    """Counts (C, B) in bins of width 2^exponent, of which the first begins at `first_bin` widths.

    The width is the smallest for which B bins hold all values: when values exceed them, pairs of bins are merged. The
    final bins depend on the smallest and the largest value alone, in whatever order values come.
    """

    counts: Tensor
    exponent: Tensor  # (C,)
    first_bin: Tensor  # (C,)
    minimum: Tensor  # (C,)
    maximum: Tensor  # (C,)

    @classmethod
    def empty(cls, n_units: int, n_bins: int, like: Tensor) -> UnitHistograms:
        counts = torch.zeros(n_units, n_bins, dtype=torch.long, device=like.device)
        infinity = torch.full((n_units,), torch.inf, dtype=accumulator_dtype(like), device=like.device)
        return cls(counts, torch.full_like(counts[:, 0], MIN_BIN_WIDTH_EXPONENT), counts[:, 0], infinity, -infinity)

    def update(self, values: Tensor, mask: Tensor) -> UnitHistograms:  # (C, M) values, and which of them count
        extended = self._extend_range(
            _fill_where_false(values, mask, torch.inf).amin(1), _fill_where_false(values, mask, -torch.inf).amax(1)
        )
        scaled = (values * power_of_2(-extended.exponent[:, None])).floor()
        bin_index = torch.where(mask, scaled.long() - extended.first_bin[:, None], 0).clamp(0, self.counts.shape[1] - 1)
        return replace(extended, counts=extended.counts.scatter_add(1, bin_index, mask.long()))

    def _extend_range(self, minimum: Tensor, maximum: Tensor) -> UnitHistograms:
        """The same counts, in bins that hold these values, too."""
        if minimum.device.type == "cpu" and self._bins_cover_values(minimum, maximum):
            return replace(
                self, minimum=torch.minimum(self.minimum, minimum), maximum=torch.maximum(self.maximum, maximum)
            )
        minimum, maximum = torch.minimum(self.minimum, minimum), torch.maximum(self.maximum, maximum)
        is_empty = minimum > maximum
        exponent = _smallest_covering_bin_exponent(
            minimum.masked_fill(is_empty, 0), maximum.masked_fill(is_empty, 0), self.counts.shape[1]
        )
        first_bin = (minimum.masked_fill(is_empty, 0) * power_of_2(-exponent)).floor().long()
        shift = (exponent - self.exponent).clamp(0, 62)  # by 62 already, every index is 0 or -1
        bins = torch.arange(self.counts.shape[1], device=minimum.device)
        bin_index = ((self.first_bin[:, None] + bins) >> shift[:, None]) - first_bin[:, None]
        counts = torch.zeros_like(self.counts).scatter_add(1, bin_index.clamp(0, len(bins) - 1), self.counts)
        return UnitHistograms(counts, exponent, first_bin, minimum, maximum)

    def _bins_cover_values(self, minimum: Tensor, maximum: Tensor) -> bool:
        """Whether the bins hold all these values."""
        bins_per_unit = power_of_2(-self.exponent)
        ends_fit = (
            (minimum * bins_per_unit).floor() >= self.first_bin,
            (maximum * bins_per_unit).floor() < self.first_bin + self.counts.shape[1],
        )
        is_fine_enough = self.exponent >= _min_bin_exponent(minimum, maximum)
        return bool((ends_fit[0] & ends_fit[1] & is_fine_enough & (self.minimum <= self.maximum)).all())

    @property
    def edges(self) -> Tensor:  # (C, B + 1)
        steps = torch.arange(self.counts.shape[1] + 1, device=self.counts.device)
        return (self.first_bin[:, None] + steps).to(self.minimum) * power_of_2(self.exponent[:, None])


def _smallest_covering_bin_exponent(minimum: Tensor, maximum: Tensor, n_bins: int) -> Tensor:
    """The smallest exponent (C,) with which `n_bins` bins hold both ends."""
    exponent = torch.maximum(_floor_log2((maximum - minimum) / n_bins) - 1, _min_bin_exponent(minimum, maximum))
    for _ in range(3):  # at most: with bins of twice (maximum - minimum) / n_bins, half of them hold the range
        bins_per_unit = power_of_2(-exponent)
        bins_spanned = (maximum * bins_per_unit).floor() - (minimum * bins_per_unit).floor()
        exponent = exponent + (bins_spanned >= n_bins).long()
    return exponent


def _min_bin_exponent(minimum: Tensor, maximum: Tensor) -> Tensor:
    """The smallest exponent (C,) that is used for values of this magnitude."""
    return (_floor_log2(torch.maximum(minimum.abs(), maximum.abs())) - MAX_BIN_RESOLUTION_BITS).clamp_min(
        MIN_BIN_WIDTH_EXPONENT
    )


def power_of_2(exponent: Tensor) -> Tensor:
    """2^exponent by its bits, exactly, for -126 to 127: torch.ldexp and exp2 may round, and bins would not nest."""
    return (exponent.clamp(-126, 127) + 127 << 23).int().view(torch.float32)


def _floor_log2(values: Tensor) -> Tensor:
    """floor(log2 v), exactly; very small where v is 0."""
    mantissa, exponent = torch.frexp(values)
    return torch.where(mantissa > 0, exponent - 1, 2 * MIN_BIN_WIDTH_EXPONENT).long()
