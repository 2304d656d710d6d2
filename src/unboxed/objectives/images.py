"""Objectives of the image itself: what keeps a drawing smooth, in range and of its data's color. Subtract them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .algebra import Held, Objective, of
from .recorded import recorded

TINY = 1e-12  # a root has no slope at zero


@recorded
def far_from_mean(mean: Tensor) -> Objective:
    """The squared distance of an image's mean color from a given one (C,), summed over channels."""
    own = Held(mean)
    return of("input", lambda x: (x.mean((2, 3)) - own.beside(x)).pow(2).sum(1), "distance from the mean color")


@recorded
def roughness() -> Objective:
    """The total variation of an image, a channel's mean difference between neighbors."""

    def score(x: Tensor) -> Tensor:  # (N, C, H, W)
        across, down = x.diff(dim=-1).abs(), x.diff(dim=-2).abs()
        return across.flatten(1).mean(1) + down.flatten(1).mean(1)

    return of("input", score, "roughness")


@recorded
def alpha_norm(alpha: float = 6.0, center: float = 0.5) -> Objective:
    """Sum |x - center| ** alpha (Mahendran & Vedaldi 2015, section 3): few pixels near the ends of the range."""
    return of("input", lambda x: (x - center).abs().pow(alpha).flatten(1).sum(1), f"alpha-norm {alpha:g}")


@recorded
def total_variation(beta: float = 2.0) -> Objective:
    """Sum ((x[i, j+1] - x[i, j])^2 + (x[i+1, j] - x[i, j])^2) ** (beta / 2) (Mahendran & Vedaldi 2015, eq. 3).

    What lies beyond an edge counts as no different.
    """

    def score(x: Tensor) -> Tensor:  # (N, C, H, W)
        across, down = x.diff(dim=-1).pow(2), x.diff(dim=-2).pow(2)
        if beta == 2:
            return across.flatten(1).sum(1) + down.flatten(1).sum(1)
        both = F.pad(across, (0, 1)) + F.pad(down, (0, 0, 0, 1))
        return (both + TINY).pow(beta / 2).flatten(1).sum(1)

    return of("input", score, f"total variation, beta {beta:g}")
