"""Units as pictures: the patches that excite each most, their projections, and the values that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from . import colors
from .colors import Array, Bytes, array
from .draw import QUANTILE
from .sheet import EDGE, Bar, Tile, sheet

VALUES = (150, 66)  # pixels of a histogram
LARGEST = 72  # pixels a side of a patch; larger ones are shrunk by a whole factor
BACK, INK, ZERO = (236, 236, 240), (70, 70, 78), (178, 24, 43)


@dataclass(frozen=True)
class Unit:
    """One unit: patches (k, C, h, w) of its top examples, all of one size, and projections like them if there are."""

    number: int
    patches: Array
    projections: Array | None
    values: Sequence[float]  # (k,)
    counts: Array  # (B,)
    edges: Array  # (B + 1,)
    dead: bool = False
    line: str = ""  # more words

    @property
    def name(self) -> str:
        return f"unit {self.number}" + (", dead" if self.dead else "")


def framed(picture: Any, bounds: Sequence[int], size: tuple[int, int], image: tuple[int, int]) -> Array:
    """The part of a picture (C, H, W) within bounds, NaN around it where the field (h, w) leaves the image."""
    picture = array(picture)
    top, left, bottom, right = map(int, bounds)
    h, w = max(size[0], bottom - top), max(size[1], right - left)
    page = np.full((len(picture), h, w), np.nan)
    y = h - (bottom - top) if top == 0 and bottom < image[0] else 0
    x = w - (right - left) if left == 0 and right < image[1] else 0
    page[:, y : y + bottom - top, x : x + right - left] = picture[:, top:bottom, left:right]
    return _shrunk(page)


def _shrunk(page: Array) -> Array:
    f = -(-max(page.shape[1:]) // LARGEST)
    h, w = (s // f for s in page.shape[1:])
    blocks: Array = page[:, : h * f, : w * f].reshape(len(page), h, f, w, f).mean((2, 4))
    return blocks


def reach_of(units: Sequence[Unit]) -> float:
    """The one scale of all projections: they are to be compared."""
    maps = [colors.flat(u.projections) for u in units if u.projections is not None]
    return colors.reach(*maps, quantile=QUANTILE) if maps else 1.0


def patch_grid(unit: Unit, *, cell: int = 64, wide: int = 216, columns: int = 3) -> Bytes:
    """The top patches as small multiples, best first."""
    return _bordered(colors.tiled(_filled(unit.patches), columns, cell=cell, wide=wide))


def projection_grid(unit: Unit, scale: float, *, cell: int = 64, wide: int = 216, columns: int = 3) -> Bytes:
    """Their projections on the same grid, signed: red pixels would excite the unit more if they were brighter."""
    maps = unit.projections if unit.projections is not None else unit.patches * np.nan
    pictures = colors.signed(colors.flat(maps), scale)
    pictures[np.isnan(maps).any(1)] = BACK
    return _bordered(colors.tiled(pictures, columns, cell=cell, wide=wide))


def _bordered(page: Bytes) -> Bytes:
    """A thin line around each tile (H, W, 4): white ones end where the paper begins."""
    page = np.pad(page, ((1, 1), (1, 1), (0, 0)))
    inside = np.pad(page[..., 3] > 0, 1)
    near = np.any([np.roll(inside, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)], 0)[1:-1, 1:-1]
    page[near & (page[..., 3] == 0)] = (*EDGE, 255)
    return page


def _filled(patches: Array) -> Bytes:
    pictures = colors.image(patches).copy()
    pictures[np.isnan(patches).any(1)] = BACK
    return pictures


def histogram(unit: Unit, size: tuple[int, int] = VALUES) -> Bytes:
    """How many examples gave the unit which value, as bars; a red line at zero, ends printed by the caption."""
    wide, high = size
    page = Image.new("RGB", size, (255, 255, 255))
    pen = ImageDraw.Draw(page)
    counts, edges = _trimmed(unit)
    span = float(edges[-1] - edges[0]) or 1.0
    places = ((edges - edges[0]) / span * (wide - 1)).round().astype(int)
    tallest = float(np.sqrt(counts.max(initial=0))) or 1.0
    for count, a, b in zip(counts, places, places[1:], strict=False):
        if count:  # heights by square root, so that a few strong answers can be seen beside many weak ones
            pen.rectangle(
                (a, high - 1 - max(1, round(np.sqrt(count) / tallest * (high - 6))), max(a, b - 1), high - 1), INK
            )
    if edges[0] <= 0 <= edges[-1]:
        x = round(-float(edges[0]) / span * (wide - 1))
        pen.line((x, 0, x, high - 1), ZERO)
    return np.asarray(page)


def _trimmed(unit: Unit) -> tuple[Array, Array]:
    """Without the empty bins at both ends."""
    full = np.flatnonzero(unit.counts)
    if not len(full):
        return np.zeros(1), np.array([0.0, 1.0])
    return unit.counts[full[0] : full[-1] + 1], unit.edges[full[0] : full[-1] + 2]


def value_range(unit: Unit) -> str:
    counts, edges = _trimmed(unit)
    return f"axis {edges[0]:.3g} to {edges[-1]:.3g}" if counts.any() else "no values"


def units_sheet(units: Sequence[Unit], *, title: str = "", rule: str = "projection") -> Image.Image:
    """A row a unit: its nine top patches, their projections on one scale, the values that it takes."""
    scale, drawn = reach_of(units), any(u.projections is not None for u in units)
    rows = []
    for unit in units:
        best = f"{unit.values[0]:.3g} to {unit.values[-1]:.3g}" if len(unit.values) else ""
        row = [Tile(patch_grid(unit), f"top values {best}")]
        if drawn:
            row.append(Tile(projection_grid(unit, scale)))
        rows.append([*row, Tile(histogram(unit), value_range(unit))])
    heads = ["top patches", *([rule] if drawn else []), "largest value in each example"]
    bars = [Bar("signed", scale, f"{rule}: change of the unit per unit of pixel value")] if drawn else []
    names = [f"{u.name}\n{u.line}" if u.line else u.name for u in units]
    return sheet(rows, title=title, columns=heads, names=names, bars=bars, side=216)
