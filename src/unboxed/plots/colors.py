"""Values to colors: signed maps, magnitudes and images as 8-bit RGB, and how small pictures are enlarged.

Arguments are arrays or tensors; results are uint8 arrays with a last axis of 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float64]

HARD = 96  # pictures up to this many pixels a side are enlarged with hard pixels


def _table(anchors: str, colors: int = 256) -> Bytes:
    """Colors linear between evenly spaced anchors written in hexadecimal."""
    points = np.array([list(bytes.fromhex(a)) for a in anchors.split()], dtype=float)  # (A, 3)
    at = np.linspace(0, len(points) - 1, colors)
    return np.stack([np.interp(at, range(len(points)), points[:, c]) for c in range(3)], 1).round().astype(np.uint8)


# Blue below zero, white at zero, red above: ColorBrewer's RdBu (Brewer 2003), which the color-blind tell apart.
# An odd number of colors, so that zero is exactly white.
SIGNED = _table("053061 2166ac 4393c3 92c5de d1e5f0 ffffff fddbc7 f4a582 d6604d b2182b 67001f", 255)
# Perceptually uniform, black to light yellow: magma (van der Walt and Smith 2015), within 3 of 255 levels.
MAGNITUDE = _table(
    "000004 0a0822 1d1147 36106b 50127c 691c81 822681 9c2e7f b6367a"
    " cf4070 e65164 f46a5c fb8861 fea571 fec287 fde0a1 fcfdbf"
)
GRAY = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
_NEUTRAL = np.array([128, 128, 128], dtype=np.uint8)


def array(x: Any) -> Array:
    """Any array or tensor, on any device and in any dtype, as a float64 array."""
    if hasattr(x, "detach"):
        x = x.detach().cpu().double().numpy()
    return np.asarray(x, dtype=np.float64)


def reach(*maps: Any, quantile: float = 1.0) -> float:
    """The range +-s that maps to be compared share: their largest magnitude, or that quantile of it. Never zero."""
    sizes = [np.abs(array(m)).ravel() for m in maps]
    every = np.concatenate(sizes) if sizes else np.zeros(0)
    every = every[np.isfinite(every)]
    top = float(np.quantile(every, quantile)) if every.size else 0.0
    return top or (float(every.max()) if every.size else 0.0) or 1.0


def signed(m: Any, scale: float | None = None) -> Bytes:
    """(..., H, W) -> (..., H, W, 3): zero is white, -scale the darkest blue, +scale the darkest red.

    `scale` defaults to `reach(m)`. What is not finite turns gray.
    """
    m = array(m)
    return _colored(m / (scale or reach(m)) / 2 + 0.5, SIGNED)


def magnitude(m: Any, scale: float | None = None) -> Bytes:
    """(..., H, W) -> (..., H, W, 3): zero is black, `scale` (default: the largest value) the lightest."""
    m = array(m)
    return _colored(m / (scale or reach(m.clip(min=0))), MAGNITUDE)


def gray(m: Any) -> Bytes:
    """(..., H, W) in [0, 1] -> (..., H, W, 3)."""
    return _colored(array(m), GRAY)


def image(x: Any) -> Bytes:
    """Images (..., C, H, W) in [0, 1] -> (..., H, W, 3): RGB for three channels, else the gray mean of all."""
    x = array(x)
    if x.shape[-3] != 3:
        return gray(x.mean(-3))
    levels = (np.nan_to_num(x, nan=0.5).clip(0, 1) * 255).round().astype(np.uint8)
    return np.moveaxis(levels, -3, -1)


def flat(m: Any) -> Array:
    """A map with channels (..., C, H, W) -> (..., H, W): their sum, what brightening a whole pixel would do."""
    total: Array = array(m).sum(-3)
    return total


def _colored(unit: Array, table: Bytes) -> Bytes:
    known = np.isfinite(unit)
    levels = (np.where(known, unit, 0).clip(0, 1) * (len(table) - 1)).round().astype(np.uint8)
    picture = table[levels]
    if not known.all():
        picture[~known] = _NEUTRAL
    return picture


def fitted(picture: Bytes | Image.Image, side: int) -> Image.Image:
    """The picture at about `side` pixels: small ones by a whole factor with hard pixels, photos shrunk smoothly."""
    im = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    longest = max(im.size)
    if longest <= HARD:
        k = max(1, round(side / longest))
        return im.resize((im.width * k, im.height * k), Image.Resampling.NEAREST) if k > 1 else im
    if longest <= side:
        return im
    size = (max(1, round(im.width * side / longest)), max(1, round(im.height * side / longest)))
    return im.resize(size, Image.Resampling.LANCZOS)


def tiled(pictures: Sequence[Bytes] | Bytes, columns: int, *, cell: int = 112, wide: int = 232) -> Bytes:
    """Small multiples (K, H, W, 3) as one RGBA picture with at most `columns` a row; the gaps are transparent.

    Each is enlarged by the whole factor that keeps it within `cell` pixels and all of them within `wide`.
    """
    h, w = pictures[0].shape[:2]
    columns = min(columns, len(pictures))
    k = max(1, min(cell // max(h, w), wide // (columns * w)))
    h, w = h * k, w * k
    gap = max(3, h // 8)
    rows = -(-len(pictures) // columns)
    page = np.zeros((rows * (h + gap) - gap, columns * (w + gap) - gap, 4), dtype=np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        page[top : top + h, left : left + w, :3] = picture.repeat(k, 0).repeat(k, 1)
        page[top : top + h, left : left + w, 3] = 255
    return page
