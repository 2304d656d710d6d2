"""Maps as pictures: points colored by label, images at their places, and images on a grid that keeps neighbors near."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from ..errors import InputError
from . import colors
from .colors import Array, Bytes
from .sheet import FAINT, INK, PAPER, Tile, sheet
from .text import font, wrapped

if TYPE_CHECKING:
    from ..activations import LayerMap, Maps

# Ten colors that the color-blind tell apart (Petroff 2021, arXiv:2107.02270), for light and dark grounds, and ten more:
# the same ones lighter, which differ from the first ten in lightness alone.
FIRST = ["3f90da", "ffa90e", "bd1f01", "94a4a2", "832db6", "a96b59", "e76300", "b9ac70", "717581", "92dadb"]
MORE = ["a5ccf0", "ffd98f", "e88a78", "d3dbda", "c48de0", "d8b8ae", "f7b98a", "dfd7ba", "b4b7be", "d0f0f0"]
REST = "8a8a90"  # one gray for the classes after those
ASSIGNED = 1600  # images that are assigned to cells at the least total distance
SMOOTH = 4  # times the size at which dots are drawn, then shrunk


def palette(classes: int) -> list[str]:
    """A color "#rrggbb" for each of so many classes."""
    known = [*FIRST, *MORE]
    return [f"#{known[k] if k < len(known) else REST}" for k in range(classes)]


def placed(points: Any, margin: float = 0.04) -> Array:
    """Points (N, 2) inside the unit square, one scale for both axes, the second axis upwards. Raises InputError."""
    p = colors.array(points)
    if p.ndim != 2 or p.shape[1:] != (2,) or not len(p) or not np.isfinite(p).all():
        raise InputError(f"wanted finite points (N, 2) of a map; got shape {p.shape}")
    low, high = p.min(0), p.max(0)
    unit = (p - (low + high) / 2) / (float((high - low).max()) or 1.0)  # within +-1/2
    return np.asarray(0.5 + (1 - 2 * margin) * unit * [1, -1], dtype=np.float64)


def scatter(points: Any, labels: Any = None, names: Sequence[str] = (), *, side: int = 520) -> Image.Image:
    """Points (N, 2) colored by label (N,), with the names of the classes at their medians."""
    at = placed(points)
    kinds = _labels(labels, len(at))
    count = int(kinds.max()) + 1
    page = Image.new("RGB", (side * SMOOTH, side * SMOOTH), PAPER)
    pen = ImageDraw.Draw(page)
    r = radius(len(at), side) * SMOOTH
    fill = palette(count)
    for i in _shuffled(len(at)):  # no class lies over all others
        x, y = at[i] * side * SMOOTH
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill[kinds[i]])
    page = page.resize((side, side), Image.Resampling.LANCZOS)
    if labels is not None:
        _name(ImageDraw.Draw(page), at * side, kinds, list(names) or [str(k) for k in range(count)], side)
    return page


def radius(n: int, side: int) -> float:
    """Of the dots, so that n of them fill a good part of the picture but not all of it."""
    return float(np.clip(0.22 * side / math.sqrt(n), 1.0, 5.0)) if n > 40 else 5.0


def scatters(
    maps: Maps, labels: Any = None, names: Sequence[str] = (), *, title: str = "", side: int = 360
) -> Image.Image:
    """The maps of `activations.tsne` side by side, with the accuracy of a vote of each point's 10 nearest."""
    tiles = [
        Tile(scatter(m.points, labels, names, side=side), "\n".join([_head(m.path), *_agreement(m, labels)]))
        for m in maps.layers
    ]
    columns = min(2, len(tiles))
    return sheet([tiles[i : i + columns] for i in range(0, len(tiles), columns)], title=title, side=side)


def _head(path: str) -> str:
    return "raw input" if path == "input" else path


def _agreement(m: LayerMap, labels: Any) -> list[str]:
    return [] if labels is None else [f"10 nearest neighbors agree: {m.accuracy(labels):.1%}"]


def thumbnails(points: Any, images: Any, *, side: int = 1000, cell: int = 28) -> Image.Image:
    """Images (N, C, H, W) at their places, `cell` pixels wide; one that would cover another is left out."""
    at = placed(points, margin=max(0.02, 0.6 * cell / side)) * side
    pictures = small(images, cell)
    page = Image.new("RGB", (side, side), PAPER)
    for i in uncovered(at, cell * 0.9):
        h, w = pictures[i].shape[:2]
        page.paste(Image.fromarray(pictures[i]), (round(at[i, 0] - w / 2), round(at[i, 1] - h / 2)))
    return page


def uncovered(at: Array, apart: float) -> list[int]:
    """Which of the points (N, 2) can be drawn as squares of that size so that none covers another: the first comes
    first, in an order that has nothing to do with labels."""
    kept: list[int] = []
    cells: dict[tuple[int, int], list[int]] = {}
    for i in _shuffled(len(at)):
        cx, cy = (int(v // apart) for v in at[i])
        near = [j for dx in (-1, 0, 1) for dy in (-1, 0, 1) for j in cells.get((cx + dx, cy + dy), [])]
        if all(np.abs(at[i] - at[j]).max() >= apart for j in near):
            kept.append(i)
            cells.setdefault((cx, cy), []).append(i)
    return kept


def grid(points: Any, images: Any, *, columns: int | None = None, cell: int = 28) -> Image.Image:
    """Images (N, C, H, W) on a square grid that keeps neighbors near.

    Up to 1,600 images each get their own cell, at the least total squared distance between points and cells; of more,
    each cell shows the one that lies nearest to its middle. Cells without an image stay free.
    """
    at = placed(points, margin=0.0)  # (N, 2)
    columns = columns or max(1, math.ceil(math.sqrt(min(len(at), ASSIGNED))))
    cells = np.stack(np.meshgrid(*[(np.arange(columns) + 0.5) / columns] * 2), -1).reshape(-1, 2)  # row by row
    chosen = _assigned(at, cells) if max(len(at), len(cells)) <= ASSIGNED else _closest(at, cells, columns)
    pictures = small(images, cell, which=list(chosen.values()))
    page = Image.new("RGB", (columns * cell, columns * cell), PAPER)
    for (place, _), picture in zip(chosen.items(), pictures, strict=True):
        h, w = picture.shape[:2]
        page.paste(
            Image.fromarray(picture),
            (place % columns * cell + (cell - w) // 2, place // columns * cell + (cell - h) // 2),
        )
    return page


def _assigned(at: Array, cells: Array) -> dict[int, int]:
    """{cell: point}, every point (or every cell, if there are fewer) with its own."""
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped, unused-ignore]

    spread = _evened(at)  # clusters leave most of the square empty: half way to equal spacing
    cost = ((spread[:, None] - cells[None]) ** 2).sum(-1)
    points, places = linear_sum_assignment(cost)
    return dict(sorted(zip(places.tolist(), points.tolist(), strict=True)))


def _evened(at: Array) -> Array:
    """Points moved half way to where their rank along each axis would put them."""
    ranks = (at.argsort(0, kind="stable").argsort(0, kind="stable") + 0.5) / len(at)
    return np.asarray((at + ranks) / 2, dtype=np.float64)


def _closest(at: Array, cells: Array, columns: int) -> dict[int, int]:
    """{cell: the point in it that lies nearest to its middle}."""
    inside = (at * columns).astype(int).clip(0, columns - 1)
    own = inside[:, 1] * columns + inside[:, 0]  # (N,)
    far = ((at - cells[own]) ** 2).sum(1)
    best: dict[int, int] = {}
    for i in np.lexsort((np.arange(len(at)), far)).tolist():
        best.setdefault(int(own[i]), i)
    return dict(sorted(best.items()))


def small(images: Any, cell: int, which: Sequence[int] | None = None) -> list[Bytes]:
    """Images (N, C, H, W) as (h, w, 3) that fit a cell: shrunk smoothly, or enlarged by a whole factor."""
    rows = range(len(images)) if which is None else which
    return [_fit(colors.image(images[i]), cell) for i in rows]


def _fit(picture: Bytes, cell: int) -> Bytes:
    h, w = picture.shape[:2]
    longest = max(h, w)
    if longest <= cell:
        k = cell // longest
        return picture.repeat(k, 0).repeat(k, 1)
    size = (max(1, round(w * cell / longest)), max(1, round(h * cell / longest)))
    return np.asarray(
        Image.fromarray(picture).resize(size, Image.Resampling.BOX if longest < 96 else Image.Resampling.LANCZOS)
    )


def _labels(labels: Any, n: int) -> Any:
    """Labels (n,), all 0 if there are none. Raises InputError."""
    if labels is None:
        return np.zeros(n, dtype=int)
    y = colors.array(labels)
    if y.shape != (n,) or (y < 0).any() or (y % 1).any():
        raise InputError(f"wanted one label a point, ({n},) whole numbers from 0; got shape {y.shape}")
    return y.astype(int)


def _shuffled(n: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(0).permutation(n)]


def medians(at: Array, kinds: Any) -> dict[int, tuple[float, float]]:
    """Where the name of each class stands: on the member nearest to its median, so never between two clusters."""
    found = {}
    for k in np.unique(kinds).tolist():
        own = at[kinds == k]
        place = own[((own - np.median(own, 0)) ** 2).sum(1).argmin()]
        found[k] = (float(place[0]), float(place[1]))
    return found


def _name(pen: ImageDraw.ImageDraw, at: Array, kinds: Any, names: Sequence[str], side: int) -> None:
    face = font(15, bold=True)
    shown = sorted(medians(at, kinds).items(), key=lambda item: -int((kinds == item[0]).sum()))[:20]
    for k, (x, y) in shown:
        word = wrapped(names[k] if k < len(names) else str(k), side / 4, face, most=1)[0]
        half = face.getlength(word) / 2
        x = min(max(x, half + 4), side - half - 4)
        pen.text((x - half, y - 9), word, INK, face, stroke_width=3, stroke_fill=PAPER)
    if len(set(kinds.tolist())) > len(shown):
        pen.text((6, side - 18), f"the {len(shown)} largest classes are named", FAINT, font(11))
