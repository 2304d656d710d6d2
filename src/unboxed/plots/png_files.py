"""Images as PNG files that load as the very same numbers: what an attack with `bits=8` found, to be kept or sent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .colors import Bytes, as_array
from .files import save

MAX_LEVEL = 255
LEVEL_TOLERANCE = 1e-6  # of the range: float rounding
PNG_CHANNELS = (1, 3)


def save_png(images: Any, folder: str | os.PathLike[str], name: str = "image") -> list[Path]:
    """Write each of the images (N, 1 or 3, H, W), gray or RGB, as `folder/name-0.png` and so on: nothing is rounded.

    Raises InputError for images between the 256 levels of a file, which would not be the same when loaded, and
    WriteError.
    """
    files = to_png_levels(images)
    digits = len(str(len(files) - 1))
    return [save(p, Path(folder) / f"{name}-{i:0{digits}d}.png") for i, p in enumerate(files)]


def to_png_levels(images: Any) -> Bytes:
    """The bytes of files, (N, H, W) or (N, H, W, 3), of images on their levels. Raises InputError."""
    levels = as_array(images) * MAX_LEVEL
    if levels.ndim != 4 or levels.shape[1] not in PNG_CHANNELS:
        hint = "for other channels keep (images * 255).round() as bytes, with numpy.save"
        raise InputError(f"wanted images (N, 1 or 3, H, W); got {levels.shape}: {hint}")
    rounded = levels.round()
    if (
        not (np.abs(levels - rounded) <= LEVEL_TOLERANCE * MAX_LEVEL).all()
        or not ((rounded >= 0) & (rounded <= MAX_LEVEL)).all()
    ):
        raise InputError("these images are not on the levels k/255 of a file: attack with bits=8, or round them first")
    values: Bytes = rounded.astype(np.uint8).transpose(0, 2, 3, 1)  # (N, H, W, C)
    return values[..., 0] if values.shape[-1] == 1 else values
