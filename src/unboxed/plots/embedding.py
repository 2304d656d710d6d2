"""t-SNE maps: points colored by class, images at their positions, and images on a grid that keeps neighbors near.

Drawn by Pillow, not matplotlib: thumbnails keep exact pixels, and names and dots of many maps take milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from ..errors import InputError
from . import colors
from .colors import Array, Uint8Array
from .sheet import BACKGROUND_COLOR, FAINT_COLOR, TEXT_COLOR, Tile, contact_sheet
from .text import get_font, wrap_text

if TYPE_CHECKING:
    from ..activations import TsneMap, TsneMaps

# Ten colors that the color-blind tell apart (Petroff 2021, arXiv:2107.02270), for light and dark grounds, and ten more:
# the same ones lighter, which differ from the first ten in lightness alone.
MAIN_CLASS_COLORS = ["3f90da", "ffa90e", "bd1f01", "94a4a2", "832db6", "a96b59", "e76300", "b9ac70", "717581", "92dadb"]
LIGHT_CLASS_COLORS = [
    "a5ccf0",
    "ffd98f",
    "e88a78",
    "d3dbda",
    "c48de0",
    "d8b8ae",
    "f7b98a",
    "dfd7ba",
    "b4b7be",
    "d0f0f0",
]
COLOR_OF_REMAINING_CLASSES = "8a8a90"  # one gray for the classes after those
MAX_OPTIMALLY_ASSIGNED_IMAGES = 1600  # up to which each image gets its own cell, by optimal assignment
DOT_SUPERSAMPLING_FACTOR = 4  # factor by which dots are drawn larger, then shrunk: smooth edges


def class_colors(n_classes: int) -> list[str]:
    """A color "#rrggbb" for each class."""
    class_palette = [*MAIN_CLASS_COLORS, *LIGHT_CLASS_COLORS]
    return [f"#{class_palette[k] if k < len(class_palette) else COLOR_OF_REMAINING_CLASSES}" for k in range(n_classes)]


def normalize_points(points: Any, margin: float = 0.04) -> Array:
    """Points (N, 2) inside the unit square, one scale for both axes, the second axis upwards. Raises InputError."""
    p = colors.to_float64_array(points)
    if p.ndim != 2 or p.shape[1:] != (2,) or not len(p) or not np.isfinite(p).all():
        raise InputError(f"wanted finite points (N, 2) of a map; got shape {p.shape}")
    low, high = p.min(0), p.max(0)
    unit = (p - (low + high) / 2) / (float((high - low).max()) or 1.0)  # within +-1/2
    return np.asarray(0.5 + (1 - 2 * margin) * unit * [1, -1], dtype=np.float64)


def scatter_image(points: Any, labels: Any = None, names: Sequence[str] = (), *, side: int = 520) -> Image.Image:
    """Points colored by class, with the names of the classes at their medians.

    Args:
        points: Points (N, 2).
        labels: Classes (N,); None draws all points in one color.
        names: Names of the classes; () takes their numbers.
        side: Width and height in pixels.

    Returns:
        The map, at one scale on both axes.

    Raises:
        InputError: for other shapes, or values that are not finite.

    Example:
        >>> from unboxed.plots.embedding import scatter_image
        >>> scatter_image([[0.0, 0.0], [1.0, 1.0]], [0, 1], ["cat", "dog"], side=200).size
        (200, 200)
    """
    positions = normalize_points(points)
    class_of_point = _validated_labels_or_zeros(labels, len(positions))
    count = int(class_of_point.max()) + 1
    canvas = Image.new("RGB", (side * DOT_SUPERSAMPLING_FACTOR, side * DOT_SUPERSAMPLING_FACTOR), BACKGROUND_COLOR)
    pen = ImageDraw.Draw(canvas)
    r = scatter_dot_radius(len(positions), side) * DOT_SUPERSAMPLING_FACTOR
    fill = class_colors(count)
    for i in _shuffled_indices(len(positions)):  # in random order, so that no class covers the others
        x, y = positions[i] * side * DOT_SUPERSAMPLING_FACTOR
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill[class_of_point[i]])
    canvas = canvas.resize((side, side), Image.Resampling.LANCZOS)
    if labels is not None:
        _draw_class_names(
            ImageDraw.Draw(canvas),
            positions * side,
            class_of_point,
            list(names) or [str(k) for k in range(count)],
            side,
        )
    return canvas


def scatter_dot_radius(n_points: int, side: int) -> float:
    """The radius of the dots, so that n of them fill a good part of the map but not all of it."""
    return float(np.clip(0.22 * side / math.sqrt(n_points), 1.0, 5.0)) if n_points > 40 else 5.0


def tsne_scatter_sheet(
    maps: TsneMaps, labels: Any = None, names: Sequence[str] = (), *, title: str = "", side: int = 360
) -> Image.Image:
    """The maps of `activations.tsne` side by side, with the accuracy of a vote of each point's 10 nearest neighbors.

    Args:
        maps: The result of `activations.tsne`.
        labels: Classes (N,); None draws all points in one color.
        names: Names of the classes; () takes those that the maps carry.
        title: Printed above.
        side: Width and height in pixels of each map.

    Returns:
        The sheet.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(12)
        >>> maps = ub.activations.tsne(box, x, ["fc1"], perplexity=3)
        >>> ub.plots.embedding.tsne_scatter_sheet(maps, y).width
        392
    """
    tiles = [
        Tile(
            scatter_image(m.points, labels, names, side=side),
            "\n".join([_layer_map_title(m.path), *_neighbor_agreement_lines(m, labels)]),
        )
        for m in maps.layers
    ]
    columns = min(2, len(tiles))
    return contact_sheet([tiles[i : i + columns] for i in range(0, len(tiles), columns)], title=title, side=side)


def _layer_map_title(path: str) -> str:
    return "raw input" if path == "input" else path


def _neighbor_agreement_lines(tsne_map: TsneMap, labels: Any) -> list[str]:
    return [] if labels is None else [f"10 nearest neighbors agree: {tsne_map.accuracy(labels):.1%}"]


def thumbnail_scatter_image(points: Any, images: Any, *, side: int = 1000, cell: int = 28) -> Image.Image:
    """Images (N, C, H, W) at their points, `cell` pixels wide; those that would cover another are left out."""
    positions = normalize_points(points, margin=max(0.02, 0.6 * cell / side)) * side
    images_rgb = make_thumbnails(images, cell)
    canvas = Image.new("RGB", (side, side), BACKGROUND_COLOR)
    for i in select_non_overlapping_points(positions, cell * 0.9):
        h, w = images_rgb[i].shape[:2]
        canvas.paste(Image.fromarray(images_rgb[i]), (round(positions[i, 0] - w / 2), round(positions[i, 1] - h / 2)))
    return canvas


def select_non_overlapping_points(positions: Array, min_distance: float) -> list[int]:
    """The points (N, 2) that can be drawn as squares of that size without overlap, chosen greedily in random order."""
    selected: list[int] = []
    cells: dict[tuple[int, int], list[int]] = {}
    for i in _shuffled_indices(len(positions)):
        cx, cy = (int(v // min_distance) for v in positions[i])
        neighbors = [j for dx in (-1, 0, 1) for dy in (-1, 0, 1) for j in cells.get((cx + dx, cy + dy), [])]
        if all(np.abs(positions[i] - positions[j]).max() >= min_distance for j in neighbors):
            selected.append(i)
            cells.setdefault((cx, cy), []).append(i)
    return selected


def neighbor_preserving_image_grid(
    points: Any, images: Any, *, columns: int | None = None, cell: int = 28
) -> Image.Image:
    """Images (N, C, H, W) on a square grid that keeps neighbors near.

    Up to 1,600 images each get their own cell, with the smallest total squared distance between points and cells; of
    more, each cell shows the one nearest to its center. Cells without an image are empty.
    """
    positions = normalize_points(points, margin=0.0)  # (N, 2)
    columns = columns or max(1, math.ceil(math.sqrt(min(len(positions), MAX_OPTIMALLY_ASSIGNED_IMAGES))))
    cells = np.stack(np.meshgrid(*[(np.arange(columns) + 0.5) / columns] * 2), -1).reshape(-1, 2)  # row by row
    point_of_cell = (
        _assign_points_to_cells(positions, cells)
        if max(len(positions), len(cells)) <= MAX_OPTIMALLY_ASSIGNED_IMAGES
        else _nearest_point_by_cell(positions, cells, columns)
    )
    thumbnails_rgb = make_thumbnails(images, cell, indices=list(point_of_cell.values()))
    canvas = Image.new("RGB", (columns * cell, columns * cell), BACKGROUND_COLOR)
    for (cell_index, _), thumbnail in zip(point_of_cell.items(), thumbnails_rgb, strict=True):
        h, w = thumbnail.shape[:2]
        canvas.paste(
            Image.fromarray(thumbnail),
            (cell_index % columns * cell + (cell - w) // 2, cell_index // columns * cell + (cell - h) // 2),
        )
    return canvas


def _assign_points_to_cells(positions: Array, cells: Array) -> dict[int, int]:
    """{cell: point}, every point (or every cell, if there are fewer) with its own."""
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped, unused-ignore]

    spread_positions = _equalize_spacing(positions)  # clusters leave most of the square empty
    cost = ((spread_positions[:, None] - cells[None]) ** 2).sum(-1)
    points, cell_indices = linear_sum_assignment(cost)
    return dict(sorted(zip(cell_indices.tolist(), points.tolist(), strict=True)))


def _equalize_spacing(positions: Array) -> Array:
    """Points moved half way to where their rank along each axis would put them."""
    ranks = (positions.argsort(0, kind="stable").argsort(0, kind="stable") + 0.5) / len(positions)
    return np.asarray((positions + ranks) / 2, dtype=np.float64)


def _nearest_point_by_cell(positions: Array, cells: Array, columns: int) -> dict[int, int]:
    """{cell: the point in it that is nearest to its center}."""
    inside = (positions * columns).astype(int).clip(0, columns - 1)
    cell_of_point = inside[:, 1] * columns + inside[:, 0]  # (N,)
    distances = ((positions - cells[cell_of_point]) ** 2).sum(1)
    point_of_cell: dict[int, int] = {}
    for i in np.lexsort((np.arange(len(positions)), distances)).tolist():
        point_of_cell.setdefault(int(cell_of_point[i]), i)
    return dict(sorted(point_of_cell.items()))


def make_thumbnails(images: Any, cell: int, indices: Sequence[int] | None = None) -> list[Uint8Array]:
    """Images (N, C, H, W) as (h, w, 3) that fit a cell: shrunk smoothly, or enlarged by a whole factor."""
    rows = range(len(images)) if indices is None else indices
    return [_resize_to_fit_cell(colors.image_to_rgb(images[i]), cell) for i in rows]


def _resize_to_fit_cell(rgb: Uint8Array, cell: int) -> Uint8Array:
    h, w = rgb.shape[:2]
    longest = max(h, w)
    if longest <= cell:
        k = cell // longest
        return rgb.repeat(k, 0).repeat(k, 1)
    size = (max(1, round(w * cell / longest)), max(1, round(h * cell / longest)))
    return np.asarray(
        Image.fromarray(rgb).resize(size, Image.Resampling.BOX if longest < 96 else Image.Resampling.LANCZOS)
    )


def _validated_labels_or_zeros(labels: Any, n: int) -> Any:
    """Labels (n,), all 0 if there are none. Raises InputError."""
    if labels is None:
        return np.zeros(n, dtype=int)
    y = colors.to_float64_array(labels)
    if y.shape != (n,) or (y < 0).any() or (y % 1).any():
        raise InputError(f"wanted one label per point, ({n},) integers from 0; got shape {y.shape}")
    return y.astype(int)


def _shuffled_indices(n: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(0).permutation(n)]


def class_name_position_by_class(positions: Array, class_of_point: Any) -> dict[int, tuple[float, float]]:
    """Where the name of each class is printed: at the member nearest to its median, so never between two clusters."""
    by_class = {}
    for k in np.unique(class_of_point).tolist():
        members = positions[class_of_point == k]
        position = members[((members - np.median(members, 0)) ** 2).sum(1).argmin()]
        by_class[k] = (float(position[0]), float(position[1]))
    return by_class


def _draw_class_names(
    pen: ImageDraw.ImageDraw, positions: Array, class_of_point: Any, names: Sequence[str], side: int
) -> None:
    face = get_font(15, bold=True)
    largest = sorted(
        class_name_position_by_class(positions, class_of_point).items(),
        key=lambda item: -int((class_of_point == item[0]).sum()),
    )[:20]
    for k, (x, y) in largest:
        word = wrap_text(names[k] if k < len(names) else str(k), side / 4, face, max_lines=1)[0]
        half = face.getlength(word) / 2
        x = min(max(x, half + 4), side - half - 4)
        pen.text((x - half, y - 9), word, TEXT_COLOR, face, stroke_width=3, stroke_fill=BACKGROUND_COLOR)
    if len(set(class_of_point.tolist())) > len(largest):
        pen.text((6, side - 18), f"the {len(largest)} largest classes are named", FAINT_COLOR, get_font(11))
