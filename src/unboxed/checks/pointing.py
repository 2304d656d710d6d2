"""Pointing: does a map point at what a mask marks?

Zhang et al. 2018, "Top-Down Neural Attention by Excitation Backprop", IJCV 126 (arXiv:1608.00507), the pointing game;
Wang et al. 2020, "Score-CAM", arXiv:1910.01279, its energy-based form.
"""

from __future__ import annotations

from typing import Any

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from ..engine.results import attribution_map
from ..errors import InputError
from ..validation import check_float
from .perturbing import check_finite


def pointing_game(maps: Any, masks: Tensor, *, tolerance: float = 0) -> Tensor:
    """1 where a map's largest value lies within the mask, or at most `tolerance` pixels from it, else 0; (N,).

    `maps` are (N, C, H, W), summed over channels with their sign, or a result that holds them; `masks` are bool, (H, W)
    for all, (N, H, W) or (N, 1, H, W). The paper takes `tolerance=15` for photos. Where k values are the largest, the
    share of them that hit counts, so a flat map scores what pointing at random would. The accuracy is the mean.
    Raises InputError.
    """
    tolerance = check_float("tolerance", tolerance, minimum=0)
    maps_2d, inside = _check_maps_and_masks(maps, masks)  # (N, H, W) each
    if tolerance:
        dilated = [torch.from_numpy(distance_transform_edt(~mask.cpu().numpy()) <= tolerance) for mask in inside]
        inside = torch.stack(dilated).to(inside.device)
    is_peak = (maps_2d == maps_2d.amax((1, 2), keepdim=True)).double()
    return _inside_fraction(is_peak, inside, attribution_map(maps))


def energy_inside(maps: Any, masks: Tensor) -> Tensor:
    """The share of a map's positive relevance that lies within the mask, (N,); NaN where there is none.

    Maps and masks are as in `pointing_game`; the mask's own share of the area is what a flat map gets.
    """
    maps_2d, inside = _check_maps_and_masks(maps, masks)
    return _inside_fraction(maps_2d.clamp_min(0), inside, attribution_map(maps))


def _inside_fraction(values: Tensor, masks: Tensor, maps: Tensor) -> Tensor:
    """How much of each (N, H, W) is inside, (N,): in single precision, or in double where the maps are."""
    fractions = (values * masks).sum((1, 2)) / values.sum((1, 2))
    return fractions if maps.dtype == torch.float64 else fractions.float()


def _check_maps_and_masks(maps: Any, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Maps summed over channels (N, H, W), in double precision, and masks beside them. Raises InputError."""
    checked_maps = attribution_map(maps).detach()
    if checked_maps.ndim != 4 or not len(checked_maps):
        raise InputError(f"wanted maps (N, C, H, W); got {tuple(checked_maps.shape)}")
    check_finite(checked_maps)
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool:
        got = masks.dtype if isinstance(masks, Tensor) else type(masks).__name__
        raise InputError(f"masks are tensors of bool, True within the object; got {got}")
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
        raise InputError(f"{len(empty)} of {n} masks mark nothing to point at (first: number {empty[0]})")
    return checked_maps.double().sum(1), masks
