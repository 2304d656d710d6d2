"""Contact sheets: pictures with captions on one grid, drawn by Pillow alone, in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from . import colors
from .colors import Bytes
from .text import Font, font, wrapped

INK, FAINT, PAPER, EDGE = (28, 28, 30), (110, 110, 115), (255, 255, 255), (214, 214, 218)
MARGIN, GAP, LINE = 16, 14, 15
LABELS = 112  # width of the row titles
LEAST = 64  # narrower tiles leave no room for a caption
TABLES = {"signed": colors.SIGNED, "magnitude": colors.MAGNITUDE, "gray": colors.GRAY}


@dataclass(frozen=True)
class Tile:
    """One picture (H, W, 3) uint8, or a Pillow image, and what stands below it."""

    picture: Bytes | Image.Image
    caption: str = ""


@dataclass(frozen=True)
class Bar:
    """A printed scale: signed (and gray, of color filters) runs from -scale to +scale, magnitude from 0 to scale."""

    kind: Literal["signed", "magnitude", "gray"]
    scale: float
    name: str = ""

    @property
    def ends(self) -> tuple[str, ...]:
        top = f"{self.scale:.3g}"
        return (f"−{top}", "0", f"+{top}") if self.kind != "magnitude" else ("0", top)


def sheet(
    rows: Sequence[Sequence[Tile | None]],
    *,
    title: str = "",
    columns: Sequence[str] = (),
    names: Sequence[str] = (),
    bars: Sequence[Bar] = (),
    side: int = 140,
) -> Image.Image:
    """Tiles on a grid (None leaves a place free), with column titles, row names and the scales that they share.

    Pictures are enlarged to about `side` pixels: small ones by a whole factor with hard pixels, photos smoothly.
    """
    grid = [[_Cell.of(tile, side) for tile in row] for row in rows]
    layout = _Layout.of(grid, title, columns, names, bars)
    page = Image.new("RGB", layout.size, PAPER)
    pen = ImageDraw.Draw(page)
    _lines(pen, layout.title, MARGIN, MARGIN, font(15, bold=True), step=20)
    for x, head in zip(layout.lefts, layout.heads, strict=False):
        _lines(pen, head, x, layout.tops[0] - LINE * len(head) - 4, font(12, bold=True))
    for y, row, name in zip(layout.tops, grid, layout.names, strict=False):
        _lines(pen, name, MARGIN, y, font(12, bold=True))
        for x, cell in zip(layout.lefts, row, strict=False):
            cell.draw(page, pen, x, y, _high(row))
    for i, bar in enumerate(bars):
        _bar(page, pen, bar, MARGIN, layout.foot + i * 34, layout.size[0] - 2 * MARGIN)
    return page


@dataclass(frozen=True)
class _Cell:
    picture: Image.Image | None
    caption: str

    @classmethod
    def of(cls, tile: Tile | None, side: int) -> _Cell:
        return cls(None, "") if tile is None else cls(colors.fitted(tile.picture, side), tile.caption)

    @property
    def lines(self) -> list[str]:
        width = LEAST if self.picture is None else max(self.picture.width, LEAST)
        return wrapped(self.caption, width, font(12)) if self.caption else []

    def draw(self, page: Image.Image, pen: ImageDraw.ImageDraw, x: int, y: int, high: int) -> None:
        if self.picture is None:
            return
        w, h = self.picture.size
        if self.picture.mode == "RGBA":
            page.paste(self.picture, (x, y), self.picture)
        else:
            page.paste(self.picture, (x, y))
            pen.rectangle((x - 1, y - 1, x + w, y + h), outline=EDGE)
        _lines(pen, self.lines, x, y + high + 5, font(12))


def _high(row: list[_Cell]) -> int:
    return max((c.picture.height for c in row if c.picture is not None), default=0)


@dataclass(frozen=True)
class _Layout:
    title: list[str]
    heads: list[list[str]]
    names: list[list[str]]
    lefts: list[int]
    tops: list[int]
    foot: int
    size: tuple[int, int]

    @classmethod
    def of(
        cls, grid: list[list[_Cell]], title: str, columns: Sequence[str], names: Sequence[str], bars: Sequence[Bar]
    ) -> _Layout:
        cell = max([LEAST, *(c.picture.width for row in grid for c in row if c.picture is not None)])
        count = max(map(len, grid), default=0)
        lefts = [MARGIN + (LABELS if any(names) else 0) + i * (cell + GAP) for i in range(count)]
        width = max(lefts[-1] + cell if lefts else 0, 2 * LABELS + MARGIN) + MARGIN
        head = wrapped(title, width - 2 * MARGIN, font(15, bold=True)) if title else []
        heads = [wrapped(c, cell, font(12, bold=True)) if c else [] for c in columns]
        y = MARGIN + 20 * len(head) + 6 * bool(head) + LINE * max(map(len, heads), default=0) + 4 * bool(heads)
        tops = []
        for row in grid:
            tops.append(y)
            y += _high(row) + 8 + LINE * max((len(c.lines) for c in row), default=0) + GAP
        rows = [wrapped(n, LABELS - 8, font(12, bold=True), most=6) if n else [] for n in names] or [[]] * len(grid)
        return cls(head, heads, rows, lefts, tops, y, (width, y + 34 * len(bars) + (MARGIN - GAP) + 4))


def _lines(pen: ImageDraw.ImageDraw, lines: Sequence[str], x: int, y: int, face: Font, step: int = LINE) -> None:
    for i, line in enumerate(lines):
        pen.text((x, y + i * step), line, INK, face)


def _bar(page: Image.Image, pen: ImageDraw.ImageDraw, bar: Bar, x: int, y: int, room: int) -> None:
    """The color range with its ends printed, and what is measured."""
    width, face = min(140, room), font(11)
    table = TABLES[bar.kind]
    strip = np.broadcast_to(table[np.linspace(0, len(table) - 1, width).round().astype(int)], (8, width, 3))
    page.paste(Image.fromarray(np.ascontiguousarray(strip)), (x, y))
    pen.rectangle((x - 1, y - 1, x + width, y + 8), outline=EDGE)
    for i, end in enumerate(bar.ends):
        share = i / (len(bar.ends) - 1)
        pen.text((x + share * (width - face.getlength(end)), y + 11), end, FAINT, face)
    for line in wrapped(bar.name, room - width - 10, face, most=1) if bar.name else []:
        pen.text((x + width + 10, y - 3), line, FAINT, face)
