"""Results of several models beside each other, on one stated scale; and the similarity of their layers as a heatmap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw

from ..errors import InputError
from . import colors
from .colors import Bytes, as_array
from .draw import VMAX_QUANTILE
from .sheet import BACKGROUND_COLOR, EDGE_COLOR, MARGIN_PIXELS, TEXT_COLOR, ColorBar, Tile, contact_sheet
from .text import get_font

MapKind = Literal["signed", "magnitude", "image"]
MAX_CELL_PIXELS, MIN_CELL_PIXELS = 44, 15  # pixels of a heatmap's cell; below 30 its value isn't printed
MIN_CELL_FOR_VALUES = 30
LIGHT_CELL_ABOVE = 0.65  # values on lighter cells are printed dark
TEXT_GRAY = (124, 124, 132)
MAX_CELLS_PIXELS = 560  # pixels that the cells of a heatmap take at most, a side


@dataclass(frozen=True)
class Panels:
    """Pictures {model: (N, H, W, 3)} on one scale; images have none."""

    images: dict[str, Bytes]
    bar: ColorBar | None


def colored_panels(results: Mapping[str, Any], *, kind: MapKind | None = None, unit: str = "") -> Panels:
    """The results {model: (N, C, H, W)} colored on one scale; by default signed where any value is below zero.

    Raises InputError where they are no maps of one shape.
    """
    are_images = all(hasattr(result, "images") for result in results.values())
    maps = _check_results({name: result.images for name, result in results.items()} if are_images else results)
    if kind is None and are_images:
        kind = "image"
    if kind is None:
        kind = "signed" if min(m.min(initial=0) for m in maps.values()) < 0 else "magnitude"
    if kind == "image":
        return Panels({name: colors.image_to_rgb(m) for name, m in maps.items()}, None)
    summed = {name: colors.sum_channels(m) for name, m in maps.items()}
    vmax = colors.vmax(*summed.values(), quantile=VMAX_QUANTILE)
    to_rgb = colors.signed_to_rgb if kind == "signed" else colors.magnitude_to_rgb
    return Panels({name: to_rgb(m, vmax) for name, m in summed.items()}, ColorBar(kind, vmax, unit))


def side_by_side(
    results: Mapping[str, Any],
    x: Any = None,
    *,
    kind: MapKind | None = None,
    captions: Sequence[str] = (),
    title: str = "",
    unit: str = "",
    side: int = 140,
) -> Image.Image:
    """A row an example, a column a model: what `unboxed.compare` gave, or {model: maps (N, C, H, W)}, beside the
    inputs.

    Maps share one printed scale; what `synthesis` drew are images (of plain tensors say `kind="image"`). With
    checkpoints in place of models it is a strip over the training. Raises InputError where there are no maps or images
    of one shape.
    """
    colored = colored_panels(results, kind=kind, unit=unit)
    n = len(next(iter(colored.images.values())))
    padded_captions = [*captions, *[""] * (n - len(captions))]
    first = [[] if x is None else [Tile(colors.image_to_rgb(x[i]), padded_captions[i])] for i in range(n)]
    rows: list[list[Tile | None]] = [
        [
            *first[i],
            *(
                Tile(p[i], padded_captions[i] if x is None and j == 0 else "")
                for j, p in enumerate(colored.images.values())
            ),
        ]
        for i in range(n)
    ]
    columns = [*(["input"] if x is not None else []), *results]
    return contact_sheet(rows, title=title, columns=columns, bars=[colored.bar] if colored.bar else [], side=side)


def _check_results(results: Mapping[str, Any]) -> dict[str, colors.Array]:
    if not results:
        raise InputError("there is nothing to draw: give {model: result}")
    if not_arrays := [name for name, m in results.items() if not hasattr(m, "shape")]:
        found_text = f"{not_arrays[0]!r} is a {type(results[not_arrays[0]]).__name__}"
        raise InputError(
            f"wanted drawn images, or maps (N, C, H, W) of each model; {found_text}: pass one of its tensors"
        )
    maps = {name: as_array(m) for name, m in results.items()}
    shapes = {name: m.shape for name, m in maps.items()}
    if wrong_shape := [name for name, shape in shapes.items() if len(shape) != 4]:
        raise InputError(
            f"wanted maps or images (N, C, H, W) of each model; {wrong_shape[0]!r} has shape {shapes[wrong_shape[0]]}"
        )
    if len(set(shapes.values())) > 1:
        shapes_text = ", ".join(f"{name!r} {shape}" for name, shape in shapes.items())
        raise InputError(f"results side by side have the same shape; got {shapes_text}")
    return maps


# -- similarity of layers --------------------------------------------------------------------------------------------


def matrix_plot(
    cka: Any, rows: Sequence[str], columns: Sequence[str], models: tuple[str, str], *, title: str = "",
    max_pixels: int = MAX_CELLS_PIXELS, transparent: bool = False,
) -> Image.Image:  # fmt: skip
    """Similarities (La, Lb) from 0, black, to 1, light; the value is printed in cells that have room; NaN is gray.

    The first layer stands below on the left, as in the published figures. `models` are the names at the two axes.
    `clear`: on no ground, with words in a gray that can be read on any.
    """
    values, face = as_array(cka)[::-1], get_font(12)
    cell = int(max(MIN_CELL_PIXELS, min(MAX_CELL_PIXELS, max_pixels // max(values.shape))))
    left = MARGIN_PIXELS + 20 + int(max(map(face.getlength, rows))) + 8
    footer, header = int(max(map(face.getlength, columns))) + 12, 24 * bool(title)
    height, width = cell * len(rows), cell * len(columns)
    size = max(left + width, left + 190) + MARGIN_PIXELS, MARGIN_PIXELS + header + height + footer + 64
    canvas = _Canvas(
        Image.new("RGBA", size, (0, 0, 0, 0) if transparent else (*BACKGROUND_COLOR, 255)),
        TEXT_GRAY if transparent else TEXT_COLOR,
    )
    canvas.draw_text(title, MARGIN_PIXELS, MARGIN_PIXELS, get_font(15, bold=True))
    top = MARGIN_PIXELS + header
    rgb = colors.magnitude_to_rgb(values.clip(0, 1), 1.0)  # (La, Lb, 3)
    canvas.paste(rgb.repeat(cell, 0).repeat(cell, 1), left, top)
    if cell >= MIN_CELL_FOR_VALUES:
        _draw_values(canvas, values, left, top, cell)
    for i, name in enumerate(reversed(rows)):
        canvas.draw_text(name, left - 8 - face.getlength(name), top + i * cell + cell / 2 - 8, face)
    for j, name in enumerate(columns):
        canvas.draw_vertical_text(name, left + j * cell + cell // 2, top + height + 6)
    canvas.draw_vertical_text(models[0], MARGIN_PIXELS + 6, top + height / 2, centered=True)
    canvas.draw_text(models[1], left + (width - face.getlength(models[1])) / 2, top + height + footer - 2, face)
    _draw_scale(canvas, left, top + height + footer + 28)
    return canvas.image if transparent else canvas.image.convert("RGB")


@dataclass(frozen=True)
class _Canvas:
    image: Image.Image
    ink: tuple[int, int, int]

    def draw_text(self, text: str, x: float, y: float, face: Any, ink: tuple[int, int, int] | None = None) -> None:
        ImageDraw.Draw(self.image).text((x, y), text, ink or self.ink, face)

    def paste(self, picture: Bytes, x: int, y: int) -> None:
        self.image.paste(Image.fromarray(np.ascontiguousarray(picture)), (x, y))
        h, w = picture.shape[:2]
        ImageDraw.Draw(self.image).rectangle((x - 1, y - 1, x + w, y + h), outline=EDGE_COLOR)

    def draw_vertical_text(self, text: str, x: float, y: float, *, centered: bool = False) -> None:
        """Text that runs upwards, centered on x: below y, or around it."""
        face = get_font(12)
        strip = Image.new("RGBA", (int(face.getlength(text)) + 2, 16), (*self.ink, 0))
        ImageDraw.Draw(strip).text((1, 0), text, self.ink, face)
        turned = strip.rotate(90, expand=True)
        self.image.alpha_composite(turned, (int(x - 8), int(max(0, y - turned.height / 2 if centered else y))))


def _draw_values(canvas: _Canvas, values: colors.Array, left: int, top: int, cell: int) -> None:
    face = get_font(11)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            text = "–" if np.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00")
            x = left + j * cell + (cell - face.getlength(text)) / 2
            canvas.draw_text(
                text,
                x,
                top + i * cell + cell / 2 - 7,
                face,
                BACKGROUND_COLOR if not value > LIGHT_CELL_ABOVE else TEXT_COLOR,
            )


def _draw_scale(canvas: _Canvas, x: int, y: int) -> None:
    face = get_font(11)
    strip = colors.MAGNITUDE_TABLE[np.linspace(0, 255, 140).round().astype(int)]
    canvas.paste(np.broadcast_to(strip, (8, 140, 3)), x, y)
    canvas.draw_text("0", x, y + 11, face)
    canvas.draw_text("1", x + 140 - face.getlength("1"), y + 11, face)
    canvas.draw_text("CKA", x + 148, y - 3, face)


# -- two models' filters and maps in one grid each ---------------------------------------------------------------------


def map_grids(
    maps: Mapping[str, Any], *, max_maps: int = 32, columns: int = 8, max_width: int = 400
) -> tuple[dict[str, Bytes], ColorBar]:
    """{model: maps of its units (K, H, W), or filters of three colors (K, 3, h, w)} as one grid each, on one scale."""
    selected = {name: as_array(m)[:max_maps] for name, m in maps.items()}
    vmax = colors.vmax(*selected.values())
    if all(m.ndim == 4 for m in selected.values()):
        rgb, kind = {name: colors.image_to_rgb(0.5 + m / (2 * vmax)) for name, m in selected.items()}, "gray"
    else:
        kind = "signed" if min(m.min(initial=0) for m in selected.values()) < 0 else "magnitude"
        to_rgb = colors.signed_to_rgb if kind == "signed" else colors.magnitude_to_rgb
        rgb = {name: to_rgb(m, vmax) for name, m in selected.items()}
    bar = ColorBar(kind, vmax)  # type: ignore[arg-type]
    return {n: colors.tile_images(p, columns, cell=48, max_width=max_width) for n, p in rgb.items()}, bar
