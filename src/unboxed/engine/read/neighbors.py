"""Nearest neighbors: exact, some points at a time, in bounded memory, on any device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...errors import InputError
from ...validation import check_int

Metric = Literal["euclidean", "cosine"]
BLOCK = 2**22  # distances, or values of differences, held at a time
SURE = 1e8  # a rough value this much larger than its error is good to eight digits
_METRICS = ("euclidean", "cosine")


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The k nearest points of each query, the nearest first; of equally near ones the lower index."""

    indices: Tensor  # (Q, k), int64
    distances: Tensor  # (Q, k), Euclidean, or 1 - cosine


def nearest(
    queries: Tensor,
    points: Tensor,
    k: int,
    *,
    metric: Metric = "euclidean",
    chunk: int | None = None,
    exclude: Tensor | None = None,
) -> Neighbors:
    """The k nearest of `points` (N, D) to each of `queries` (Q, D), exactly. `exclude`: a point (Q,) not to be counted.

    Distances come in the dtype of the queries. `chunk`: points compared at a time. Raises InputError.
    """
    search = Search(queries, k, metric=metric, exclude=exclude)
    size = len(points) if chunk is None else check_int("chunk", chunk, minimum=1)
    for start in range(0, len(points), max(1, size)):
        search.add(points[start : start + size])
    return search.found()


class Search:
    """The k nearest so far of points that come in parts, for points that don't fit in memory together."""

    def __init__(self, queries: Tensor, k: int, *, metric: Metric = "euclidean", exclude: Tensor | None = None) -> None:
        if metric not in _METRICS:
            raise InputError(f"metric is {' or '.join(map(repr, _METRICS))}; got {metric!r}")
        self.k, self.metric, self.seen = check_int("k", k, minimum=1), metric, 0
        self.dtype = queries.dtype if queries.is_floating_point() else torch.get_default_dtype()
        self.device = queries.device
        wide = "cpu" if queries.device.type == "mps" else queries.device  # where float64 is known
        self.queries, self.q_zero = _prepared(queries.to(wide), metric)
        self.excluded = None if exclude is None else exclude.to(wide)
        self.values = queries.new_empty(len(queries), 0, dtype=torch.float64, device=wide)
        self.indices = queries.new_empty(len(queries), 0, dtype=torch.long, device=wide)

    def add(self, points: Tensor) -> None:
        """Compare with points (N, D), which are numbered on from those before. Raises InputError."""
        if points.ndim != 2 or points.shape[1] != self.queries.shape[1]:
            wanted = f"points (N, {self.queries.shape[1]}), as many features as the queries have"
            raise InputError(f"wanted {wanted}; got {tuple(points.shape)}")
        step = max(256, BLOCK // max(1024, points.shape[1]))
        for start in range(0, len(points), step):
            part, zero = _prepared(points[start : start + step].to(self.queries.device), self.metric)
            rows = max(1, BLOCK // max(len(part), part.shape[1]))
            found = [self._compare(slice(i, i + rows), part, zero) for i in range(0, len(self.queries), rows)]
            self._merge(torch.cat([v for v, _ in found]), torch.cat([i for _, i in found]))
            self.seen += len(part)

    def found(self) -> Neighbors:
        """The nearest of all points that came. Raises InputError where there were fewer than k."""
        left = self.seen - (self.excluded is not None)
        if left < self.k:
            raise InputError(f"k={self.k} neighbors were asked for; there are {left} points to choose from")
        distances = self.values.clamp_min(0)
        distances = distances.sqrt() if self.metric == "euclidean" else distances
        return Neighbors(self.indices.to(self.device), distances.to(self.dtype).to(self.device))

    def _merge(self, values: Tensor, indices: Tensor) -> None:
        """Of equal values the earlier stays first: the sort is stable, and points come in their order."""
        values, indices = torch.cat([self.values, values], 1), torch.cat([self.indices, indices], 1)
        order = values.argsort(dim=1, stable=True)[:, : self.k]
        self.values, self.indices = values.gather(1, order), indices.gather(1, order)

    def _compare(self, rows: slice, points: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
        """(values, numbers) of the k nearest of these points (P, D), both (q, min(k, P))."""
        pairs = _Pairs(self.queries[rows], points, self.q_zero[rows], zero, self.metric)
        rough, slack = pairs.rough()  # (q, P), (q, 1)
        if self.excluded is not None:
            own = self.excluded[rows] - self.seen
            here = ((own >= 0) & (own < len(points))).nonzero().flatten()
            rough[here, own[here]] = torch.inf
        values, places = _best(pairs, rough, slack, min(self.k, len(points)))
        return values, places + self.seen


@dataclass(frozen=True)
class _Pairs:
    """Queries (q, D) and points (P, D) in float64, and which of them are zero: their cosine counts as 0."""

    queries: Tensor
    points: Tensor
    q_zero: Tensor  # (q,)
    p_zero: Tensor  # (P,)
    metric: Metric

    @property
    def factor(self) -> float:
        return 1.0 if self.metric == "euclidean" else 0.5  # 1 - cos = |q - p|^2 / 2 of unit vectors

    def rough(self) -> tuple[Tensor, Tensor]:
        """|q|^2 + |p|^2 - 2 q.p, fast but cancelling, and how far at most it is off (Higham 2002, section 3.1)."""
        q2, p2 = self.queries.square().sum(1, keepdim=True), self.points.square().sum(1)
        value = self.factor * (q2 + p2 - 2 * self.queries @ self.points.T)
        value = value.masked_fill(self.q_zero[:, None] | self.p_zero, 1.0)
        most = (q2.sqrt() + p2.max().sqrt()).square() + 1
        unit = torch.finfo(torch.float64).eps * (self.queries.shape[1] + 8)
        return value, 2 * unit * most

    def exact(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The value of the pairs (rows[i], columns[i]) from their differences, some at a time."""
        step = max(1, BLOCK // max(1, self.queries.shape[1]))
        parts = [self._exact(rows[i : i + step], columns[i : i + step]) for i in range(0, len(rows), step)]
        return torch.cat(parts) if parts else self.queries.new_empty(0)

    def _exact(self, rows: Tensor, columns: Tensor) -> Tensor:
        square = (self.queries[rows] - self.points[columns]).square().sum(1)
        return (self.factor * square).masked_fill(self.q_zero[rows] | self.p_zero[columns], 1.0)


def _best(pairs: _Pairs, rough: Tensor, slack: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k least of each row. Where the rough values don't prove their order, or are small beside what they may be
    off, the exact ones of all that could be among the nearest are compared."""
    p = rough.shape[1]
    values, places = rough.topk(min(p, k + 1), 1, largest=False, sorted=True)
    gaps = values.diff(dim=1) if p > 1 else values.new_full((len(values), 1), torch.inf)
    proven = (gaps.nan_to_num(nan=torch.inf) > 2 * slack).all(1) & (values[:, 0] > SURE * slack.flatten())
    values, places = values[:, :k].clone(), places[:, :k].clone()
    for i in (~proven).nonzero().flatten().tolist():
        near = (rough[i] <= values[i, -1] + 2 * slack[i]).nonzero().flatten()
        one = pairs.exact(near.new_full(near.shape, i), near).masked_fill(rough[i, near].isinf(), torch.inf)
        value, at = one.sort(stable=True)
        values[i], places[i] = value[:k], near[at[:k]]
    return values, places


def _prepared(x: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """Vectors (N, D) in float64, for a cosine of unit length, and which are then zero (N,). Raises InputError."""
    if x.ndim != 2 or x.shape[1] == 0 or x.is_complex():
        raise InputError(f"wanted vectors (N, D) of real numbers; got shape {tuple(x.shape)}, {x.dtype}")
    x = x.detach().double()
    if not torch.isfinite(x).all():
        raise InputError("NaN or infinite values among the vectors; they have no neighbors")
    if metric == "euclidean":
        return x, torch.zeros(len(x), dtype=torch.bool, device=x.device)
    largest = x.abs().amax(1, keepdim=True)
    scaled = x / largest.where(largest > 0, 1)  # the square of a tiny number would vanish
    norm = scaled.norm(dim=1, keepdim=True)
    return scaled / norm.where(norm > 0, 1), norm.flatten() == 0
