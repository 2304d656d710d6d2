"""Features rotated onto their principal axes; standardized, as penalized classifiers want them, or as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

MIN_VARIANCE_RATIO = 1e-10  # of the largest: axes with less are left out


@dataclass(frozen=True, eq=False)
class PrincipalBasis:
    """Standardization and rotation of features, fitted to training examples.

    The rotation changes no classifier with an L2 penalty, but of more features than examples it leaves as many as there
    are examples, and its axes are uncorrelated, which makes the fit well conditioned.
    """

    mean: Tensor  # (D,)
    scale: Tensor  # (D,) the standard deviations; 1 for constant features, and where they are not standardized
    axes: Tensor  # (D, R) orthonormal, those of the largest variance last

    @classmethod
    def fit(cls, h: Tensor, n_axes: int | None = None, *, standardize: bool = True) -> Self:
        """The basis of features (N, D) in float64: all axes with variance, or the `n_axes` with the largest."""
        mean, scale = mean_and_scale(h) if standardize else (h.mean(0), torch.ones_like(h[0]))
        x, (n, d) = (h - mean) / scale, h.shape
        gram = x.T @ x if d <= n else x @ x.T
        variances, vectors = torch.linalg.eigh(gram)
        is_kept = variances > MIN_VARIANCE_RATIO * variances.max().clamp_min(torch.finfo(h.dtype).tiny)
        first = 0 if n_axes is None else max(0, int(is_kept.sum()) - n_axes)
        vectors, variances = vectors[:, is_kept][:, first:], variances[is_kept][first:]
        return cls(mean, scale, vectors if d <= n else x.T @ (vectors / variances.sqrt()))

    def __call__(self, h: Tensor) -> Tensor:
        """Coordinates (N, R) of features (N, D)."""
        return ((h - self.mean) / self.scale) @ self.axes


def mean_and_scale(h: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and standard deviation (D,) of features (N, D), 1 where a feature is constant up to rounding."""
    mean, std = h.mean(0), h.std(0, correction=0)
    rounding = 100 * torch.finfo(h.dtype).eps * mean.abs().clamp_min(torch.finfo(h.dtype).tiny)
    return mean, torch.where(std > rounding, std, 1.0)
