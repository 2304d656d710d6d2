"""Paths: the points at which a gradient method looks, the weight of each look, and their weighted mean.

A gradient method is a path of points x a backward rule: `mean(box, objective, path, n, rule=rules.guided)` is guided
integrated gradients on a `Line`, guided SmoothGrad on `Noise`; `at=` a layer gives the mean gradient there. Points are
made, and their gradients summed, one bounded batch at a time: memory does not grow with the number of points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ... import rng
from ...box import Box
from ...inputs.base import Inputs
from ...inputs.features import Features
from ...inputs.multi import MultiInput
from ...model.batching import BatchSize, in_batches
from ...model.relu_rules import Rule
from ...objectives import Objective
from .score import Unclamp, batch_gradients

Moment = Literal["mean", "squared", "variance"]


class Path(Protocol):
    """K points for each example."""

    @property
    def weights(self) -> Tensor: ...  # (K,), on the CPU

    def __call__(self, n: Tensor, k: Tensor) -> tuple[Tensor, Tensor | None]:
        """The k-th points (R,) of the examples n (R,), indices on the CPU: (R, ...), and what their gradients take as
        a factor, if anything."""


# -- paths -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Line:
    """The straight line from a start to x, at t (K,) of its length (Sundararajan et al. 2017, section 3)."""

    x: Tensor  # (N, ...)
    start: Tensor  # (N, ...)
    t: Tensor  # (K,), in [0, 1]
    weights: Tensor  # (K,)

    def __call__(self, n: Tensor, k: Tensor) -> tuple[Tensor, None]:
        n = n.to(self.x.device)
        return between(self.start[n], self.x[n], self.t[k].to(self.x)), None


def between(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Points (R, ...) at t (R,) of the way from start to end (R, ...)."""
    return start + t.view(-1, *[1] * (end.ndim - 1)) * (end - start)


@dataclass(frozen=True, eq=False)
class Noise:
    """x and normal noise of standard deviation `sigma`, keyed by (seed, row, sample)."""

    x: Tensor  # (N, ...)
    sigma: Tensor  # broadcast to x
    weights: Tensor  # (K,)
    seed: int = 0

    def __call__(self, n: Tensor, k: Tensor) -> tuple[Tensor, None]:
        drawn = normal(self.x, n, k, self.seed)
        n = n.to(self.x.device)
        return self.x[n] + self.sigma.expand_as(self.x)[n] * drawn, None


@dataclass(frozen=True, eq=False)
class References:
    """Points between references and x, each gradient times its own x - reference (Erion et al. 2021, equation 4)."""

    x: Tensor  # (N, ...)
    references: Tensor  # (M, ...)
    pick: Tensor  # (N, K) which reference
    alpha: Tensor  # (N, K) in [0, 1]: how far from it
    weights: Tensor  # (K,)

    def __call__(self, n: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        start, end = self.references[self.pick[n, k].to(self.x.device)], self.x[n.to(self.x.device)]
        return between(start, end, self.alpha[n, k].to(self.x)), end - start


# -- points and weights on [0, 1] ------------------------------------------------------------------------------------


def equal(k: int) -> Tensor:
    """Weights (K,) of points that count alike."""
    return torch.full((k,), 1 / k, dtype=torch.float64)


def midpoints(k: int) -> tuple[Tensor, Tensor]:
    """(t, weights): the middles of k equal parts; exact where the gradient is linear in t."""
    return (torch.arange(k, dtype=torch.float64) + 0.5) / k, equal(k)


def gauss_legendre(k: int) -> tuple[Tensor, Tensor]:
    """(t, weights): exact where the gradient is a polynomial in t of degree 2k - 1; of no help across kinks."""
    t, weights = np.polynomial.legendre.leggauss(k)
    return torch.from_numpy((t + 1) / 2), torch.from_numpy(weights / 2)


RULES: Mapping[str, Callable[[int], tuple[Tensor, Tensor]]] = {
    "midpoint": midpoints,
    "gauss-legendre": gauss_legendre,
}

# -- draws -----------------------------------------------------------------------------------------------------------

BLOCK = 8  # samples of one row drawn at once: seeding a generator costs as much as drawing a small image


def normal(like: Tensor, n: Tensor, k: Tensor, seed: int) -> Tensor:
    """Standard normal values (R, ...): sample k (R,) of row n (R,), the same in whatever batch it is drawn."""
    drawn, pairs = list[Tensor](), zip(n.tolist(), k.tolist(), strict=True)
    for (row, block), group in groupby(pairs, key=lambda pair: (pair[0], pair[1] // BLOCK)):
        samples = [sample % BLOCK for _, sample in group]
        generator = rng.of_sample(seed, row, block, like.device)
        values = torch.randn(BLOCK, *like.shape[1:], generator=generator, device=like.device, dtype=like.dtype)
        drawn.append(values[samples[0] : samples[-1] + 1])
    return torch.cat(drawn)


def spread(inputs: Inputs, x: Tensor) -> Tensor:
    """The unit of noise, broadcast to x (N, ...): max - min of each image; a column's std, as the features give it."""
    if isinstance(inputs, MultiInput):
        parts = inputs.parts.values() if isinstance(inputs.parts, Mapping) else inputs.parts
        each = [spread(part, v).expand_as(v).flatten(1) for part, v in zip(parts, inputs.split(x), strict=True)]
        return torch.cat(each, 1)
    if isinstance(inputs, Features):
        return x.new_tensor(inputs.std)[None]
    flat = x.flatten(1)
    return (flat.amax(1) - flat.amin(1)).view(-1, *[1] * (x.ndim - 1))


# -- the mean over a path --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Mean:
    map: Tensor  # (N, ...) shaped like the input, or like the layer
    before_clamp: Tensor  # (N,) bool: some gradient was taken before a final ReLU that clamps the score at zero
    finite: Tensor  # (N,) bool: the score is a finite number at all of its points


def mean(
    box: Box,
    objective: Objective,
    path: Path,
    n: int,
    *,
    moment: Moment = "mean",
    rule: Rule | None = None,
    at: str = "input",
    batch_size: BatchSize = "auto",
    unclamp: Unclamp = "no",
) -> Mean:
    """The weighted mean, over the path's points, of d score / d input (or / d activation, `at` a layer) for n examples.

    `moment` "squared" is the mean of its square, "variance" that of its squared distance from the mean, both weighted.
    `objective` is one that does not change from point to point (`edits.settled`).
    """
    work = _Work(box, box.checked(objective, n), path, n, moment, rule, at, unclamp)
    in_batches(work.part, n * work.k, *_splits(box, n, work.k, batch_size, work.coupled))
    return Mean(torch.stack([work.sums[i].value for i in range(n)]).to(box.dtype), work.clamped, work.finite)


class _Work:
    def __init__(
        self, box: Box, objective: Objective, path: Path, n: int, moment: Moment, rule: Rule | None, at: str,
        unclamp: Unclamp,
    ) -> None:  # fmt: skip
        self.box, self.objective, self.path, self.n, self.moment = box, objective, path, n, moment
        self.rule, self.at, self.unclamp = rule, at, unclamp
        self.k, self.coupled = len(path.weights), box.coupled or objective.coupled
        self.wide = torch.float32 if box.device.type == "mps" else torch.float64  # so that it sums alike in any parts
        self.weights = path.weights.to(box.device, self.wide)
        self.sums: dict[int, _Sum] = {}
        self.clamped = torch.zeros(n, dtype=torch.bool, device=box.device)
        self.finite = ~self.clamped

    def part(self, rows: slice) -> None:
        """The gradients at some pairs of example and point, added to their examples' sums."""
        n, k = _pairs(rows, self.n, self.k, self.coupled)
        with torch.inference_mode(False):
            points, times = self.path(n, k)
        objective = self.objective.rows(n.to(self.box.device))
        found = batch_gradients(self.box, objective, points, self.rule, self.at, self.unclamp)
        grads = found.map if times is None else found.map * times
        own, counts = (h.tolist() for h in torch.unique_consecutive(n, return_counts=True))
        weights = torch.split(self.weights[k.to(self.box.device)], counts)
        each = zip(own, weights, torch.split(grads.to(self.wide), counts), strict=True)
        sums = [(self.sums.get(i) or _Sum.starting(self.moment, g)).plus(w, g) for i, w, g in each]
        self.sums.update(zip(own, sums, strict=True))  # last, for a part that ran out of memory runs again
        n = n.to(self.box.device)
        self.clamped[n[found.before_clamp]] = True
        self.finite[n[~found.score.isfinite()]] = False


@dataclass(frozen=True)
class _Sum:
    """One example's sums so far; a variance is taken around the first gradient, where it loses no digits."""

    moment: Moment
    first: Tensor | float
    total: Tensor
    squares: Tensor | None

    @classmethod
    def starting(cls, moment: Moment, g: Tensor) -> _Sum:
        zero = torch.zeros_like(g[0])
        return cls(moment, g[0].clone() if moment == "variance" else 0.0, zero, None if moment == "mean" else zero)

    def plus(self, w: Tensor, g: Tensor) -> _Sum:
        """With gradients g (R, ...) of weights w (R,)."""
        g = g - self.first if self.moment == "variance" else g
        w = w.view(-1, *[1] * (g.ndim - 1))
        squares = None if self.squares is None else self.squares + (w * g**2).sum(0)
        return _Sum(self.moment, self.first, self.total + (w * g).sum(0), squares)

    @property
    def value(self) -> Tensor:
        if self.squares is None:
            return self.total
        return self.squares if self.moment == "squared" else (self.squares - self.total**2).clamp(min=0)


def scores(box: Box, objective: Objective, path: Path, n: int, *, batch_size: BatchSize = "auto") -> Tensor:
    """The score at each of the path's points, (N, K); no gradients."""
    k = len(path.weights)
    coupled = box.coupled or objective.coupled

    def part(rows: slice) -> Tensor:
        example, look = _pairs(rows, n, k, coupled)
        with torch.inference_mode(False):
            points, _ = path(example, look)
        with box.quiet(grad=False):
            own = objective.rows(example.to(box.device))
            return own(box.forward(points, own.layers)).to(box.dtype)

    parts = in_batches(part, n * k, *_splits(box, n, k, batch_size, coupled))
    found = torch.cat(parts)
    return found.view(k, n).T if coupled else found.view(n, k)


AT_ONCE = 96
"""Rows on a CPU: gradients of more take longer each, for what they keep leaves the cache."""


def at_once(box: Box) -> int:
    """How many rows of an automatic batch are looked at together."""
    return min(box.batch_limit, AT_ONCE) if box.device.type == "cpu" else box.batch_limit


def _splits(box: Box, n: int, k: int, batch_size: BatchSize, coupled: bool) -> tuple[BatchSize, int]:
    """(size, most) for `in_batches`; where rows depend on one another a batch is all examples, at one point each."""
    if coupled:
        return box.splits(n, batch_size, True)
    return box.splits(n * k, batch_size)[0], at_once(box)


def _pairs(rows: slice, n: int, k: int, coupled: bool) -> tuple[Tensor, Tensor]:
    """Examples and points of some of n * k pairs: all points of an example, then of the next (coupled: one each)."""
    p = torch.arange(rows.start, rows.stop)
    return (p % n, p // n) if coupled else (p // k, p % k)
