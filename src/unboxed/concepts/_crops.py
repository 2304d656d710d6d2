"""Crops of images on a grid, each enlarged to the model's size: what ACE and CRAFT find concepts in."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..box import Box
from ..engine.read.unit_rows import UnitRowLayout
from ..engine.rectangle import Rectangle
from ..model.batching import BatchSize

STRIDES_PER_CROP_SIDE = 2  # crops overlap by half, as in CRAFT


def crop_grid(height: int, width: int, share: float) -> tuple[Rectangle, ...]:
    """Crops with this share of each side, evenly spaced from edge to edge, neighbors overlapping by half or more."""
    h, w = (max(1, round(share * side)) for side in (height, width))
    return tuple(Rectangle(top, left, h, w) for top in _crop_starts(height, h) for left in _crop_starts(width, w))


def _crop_starts(side: int, crop: int) -> list[int]:
    room = side - crop
    n = 1 + math.ceil(room * STRIDES_PER_CROP_SIDE / crop)
    return [round(i * room / max(1, n - 1)) for i in range(n)]


def enlarged_crop(x: Tensor, crop: Rectangle) -> Tensor:
    """The crop of images (N, C, H, W), enlarged to their size (bilinear)."""
    part = x[..., crop.rows, crop.columns]
    return F.interpolate(part, x.shape[-2:], mode="bilinear", align_corners=False).clamp(0, 1)


def read_crop_means(
    box: Box, layer: UnitRowLayout, x: Tensor, crops: tuple[Rectangle, ...], batch_size: BatchSize
) -> Tensor:
    """The mean activations (N, G, C) of G crops of each image; of no crops those of the inputs themselves (N, 1, C)."""
    if not crops:
        return layer.read_means(box, x, batch_size)
    return torch.cat([layer.read_means(box, enlarged_crop(x, crop), batch_size) for crop in crops], 1)
