"""Units: the patches with the largest activations of each, their projections, and the histogram of its values.

Histograms are drawn by Pillow: a page has hundreds, and matplotlib takes some hundredths of a second for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from . import colors
from .colors import Array, Uint8Array, add_borders, to_float64_array
from .draw import VMAX_QUANTILE
from .sheet import ColorBar, Tile, contact_sheet

HISTOGRAM_SIZE_PIXELS = (150, 66)  # pixels
MAX_PATCH_SIDE_PIXELS = 72  # per side; larger patches are shrunk by a whole factor
OUTSIDE_IMAGE_COLOR, HISTOGRAM_BAR_COLOR, HISTOGRAM_ZERO_LINE_COLOR = (236, 236, 240), (70, 70, 78), (178, 24, 43)


@dataclass(frozen=True)
class PlottedUnit:
    """One unit: patches (k, C, h, w) of its top examples, and projections of the same shape if there are any."""

    number: int
    patches: Array
    projections: Array | None
    values: Sequence[float]  # (k,)
    counts: Array  # (B,)
    edges: Array  # (B + 1,)
    value_range: Sequence[float]  # (2,) the smallest and the largest value that is counted; NaN for none
    dead: bool = False
    note: str = ""  # printed below the name

    @property
    def name(self) -> str:
        return f"unit {self.number}" + (", dead" if self.dead else "")


def crop_with_padding(
    image: Any, bounds: Sequence[int], field_size: tuple[int, int], image_size: tuple[int, int]
) -> Array:
    """The part of an image (C, H, W) within bounds; NaN where the receptive field (h, w) exceeds the image."""
    image = to_float64_array(image)
    top, left, bottom, right = map(int, bounds)
    h, w = max(field_size[0], bottom - top), max(field_size[1], right - left)
    canvas = np.full((len(image), h, w), np.nan)
    y = h - (bottom - top) if top == 0 and bottom < image_size[0] else 0
    x = w - (right - left) if left == 0 and right < image_size[1] else 0
    canvas[:, y : y + bottom - top, x : x + right - left] = image[:, top:bottom, left:right]
    return _downsample_unit_patch(canvas)


def _downsample_unit_patch(canvas: Array) -> Array:
    f = -(-max(canvas.shape[1:]) // MAX_PATCH_SIDE_PIXELS)
    h, w = (s // f for s in canvas.shape[1:])
    blocks: Array = canvas[:, : h * f, : w * f].reshape(len(canvas), h, f, w, f).mean((2, 4))
    return blocks


def back_projection_vmax(units: Sequence[PlottedUnit]) -> float:
    """The scale that all projections share."""
    maps = [colors.sum_channels(u.projections) for u in units if u.projections is not None]
    return colors.max_magnitude(*maps, quantile=VMAX_QUANTILE) if maps else 1.0


def patch_grid(unit: PlottedUnit, *, cell: int = 64, max_width: int = 216, columns: int = 3) -> Uint8Array:
    """The top patches as small multiples, best first."""
    return add_borders(colors.tile_images(_patches_to_rgb(unit.patches), columns, cell=cell, max_width=max_width))


def back_projection_grid(
    unit: PlottedUnit, vmax: float, *, cell: int = 64, max_width: int = 216, columns: int = 3
) -> Uint8Array:
    """Their projections on the same grid, signed: brightening red pixels raises the activation."""
    maps = unit.projections if unit.projections is not None else unit.patches * np.nan
    rgb = colors.signed_to_rgb(colors.sum_channels(maps), vmax)
    rgb[np.isnan(maps).any(1)] = OUTSIDE_IMAGE_COLOR
    return add_borders(colors.tile_images(rgb, columns, cell=cell, max_width=max_width))


def _patches_to_rgb(patches: Array) -> Uint8Array:
    rgb = colors.image_to_rgb(patches).copy()
    outside = np.isnan(patches).any(1)  # (P, h, w)
    for axis in (1, 2):  # of a signal, the curve is larger
        outside = outside.repeat(rgb.shape[axis] // outside.shape[axis], axis)
    rgb[outside] = OUTSIDE_IMAGE_COLOR
    return rgb


def histogram_image(unit: PlottedUnit, size: tuple[int, int] = HISTOGRAM_SIZE_PIXELS) -> Uint8Array:
    """The histogram of the unit's values, with a red line at zero; its ends are those of the first and the last bin."""
    width, height = size
    canvas = Image.new("RGB", size, (255, 255, 255))
    pen = ImageDraw.Draw(canvas)
    counts, edges = _histogram_without_outer_empty_bins(unit)
    span = float(edges[-1] - edges[0]) or 1.0
    bar_edges = ((edges - edges[0]) / span * (width - 1)).round().astype(int)
    tallest = float(np.sqrt(counts.max(initial=0))) or 1.0
    for count, a, b in zip(counts, bar_edges, bar_edges[1:], strict=False):
        if count:  # heights by square root, so that few large values are seen next to many small ones
            pen.rectangle(
                (a, height - 1 - max(1, round(np.sqrt(count) / tallest * (height - 6))), max(a, b - 1), height - 1),
                HISTOGRAM_BAR_COLOR,
            )
    if edges[0] <= 0 <= edges[-1]:
        x = round(-float(edges[0]) / span * (width - 1))
        pen.line((x, 0, x, height - 1), HISTOGRAM_ZERO_LINE_COLOR)
    return np.asarray(canvas)


def _histogram_without_outer_empty_bins(unit: PlottedUnit) -> tuple[Array, Array]:
    """Without the empty bins at both ends."""
    nonempty = np.flatnonzero(unit.counts)
    if not len(nonempty):
        return np.zeros(1), np.array([0.0, 1.0])
    return unit.counts[nonempty[0] : nonempty[-1] + 1], unit.edges[nonempty[0] : nonempty[-1] + 2]


def value_range_text(unit: PlottedUnit) -> str:
    low, high = unit.value_range
    return "no values" if np.isnan(low) else f"from {low:.3g} to {high:.3g}"


def units_sheet(
    units: Sequence[PlottedUnit],
    *,
    title: str = "",
    projection_name: str = "projection",
    patch_name: str = "top patches",
) -> Image.Image:
    """A row per unit: its top patches, their projections on one scale, the histogram of its values."""
    vmax, has_projections = back_projection_vmax(units), any(u.projections is not None for u in units)
    rows = []
    for unit in units:
        values_text = f"{unit.values[0]:.3g} to {unit.values[-1]:.3g}" if len(unit.values) else ""
        row = [Tile(patch_grid(unit), f"top values {values_text}")]
        if has_projections:
            row.append(Tile(back_projection_grid(unit, vmax)))
        rows.append([*row, Tile(histogram_image(unit), value_range_text(unit))])
    heads = [patch_name, *([projection_name] if has_projections else []), "largest value in each example"]
    bars = (
        [ColorBar("signed", vmax, f"{projection_name}: change of the unit per unit of pixel value")]
        if has_projections
        else []
    )
    names = [f"{u.name}\n{u.note}" if u.note else u.name for u in units]
    return contact_sheet(rows, title=title, columns=heads, names=names, bars=bars, side=216)
