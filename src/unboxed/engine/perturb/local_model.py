"""LIME's local model: a weighted linear regression of the score on masks.

Ribeiro et al. 2016, "Why Should I Trust You?": Explaining the Predictions of Any Classifier, arXiv:1602.04938, section
3.4. In double precision, on the CPU, one row at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .masks import SampledMasks
from .standard_errors import WeightedFit, standard_errors

RegressionKind = Literal["ridge", "lasso", "ols"]
DEFAULT_ALPHA_BY_REGRESSION = {"ridge": 1.0, "lasso": 0.001, "ols": 0.0}


@dataclass(frozen=True, eq=False)
class LocalLinearModel:
    """A linear model of the score around one input."""

    weights: Tensor  # (A,) of the segments that masking changes
    standard_error: Tensor  # (A,) their standard errors
    unchanged_weight: float  # the weight of each segment that masking does not change
    intercept: float
    r2: float


@dataclass(frozen=True, eq=False)
class KernelWeightMoments:
    """The weights of masks of A segments among F, of which masking leaves D = F - A unchanged.

    Unchanged segments cannot change the score, so they need no samples: they are summed over. With t of them kept (t is
    binomial, D fair coins), a mask that keeps s of the A segments has weight pi(s + t); m0, m1 and m2 (K,) are the
    means over t of pi, pi t and pi t^2.
    """

    moment0: Tensor
    moment1: Tensor
    moment2: Tensor
    n_unchanged: int

    @classmethod
    def from_masks(cls, sampled: SampledMasks, n_features: int, kernel_width: float) -> KernelWeightMoments:
        z = sampled.float_masks
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
    """LIME's kernel: sqrt(exp(-d^2 / width^2)), d being the cosine distance between the mask and the full mask."""
    d = 1 - (n_kept.double() / n_features).sqrt()
    return torch.exp(-(d**2) / kernel_width**2).sqrt()


def fit_weighted_regression(
    z: Tensor, y: Tensor, adjusted: Tensor, control_slope: float, kernel_weights: KernelWeightMoments, cluster: Tensor,
    regression: RegressionKind, alpha: float,
) -> LocalLinearModel:  # fmt: skip
    """The regression of `adjusted` (y less its control variate) on z (K, A) and on how many unchanged ones are kept."""
    a, n_unchanged = z.shape[1], kernel_weights.n_unchanged
    m0, m1, m2 = kernel_weights.moment0, kernel_weights.moment1, kernel_weights.moment2
    columns = slice(0, a + 1 if n_unchanged else a)  # unchanged segments share a weight: of the number of those kept
    design = torch.cat([z, (m1 / m0)[:, None]], 1)[:, columns]  # (K, P)
    total = m0.sum()
    center, y_mean = m0 @ design / total, m0 @ adjusted / total
    gram = design.T @ (m0[:, None] * design) - total * center[:, None] * center
    right = design.T @ (m0 * (adjusted - y_mean))
    within = m2 - m1**2 / m0 if n_unchanged else torch.zeros_like(y)
    if n_unchanged:
        gram[-1, -1] += within.sum()
        right[-1] += control_slope * within.sum()
    penalty = torch.tensor([1.0] * a + [float(n_unchanged)], dtype=torch.float64)[columns]
    if regression == "lasso":
        theta = _lasso_coefficients(gram / total, right / total, alpha * penalty)
        solve = _pseudo_inverse(gram, theta != 0)
    else:
        solve = _pseudo_inverse(gram + torch.diag(penalty) * (alpha if regression == "ridge" else 0.0))
        theta = solve @ right
    fitted, unchanged_weight = y_mean + (design - center) @ theta, float(theta[-1]) if n_unchanged else 0.0
    extra = torch.zeros_like(design)
    extra[:, -1] -= (unchanged_weight - control_slope) * within
    fit = WeightedFit(design - center, m0, adjusted - y_mean, adjusted - fitted, solve, cluster, 1 / float(total))
    error, r2 = standard_errors(fit, extra_gradient=extra), _r2(y, fitted, unchanged_weight**2 * within, m0)
    return LocalLinearModel(theta[:a], error[:a], unchanged_weight, float(y_mean - center @ theta), r2)


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


def _lasso_coefficients(gram: Tensor, right: Tensor, penalty: Tensor) -> Tensor:
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
