"""Multinomial logistic regression with an L2 penalty: no random numbers, in float64, by L-BFGS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

MAX_SOFTMAX_LBFGS_ITERATIONS = 200
GRADIENT_TOLERANCE, LOSS_TOLERANCE = 1e-6, 1e-10  # of the preconditioned mean loss, in nats; its relative improvement
N_LBFGS_CORRECTIONS = 20  # steps that L-BFGS remembers

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """Logits that are linear in the features."""

    weight: Tensor  # (K, R)
    bias: Tensor  # (K,)

    def __call__(self, z: Tensor) -> Tensor:
        """Logits (N, K) of features (N, R)."""
        return z @ self.weight.T + self.bias


def fit_softmax(
    z: Tensor, y: Tensor, n_classes: int, l2: float, start: LinearClassifier | None = None
) -> LinearClassifier:
    """The classifier with the smallest mean cross-entropy + l2 / 2 times the squared weights; the bias is free.

    It is scikit-learn's `LogisticRegression(C=1 / (l2 N))`; of two classes, where that has one row of weights,
    C = 2 / (l2 N). Columns are scaled by a bound of their curvature (Böhning 1992, "Multinomial logistic regression
    algorithm"), which is tight where they are uncorrelated.

    Args:
        z: Features (N, R) in float64, best on their principal axes.
        y: Classes (N,).
        n_classes: Number of classes K.
        l2: Penalty, above 0.
        start: A classifier to start from, of another penalty.

    Returns:
        The classifier.
    """
    n, r = z.shape
    scale = (0.5 * z.square().mean(0) + l2).rsqrt()  # (R,) of the parameters
    labels = torch.nn.functional.one_hot(y, n_classes).to(z)

    def loss_and_gradient(parameters: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias = parameters[:, :r] * scale, parameters[:, r]
        log_p = torch.log_softmax(z @ weight.T + bias, 1)
        residual = (log_p.exp() - labels) / n  # (N, K)
        gradient = torch.cat([(residual.T @ z + l2 * weight) * scale, residual.sum(0)[:, None]], 1)
        return -(labels * log_p).sum() / n + l2 / 2 * weight.square().sum(), gradient

    first = z.new_zeros(n_classes, r + 1)
    if start is not None:
        first = torch.cat([start.weight / scale, start.bias[:, None]], 1)
    solution = minimize_lbfgs(loss_and_gradient, first)
    bias = solution[:, r]
    return LinearClassifier(solution[:, :r] * scale, bias - bias.mean())


def minimize_lbfgs(
    loss_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    max_iterations: int = MAX_SOFTMAX_LBFGS_ITERATIONS,
) -> Tensor:
    """The minimum of a smooth function of a float64 tensor on the CPU, by SciPy's L-BFGS from `start`."""

    def flat_loss_and_gradient(values: Array) -> tuple[float, Array]:
        loss, gradient = loss_and_gradient(torch.from_numpy(values.copy()).view(start.shape))
        return float(loss), gradient.flatten().numpy()

    options = {
        "maxiter": max_iterations,
        "maxcor": N_LBFGS_CORRECTIONS,
        "gtol": GRADIENT_TOLERANCE,
        "ftol": LOSS_TOLERANCE,
    }
    found = minimize(flat_loss_and_gradient, start.flatten().numpy(), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(np.asarray(found.x, dtype=np.float64)).view(start.shape)
