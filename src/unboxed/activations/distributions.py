"""Running moments and histograms of every unit at once: they come out the same however the data were split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

FINE = 20  # a histogram's bins are no narrower than 2^-20 of the largest magnitude
CACHED = 2**19  # values
CANCELS = 1e-3  # a variance below this share of the squared mean is not computed by their difference
TINIEST = -100  # nor than 2^-100


@dataclass(frozen=True, eq=False)
class Rows:
    """One batch, example by example and unit by unit, each (n, C), over the unit's positions."""

    mean: Tensor
    high: Tensor
    low: Tensor
    scatter: Tensor  # the sum of squared differences from the mean
    positions: int

    @classmethod
    def of(cls, h: Tensor) -> Rows:  # (n, C, P)
        """In parts that stay in a processor's cache: each is gone through several times."""
        n = max(1, CACHED // max(1, h[0].numel())) if h.device.type == "cpu" else len(h)
        parts = [(p.mean(2), p.amax(2), p.amin(2), _length(p)) for p in torch.split(h, n)]
        mean, high, low, length = parts[0] if len(parts) == 1 else (torch.cat(f) for f in zip(*parts, strict=True))
        return cls(mean, high, low, _scatter(h, mean, length), h.shape[2])

    @classmethod
    def joined(cls, some: Sequence[Rows]) -> Rows:
        names = ("mean", "high", "low", "scatter")
        mean, high, low, scatter = (torch.cat([getattr(rows, name) for rows in some]) for name in names)
        return cls(mean, high, low, scatter, some[0].positions)

    @property
    def known(self) -> Tensor:
        """Where no value is NaN or infinite, (n, C)."""
        return self.low.isfinite() & self.high.isfinite()


def _length(h: Tensor) -> Tensor:  # (n, C)
    length: Tensor = torch.linalg.vector_norm(h, dim=2)
    return length


def _scatter(h: Tensor, mean: Tensor, length: Tensor) -> Tensor:
    """sum (h - mean)^2 of each row and unit, (n, C)."""
    if h.device.type != "cpu":
        return _length(h - mean[..., None]).square()
    off = h.shape[2] * mean.square()
    scatter = length.square() - off  # one pass less; a few digits are lost where the mean is large
    lost = (scatter < CANCELS * off).any(0).nonzero()[:, 0]
    if len(lost):
        scatter[:, lost] = _length(h[:, lost] - mean[:, lost, None]).square()
    return scatter


@dataclass(frozen=True, eq=False)
class Moments:
    """Of all values so far, each (C,). Chan, Golub & LeVeque 1979, "Updating formulae", equation 2.1."""

    n: Tensor  # examples without NaN or infinite values
    mean: Tensor
    scatter: Tensor
    high: Tensor
    low: Tensor
    active: Tensor  # examples in which it is above zero somewhere
    positions: int

    @classmethod
    def none(cls, units: int, positions: int, like: Tensor) -> Moments:
        zero = torch.zeros(units, dtype=wide(like), device=like.device)
        return cls(zero, zero, zero, zero - torch.inf, zero + torch.inf, zero, positions)

    def updated(self, rows: Rows) -> Moments:
        known = rows.known
        n = known.sum(0).to(self.n)
        mean = _total(rows.mean, known) / n.clamp_min(1)  # (C,) of this batch
        spread = torch.where(known, rows.mean.to(mean) - mean, 0).square().sum(0)
        scatter = _total(rows.scatter, known) + rows.positions * spread
        both = self.n + n
        off, share = mean - self.mean, n / both.clamp_min(1)
        return Moments(
            both,
            self.mean + off * share,
            self.scatter + scatter + rows.positions * off.square() * self.n * share,
            torch.maximum(self.high, _masked(rows.high, known, -torch.inf).amax(0)),
            torch.minimum(self.low, _masked(rows.low, known, torch.inf).amin(0)),
            self.active + (known & (rows.high > 0)).sum(0),
            self.positions,
        )

    @property
    def std(self) -> Tensor:
        return (self.scatter / (self.n * self.positions).clamp_min(1)).sqrt()


def wide(like: Tensor) -> torch.dtype:
    """What sums are kept in: double precision, where the device has it."""
    return torch.float32 if like.device.type == "mps" else torch.float64


def _total(v: Tensor, known: Tensor) -> Tensor:
    return torch.where(known, v, 0).sum(0, dtype=wide(v))


def _masked(v: Tensor, known: Tensor, otherwise: float) -> Tensor:
    return torch.where(known, v, otherwise).to(wide(v))


@dataclass(frozen=True, eq=False)
class Histograms:
    """Counts (C, B) in bins of width 2^exponent, the first one from `first` widths on.

    Bins are as narrow as B of them can be and still hold all values: when those grow out of them, neighbors are merged
    pairwise. The final bins follow from the smallest and the largest value alone, in whatever order values come.
    """

    counts: Tensor
    exponent: Tensor  # (C,)
    first: Tensor  # (C,)
    low: Tensor  # (C,)
    high: Tensor  # (C,)

    @classmethod
    def none(cls, units: int, bins: int, like: Tensor) -> Histograms:
        counts = torch.zeros(units, bins, dtype=torch.long, device=like.device)
        edge = torch.full((units,), torch.inf, dtype=wide(like), device=like.device)
        return cls(counts, torch.full_like(counts[:, 0], TINIEST), counts[:, 0], edge, -edge)

    def updated(self, v: Tensor, known: Tensor) -> Histograms:  # (C, M) values, and whether they count
        grown = self._grown(_masked(v, known, torch.inf).amin(1), _masked(v, known, -torch.inf).amax(1))
        scaled = (v * power_of_2(-grown.exponent[:, None])).floor()
        place = torch.where(known, scaled.long() - grown.first[:, None], 0).clamp(0, self.counts.shape[1] - 1)
        return replace(grown, counts=grown.counts.scatter_add(1, place, known.long()))

    def _grown(self, low: Tensor, high: Tensor) -> Histograms:
        """The same counts in the bins that hold these values too."""
        if low.device.type == "cpu" and self._holds(low, high):
            return replace(self, low=torch.minimum(self.low, low), high=torch.maximum(self.high, high))
        low, high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        empty = low > high
        exponent = _exponent(low.masked_fill(empty, 0), high.masked_fill(empty, 0), self.counts.shape[1])
        first = (low.masked_fill(empty, 0) * power_of_2(-exponent)).floor().long()
        shift = (exponent - self.exponent).clamp(0, 62)  # by 62 already, every place is 0 or -1
        bins = torch.arange(self.counts.shape[1], device=low.device)
        place = ((self.first[:, None] + bins) >> shift[:, None]) - first[:, None]
        counts = torch.zeros_like(self.counts).scatter_add(1, place.clamp(0, len(bins) - 1), self.counts)
        return Histograms(counts, exponent, first, low, high)

    def _holds(self, low: Tensor, high: Tensor) -> bool:
        """Whether all these values lie in the bins as they are."""
        finer = power_of_2(-self.exponent)
        ends = (low * finer).floor() >= self.first, (high * finer).floor() < self.first + self.counts.shape[1]
        fine = self.exponent >= _least(low, high)
        return bool((ends[0] & ends[1] & fine & (self.low <= self.high)).all())

    @property
    def edges(self) -> Tensor:  # (C, B + 1)
        steps = torch.arange(self.counts.shape[1] + 1, device=self.counts.device)
        return (self.first[:, None] + steps).to(self.low) * power_of_2(self.exponent[:, None])


def _exponent(low: Tensor, high: Tensor, bins: int) -> Tensor:
    """The least exponent (C,) with which `bins` bins hold both ends."""
    exponent = torch.maximum(_log2((high - low) / bins) - 1, _least(low, high))
    for _ in range(3):  # at most: with bins of twice (high - low) / bins, half of them hold the range
        finer = power_of_2(-exponent)
        spanned = (high * finer).floor() - (low * finer).floor()
        exponent = exponent + (spanned >= bins).long()
    return exponent


def _least(low: Tensor, high: Tensor) -> Tensor:
    """No finer exponent (C,) is used for values of this magnitude."""
    return (_log2(torch.maximum(low.abs(), high.abs())) - FINE).clamp_min(TINIEST)


def power_of_2(exponent: Tensor) -> Tensor:
    """2^exponent by its bits, exactly, for -126 to 127: torch.ldexp and exp2 may round, and bins would not nest."""
    return (exponent.clamp(-126, 127) + 127 << 23).int().view(torch.float32)


def _log2(v: Tensor) -> Tensor:
    """floor(log2 v), exactly; very small where v is 0."""
    mantissa, exponent = torch.frexp(v)
    return torch.where(mantissa > 0, exponent - 1, 2 * TINIEST).long()
