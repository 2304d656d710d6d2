"""Estimators: the scores of masks -> what each player adds. In double precision, on the CPU, one row at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ...errors import InputError
from .control_variate import TRY, Surrogate
from .masks import Draws, every_subset
from .standard_errors import Fit, standard_errors

Regression = Literal["ridge", "lasso", "ols"]
ALPHA = {"ridge": 1.0, "lasso": 0.001, "ols": 0.0}


def without_rounding(change: Tensor, scores: Tensor, eps: float, dim: int = -1) -> Tensor:
    """Changes of scores, exactly zero where all of those along `dim` are no more than the rounding of the scores."""
    bound = 8 * eps * scores.abs().max()
    return torch.where((change.abs() <= bound).all(dim, keepdim=True), 0.0, change)


# -- Shapley values ----------------------------------------------------------------------------------------------------


def exact_shapley(v: Tensor, eps: float) -> Tensor:
    """Shapley values (A,) of the scores v (2^A,) of all subsets, in the order of `every_subset`.

    Shapley 1953: the mean over all orders of what a player adds to those before it.
    """
    a = len(v).bit_length() - 1
    if a == 0:
        return v.new_zeros(0)
    subsets = every_subset(a)
    number, size = torch.arange(2**a), subsets.sum(1)
    weight = torch.tensor([1 / (a * math.comb(a - 1, s)) for s in range(a)], dtype=v.dtype)
    values = []
    for i in range(a):
        without = number[~subsets[:, i]]
        added = without_rounding(v[without + 2**i] - v[without], v, eps)
        values.append((weight[size[without]] * added).sum())
    return torch.stack(values)


def kernel_shapley(draws: Draws, y: Tensor, none: float, whole: float) -> tuple[Tensor, Tensor]:
    """Shapley values (A,) by weighted least squares, and their standard errors: they sum to whole - none exactly.

    Lundberg & Lee 2017, theorem 2, the constraint eliminated by its Lagrange multiplier (Covert & Lee 2021, eq. 7).
    """
    z, w = draws.z, draws.weight[:, None]
    ones = z.new_ones(z.shape[1])
    inverse = torch.linalg.pinv(z.T @ (w * z), hermitian=True)
    across = inverse @ ones
    phi = inverse @ (z.T @ (w[:, 0] * (y - none)))
    phi = phi - across * ((phi.sum() - (whole - none)) / across.sum())
    project = inverse - across[:, None] * across / across.sum()
    size = z.sum(1).long()
    strata = torch.minimum(size, z.shape[1] - size)  # pairs of sizes: their numbers are not left to chance
    even = y - none - z.mean(1) * (whole - none)  # less what the sum of all, which is given, says
    fit = Fit(z, draws.weight, even, y - none - z @ phi, project, draws.cluster)
    return phi, standard_errors(fit, strata)


# -- LIME --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Local:
    """A linear model of the score around one input."""

    weights: Tensor  # (A,) of the players that hide something
    error: Tensor  # (A,) their standard errors
    idle: float  # the weight of each player that hides nothing
    intercept: float
    r2: float


@dataclass(frozen=True, eq=False)
class Surrounding:
    """What weighs the masks of A players among F, D = F - A of which hide nothing.

    Those can't change the score, so they need no draws: they are summed over. With t of them kept (a binomial of D
    coins) a mask of s players weighs pi(s + t); m0, m1, m2 (K,) are the means over t of pi, pi t and pi t^2.
    """

    m0: Tensor
    m1: Tensor
    m2: Tensor
    idle: int

    @classmethod
    def of(cls, draws: Draws, features: int, width: float) -> Surrounding:
        z = draws.z
        a, idle = z.shape[1], features - z.shape[1]
        t = torch.arange(idle + 1, dtype=torch.float64)
        log = math.lgamma(idle + 1) - torch.lgamma(t + 1) - torch.lgamma(idle - t + 1) - idle * math.log(2)
        pi = proximity(torch.arange(a + 1)[:, None] + t, features, width) * log.exp()  # (A + 1, D + 1)
        moments = torch.stack([pi.sum(1), pi @ t, pi @ t**2], 1)[z.sum(1).long()]  # (K, 3)
        moments[0] = moments.new_tensor([1.0, idle, idle**2])  # the input itself, with all of them kept
        m0, m1, m2 = (draws.weight[:, None] * moments).T
        return cls(m0, m1, m2, idle)


def proximity(kept: Tensor, features: int, width: float) -> Tensor:
    """LIME's kernel: sqrt(exp(-d^2 / width^2)), d the cosine distance between the mask and the one of ones."""
    d = 1 - (kept.double() / features).sqrt()
    return torch.exp(-(d**2) / width**2).sqrt()


def local_model(
    design: Design, y: Tensor, *, regression: Regression, alpha: float, most: int | None = None, odds: bool = False
) -> Local:
    """The weighted regression of y (K,) on the masks, in all players or in the `most` that weigh most.

    Ribeiro et al. 2016, section 3.4. `odds`: y are probabilities. Raises InputError for an unknown regression.
    """
    if regression not in ALPHA:
        raise InputError(f"regression is {', '.join(map(repr, ALPHA))}; got {regression!r}")
    straight, slope = design.controlled(y, odds)
    z, around, cluster = design.draws.z, design.around, design.draws.cluster
    found = _fit(z, y, straight, slope, around, cluster, regression, alpha)
    if most is None or most >= z.shape[1]:
        return found
    top = found.weights.abs().topk(most).indices.sort().values
    again = _fit(z[:, top], y, straight, 0.0, replace(around, idle=0), cluster, regression, alpha)
    zeros = torch.zeros_like(found.weights)
    weights, error = zeros.index_copy(0, top, again.weights), zeros.index_copy(0, top, again.error)
    return Local(weights, error, 0.0, again.intercept, again.r2)


@dataclass(frozen=True)
class Design:
    """The masks of a row, what weighs them, and, for the control variate, many more masks that are not run."""

    draws: Draws
    around: Surrounding
    surrogate: Surrogate | None  # None where all masks are run, or too few
    plenty: Draws | None
    beyond: Surrounding | None  # what weighs those

    @classmethod
    def of(cls, draws: Draws, features: int, width: float, known: tuple[Surrogate, Draws] | None) -> Design:
        around = Surrounding.of(draws, features, width)
        if known is None:
            return cls(draws, around, None, None, None)
        surrogate, plenty = known
        share = draws.weight[1:].sum() / plenty.weight[1:].sum()  # the input itself counts as much in both
        weight = torch.cat([plenty.weight[:1], plenty.weight[1:] * share])
        plenty = replace(plenty, weight=weight)
        return cls(draws, around, surrogate, plenty, Surrounding.of(plenty, features, width))

    def controlled(self, y: Tensor, odds: bool) -> tuple[Tensor, float]:
        """y without what bends in it as far as that is known, (K,), and how that leans on players that hide nothing."""
        if self.surrogate is None or self.plenty is None or self.beyond is None or float(y.std()) < 1e-12:
            return y, 0.0
        z, m0, some = self.draws.z, self.around.m0, slice(1, 1 + TRY)
        few = _Bends(z[some], m0[some])
        own = few(y[some])
        drawn, g = self.surrogate.fit(y[1:], lambda h: few.lost(own, few(h)), odds=odds)
        here, there = torch.cat([g(z[:1]), drawn]), g(self.plenty.z)
        listed = self.plenty.cluster.new_full((1,), -1)
        line = _fit(self.plenty.z, there, there, 0.0, self.beyond, listed, "ols", 0.0)
        bent = here - line.intercept - z @ line.weights - line.idle * self.around.m1 / m0
        every = _Bends(z, m0)
        share = every.share(every(y), every(bent))
        return y - share * bent, share * line.idle


class _Bends:
    """What a weighted linear regression on masks z (K, A) leaves of values (K,), times the root of the weights."""

    def __init__(self, z: Tensor, weight: Tensor) -> None:
        self.root = weight.sqrt()
        self.q: Tensor = torch.linalg.qr(self.root[:, None] * torch.cat([torch.ones_like(z[:, :1]), z], 1)).Q

    def __call__(self, h: Tensor) -> Tensor:
        h = self.root * h
        return h - self.q @ (self.q.T @ h)

    def share(self, y: Tensor, bent: Tensor) -> float:
        """How much of a control variate to take out, none to all: what leaves the least."""
        size = float(bent @ bent)
        return min(1.0, max(0.0, float(y @ bent) / size)) if size > 1e-300 else 0.0

    def lost(self, y: Tensor, bent: Tensor) -> float:
        """What is left."""
        return float(((y - self.share(y, bent) * bent) ** 2).sum())


def _fit(
    z: Tensor, y: Tensor, straight: Tensor, slope: float, around: Surrounding, cluster: Tensor,
    regression: Regression, alpha: float,
) -> Local:  # fmt: skip
    """The regression of `straight` (y without what bends in it) on z (K, A) and the number of idle players kept."""
    a, idle = z.shape[1], around.idle
    together = slice(0, a + 1 if idle else a)  # those that hide nothing share one weight: their number is a column
    h = torch.cat([z, (around.m1 / around.m0)[:, None]], 1)[:, together]  # (K, P)
    total = around.m0.sum()
    center, middle = around.m0 @ h / total, around.m0 @ straight / total
    gram = h.T @ (around.m0[:, None] * h) - total * center[:, None] * center
    right = h.T @ (around.m0 * (straight - middle))
    within = around.m2 - around.m1**2 / around.m0 if idle else torch.zeros_like(y)
    if idle:
        gram[-1, -1] += within.sum()
        right[-1] += slope * within.sum()
    penalty = torch.tensor([1.0] * a + [float(idle)], dtype=torch.float64)[together]
    if regression == "lasso":
        theta = _lasso(gram / total, right / total, alpha * penalty)
        solve = _inverse(gram, theta != 0)
    else:
        solve = _inverse(gram + torch.diag(penalty) * (alpha if regression == "ridge" else 0.0))
        theta = solve @ right
    fitted, last = middle + (h - center) @ theta, float(theta[-1]) if idle else 0.0
    extra = torch.zeros_like(h)
    extra[:, -1] -= (last - slope) * within
    fit = Fit(h - center, around.m0, straight - middle, straight - fitted, solve, cluster, 1 / float(total))
    error = standard_errors(fit, extra=extra)
    return Local(
        theta[:a], error[:a], last, float(middle - center @ theta), _r2(y, fitted, last**2 * within, around.m0)
    )


def _r2(y: Tensor, fitted: Tensor, within: Tensor, weight: Tensor) -> float:
    """The share of y's weighted variance that the fit explains; 1 of what is constant."""
    middle = (weight @ y) / weight.sum()
    spread = float(weight @ (y - middle) ** 2)
    least = 1e-24 * float(weight.sum()) * max(1e-300, float(y.abs().max())) ** 2
    return float(1 - (weight @ (y - fitted) ** 2 + within.sum()) / spread) if spread > least else 1.0


def _inverse(gram: Tensor, chosen: Tensor | None = None) -> Tensor:
    """The pseudo-inverse in the chosen columns, zero in the others."""
    index = torch.arange(len(gram)) if chosen is None else chosen.nonzero()[:, 0]
    inverse = torch.zeros_like(gram)
    if len(index):
        inverse[index[:, None], index] = torch.linalg.pinv(gram[index[:, None], index], hermitian=True)
    return inverse


def _lasso(gram: Tensor, right: Tensor, penalty: Tensor) -> Tensor:
    """argmin of theta gram theta / 2 - right theta + penalty |theta|.

    Standard errors are those of least squares on what is not zero, given the choice.
    """
    from sklearn.linear_model import Lasso

    if not bool(penalty.any()):
        return _inverse(gram) @ right
    gram, right = gram / penalty[:, None] / penalty, right / penalty  # one penalty for all
    values, vectors = torch.linalg.eigh(gram)
    root = values.clamp(min=float(values.max()) * 1e-13 + 1e-300).sqrt()
    x, y = root[:, None] * vectors.T, (vectors.T @ right) / root  # x'x = gram, x'y = right
    model = Lasso(alpha=1.0 / len(x), fit_intercept=False, max_iter=100_000, tol=1e-10)
    theta: Tensor = torch.from_numpy(model.fit(x.numpy(), y.numpy()).coef_) / penalty
    return theta
