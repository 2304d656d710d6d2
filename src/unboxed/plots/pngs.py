"""Images as PNG files that load as the very same numbers: what an attack with `bits=8` found, to be kept or sent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .colors import Bytes, array
from .files import save

TOP = 255
OFF = 1e-6  # of the range: float rounding
CHANNELS = (1, 3)


def save_png(images: Any, folder: str | os.PathLike[str], name: str = "image") -> list[Path]:
    """Write each of the images (N, 1 or 3, H, W), gray or RGB, as `folder/name-0.png` and so on: nothing is rounded.

    Raises InputError for images between the 256 levels of a file, which would not be the same when loaded, and
    WriteError.
    """
    files = pixels(images)
    digits = len(str(len(files) - 1))
    return [save(p, Path(folder) / f"{name}-{i:0{digits}d}.png") for i, p in enumerate(files)]


def pixels(images: Any) -> Bytes:
    """The bytes of files, (N, H, W) or (N, H, W, 3), of images on their levels. Raises InputError."""
    levels = array(images) * TOP
    if levels.ndim != 4 or levels.shape[1] not in CHANNELS:
        hint = "for other channels keep (images * 255).round() as bytes, with numpy.save"
        raise InputError(f"wanted images (N, 1 or 3, H, W); got {levels.shape}: {hint}")
    whole = levels.round()
    if not (np.abs(levels - whole) <= OFF * TOP).all() or not ((whole >= 0) & (whole <= TOP)).all():
        raise InputError("these images are not on the levels k/255 of a file: attack with bits=8, or round them first")
    values: Bytes = whole.astype(np.uint8).transpose(0, 2, 3, 1)  # (N, H, W, C)
    return values[..., 0] if values.shape[-1] == 1 else values
