"""Results of several models beside each other, on one stated scale; and the similarity of their layers as a heatmap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw

from ..errors import InputError
from . import colors
from .colors import Bytes, array
from .draw import QUANTILE
from .sheet import EDGE, INK, MARGIN, PAPER, Bar, Tile, sheet
from .text import font

Kind = Literal["signed", "magnitude", "image"]
CELL, LEAST_CELL = 44, 15  # pixels of a heatmap's cell; below 30 its value isn't printed
VALUES = 30
LIGHT = 0.65  # values on lighter cells are printed dark
GRAY = (124, 124, 132)
BOARD = 560  # pixels that the cells of a heatmap take at most, a side


@dataclass(frozen=True)
class Panels:
    """Pictures {model: (N, H, W, 3)} on one scale; images have none."""

    pictures: dict[str, Bytes]
    bar: Bar | None


def panels(results: Mapping[str, Any], *, kind: Kind | None = None, unit: str = "") -> Panels:
    """The results {model: (N, C, H, W)} colored on one scale; by default signed where any value is below zero.

    Raises InputError where they are no maps of one shape.
    """
    drawn = all(hasattr(result, "images") for result in results.values())
    maps = _checked({name: result.images for name, result in results.items()} if drawn else results)
    if kind is None and drawn:
        kind = "image"
    if kind is None:
        kind = "signed" if min(m.min(initial=0) for m in maps.values()) < 0 else "magnitude"
    if kind == "image":
        return Panels({name: colors.image(m) for name, m in maps.items()}, None)
    flat = {name: colors.flat(m) for name, m in maps.items()}
    reach = colors.reach(*flat.values(), quantile=QUANTILE)
    paint = colors.signed if kind == "signed" else colors.magnitude
    return Panels({name: paint(m, reach) for name, m in flat.items()}, Bar(kind, reach, unit))


def side_by_side(
    results: Mapping[str, Any],
    x: Any = None,
    *,
    kind: Kind | None = None,
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
    shown = panels(results, kind=kind, unit=unit)
    n = len(next(iter(shown.pictures.values())))
    said = [*captions, *[""] * (n - len(captions))]
    first = [[] if x is None else [Tile(colors.image(x[i]), said[i])] for i in range(n)]
    rows: list[list[Tile | None]] = [
        [
            *first[i],
            *(Tile(p[i], said[i] if x is None and j == 0 else "") for j, p in enumerate(shown.pictures.values())),
        ]
        for i in range(n)
    ]
    columns = [*(["input"] if x is not None else []), *results]
    return sheet(rows, title=title, columns=columns, bars=[shown.bar] if shown.bar else [], side=side)


def _checked(results: Mapping[str, Any]) -> dict[str, colors.Array]:
    if not results:
        raise InputError("there is nothing to draw: give {model: result}")
    if odd := [name for name, m in results.items() if not hasattr(m, "shape")]:
        said = f"{odd[0]!r} is a {type(results[odd[0]]).__name__}"
        raise InputError(f"wanted drawn images, or maps (N, C, H, W) of each model; {said}: pass one of its tensors")
    maps = {name: array(m) for name, m in results.items()}
    shapes = {name: m.shape for name, m in maps.items()}
    if bad := [name for name, shape in shapes.items() if len(shape) != 4]:
        raise InputError(f"wanted maps or images (N, C, H, W) of each model; {bad[0]!r} has shape {shapes[bad[0]]}")
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"{name!r} {shape}" for name, shape in shapes.items())
        raise InputError(f"results side by side have the same shape; got {told}")
    return maps


# -- similarity of layers --------------------------------------------------------------------------------------------


def heatmap(
    cka: Any, rows: Sequence[str], columns: Sequence[str], models: tuple[str, str], *, title: str = "",
    board: int = BOARD, clear: bool = False,
) -> Image.Image:  # fmt: skip
    """Similarities (La, Lb) from 0, black, to 1, light; the value is printed in cells that have room; NaN is gray.

    The first layer stands below on the left, as in the published figures. `models` are the names at the two axes.
    `clear`: on no ground, with words in a gray that can be read on any.
    """
    values, face = array(cka)[::-1], font(12)
    cell = int(max(LEAST_CELL, min(CELL, board // max(values.shape))))
    left = MARGIN + 20 + int(max(map(face.getlength, rows))) + 8
    foot, head = int(max(map(face.getlength, columns))) + 12, 24 * bool(title)
    high, wide = cell * len(rows), cell * len(columns)
    size = max(left + wide, left + 190) + MARGIN, MARGIN + head + high + foot + 64
    page = _Page(Image.new("RGBA", size, (0, 0, 0, 0) if clear else (*PAPER, 255)), GRAY if clear else INK)
    page.words(title, MARGIN, MARGIN, font(15, bold=True))
    top = MARGIN + head
    painted = colors.magnitude(values.clip(0, 1), 1.0)  # (La, Lb, 3)
    page.picture(painted.repeat(cell, 0).repeat(cell, 1), left, top)
    if cell >= VALUES:
        _printed(page, values, left, top, cell)
    for i, name in enumerate(reversed(rows)):
        page.words(name, left - 8 - face.getlength(name), top + i * cell + cell / 2 - 8, face)
    for j, name in enumerate(columns):
        page.upright(name, left + j * cell + cell // 2, top + high + 6)
    page.upright(models[0], MARGIN + 6, top + high / 2, middle=True)
    page.words(models[1], left + (wide - face.getlength(models[1])) / 2, top + high + foot - 2, face)
    _scale(page, left, top + high + foot + 28)
    return page.image if clear else page.image.convert("RGB")


@dataclass(frozen=True)
class _Page:
    image: Image.Image
    ink: tuple[int, int, int]

    def words(self, text: str, x: float, y: float, face: Any, ink: tuple[int, int, int] | None = None) -> None:
        ImageDraw.Draw(self.image).text((x, y), text, ink or self.ink, face)

    def picture(self, picture: Bytes, x: int, y: int) -> None:
        self.image.paste(Image.fromarray(np.ascontiguousarray(picture)), (x, y))
        h, w = picture.shape[:2]
        ImageDraw.Draw(self.image).rectangle((x - 1, y - 1, x + w, y + h), outline=EDGE)

    def upright(self, text: str, x: float, y: float, *, middle: bool = False) -> None:
        """Text that runs upwards, centered on x: below y, or around it."""
        face = font(12)
        strip = Image.new("RGBA", (int(face.getlength(text)) + 2, 16), (*self.ink, 0))
        ImageDraw.Draw(strip).text((1, 0), text, self.ink, face)
        turned = strip.rotate(90, expand=True)
        self.image.alpha_composite(turned, (int(x - 8), int(max(0, y - turned.height / 2 if middle else y))))


def _printed(page: _Page, values: colors.Array, left: int, top: int, cell: int) -> None:
    face = font(11)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            text = "–" if np.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00")
            x = left + j * cell + (cell - face.getlength(text)) / 2
            page.words(text, x, top + i * cell + cell / 2 - 7, face, PAPER if not value > LIGHT else INK)


def _scale(page: _Page, x: int, y: int) -> None:
    face = font(11)
    strip = colors.MAGNITUDE[np.linspace(0, 255, 140).round().astype(int)]
    page.picture(np.broadcast_to(strip, (8, 140, 3)), x, y)
    page.words("0", x, y + 11, face)
    page.words("1", x + 140 - face.getlength("1"), y + 11, face)
    page.words("CKA", x + 148, y - 3, face)


# -- two models' filters and maps in one grid each ---------------------------------------------------------------------


def grids(
    maps: Mapping[str, Any], *, most: int = 32, columns: int = 8, wide: int = 400
) -> tuple[dict[str, Bytes], Bar]:
    """{model: maps of its units (K, H, W), or filters of three colors (K, 3, h, w)} as one grid each, on one scale."""
    shown = {name: array(m)[:most] for name, m in maps.items()}
    reach = colors.reach(*shown.values())
    if all(m.ndim == 4 for m in shown.values()):
        painted, kind = {name: colors.image(0.5 + m / (2 * reach)) for name, m in shown.items()}, "gray"
    else:
        kind = "signed" if min(m.min(initial=0) for m in shown.values()) < 0 else "magnitude"
        paint = colors.signed if kind == "signed" else colors.magnitude
        painted = {name: paint(m, reach) for name, m in shown.items()}
    return {n: colors.tiled(p, columns, cell=48, wide=wide) for n, p in painted.items()}, Bar(kind, reach)  # type: ignore[arg-type]
