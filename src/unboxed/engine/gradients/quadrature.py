"""Quadrature rules: at which points of the line from a baseline to x gradients are taken, and their weights.

They are for a fixed number of points; `adaptive_quadrature` chooses the number for each example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

QuadratureRule = Literal["midpoint", "gauss-legendre"]


def equal_weights(n_points: int) -> Tensor:
    """Equal weights (K,)."""
    return torch.full((n_points,), 1 / n_points, dtype=torch.float64)


def midpoints(n_points: int) -> tuple[Tensor, Tensor]:
    """(t, weights): the midpoints of k equal intervals; exact where the gradient is linear in t."""
    return (torch.arange(n_points, dtype=torch.float64) + 0.5) / n_points, equal_weights(n_points)


def gauss_legendre(n_points: int) -> tuple[Tensor, Tensor]:
    """(t, weights): exact where the gradient is a polynomial in t of degree 2k - 1; it gains nothing at kinks."""
    t, weights = np.polynomial.legendre.leggauss(n_points)
    return torch.from_numpy((t + 1) / 2), torch.from_numpy(weights / 2)


QUADRATURE_RULES: Mapping[QuadratureRule, Callable[[int], tuple[Tensor, Tensor]]] = {
    "midpoint": midpoints,
    "gauss-legendre": gauss_legendre,
}
