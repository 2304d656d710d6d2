"""Exact nearest neighbors, in chunks of bounded memory, on any device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...errors import InputError
from ...validation import check_int
from ..results import ResultMixin

Metric = Literal["euclidean", "cosine"]
MAX_BLOCK_VALUES = 2**22  # distances, or values of differences, held at a time
MIN_DISTANCE_TO_ERROR_RATIO = 1e8  # an approximate value this much larger than its error has eight correct digits
_METRICS = ("euclidean", "cosine")


@dataclass(frozen=True, eq=False, repr=False)
class Neighbors(ResultMixin):
    """The k nearest points of each query, the nearest first; of equally near ones the lower index."""

    returns: ClassVar[str] = "table"

    indices: Tensor  # (Q, k), int64
    distances: Tensor  # (Q, k), Euclidean, or 1 - cosine


def nearest_points(
    queries: Tensor,
    points: Tensor,
    k: int,
    *,
    metric: Metric = "euclidean",
    chunk_points: int | None = None,
    exclude: Tensor | None = None,
) -> Neighbors:
    """The k nearest of `points` (N, D) to each of `queries` (Q, D), exactly, but `exclude` (Q,).

    Distances come in the dtype of the queries. `chunk_points`: points compared at a time. Raises InputError.
    """
    search = StreamingNeighborSearch(queries, k, metric=metric, exclude=exclude)
    size = len(points) if chunk_points is None else check_int("chunk_points", chunk_points, minimum=1)
    for start in range(0, len(points), max(1, size)):
        search.add(points[start : start + size])
    return search.nearest_so_far()


class StreamingNeighborSearch:
    """The k nearest points so far, for points that are added in parts because they do not fit in memory."""

    def __init__(self, queries: Tensor, k: int, *, metric: Metric = "euclidean", exclude: Tensor | None = None) -> None:
        if metric not in _METRICS:
            raise InputError(f"metric must be {' or '.join(map(repr, _METRICS))}; got {metric!r}")
        self.k, self.metric, self.n_points = check_int("k", k, minimum=1), metric, 0
        self.dtype = queries.dtype if queries.is_floating_point() else torch.get_default_dtype()
        self.device = queries.device
        float64_device = "cpu" if queries.device.type == "mps" else queries.device  # where float64 is supported
        self.queries, self.query_is_zero = _prepare_vectors(queries.to(float64_device), metric)
        self.excluded_points = None if exclude is None else exclude.to(float64_device)
        self.values = queries.new_empty(len(queries), 0, dtype=torch.float64, device=float64_device)
        self.indices = queries.new_empty(len(queries), 0, dtype=torch.long, device=float64_device)

    def add(self, points: Tensor) -> None:
        """Compare with points (N, D), whose indices continue those of earlier calls. Raises InputError."""
        if points.ndim != 2 or points.shape[1] != self.queries.shape[1]:
            expected = f"points (N, {self.queries.shape[1]}), as many features as the queries have"
            raise InputError(f"wanted {expected}; got {tuple(points.shape)}")
        chunk_points = max(256, MAX_BLOCK_VALUES // max(1024, points.shape[1]))
        for start in range(0, len(points), chunk_points):
            chunk, point_is_zero = _prepare_vectors(
                points[start : start + chunk_points].to(self.queries.device), self.metric
            )
            query_rows = max(1, MAX_BLOCK_VALUES // max(len(chunk), chunk.shape[1]))
            nearest_in_chunk = [
                self._nearest_in_chunk(slice(i, i + query_rows), chunk, point_is_zero)
                for i in range(0, len(self.queries), query_rows)
            ]
            self._merge_into_nearest(
                torch.cat([v for v, _ in nearest_in_chunk]), torch.cat([i for _, i in nearest_in_chunk])
            )
            self.n_points += len(chunk)

    def nearest_so_far(self) -> Neighbors:
        """The nearest of all points so far. Raises InputError where there are fewer than k."""
        n_available = self.n_points - (self.excluded_points is not None)
        if n_available < self.k:
            raise InputError(f"k must be at most {n_available}, the number of points to choose from; got {self.k}")
        distances = self.values.clamp_min(0)
        distances = distances.sqrt() if self.metric == "euclidean" else distances
        return Neighbors(self.indices.to(self.device), distances.to(self.dtype).to(self.device))

    def _merge_into_nearest(self, values: Tensor, indices: Tensor) -> None:
        """Merge with earlier results; ties keep their order, because the sort is stable."""
        values, indices = torch.cat([self.values, values], 1), torch.cat([self.indices, indices], 1)
        order = values.argsort(dim=1, stable=True)[:, : self.k]
        self.values, self.indices = values.gather(1, order), indices.gather(1, order)

    def _nearest_in_chunk(self, rows: slice, points: Tensor, point_is_zero: Tensor) -> tuple[Tensor, Tensor]:
        """(values, indices) of the k nearest of these points (P, D), both (q, min(k, P))."""
        pairs = _QueryPointPairs(self.queries[rows], points, self.query_is_zero[rows], point_is_zero, self.metric)
        approximate_distances, error_bound = pairs.approximate_distances()  # (q, P), (q, 1)
        if self.excluded_points is not None:
            excluded_in_chunk = self.excluded_points[rows] - self.n_points
            is_here = ((excluded_in_chunk >= 0) & (excluded_in_chunk < len(points))).nonzero().flatten()
            approximate_distances[is_here, excluded_in_chunk[is_here]] = torch.inf
        values, index = _k_smallest_verified(pairs, approximate_distances, error_bound, min(self.k, len(points)))
        return values, index + self.n_points


@dataclass(frozen=True)
class _QueryPointPairs:
    """Queries (q, D) and points (P, D) in float64, and which of them are zero: their cosine is 0."""

    queries: Tensor
    points: Tensor
    query_is_zero: Tensor  # (q,)
    point_is_zero: Tensor  # (P,)
    metric: Metric

    @property
    def distance_scale(self) -> float:
        return 1.0 if self.metric == "euclidean" else 0.5  # 1 - cos = |q - p|^2 / 2 of unit vectors

    def approximate_distances(self) -> tuple[Tensor, Tensor]:
        """|q|^2 + |p|^2 - 2 q.p, fast but inexact, and a bound of its error (Higham 2002, section 3.1)."""
        query_sq_norm, point_sq_norm = self.queries.square().sum(1, keepdim=True), self.points.square().sum(1)
        value = self.distance_scale * (query_sq_norm + point_sq_norm - 2 * self.queries @ self.points.T)
        value = value.masked_fill(self.query_is_zero[:, None] | self.point_is_zero, 1.0)
        max_value = (query_sq_norm.sqrt() + point_sq_norm.max().sqrt()).square() + 1
        relative_error = torch.finfo(torch.float64).eps * (self.queries.shape[1] + 8)
        return value, 2 * relative_error * max_value

    def exact_distances(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The exact values of the pairs (rows[i], columns[i]), from their differences, in blocks."""
        step = max(1, MAX_BLOCK_VALUES // max(1, self.queries.shape[1]))
        parts = [
            self._exact_distances_of_chunk(rows[i : i + step], columns[i : i + step]) for i in range(0, len(rows), step)
        ]
        return torch.cat(parts) if parts else self.queries.new_empty(0)

    def _exact_distances_of_chunk(self, rows: Tensor, columns: Tensor) -> Tensor:
        square = (self.queries[rows] - self.points[columns]).square().sum(1)
        return (self.distance_scale * square).masked_fill(self.query_is_zero[rows] | self.point_is_zero[columns], 1.0)


def _k_smallest_verified(
    pairs: _QueryPointPairs, approximate_distances: Tensor, error_bound: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k smallest of each row. Where the approximate values do not prove their order, or are small against their
    error, the exact ones of all candidates are compared."""
    p = approximate_distances.shape[1]
    values, index = approximate_distances.topk(min(p, k + 1), 1, largest=False, sorted=True)
    gaps = values.diff(dim=1) if p > 1 else values.new_full((len(values), 1), torch.inf)
    is_proven = (gaps.nan_to_num(nan=torch.inf) > 2 * error_bound).all(1) & (
        values[:, 0] > MIN_DISTANCE_TO_ERROR_RATIO * error_bound.flatten()
    )
    values, index = values[:, :k].clone(), index[:, :k].clone()
    for i in (~is_proven).nonzero().flatten().tolist():
        candidates = (approximate_distances[i] <= values[i, -1] + 2 * error_bound[i]).nonzero().flatten()
        exact_distances = pairs.exact_distances(candidates.new_full(candidates.shape, i), candidates).masked_fill(
            approximate_distances[i, candidates].isinf(), torch.inf
        )
        value, order = exact_distances.sort(stable=True)
        values[i], index[i] = value[:k], candidates[order[:k]]
    return values, index


def _prepare_vectors(x: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """Vectors (N, D) in float64, for the cosine of unit length, and which are zero (N,). Raises InputError."""
    if x.ndim != 2 or x.shape[1] == 0 or x.is_complex():
        raise InputError(f"wanted vectors (N, D) of real numbers; got shape {tuple(x.shape)}, {x.dtype}")
    x = x.detach().double()
    if not torch.isfinite(x).all():
        raise InputError("NaN or infinite values among the vectors; they have no neighbors")
    if metric == "euclidean":
        return x, torch.zeros(len(x), dtype=torch.bool, device=x.device)
    largest = x.abs().amax(1, keepdim=True)
    scaled = x / largest.where(largest > 0, 1)  # so that squares do not underflow
    norm = scaled.norm(dim=1, keepdim=True)
    return scaled / norm.where(norm > 0, 1), norm.flatten() == 0
