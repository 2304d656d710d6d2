"""Pointing game: is a map's maximum inside a mask? And its energy-based form.

Zhang et al. 2018, "Top-Down Neural Attention by Excitation Backprop", IJCV 126 (arXiv:1608.00507), the pointing game;
Wang et al. 2020, "Score-CAM", arXiv:1910.01279, its energy-based form.
"""

from __future__ import annotations

from typing import Annotated

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from ..engine.results import attribution_map
from ..errors import InputError
from ..settings import AtLeast, Unit, check_settings
from .methods import Maps
from .perturbing import check_finite_maps

Masks = Annotated[Tensor, "Masks of the objects, bool: (H, W) for all, (N, H, W) or (N, 1, H, W)."]


def pointing_game(
    maps: Maps,
    masks: Masks,
    *,
    tolerance: Annotated[float, AtLeast(0), Unit("pixels"), "Largest distance from the mask that is a hit."] = 0,
) -> Tensor:
    """Whether a map's maximum is inside the mask of the object: 1 for a hit, else 0.

    For maps of images whose objects are marked. It looks at one pixel; `energy_inside` weighs the whole map.

    Args:
        maps: Attribution maps of x: (N, C, H, W) or (N, 1, H, W), (N, F) for features, or a result. Here of images;
            channels are summed with their sign.
        masks: Masks of the objects, bool: (H, W) for all, (N, H, W) or (N, 1, H, W).
        tolerance: Largest distance from the mask that is a hit. The paper takes 15 for photos.

    Returns:
        Hits (N,). Where k pixels have the maximum it is the fraction of them that hits, so that a constant map has
        what pointing at random has. The accuracy is the mean.

    Raises:
        InputError: for maps or masks that do not fit.

    Example:
        >>> import torch, unboxed as ub
        >>> maps = torch.zeros(1, 1, 4, 4)
        >>> maps[0, 0, 1, 2] = 1
        >>> mask = torch.arange(4) >= 2
        >>> ub.checks.pointing_game(maps, mask.expand(4, 4)).tolist()
        [1.0]

    Source:
        Zhang et al. 2018, arXiv:1608.00507, section 4.1.
    """
    check_settings(pointing_game, locals())
    maps_2d, inside = _validated_2d_maps_and_masks(maps, masks)  # (N, H, W) each
    if tolerance:
        dilated = [torch.from_numpy(distance_transform_edt(~mask.cpu().numpy()) <= tolerance) for mask in inside]
        inside = torch.stack(dilated).to(inside.device)
    is_peak = (maps_2d == maps_2d.amax((1, 2), keepdim=True)).double()
    return _fraction_inside_masks(is_peak, inside, attribution_map(maps))


def energy_inside(maps: Maps, masks: Masks) -> Tensor:
    """The fraction of a map's positive relevance that is inside the mask of the object.

    Compare with the mask's fraction of the area, which is what a constant map has.

    Args:
        maps: Attribution maps of x: (N, C, H, W) or (N, 1, H, W), (N, F) for features, or a result. Here of images;
            channels are summed with their sign.
        masks: Masks of the objects, bool: (H, W) for all, (N, H, W) or (N, 1, H, W).

    Returns:
        Fractions (N,) from 0 to 1; NaN for a map without positive values.

    Raises:
        InputError: for maps or masks that do not fit.

    Example:
        >>> import torch, unboxed as ub
        >>> mask = torch.arange(4) >= 2
        >>> ub.checks.energy_inside(torch.ones(1, 1, 4, 4), mask.expand(4, 4)).tolist()
        [0.5]

    Source:
        Wang et al. 2020, arXiv:1910.01279, section 4.3 (the energy-based pointing game), with masks for boxes.
    """
    maps_2d, inside = _validated_2d_maps_and_masks(maps, masks)
    return _fraction_inside_masks(maps_2d.clamp_min(0), inside, attribution_map(maps))


def _fraction_inside_masks(values: Tensor, masks: Tensor, like: Tensor) -> Tensor:
    """How much of each (N, H, W) is inside, (N,): in single precision, or in double where `like` is."""
    fractions = (values * masks).sum((1, 2)) / values.sum((1, 2))
    return fractions if like.dtype == torch.float64 else fractions.float()


def _validated_2d_maps_and_masks(maps: Maps, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Maps summed over channels (N, H, W), in double precision, and their masks (N, H, W). Raises InputError."""
    checked_maps = attribution_map(maps).detach()
    if checked_maps.ndim != 4 or not len(checked_maps):
        raise InputError(f"wanted maps (N, C, H, W); got {tuple(checked_maps.shape)}")
    check_finite_maps(checked_maps)
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool:
        got = masks.dtype if isinstance(masks, Tensor) else type(masks).__name__
        raise InputError(f"masks must be tensors of bool, True inside the object; got {got}")
    n, _, height, width = checked_maps.shape
    masks = masks[:, 0] if masks.ndim == 4 and masks.shape[1] == 1 else masks
    if tuple(masks.shape) not in ((height, width), (n, height, width)):
        raise InputError(
            f"wanted masks ({height}, {width}), ({n}, {height}, {width}) or ({n}, 1, {height}, {width}); "
            f"got {tuple(masks.shape)}"
        )
    masks = masks.to(checked_maps.device).expand(n, height, width)
    if not bool(masks.any(2).any(1).all()):
        empty = (~masks.any(2).any(1)).nonzero().flatten().tolist()
        raise InputError(f"{len(empty)} of {n} masks are empty (first: mask {empty[0]})")
    return checked_maps.double().sum(1), masks
