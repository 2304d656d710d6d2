"""Estimators: the scores of masks -> what each player adds. In double precision, on the CPU, one row at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ...errors import InputError
from .control_variate import N_SELECTION_MASKS, Surrogate
from .masks import SampledMasks, all_subsets
from .standard_errors import WeightedFit, standard_errors

Regression = Literal["ridge", "lasso", "ols"]
DEFAULT_ALPHA = {"ridge": 1.0, "lasso": 0.001, "ols": 0.0}


def zero_rounding_noise(changes: Tensor, scores: Tensor, eps: float, dim: int = -1) -> Tensor:
    """Changes of scores, exactly zero where all of those along `dim` are no more than the rounding of the scores."""
    bound = 8 * eps * scores.abs().max()
    return torch.where((changes.abs() <= bound).all(dim, keepdim=True), 0.0, changes)


# -- Shapley values ----------------------------------------------------------------------------------------------------


def exact_shapley(subset_scores: Tensor, eps: float) -> Tensor:
    """Shapley values (A,) of the scores v (2^A,) of all subsets, in the order of `every_subset`.

    Shapley 1953: the mean over all orders of what a player adds to those before it.
    """
    n_features = len(subset_scores).bit_length() - 1
    if n_features == 0:
        return subset_scores.new_zeros(0)
    subsets = all_subsets(n_features)
    subset_index, size = torch.arange(2**n_features), subsets.sum(1)
    weight = torch.tensor(
        [1 / (n_features * math.comb(n_features - 1, s)) for s in range(n_features)], dtype=subset_scores.dtype
    )
    values = []
    for i in range(n_features):
        without = subset_index[~subsets[:, i]]
        added = zero_rounding_noise(subset_scores[without + 2**i] - subset_scores[without], subset_scores, eps)
        values.append((weight[size[without]] * added).sum())
    return torch.stack(values)


def kernel_shapley(sampled: SampledMasks, y: Tensor, empty_score: float, full_score: float) -> tuple[Tensor, Tensor]:
    """Shapley values (A,) by weighted least squares, and their standard errors: they sum to whole - none exactly.

    Lundberg & Lee 2017, theorem 2, the constraint eliminated by its Lagrange multiplier (Covert & Lee 2021, eq. 7).
    """
    z, w = sampled.z, sampled.weight[:, None]
    ones = z.new_ones(z.shape[1])
    inverse = torch.linalg.pinv(z.T @ (w * z), hermitian=True)
    row_sums = inverse @ ones
    phi = inverse @ (z.T @ (w[:, 0] * (y - empty_score)))
    phi = phi - row_sums * ((phi.sum() - (full_score - empty_score)) / row_sums.sum())
    project = inverse - row_sums[:, None] * row_sums / row_sums.sum()
    size = z.sum(1).long()
    strata = torch.minimum(size, z.shape[1] - size)  # pairs of sizes: their numbers are not left to chance
    centered = (
        y - empty_score - z.mean(1) * (full_score - empty_score)
    )  # less what the sum of all, which is given, says
    fit = WeightedFit(z, sampled.weight, centered, y - empty_score - z @ phi, project, sampled.cluster)
    return phi, standard_errors(fit, strata)


# -- LIME --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LocalModel:
    """A linear model of the score around one input."""

    weights: Tensor  # (A,) of the players that hide something
    standard_error: Tensor  # (A,) their standard errors
    unchanged_weight: float  # the weight of each player that hides nothing
    intercept: float
    r2: float


@dataclass(frozen=True, eq=False)
class KernelWeights:
    """What weighs the masks of A players among F, D = F - A of which hide nothing.

    Those can't change the score, so they need no draws: they are summed over. With t of them kept (a binomial of D
    coins) a mask of s players weighs pi(s + t); m0, m1, m2 (K,) are the means over t of pi, pi t and pi t^2.
    """

    moment0: Tensor
    moment1: Tensor
    moment2: Tensor
    n_unchanged: int

    @classmethod
    def from_masks(cls, sampled: SampledMasks, n_features: int, kernel_width: float) -> KernelWeights:
        z = sampled.z
        a, n_unchanged = z.shape[1], n_features - z.shape[1]
        t = torch.arange(n_unchanged + 1, dtype=torch.float64)
        log = (
            math.lgamma(n_unchanged + 1)
            - torch.lgamma(t + 1)
            - torch.lgamma(n_unchanged - t + 1)
            - n_unchanged * math.log(2)
        )
        pi = proximity_kernel(torch.arange(a + 1)[:, None] + t, n_features, kernel_width) * log.exp()  # (A + 1, D + 1)
        moments = torch.stack([pi.sum(1), pi @ t, pi @ t**2], 1)[z.sum(1).long()]  # (K, 3)
        moments[0] = moments.new_tensor([1.0, n_unchanged, n_unchanged**2])  # the input itself, with all of them kept
        m0, m1, m2 = (sampled.weight[:, None] * moments).T
        return cls(m0, m1, m2, n_unchanged)


def proximity_kernel(n_kept: Tensor, n_features: int, kernel_width: float) -> Tensor:
    """LIME's kernel: sqrt(exp(-d^2 / width^2)), d the cosine distance between the mask and the one of ones."""
    d = 1 - (n_kept.double() / n_features).sqrt()
    return torch.exp(-(d**2) / kernel_width**2).sqrt()


def fit_local_model(
    design: RegressionDesign,
    y: Tensor,
    *,
    regression: Regression,
    alpha: float,
    max_features: int | None = None,
    use_log_odds: bool = False,
) -> LocalModel:
    """The weighted regression of y (K,) on the masks, in all players or in the `most` that weigh most.

    Ribeiro et al. 2016, section 3.4. `odds`: y are probabilities. Raises InputError for an unknown regression.
    """
    if regression not in DEFAULT_ALPHA:
        raise InputError(f"regression is {', '.join(map(repr, DEFAULT_ALPHA))}; got {regression!r}")
    adjusted, control_slope = design.apply_control_variate(y, use_log_odds)
    z, kernel_weights, cluster = design.sampled.z, design.kernel_weights, design.sampled.cluster
    local = _fit_local(z, y, adjusted, control_slope, kernel_weights, cluster, regression, alpha)
    if max_features is None or max_features >= z.shape[1]:
        return local
    top = local.weights.abs().topk(max_features).indices.sort().values
    refit = _fit_local(z[:, top], y, adjusted, 0.0, replace(kernel_weights, n_unchanged=0), cluster, regression, alpha)
    zeros = torch.zeros_like(local.weights)
    weights, error = zeros.index_copy(0, top, refit.weights), zeros.index_copy(0, top, refit.standard_error)
    return LocalModel(weights, error, 0.0, refit.intercept, refit.r2)


@dataclass(frozen=True)
class RegressionDesign:
    """The masks of a row, what weighs them, and, for the control variate, many more masks that are not run."""

    sampled: SampledMasks
    kernel_weights: KernelWeights
    surrogate: Surrogate | None  # None where all masks are run, or too few
    reference_masks: SampledMasks | None
    reference_weights: KernelWeights | None  # what weighs those

    @classmethod
    def from_masks(
        cls,
        sampled: SampledMasks,
        n_features: int,
        kernel_width: float,
        surrogate_and_masks: tuple[Surrogate, SampledMasks] | None,
    ) -> RegressionDesign:
        kernel_weights = KernelWeights.from_masks(sampled, n_features, kernel_width)
        if surrogate_and_masks is None:
            return cls(sampled, kernel_weights, None, None, None)
        surrogate, reference_masks = surrogate_and_masks
        share = sampled.weight[1:].sum() / reference_masks.weight[1:].sum()  # the input itself counts as much in both
        weight = torch.cat([reference_masks.weight[:1], reference_masks.weight[1:] * share])
        reference_masks = replace(reference_masks, weight=weight)
        return cls(
            sampled,
            kernel_weights,
            surrogate,
            reference_masks,
            KernelWeights.from_masks(reference_masks, n_features, kernel_width),
        )

    def apply_control_variate(self, y: Tensor, use_log_odds: bool) -> tuple[Tensor, float]:
        """y without what bends in it as far as that is known, (K,), and how that leans on players that hide nothing."""
        if (
            self.surrogate is None
            or self.reference_masks is None
            or self.reference_weights is None
            or float(y.std()) < 1e-12
        ):
            return y, 0.0
        z, m0, selection = self.sampled.z, self.kernel_weights.moment0, slice(1, 1 + N_SELECTION_MASKS)
        selection_residual = _LinearResidual(z[selection], m0[selection])
        y_residual = selection_residual(y[selection])
        predicted, g = self.surrogate.fit(
            y[1:],
            lambda h: selection_residual.unexplained(y_residual, selection_residual(h)),
            use_log_odds=use_log_odds,
        )
        mask_predictions, reference_predictions = torch.cat([g(z[:1]), predicted]), g(self.reference_masks.z)
        unsampled = self.reference_masks.cluster.new_full((1,), -1)
        linear_part = _fit_local(
            self.reference_masks.z,
            reference_predictions,
            reference_predictions,
            0.0,
            self.reference_weights,
            unsampled,
            "ols",
            0.0,
        )
        control = (
            mask_predictions
            - linear_part.intercept
            - z @ linear_part.weights
            - linear_part.unchanged_weight * self.kernel_weights.moment1 / m0
        )
        residual = _LinearResidual(z, m0)
        coefficient = residual.control_coefficient(residual(y), residual(control))
        return y - coefficient * control, coefficient * linear_part.unchanged_weight


class _LinearResidual:
    """What a weighted linear regression on masks z (K, A) leaves of values (K,), times the root of the weights."""

    def __init__(self, z: Tensor, weight: Tensor) -> None:
        self.root = weight.sqrt()
        self.q: Tensor = torch.linalg.qr(self.root[:, None] * torch.cat([torch.ones_like(z[:, :1]), z], 1)).Q

    def __call__(self, h: Tensor) -> Tensor:
        h = self.root * h
        return h - self.q @ (self.q.T @ h)

    def control_coefficient(self, y: Tensor, control: Tensor) -> float:
        """How much of a control variate to take out, none to all: what leaves the least."""
        size = float(control @ control)
        return min(1.0, max(0.0, float(y @ control) / size)) if size > 1e-300 else 0.0

    def unexplained(self, y: Tensor, control: Tensor) -> float:
        """What is left."""
        return float(((y - self.control_coefficient(y, control) * control) ** 2).sum())


def _fit_local(
    z: Tensor, y: Tensor, adjusted: Tensor, control_slope: float, kernel_weights: KernelWeights, cluster: Tensor,
    regression: Regression, alpha: float,
) -> LocalModel:  # fmt: skip
    """The regression of `straight` (y without what bends in it) on z (K, A) and the number of idle players kept."""
    a, n_unchanged = z.shape[1], kernel_weights.n_unchanged
    columns = slice(
        0, a + 1 if n_unchanged else a
    )  # those that hide nothing share one weight: their number is a column
    design = torch.cat([z, (kernel_weights.moment1 / kernel_weights.moment0)[:, None]], 1)[:, columns]  # (K, P)
    total = kernel_weights.moment0.sum()
    center, y_mean = kernel_weights.moment0 @ design / total, kernel_weights.moment0 @ adjusted / total
    gram = design.T @ (kernel_weights.moment0[:, None] * design) - total * center[:, None] * center
    right = design.T @ (kernel_weights.moment0 * (adjusted - y_mean))
    within = (
        kernel_weights.moment2 - kernel_weights.moment1**2 / kernel_weights.moment0
        if n_unchanged
        else torch.zeros_like(y)
    )
    if n_unchanged:
        gram[-1, -1] += within.sum()
        right[-1] += control_slope * within.sum()
    penalty = torch.tensor([1.0] * a + [float(n_unchanged)], dtype=torch.float64)[columns]
    if regression == "lasso":
        theta = _lasso(gram / total, right / total, alpha * penalty)
        solve = _pseudo_inverse(gram, theta != 0)
    else:
        solve = _pseudo_inverse(gram + torch.diag(penalty) * (alpha if regression == "ridge" else 0.0))
        theta = solve @ right
    fitted, unchanged_weight = y_mean + (design - center) @ theta, float(theta[-1]) if n_unchanged else 0.0
    extra = torch.zeros_like(design)
    extra[:, -1] -= (unchanged_weight - control_slope) * within
    fit = WeightedFit(
        design - center, kernel_weights.moment0, adjusted - y_mean, adjusted - fitted, solve, cluster, 1 / float(total)
    )
    error = standard_errors(fit, extra=extra)
    return LocalModel(
        theta[:a],
        error[:a],
        unchanged_weight,
        float(y_mean - center @ theta),
        _r2(y, fitted, unchanged_weight**2 * within, kernel_weights.moment0),
    )


def _r2(y: Tensor, fitted: Tensor, within: Tensor, weight: Tensor) -> float:
    """The share of y's weighted variance that the fit explains; 1 of what is constant."""
    y_mean = (weight @ y) / weight.sum()
    variance = float(weight @ (y - y_mean) ** 2)
    min_variance = 1e-24 * float(weight.sum()) * max(1e-300, float(y.abs().max())) ** 2
    return float(1 - (weight @ (y - fitted) ** 2 + within.sum()) / variance) if variance > min_variance else 1.0


def _pseudo_inverse(gram: Tensor, chosen: Tensor | None = None) -> Tensor:
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
        return _pseudo_inverse(gram) @ right
    gram, right = gram / penalty[:, None] / penalty, right / penalty  # one penalty for all
    values, vectors = torch.linalg.eigh(gram)
    root = values.clamp(min=float(values.max()) * 1e-13 + 1e-300).sqrt()
    x, y = root[:, None] * vectors.T, (vectors.T @ right) / root  # x'x = gram, x'y = right
    model = Lasso(alpha=1.0 / len(x), fit_intercept=False, max_iter=100_000, tol=1e-10)
    theta: Tensor = torch.from_numpy(model.fit(x.numpy(), y.numpy()).coef_) / penalty
    return theta
