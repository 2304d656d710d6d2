"""Priors of the image itself: they keep synthesized images smooth, in range and close in color. Subtract them."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .algebra import Constant, Objective, layer_objective
from .calls import remember_call

SQRT_EPSILON = 1e-12  # a root has no derivative at zero


@remember_call
def color_distance(mean: Tensor) -> Objective:
    """The squared distance of an image's mean color from a given color, summed over channels.

    Args:
        mean: Color (C,) in [0, 1].

    Returns:
        An `Objective` on the input; subtract it.

    Example:
        >>> import torch
        >>> from unboxed.objectives import color_distance
        >>> color_distance(torch.zeros(3))({"input": torch.ones(2, 3, 4, 4)})
        tensor([3., 3.])
    """
    target = Constant(mean)
    return layer_objective(
        "input", lambda x: (x.mean((2, 3)) - target.to_like(x)).pow(2).sum(1), "distance from the mean color"
    )


@remember_call
def alpha_norm(alpha: float = 6.0, center: float = 0.5) -> Objective:
    """The alpha-norm of an image: sum |x - center| ** alpha. It keeps pixels away from the ends of the range.

    Args:
        alpha: Exponent; a large one penalizes extreme pixels alone.
        center: The value that costs nothing.

    Returns:
        An `Objective` on the input; subtract it.

    Example:
        >>> import torch, unboxed as ub
        >>> ub.alpha_norm(2)({"input": torch.ones(1, 1, 2, 2)})
        tensor([1.])

    Source:
        Mahendran & Vedaldi 2015, "Understanding Deep Image Representations by Inverting Them", section 3; there the
        image has zero mean, so that the center is 0.
    """
    return layer_objective("input", lambda x: (x - center).abs().pow(alpha).flatten(1).sum(1), f"alpha-norm {alpha:g}")


@remember_call
def total_variation(beta: float = 2.0, kind: Literal["isotropic", "anisotropic"] = "isotropic") -> Objective:
    """The total variation of an image: sum ((x[i, j+1] - x[i, j])^2 + (x[i+1, j] - x[i, j])^2) ** (beta / 2).

    It keeps images smooth. Differences across the edge of the image count as zero.

    Args:
        beta: Exponent; 1 allows sharp edges, 2 blurs them. Not used by the anisotropic kind.
        kind: "isotropic" is the sum above. "anisotropic" is the mean of |x[i, j+1] - x[i, j]| plus the mean of
            |x[i+1, j] - x[i, j]|: its scale does not depend on the size of the image.

    Returns:
        An `Objective` on the input; subtract it.

    Example:
        >>> import torch, unboxed as ub
        >>> image = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
        >>> ub.total_variation()({"input": image}), ub.total_variation(kind="anisotropic")({"input": image})
        (tensor([2.]), tensor([1.]))

    Raises:
        InputError: for another kind.

    Source:
        Mahendran & Vedaldi 2015, "Understanding Deep Image Representations by Inverting Them", eq. 3 (isotropic).
    """
    if kind == "anisotropic":
        return layer_objective("input", _mean_abs_differences, "anisotropic total variation")
    if kind != "isotropic":
        raise InputError(f'kind must be "isotropic" or "anisotropic"; got {kind!r}')

    def score(x: Tensor) -> Tensor:  # (N, C, H, W)
        dx, dy = x.diff(dim=-1).pow(2), x.diff(dim=-2).pow(2)
        if beta == 2:
            return dx.flatten(1).sum(1) + dy.flatten(1).sum(1)
        squared = F.pad(dx, (0, 1)) + F.pad(dy, (0, 0, 0, 1))
        return (squared + SQRT_EPSILON).pow(beta / 2).flatten(1).sum(1)

    return layer_objective("input", score, f"total variation, beta {beta:g}")


def _mean_abs_differences(x: Tensor) -> Tensor:  # (N, C, H, W)
    """An axis of one position, as the height of a signal, has no differences, and their mean would be NaN."""
    means = [x.diff(dim=axis).abs().flatten(1).mean(1) for axis in (-1, -2) if x.shape[axis] > 1]
    return sum(means, x.new_zeros(len(x)))
