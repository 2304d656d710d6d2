"""Values to colors: signed maps, magnitudes and images as 8-bit RGB; and how small images are enlarged.

Arguments are arrays or tensors; results are uint8 arrays with a last axis of 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Uint8Array = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float64]

TILE_BORDER_COLOR = (214, 214, 218)  # of the line around images
CURVE_HEIGHT_PIXELS, MIN_CURVE_WIDTH_PIXELS, SIGNAL_MAP_BAND_ASPECT_RATIO = (
    48,
    96,
    4,
)  # pixels of a signal's curve; length to height of its maps
CURVE_COLORS = ((28, 28, 30), (179, 56, 44), (47, 109, 179), (45, 125, 70), (150, 95, 20))  # one per channel
MAX_PIXELATED_SIDE_PIXELS = 96  # pixels per side up to which images are enlarged by nearest neighbor


def _make_colormap(anchors: str, colors: int = 256) -> Uint8Array:
    """Colors linear between evenly spaced anchors written in hexadecimal."""
    points = np.array([list(bytes.fromhex(a)) for a in anchors.split()], dtype=float)  # (A, 3)
    positions = np.linspace(0, len(points) - 1, colors)
    return (
        np.stack([np.interp(positions, range(len(points)), points[:, c]) for c in range(3)], 1).round().astype(np.uint8)
    )


# Blue below zero, white at zero, red above: ColorBrewer's RdBu (Brewer 2003), safe for color blindness.
# An odd number of colors, so that zero is exactly white.
SIGNED_COLORMAP = _make_colormap("053061 2166ac 4393c3 92c5de d1e5f0 ffffff fddbc7 f4a582 d6604d b2182b 67001f", 255)
# Perceptually uniform, black to light yellow: magma (van der Walt and Smith 2015), within 3 of 255 levels.
MAGNITUDE_COLORMAP = _make_colormap(
    "000004 0a0822 1d1147 36106b 50127c 691c81 822681 9c2e7f b6367a"
    " cf4070 e65164 f46a5c fb8861 fea571 fec287 fde0a1 fcfdbf"
)
GRAY_COLORMAP = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
_NAN_COLOR_RGB = np.array([128, 128, 128], dtype=np.uint8)


def to_float64_array(x: Any) -> Array:
    """Any array or tensor, on any device and in any dtype, as a float64 array."""
    if hasattr(x, "detach"):
        x = x.detach().cpu().double().numpy()
    return np.asarray(x, dtype=np.float64)


def max_magnitude(*maps: Any, quantile: float = 1.0) -> float:
    """The largest magnitude of the finite values of maps, or that quantile of the magnitudes. Never zero."""
    magnitudes = [np.abs(to_float64_array(m)).ravel() for m in maps]
    values = np.concatenate(magnitudes) if magnitudes else np.zeros(0)
    values = values[np.isfinite(values)]
    limit = float(np.quantile(values, quantile)) if values.size else 0.0
    return limit or (float(values.max()) if values.size else 0.0) or 1.0


def signed_to_rgb(m: Any, vmax: float | None = None) -> Uint8Array:
    """(..., H, W) -> (..., H, W, 3): zero is white, -vmax the darkest blue, +vmax the darkest red.

    `vmax` defaults to the largest magnitude. Values that are not finite are gray.
    """
    m = to_float64_array(m)
    return _apply_colormap(m / (vmax or max_magnitude(m)) / 2 + 0.5, SIGNED_COLORMAP)


def magnitude_to_rgb(m: Any, vmax: float | None = None) -> Uint8Array:
    """(..., H, W) -> (..., H, W, 3): zero is black, `vmax` (default: the largest value) the lightest."""
    m = to_float64_array(m)
    return _apply_colormap(m / (vmax or max_magnitude(m.clip(min=0))), MAGNITUDE_COLORMAP)


def gray_to_rgb(m: Any) -> Uint8Array:
    """(..., H, W) in [0, 1] -> (..., H, W, 3)."""
    return _apply_colormap(to_float64_array(m), GRAY_COLORMAP)


def image_to_rgb(x: Any) -> Uint8Array:
    """Images (..., C, H, W) in [0, 1] -> (..., H, W, 3): RGB for three channels, else the gray mean of all."""
    x = to_float64_array(x)
    if x.shape[-2] == 1 < x.shape[-1]:
        return signal_curves_to_rgb(x[..., 0, :])
    if x.shape[-3] != 3:
        return gray_to_rgb(x.mean(-3))
    levels = (np.nan_to_num(x, nan=0.5).clip(0, 1) * 255).round().astype(np.uint8)
    return np.moveaxis(levels, -3, -1)


def signal_curves_to_rgb(x: Any) -> Uint8Array:
    """Signals (..., C, T) in [0, 1] -> (..., h, w, 3): a curve per channel on white."""
    x = np.nan_to_num(to_float64_array(x), nan=0.5).clip(0, 1)
    x = x.repeat(-(-MIN_CURVE_WIDTH_PIXELS // x.shape[-1]), -1)
    height = np.round((1 - x) * (CURVE_HEIGHT_PIXELS - 1))
    before = np.concatenate([height[..., :1], height[..., :-1]], -1)
    low, high = np.minimum(height, before)[..., None, :], np.maximum(height, before)[..., None, :]
    rows = np.arange(CURVE_HEIGHT_PIXELS)[:, None]
    rgb = np.full((*x.shape[:-2], CURVE_HEIGHT_PIXELS, x.shape[-1], 3), 255, dtype=np.uint8)
    for channel in reversed(range(x.shape[-2])):
        is_line = (rows >= low[..., channel, :, :]) & (rows <= high[..., channel, :, :])
        rgb[is_line] = CURVE_COLORS[channel % len(CURVE_COLORS)]
    return rgb


def signal_map_to_band(rgb: Uint8Array) -> Uint8Array:
    """A map (..., 1, T, 3) of a signal as a band that can be seen; other maps as they are."""
    is_line = rgb.shape[-3] == 1 < rgb.shape[-2]
    return rgb.repeat(max(1, rgb.shape[-2] // SIGNAL_MAP_BAND_ASPECT_RATIO), -3) if is_line else rgb


def sum_channels(m: Any) -> Array:
    """A map with channels (..., C, H, W) -> (..., H, W): their sum, the effect of all channels of a pixel."""
    total: Array = to_float64_array(m).sum(-3)
    return total


def _apply_colormap(unit_values: Array, table: Uint8Array) -> Uint8Array:
    is_finite = np.isfinite(unit_values)
    levels = (np.where(is_finite, unit_values, 0).clip(0, 1) * (len(table) - 1)).round().astype(np.uint8)
    rgb = table[levels]
    if not is_finite.all():
        rgb[~is_finite] = _NAN_COLOR_RGB
    return rgb


def resize_to_side(source: Uint8Array | Image.Image, side: int) -> Image.Image:
    """The image at about `side` pixels: small ones enlarged by a whole factor (nearest neighbor), photos shrunk."""
    im = source if isinstance(source, Image.Image) else Image.fromarray(source)
    longest = max(im.size)
    if longest <= MAX_PIXELATED_SIDE_PIXELS:
        k = max(1, round(side / longest))
        return im.resize((im.width * k, im.height * k), Image.Resampling.NEAREST) if k > 1 else im
    if longest <= side:
        return im
    size = (max(1, round(im.width * side / longest)), max(1, round(im.height * side / longest)))
    return im.resize(size, Image.Resampling.LANCZOS)


def tile_images(
    images: Sequence[Uint8Array] | Uint8Array, columns: int, *, cell: int = 112, max_width: int = 232
) -> Uint8Array:
    """Small multiples (K, H, W, 3) as one RGBA image with at most `columns` per row; the gaps are transparent.

    Each is enlarged by the whole factor that keeps it within `cell` pixels and all of them within `max_width`.
    """
    h, w = images[0].shape[:2]
    columns = min(columns, len(images))
    k = max(1, min(cell // max(h, w), max_width // (columns * w)))
    h, w = h * k, w * k
    gap = max(3, h // 8)
    rows = -(-len(images) // columns)
    canvas = np.zeros((rows * (h + gap) - gap, columns * (w + gap) - gap, 4), dtype=np.uint8)
    for i, tile in enumerate(images):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        canvas[top : top + h, left : left + w, :3] = tile.repeat(k, 0).repeat(k, 1)
        canvas[top : top + h, left : left + w, 3] = 255
    return canvas


def add_borders(canvas: Uint8Array) -> Uint8Array:
    """A tiled image (H, W, 4) with a thin line around each tile, which separates white tiles from the background."""
    canvas = np.pad(canvas, ((1, 1), (1, 1), (0, 0)))
    inside = np.pad(canvas[..., 3] > 0, 1)
    is_border = np.any([np.roll(inside, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)], 0)[1:-1, 1:-1]
    canvas[is_border & (canvas[..., 3] == 0)] = (*TILE_BORDER_COLOR, 255)
    return canvas
