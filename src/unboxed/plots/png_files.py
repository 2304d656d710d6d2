"""Adversarial images as PNG files that load as exactly the same values, for attacks with `bits=8`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .colors import Uint8Array, to_float64_array
from .files import save

MAX_PNG_LEVEL = 255
MAX_LEVEL_ROUNDING_FRACTION = 1e-6  # of the range: float rounding
ALLOWED_PNG_CHANNEL_COUNTS = (1, 3)


def save_png(images: Any, folder: str | os.PathLike[str], name: str = "image") -> list[Path]:
    """Write images as PNG files that load as exactly the same values: `folder/name-0.png` and so on.

    For adversarial images: rounding could undo the attack, so nothing is rounded. Take `save` for figures.

    Args:
        images: Images (N, 1 or 3, H, W), gray or RGB, whose values are the 256 levels k / 255.
        folder: Folder of the files; it is made if need be.
        name: First part of the file names.

    Returns:
        The paths, one per image.

    Raises:
        InputError: for values between the levels, out of [0, 1], or other numbers of channels.
        WriteError: when a file cannot be written.

    Example:
        >>> import tempfile, torch, unboxed as ub
        >>> [path.name for path in ub.plots.save_png(torch.zeros(2, 1, 8, 8), tempfile.mkdtemp())]
        ['image-0.png', 'image-1.png']
    """
    files = to_png_levels(images)
    digits = len(str(len(files) - 1))
    return [save(p, Path(folder) / f"{name}-{i:0{digits}d}.png") for i, p in enumerate(files)]


def to_png_levels(images: Any) -> Uint8Array:
    """The pixels of the files, (N, H, W) or (N, H, W, 3). Raises InputError for values between the levels."""
    levels = to_float64_array(images) * MAX_PNG_LEVEL
    if levels.ndim != 4 or levels.shape[1] not in ALLOWED_PNG_CHANNEL_COUNTS:
        hint = "for other channels keep (images * 255).round() as bytes, with numpy.save"
        raise InputError(f"wanted images (N, 1 or 3, H, W); got {levels.shape}: {hint}")
    rounded = levels.round()
    if (
        not (np.abs(levels - rounded) <= MAX_LEVEL_ROUNDING_FRACTION * MAX_PNG_LEVEL).all()
        or not ((rounded >= 0) & (rounded <= MAX_PNG_LEVEL)).all()
    ):
        raise InputError(
            "the values of these images are not levels k/255 of a file: attack with bits=8, or round them first"
        )
    values: Uint8Array = rounded.astype(np.uint8).transpose(0, 2, 3, 1)  # (N, H, W, C)
    return values[..., 0] if values.shape[-1] == 1 else values
