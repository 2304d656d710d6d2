"""The truth of a map: how much of it is at what the answer depends on, and how much at what it does not depend on.

The bound was stated before any map was measured. The share (see `energy`) is .5 for a map that does not tell the causal
object from distractors that are as salient, whatever else it shows, and 1 for one that does. A map that is right puts
more than twice as much on the cause as on what has no effect, so that a reader who follows it looks at the cause:
RIGHT = .7 (odds of 7 to 3). A map that is wrong is no better than one that knows nothing: WRONG = .6, which is as far
from .5 as the salience of the two families may differ (their edges and their contrast: shares of .4 to .6). Between the
two a method is undetermined; it counts neither for nor against a verdict, and the number of those is reported. So does
nonsense that is at the cause by chance, or because a model's first layer sees nothing else.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

RIGHT, WRONG = 0.7, 0.6
Truth = Literal["right", "wrong", "undetermined"]
FINE, COARSE = 1 / 16, 1 / 8  # of the side: the tolerance for maps of single pixels, and of cells, windows and layers
COARSE_METHODS = (
    "grad_cam", "grad_cam_plus_plus", "hires_cam", "layer_cam", "occlusion", "rise", "lime", "kernel_shap", "shapley",
    "feature_ablation", "rollout", "lime_few", "rise_few",
)  # fmt: skip
WITHOUT_ZERO = (
    "rise",
    "rise_few",
)  # all values are positive, near the mean score of masked inputs: the median is their zero
LOCAL_METHODS = ("gradient", "smoothgrad", "smoothgrad_squared", "guided_backprop", "deconvnet", "guided_grad_cam")
# Slopes: their sign says in which direction a pixel should change, not whether it speaks for the class.


def energy(maps: Tensor, causal: Tensor, distractor: Tensor, *, tolerance: int = 0, signed: bool = True) -> Tensor:
    """The share (N,) of a map's density at the cause, of its density at the cause and at the distractors.

    The positive part of the map is summed over channels, then over each region, and divided by the region's area: a map
    that does not tell the two apart has .5, also where there are three distractors. NaN where the map is zero in both.

    Args:
        maps: Maps (N, C, H, W), or (N, F) of tables.
        causal: What the answer depends on, bool, (N, 1, H, W) or (N, F).
        distractor: What is as salient and has no effect, like `causal`.
        tolerance: Pixels by which both regions are widened. What is then in both is left out.
        signed: Whether the map has signs; False takes its magnitude.

    Returns:
        Shares (N,) in [0, 1].
    """
    values = maps.detach().double()
    if values.ndim == 4:
        values = values.sum(1, keepdim=True) if signed else values.abs().sum(1, keepdim=True)
        causal, distractor = (_widened(mask, tolerance) for mask in (causal, distractor))
        overlap = causal & distractor
        causal, distractor = causal & ~overlap, distractor & ~overlap
    values = values.clamp_min(0) if signed else values.abs()
    inside, outside = (_density(values, mask) for mask in (causal, distractor))
    return inside / (inside + outside)


def tolerance_of(method: str, side: int) -> int:
    """Pixels by which the regions are widened for a method: as wide as its resolution."""
    return round(side * (COARSE if method in COARSE_METHODS else FINE))


def truth_of(shares: Tensor) -> Truth:
    """What a method is on a model, by the shares (N,) of its maps; one without a share in any map is wrong."""
    if bool(shares.isnan().all()):
        return "wrong"
    mean = float(shares.nan_to_num(0.5).mean())
    return "right" if mean >= RIGHT else "wrong" if mean <= WRONG else "undetermined"


def class_sensitivity(maps: Tensor, others: Tensor, causal: Tensor, *, tolerance: int = 0) -> Tensor:
    """By how much (N,) more of the map is at the cause than of the map of a class that is elsewhere in the image.

    For scenes with several labels: `maps` are of the class of the causal cell, `others` of the class of another cell.
    1 is full sensitivity to the class, 0 is none. The share here is that of the whole map.
    """
    mask = _widened(causal, tolerance)
    shares = []
    for h in (maps, others):
        values = h.detach().double().sum(1, keepdim=True).clamp_min(0)
        shares.append((values * mask).sum((1, 2, 3)) / values.sum((1, 2, 3)).clamp_min(1e-30))
    return shares[0] - shares[1]


def _density(values: Tensor, mask: Tensor) -> Tensor:
    axes = tuple(range(1, values.ndim))
    return (values * mask).sum(axes) / mask.sum(axes).clamp_min(1)


def _widened(mask: Tensor, pixels: int) -> Tensor:
    return F.max_pool2d(mask.float(), 2 * pixels + 1, 1, pixels) > 0 if pixels else mask


def mean_share(shares: Tensor) -> float:
    """The mean share; a map that is zero in both regions tells nothing: .5."""
    return float(shares.nan_to_num(0.5).mean()) if len(shares) else torch.nan
