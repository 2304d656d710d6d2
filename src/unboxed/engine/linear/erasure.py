"""Erasing an attribute from features: the smallest change after which no linear probe reads it (LEACE).

Belrose et al. 2023, "LEACE: Perfect linear concept erasure in closed form", arXiv:2306.03819, theorem 4.3: features
move only within the span of the differences between the classes' means. What reads nothing of that span is not
touched, as it would be by projecting a probe's weights away (INLP, Ravfogel et al. 2020, arXiv:2004.07667): these point
to whatever sharpens the reading, other attributes too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .principal import mean_and_scale

MIN_SHRINKAGE = 1e-4
MIN_RELATIVE_EIGENVALUE = 1e-8  # of the strongest direction: weaker ones are rounding


@dataclass(frozen=True, eq=False)
class Eraser:
    """h - `removed` (`read` (h - mean)): an oblique projection of rank k; k = 0 changes nothing."""

    mean: Tensor  # (D,)
    read: Tensor  # (k, D)
    removed: Tensor  # (D, k)

    @property
    def rank(self) -> int:
        return self.removed.shape[1]

    def __call__(self, h: Tensor) -> Tensor:
        """Features (..., D) with the attribute erased."""
        return h - ((h - self.mean) @ self.read.T) @ self.removed.T


@dataclass(frozen=True, eq=False)
class FeatureCovariance:
    """The covariance of standardized features, shrunk to a multiple of the identity by as much as its error asks.

    Ledoit & Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices", lemma 3.2 to 3.4: of
    fewer examples than features, directions that vary by chance would be taken for those that carry nothing.
    """

    mean: Tensor  # (D,)
    scale: Tensor  # (D,)
    x: Tensor  # (N, D) standardized

    @classmethod
    def fit(cls, h: Tensor) -> FeatureCovariance:
        """Of features (N, D) in float64."""
        mean, scale = mean_and_scale(h)
        return cls(mean, scale, (h - mean) / scale)

    @cached_property
    def weights(self) -> tuple[float, float]:
        """(a, b) of the covariance a I + b x^T x."""
        n, d = self.x.shape
        gram = self.x.T @ self.x if d <= n else self.x @ self.x.T
        size = float(gram.trace()) / n / d  # mean variance of a feature
        total = float(gram.square().sum()) / n**2  # squared entries of the covariance
        distance = max(total - d * size**2, 0.0)
        error = (float(self.x.square().sum(1).square().sum()) / n - total) / n
        shrinkage = 1.0 if not distance else min(1.0, max(MIN_SHRINKAGE, error / distance))
        return shrinkage * size, (1 - shrinkage) / n

    def solve(self, b: Tensor) -> Tensor:
        """Its inverse times b (D, q)."""
        (n, d), (a, weight), x = self.x.shape, self.weights, self.x
        if not a:
            return torch.zeros_like(b)  # constant features
        if not weight:
            return b / a
        if d <= n:
            solved: Tensor = torch.linalg.solve(weight * (x.T @ x) + a * torch.eye(d, dtype=x.dtype), b)
            return solved
        inner = x @ x.T + a / weight * torch.eye(n, dtype=x.dtype)  # Woodbury
        inside: Tensor = torch.linalg.solve(inner, x @ b)
        return (b - x.T @ inside) / a

    def eraser(self, z: Tensor, rank: int | None = None) -> Eraser:
        """Erases what features tell linearly of z (N, q), or of it the `rank` strongest directions."""
        return self._eraser_of_cross_covariance(self.x.T @ (z - z.mean(0)) / len(z), rank)

    def random_eraser(self, rank: int, generator: torch.Generator) -> Eraser:
        """Erases `rank` directions drawn as the features vary: the same share of their whitened variance as any other.

        The eraser of an attribute that was drawn at random has such directions.
        """
        (n, d), (a, b) = self.x.shape, self.weights
        sizes = ((n, b), (d, a))
        among, beside = (
            torch.randn(rows, rank, generator=generator, dtype=self.x.dtype) * weight**0.5 for rows, weight in sizes
        )
        return self._eraser_of_cross_covariance(self.x.T @ among + beside)

    def _eraser_of_cross_covariance(self, c: Tensor, rank: int | None = None) -> Eraser:
        """Erases the span of cross-covariances c (D, q)."""
        if not c.shape[1]:
            return Eraser(self.mean, c.T, c)
        solved = self.solve(c)
        strengths, vectors = torch.linalg.eigh(c.T @ solved)  # ascending
        kept = int((strengths > MIN_RELATIVE_EIGENVALUE * strengths.max().clamp_min(torch.finfo(c.dtype).tiny)).sum())
        kept = min(kept, *self.x.shape) if rank is None else min(kept, rank)
        kept_vectors = vectors[:, len(strengths) - kept :]
        read = (solved @ kept_vectors / strengths[len(strengths) - kept :]).T
        return Eraser(self.mean, read / self.scale, self.scale[:, None] * (c @ kept_vectors))
