"""Objectives of the image itself: what keeps a drawing smooth, in range and of its data's color. Subtract them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .algebra import Constant, Objective, layer_objective
from .calls import remember_call

EPSILON = 1e-12  # a root has no slope at zero


@remember_call
def color_distance(mean: Tensor) -> Objective:
    """The squared distance of an image's mean color from a given one (C,), summed over channels."""
    target = Constant(mean)
    return layer_objective(
        "input", lambda x: (x.mean((2, 3)) - target.to_like(x)).pow(2).sum(1), "distance from the mean color"
    )


@remember_call
def roughness() -> Objective:
    """The total variation of an image, a channel's mean difference between neighbors."""

    def score(x: Tensor) -> Tensor:  # (N, C, H, W)
        dx, dy = x.diff(dim=-1).abs(), x.diff(dim=-2).abs()
        return dx.flatten(1).mean(1) + dy.flatten(1).mean(1)

    return layer_objective("input", score, "roughness")


@remember_call
def alpha_norm(alpha: float = 6.0, center: float = 0.5) -> Objective:
    """Sum |x - center| ** alpha (Mahendran & Vedaldi 2015, section 3): few pixels near the ends of the range."""
    return layer_objective("input", lambda x: (x - center).abs().pow(alpha).flatten(1).sum(1), f"alpha-norm {alpha:g}")


@remember_call
def total_variation(beta: float = 2.0) -> Objective:
    """Sum ((x[i, j+1] - x[i, j])^2 + (x[i+1, j] - x[i, j])^2) ** (beta / 2) (Mahendran & Vedaldi 2015, eq. 3).

    What lies beyond an edge counts as no different.
    """

    def score(x: Tensor) -> Tensor:  # (N, C, H, W)
        dx, dy = x.diff(dim=-1).pow(2), x.diff(dim=-2).pow(2)
        if beta == 2:
            return dx.flatten(1).sum(1) + dy.flatten(1).sum(1)
        squared = F.pad(dx, (0, 1)) + F.pad(dy, (0, 0, 0, 1))
        return (squared + EPSILON).pow(beta / 2).flatten(1).sum(1)

    return layer_objective("input", score, f"total variation, beta {beta:g}")
