"""The integral of the gradient along a straight line, by as many points as an example needs.

Each look at the model gives the gradient and, for nothing, the score. So the integral of the gradient along every piece
of the line is known twice: from the gradients at its ends (trapezoid), and as the difference of the scores there. Where
the two disagree most a kink lies, and there the next points go, until the whole agrees. Near the ends of the line,
where no gradient is taken (it may not exist at a baseline), a piece has one gradient for all of it; equally spaced
points so give the midpoint rule, which is exact where the gradient is linear.

A point's weight changes while pieces beside it are cut, so its gradient is kept. When too many are, those with the
least disagreement beside them are weighed for good, and pieces beside them are not cut any more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ...box import BATCH_BYTES, Box
from ...model.batching import BatchSize
from ...objectives import Objective
from .paths import Line, at_once, between, mean, midpoints
from .score import gradients_in_batches

START = 16  # points of the first look at most: fewer meet a tight tolerance by luck, with maps that are further off
LEAST = 4  # and at least
KEPT = 64  # gradients of an example that are kept at a time
GROWTH = 8  # each look adds a point to this many


@dataclass(frozen=True, eq=False)
class Problem:
    """Examples with the ends of their lines."""

    box: Box
    objective: Objective
    x: Tensor  # (N, ...)
    start: Tensor  # (N, ...)
    low: Tensor  # (N,) the score at the start
    high: Tensor  # (N,) at x
    bound: Tensor  # (N,) the error wanted
    batch_size: BatchSize
    first: int = START  # points of the first look

    def rows(self, index: Tensor) -> Problem:
        each = (self.x[index], self.start[index], self.low[index], self.high[index], self.bound[index])
        return Problem(self.box, self.objective.rows(index), *each, self.batch_size, self.first)

    @property
    def delta(self) -> Tensor:  # (N, ...)
        return self.x - self.start

    def error(self, gradient: Tensor) -> Tensor:
        """How far a mean gradient (N, ...) is from completeness, (N,)."""
        return ((gradient * self.delta).flatten(1).sum(1) - (self.high - self.low)).abs()


@dataclass(frozen=True, eq=False)
class Integral:
    gradient: Tensor  # (N, ...) its mean along the line
    steps: Tensor  # (N,) points looked at
    error: Tensor  # (N,)


def first_look(tol: float) -> int:
    """Points of the first look for a completeness error relative to the difference: no more than the error asks for.

    K midpoints leave a map .4 / K off its limit on the MNIST CNN; so 1 / (4 tol) of them leave it about 1.6 tol off.
    """
    return START if 4 * tol * START <= 1 else max(LEAST, math.ceil(1 / (4 * tol)))


def integrate(problem: Problem, max_steps: int) -> Integral:
    """The mean gradient along each line: its error is within the bound, or the steps are used up."""
    n, x = len(problem.x), problem.x
    steps = torch.zeros(n, dtype=torch.long, device=x.device)
    out = Integral(torch.zeros_like(x), steps, torch.zeros_like(problem.low))
    together = max(1, BATCH_BYTES // (2 * KEPT * x[0].numel() * x.element_size()))
    for i in range(0, n, together):
        _solve(problem, torch.arange(i, min(i + together, n), device=x.device), max_steps, out)
    return out


def fixed(problem: Problem, t: Tensor, weights: Tensor) -> Integral:
    """By the same points (K,) of each line."""
    line = Line(problem.x, problem.start, t, weights)
    found = mean(problem.box, problem.objective, line, len(problem.x), batch_size=problem.batch_size)
    steps = torch.full((len(problem.x),), len(t), device=problem.box.device)
    return Integral(found.map, steps, problem.error(found.map))


# -- where they disagree ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Looks:
    """The points of each example so far, as they were taken: numbers of all K, gradients of L of them."""

    t: Tensor  # (n, K)
    score: Tensor  # (n, K)
    slope: Tensor  # (n, K): d score / dt
    kept: Tensor  # (n, L) which points' gradients these are
    gradient: Tensor  # (n, L, ...)
    weighed: Tensor  # (n, ...) the sum of the others, weighed for good

    def plus(self, new: _Looks) -> _Looks:
        t, score, slope, gradient = (
            torch.cat([getattr(h, name) for h in (self, new)], 1) for name in ("t", "score", "slope", "gradient")
        )
        kept = torch.cat([self.kept, new.kept + self.t.shape[1]], 1)
        return _Looks(t, score, slope, kept, gradient, self.weighed)

    def rows(self, index: Tensor) -> _Looks:
        return _Looks(*(getattr(self, h.name)[index] for h in fields(self)))

    def total(self, weights: Tensor) -> Tensor:
        """The mean gradient (n, ...), by the weights (n, K) of the points."""
        mine = weights.gather(1, self.kept)
        return self.weighed + torch.einsum("nl,nld->nd", mine, self.gradient.flatten(2)).view_as(self.weighed)


def _solve(problem: Problem, rows: Tensor, most: int, out: Integral) -> None:
    """Look where gradients and scores disagree, until they agree or `most` points were looked at."""
    t = midpoints(min(problem.first, most))[0].to(problem.x).expand(len(rows), -1)
    todo = [(rows, _look(problem.rows(rows), t))]
    while todo:
        rows, looks = todo.pop()
        now, k = problem.rows(rows), looks.t.shape[1]
        pieces = _Pieces.of(looks, now)
        gradient = looks.total(pieces.weights)
        error = now.error(gradient)
        hopeless = error - pieces.apart.clamp(min=0).sum(1) > now.bound  # what disagrees can't be cut any more
        done = (error <= now.bound) | hopeless | ~error.isfinite() | (k >= most)
        there = rows[done]
        out.gradient[there], out.error[there], out.steps[there] = gradient[done], error[done], k
        cuts = torch.where(done, 0, pieces.worth(now.bound, most - k))
        for c in sorted(set(cuts.tolist())):  # examples that take as many new points go on together
            if c:
                mine = (cuts == c).nonzero().flatten()
                todo.append((rows[mine], _closer(problem.rows(rows[mine]), looks.rows(mine), pieces.rows(mine), c)))


def _closer(problem: Problem, looks: _Looks, pieces: _Pieces, k: int) -> _Looks:
    """With k more points an example."""
    if looks.kept.shape[1] > KEPT - KEPT // GROWTH:
        looks = _settled(looks, pieces)
        pieces = _Pieces.of(looks, problem)
    return looks.plus(_look(problem, _next(looks, pieces, k)))


def _look(problem: Problem, t: Tensor) -> _Looks:
    """At points t (n, K) of each line."""
    n, k = t.shape
    rows = torch.arange(n, device=t.device).repeat_interleave(k)
    with torch.inference_mode(False):
        points = between(problem.start[rows], problem.x[rows], t.flatten())
    objective = problem.objective.rows(rows)
    found = gradients_in_batches(
        problem.box, objective, points, None, "input", problem.batch_size, "no", at_once(problem.box)
    )
    gradient = found.map.view(n, k, *problem.x.shape[1:])
    slope = (gradient * problem.delta[:, None]).flatten(2).sum(2)
    kept = torch.arange(k, device=t.device).expand(n, -1)
    return _Looks(t, found.score.view(n, k), slope, kept, gradient, torch.zeros_like(problem.x))


@dataclass(frozen=True)
class _Pieces:
    """The line cut at its points."""

    order: Tensor  # (n, K): the points as they lie on the line
    apart: Tensor  # (n, K + 1): how far gradients and scores disagree on each piece; -1 where it can't be cut any more
    weights: Tensor  # (n, K) of the points as they were taken

    @classmethod
    def of(cls, looks: _Looks, problem: Problem) -> _Pieces:
        t, order = looks.t.sort(1)
        score, slope = looks.score.gather(1, order), looks.slope.gather(1, order)
        score = torch.cat([problem.low[:, None], score, problem.high[:, None]], 1)
        slope = torch.cat([slope[:, :1], slope, slope[:, -1:]], 1)
        h = _ends(t).diff(dim=1)  # (n, K + 1)
        apart = ((slope[:, 1:] + slope[:, :-1]) / 2 * h - score.diff(dim=1)).abs()
        half = torch.cat([h[:, :1], h[:, 1:-1] / 2, h[:, -1:]], 1)  # the first and the last piece belong to one point
        weights = torch.zeros_like(looks.t).scatter(1, order, half[:, 1:] + half[:, :-1])
        kept = torch.zeros_like(order, dtype=torch.bool).scatter(1, looks.kept, True).gather(1, order)
        free = torch.cat([kept[:, :1], kept[:, 1:] & kept[:, :-1], kept[:, -1:]], 1)
        return cls(order, torch.where(free, apart, -1), weights)

    def worth(self, bound: Tensor, most: int) -> Tensor:
        """How many pieces of each example to cut now (n,): those so far apart that it matters, 1, 2, 4 or 8 of them."""
        k = self.order.shape[1]
        matter = (self.apart > bound[:, None] / (4 * k)).sum(1)
        few = matter.clamp(1, min(max(1, k // GROWTH), max(1, KEPT // GROWTH), most) if most > 0 else 1)
        return 2 ** few.double().log2().floor().long()

    def rows(self, index: Tensor) -> _Pieces:
        return _Pieces(self.order[index], self.apart[index], self.weights[index])


def _ends(t: Tensor) -> Tensor:
    """0, the sorted times (n, K), and 1."""
    return torch.cat([torch.zeros_like(t[:, :1]), t, torch.ones_like(t[:, :1])], 1)


def _settled(looks: _Looks, pieces: _Pieces) -> _Looks:
    """With some of the kept gradients weighed for good: those with the least disagreement beside them."""
    beside = torch.maximum(pieces.apart[:, 1:], pieces.apart[:, :-1])  # (n, K), as the points lie on the line
    beside = torch.zeros_like(beside).scatter(1, pieces.order, beside).gather(1, looks.kept)  # (n, L)
    rank = beside.argsort(dim=1, descending=True, stable=True)
    room = KEPT - KEPT // GROWTH
    stay, go = rank[:, :room], rank[:, room:]
    row = torch.arange(len(rank), device=rank.device)[:, None]
    gone = replace(looks, kept=looks.kept[row, go], gradient=looks.gradient[row, go])
    return replace(
        looks, kept=looks.kept[row, stay], gradient=looks.gradient[row, stay], weighed=gone.total(pieces.weights)
    )


def _next(looks: _Looks, pieces: _Pieces, k: int) -> Tensor:
    """Points (n, k): the middles of the pieces most apart; of an outer piece, a third from the line's end."""
    t = _ends(looks.t.gather(1, pieces.order))
    piece = pieces.apart.argsort(dim=1, descending=True, stable=True)[:, :k]
    low, high = t.gather(1, piece), t.gather(1, piece + 1)
    share = torch.full_like(low, 1 / 2).masked_fill(piece == 0, 1 / 3)
    share = share.masked_fill(piece == pieces.apart.shape[1] - 1, 2 / 3)
    return low + share * (high - low)
