"""The integral of the gradient along a straight line, by as many points as an example needs.

Each evaluation gives the gradient and, at no cost, the score. So the integral of the gradient over every interval of
the line is known twice: from the gradients at its ends (trapezoid), and as the difference of the scores there. The two
disagree most where there is a kink, and the next points go there, until they agree overall. The outermost intervals,
where no gradient is taken at the end of the line (it may not exist at a baseline), have one gradient each; so equally
spaced points give the midpoint rule, which is exact where the gradient is linear.

A point's weight changes while intervals next to it are split, so its gradient is stored. When too many are stored,
those next to the smallest disagreement are folded into a sum with their present weights, and intervals next to them are
not split again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ...box import MAX_AUTO_BATCH_ACTIVATION_BYTES, Box
from ...model.batching import BatchSize
from ...objectives import Objective
from ..cpu_cache import path_points_per_batch
from .paths import LinePath, interpolate, path_mean_gradient
from .quadrature import midpoints
from .score import gradients_in_batches

MAX_INITIAL_POINTS = 16  # at most, at first: fewer may meet a tight tolerance by luck, with maps that are less exact
MIN_INITIAL_POINTS = 4  # and at least
MAX_STORED_GRADIENTS = 64  # per example
OLD_POINTS_PER_NEW_POINT = 8  # each evaluation adds one point for this many


@dataclass(frozen=True, eq=False)
class IntegrationProblem:
    """Examples with the end points of their lines."""

    box: Box
    objective: Objective
    x: Tensor  # (N, ...)
    start: Tensor  # (N, ...)
    start_score: Tensor  # (N,) the score at the start
    end_score: Tensor  # (N,) at x
    max_error: Tensor  # (N,) the tolerance
    batch_size: BatchSize
    n_initial_points: int = MAX_INITIAL_POINTS  # points of the first evaluation

    def rows(self, index: Tensor) -> IntegrationProblem:
        row_fields = (
            self.x[index],
            self.start[index],
            self.start_score[index],
            self.end_score[index],
            self.max_error[index],
        )
        return IntegrationProblem(
            self.box, self.objective.rows(index), *row_fields, self.batch_size, self.n_initial_points
        )

    @property
    def delta(self) -> Tensor:  # (N, ...)
        return self.x - self.start

    def completeness_error(self, gradient: Tensor) -> Tensor:
        """How far a mean gradient (N, ...) is from completeness, (N,)."""
        return ((gradient * self.delta).flatten(1).sum(1) - (self.end_score - self.start_score)).abs()


@dataclass(frozen=True, eq=False)
class LineIntegralResult:
    mean_gradient: Tensor  # (N, ...) its mean along the line
    n_points: Tensor  # (N,) points evaluated
    completeness_error: Tensor  # (N,)


def n_initial_points_for_tolerance(tol: float) -> int:
    """Points of the first evaluation, for a relative completeness error: no more than the error needs.

    K midpoints leave a map .4 / K off its limit on the MNIST CNN; so 1 / (4 tol) of them leave it about 1.6 tol off.
    """
    return (
        MAX_INITIAL_POINTS if 4 * tol * MAX_INITIAL_POINTS <= 1 else max(MIN_INITIAL_POINTS, math.ceil(1 / (4 * tol)))
    )


def integrate_adaptively(problem: IntegrationProblem, max_points: int) -> LineIntegralResult:
    """The mean gradient along each line: its error is within the bound, or `max_points` is reached."""
    n, x = len(problem.x), problem.x
    n_points = torch.zeros(n, dtype=torch.long, device=x.device)
    out = LineIntegralResult(torch.zeros_like(x), n_points, torch.zeros_like(problem.start_score))
    rows_at_once = max(
        1, MAX_AUTO_BATCH_ACTIVATION_BYTES // (2 * MAX_STORED_GRADIENTS * x[0].numel() * x.element_size())
    )
    for i in range(0, n, rows_at_once):
        _refine_and_write_results(problem, torch.arange(i, min(i + rows_at_once, n), device=x.device), max_points, out)
    return out


def integrate_at_fixed_points(problem: IntegrationProblem, t: Tensor, weights: Tensor) -> LineIntegralResult:
    """The same, with fixed points (K,) of each line."""
    line = LinePath(problem.x, problem.start, t, weights)
    result = path_mean_gradient(problem.box, problem.objective, line, len(problem.x), batch_size=problem.batch_size)
    n_points = torch.full((len(problem.x),), len(t), device=problem.box.device)
    return LineIntegralResult(result.map, n_points, problem.completeness_error(result.map))


# -- where gradients and scores disagree -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Evaluations:
    """The points of each example so far, in order of evaluation: scores of all K, gradients of L of them."""

    t: Tensor  # (n, K)
    score: Tensor  # (n, K)
    slope: Tensor  # (n, K): d score / dt
    stored_index: Tensor  # (n, L) the points of the stored gradients
    gradient: Tensor  # (n, L, ...)
    folded_sum: Tensor  # (n, ...) the weighted sum of the others

    def concat(self, new: _Evaluations) -> _Evaluations:
        t, score, slope, gradient = (
            torch.cat([getattr(h, name) for h in (self, new)], 1) for name in ("t", "score", "slope", "gradient")
        )
        stored_index = torch.cat([self.stored_index, new.stored_index + self.t.shape[1]], 1)
        return _Evaluations(t, score, slope, stored_index, gradient, self.folded_sum)

    def rows(self, index: Tensor) -> _Evaluations:
        return _Evaluations(*(getattr(self, h.name)[index] for h in fields(self)))

    def mean_gradient(self, weights: Tensor) -> Tensor:
        """The mean gradient (n, ...), by the weights (n, K) of the points."""
        stored_weights = weights.gather(1, self.stored_index)
        return self.folded_sum + torch.einsum("nl,nld->nd", stored_weights, self.gradient.flatten(2)).view_as(
            self.folded_sum
        )


def _refine_and_write_results(
    problem: IntegrationProblem, rows: Tensor, max_points: int, out: LineIntegralResult
) -> None:
    """Add points where gradients and scores disagree, until they agree or `max_points` points were evaluated."""
    t = midpoints(min(problem.n_initial_points, max_points))[0].to(problem.x).expand(len(rows), -1)
    pending = [(rows, _evaluate_points(problem.rows(rows), t))]
    while pending:
        rows, evaluations = pending.pop()
        subproblem, k = problem.rows(rows), evaluations.t.shape[1]
        intervals = _Intervals.from_evaluations(evaluations, subproblem)
        gradient = evaluations.mean_gradient(intervals.weights)
        error = subproblem.completeness_error(gradient)
        splittable_error = intervals.disagreement.clamp(min=0).sum(1)
        is_stalled = error - splittable_error > subproblem.max_error
        is_finished = (error <= subproblem.max_error) | is_stalled | ~error.isfinite() | (k >= max_points)
        out.mean_gradient[rows[is_finished]] = gradient[is_finished]
        out.completeness_error[rows[is_finished]] = error[is_finished]
        out.n_points[rows[is_finished]] = k
        n_splits = torch.where(is_finished, 0, intervals.n_intervals_to_split(subproblem.max_error, max_points - k))
        for n_new in sorted({*n_splits.tolist()} - {0}):  # examples that add as many points run together
            group = (n_splits == n_new).nonzero().flatten()
            parts = problem.rows(rows[group]), evaluations.rows(group), intervals.rows(group)
            pending.append((rows[group], _add_points(*parts, n_new)))


def _add_points(
    problem: IntegrationProblem, evaluations: _Evaluations, intervals: _Intervals, n_new: int
) -> _Evaluations:
    """With k more points per example."""
    if evaluations.stored_index.shape[1] > MAX_STORED_GRADIENTS - MAX_STORED_GRADIENTS // OLD_POINTS_PER_NEW_POINT:
        evaluations = _fold_low_error_gradients(evaluations, intervals)
        intervals = _Intervals.from_evaluations(evaluations, problem)
    return evaluations.concat(_evaluate_points(problem, _next_points(evaluations, intervals, n_new)))


def _evaluate_points(problem: IntegrationProblem, t: Tensor) -> _Evaluations:
    """At points t (n, K) of each line."""
    n, k = t.shape
    rows = torch.arange(n, device=t.device).repeat_interleave(k)
    with torch.inference_mode(False):
        points = interpolate(problem.start[rows], problem.x[rows], t.flatten())
    objective = problem.objective.rows(rows)
    result = gradients_in_batches(
        problem.box, objective, points, None, "input", problem.batch_size, "no", path_points_per_batch(problem.box)
    )
    gradient = result.map.view(n, k, *problem.x.shape[1:])
    slope = (gradient * problem.delta[:, None]).flatten(2).sum(2)
    stored_index = torch.arange(k, device=t.device).expand(n, -1)
    return _Evaluations(t, result.score.view(n, k), slope, stored_index, gradient, torch.zeros_like(problem.x))


@dataclass(frozen=True)
class _Intervals:
    """The intervals between a line's points."""

    order: Tensor  # (n, K): the points sorted along the line
    disagreement: Tensor  # (n, K + 1): disagreement of gradients and scores per interval; -1 where it cannot be split
    weights: Tensor  # (n, K) of the points, in order of evaluation

    @classmethod
    def from_evaluations(cls, evaluations: _Evaluations, problem: IntegrationProblem) -> _Intervals:
        t, order = evaluations.t.sort(1)
        score, slope = evaluations.score.gather(1, order), evaluations.slope.gather(1, order)
        score = torch.cat([problem.start_score[:, None], score, problem.end_score[:, None]], 1)
        slope = torch.cat([slope[:, :1], slope, slope[:, -1:]], 1)
        h = _with_endpoints(t).diff(dim=1)  # (n, K + 1)
        disagreement = ((slope[:, 1:] + slope[:, :-1]) / 2 * h - score.diff(dim=1)).abs()
        # the first and the last interval belong to one point
        point_shares = torch.cat([h[:, :1], h[:, 1:-1] / 2, h[:, -1:]], 1)
        weights = torch.zeros_like(evaluations.t).scatter(1, order, point_shares[:, 1:] + point_shares[:, :-1])
        is_stored = (
            torch.zeros_like(order, dtype=torch.bool).scatter(1, evaluations.stored_index, True).gather(1, order)
        )
        can_split = torch.cat([is_stored[:, :1], is_stored[:, 1:] & is_stored[:, :-1], is_stored[:, -1:]], 1)
        return cls(order, torch.where(can_split, disagreement, -1), weights)

    def n_intervals_to_split(self, max_error: Tensor, max_points: int) -> Tensor:
        """How many intervals of each example to split (n,): those whose disagreement matters, 1, 2, 4 or 8 of them."""
        k = self.order.shape[1]
        n_large = (self.disagreement > max_error[:, None] / (4 * k)).sum(1)
        n_splits = n_large.clamp(
            1,
            min(
                max(1, k // OLD_POINTS_PER_NEW_POINT),
                max(1, MAX_STORED_GRADIENTS // OLD_POINTS_PER_NEW_POINT),
                max_points,
            )
            if max_points > 0
            else 1,
        )
        return 2 ** n_splits.double().log2().floor().long()

    def rows(self, index: Tensor) -> _Intervals:
        return _Intervals(self.order[index], self.disagreement[index], self.weights[index])


def _with_endpoints(t: Tensor) -> Tensor:
    """0, the sorted times (n, K), and 1."""
    return torch.cat([torch.zeros_like(t[:, :1]), t, torch.ones_like(t[:, :1])], 1)


def _fold_low_error_gradients(evaluations: _Evaluations, intervals: _Intervals) -> _Evaluations:
    """Fold some of the stored gradients into the sum: those next to the smallest disagreement."""
    along_line = torch.maximum(intervals.disagreement[:, 1:], intervals.disagreement[:, :-1])  # (n, K)
    by_point = torch.zeros_like(along_line).scatter(1, intervals.order, along_line)
    max_disagreement = by_point.gather(1, evaluations.stored_index)  # (n, L)
    rank = max_disagreement.argsort(dim=1, descending=True, stable=True)
    n_retained = MAX_STORED_GRADIENTS - MAX_STORED_GRADIENTS // OLD_POINTS_PER_NEW_POINT
    retained, dropped = rank[:, :n_retained], rank[:, n_retained:]
    row = torch.arange(len(rank), device=rank.device)[:, None]
    dropped_evaluations = replace(
        evaluations, stored_index=evaluations.stored_index[row, dropped], gradient=evaluations.gradient[row, dropped]
    )
    return replace(
        evaluations,
        stored_index=evaluations.stored_index[row, retained],
        gradient=evaluations.gradient[row, retained],
        folded_sum=dropped_evaluations.mean_gradient(intervals.weights),
    )


def _next_points(evaluations: _Evaluations, intervals: _Intervals, n_new: int) -> Tensor:
    """Points (n, k): the midpoints of the intervals of largest disagreement; of an outer one, a third from the end."""
    t = _with_endpoints(evaluations.t.gather(1, intervals.order))
    interval = intervals.disagreement.argsort(dim=1, descending=True, stable=True)[:, :n_new]
    low, high = t.gather(1, interval), t.gather(1, interval + 1)
    fraction = torch.full_like(low, 1 / 2).masked_fill(interval == 0, 1 / 3)
    fraction = fraction.masked_fill(interval == intervals.disagreement.shape[1] - 1, 2 / 3)
    return low + fraction * (high - low)
