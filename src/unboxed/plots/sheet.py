"""Contact sheets: images with captions on one grid, drawn by Pillow.

Laid out by hand instead of by matplotlib: small images are enlarged by exact whole factors, so that each of their
pixels is a square of one color; a sheet takes milliseconds, also in the middle of training; and its few colors make
small PNG files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from ..atomic_write import to_printable
from . import colors
from .colors import TILE_BORDER_COLOR, Uint8Array
from .text import Font, get_font, wrap_text

TEXT_COLOR, FAINT_COLOR, BACKGROUND_COLOR = (28, 28, 30), (110, 110, 115), (255, 255, 255)
SHEET_MARGIN_PIXELS, TILE_GAP_PIXELS, LINE_HEIGHT_PIXELS = 16, 14, 15
MAX_ROW_TITLE_WIDTH_PIXELS = 112  # pixels; longer row titles are wrapped
MAX_HEADER_WIDTH_PIXELS = 480  # pixels to which a narrow sheet is widened for its title and the names of its color bars
COLOR_BAR_WIDTH_PIXELS = 140
MIN_TILE_WIDTH_PIXELS = 64  # narrower tiles leave no room for a caption
COLORMAP_BY_KIND = {
    "signed": colors.SIGNED_COLORMAP,
    "magnitude": colors.MAGNITUDE_COLORMAP,
    "gray": colors.GRAY_COLORMAP,
}


@dataclass(frozen=True)
class Tile:
    """One image (H, W, 3) uint8, or a Pillow image, and its caption."""

    image: Uint8Array | Image.Image
    caption: str = ""


@dataclass(frozen=True)
class ColorBar:
    """A color bar: signed and gray (color filters) from -vmax to vmax, magnitude from 0 to vmax."""

    kind: Literal["signed", "magnitude", "gray"]
    vmax: float
    name: str = ""

    @property
    def tick_labels(self) -> tuple[str, ...]:
        if self.kind == "magnitude":
            return "0", f"{self.vmax:.3g}"
        return f"−{self.vmax:.3g}", "0", f"+{self.vmax:.3g}"


def contact_sheet(
    rows: Sequence[Sequence[Tile | None]],
    *,
    title: str = "",
    columns: Sequence[str] = (),
    names: Sequence[str] = (),
    bars: Sequence[ColorBar] = (),
    side: int = 140,
) -> Image.Image:
    """Tiles on a grid, with titles and the color bars that they share.

    Args:
        rows: Rows of tiles; None leaves a cell empty.
        title: Printed above.
        columns: Titles of the columns.
        names: Titles of the rows, on their left.
        bars: Color bars, printed below the tiles.
        side: Size in pixels of each image: small ones are enlarged by a whole factor, photos are shrunk to it.

    Returns:
        The sheet.

    Example:
        >>> import numpy as np
        >>> from unboxed.plots.sheet import Tile, contact_sheet
        >>> contact_sheet([[Tile(np.zeros((8, 8, 3), np.uint8), "black")]], title="One tile").size
        (256, 229)
    """
    grid = [[_SheetCell.of(tile, side) for tile in row] for row in rows]
    layout = _SheetLayout.of(grid, title, columns, names, bars)
    canvas = Image.new("RGB", layout.size, BACKGROUND_COLOR)
    pen = ImageDraw.Draw(canvas)
    _draw_text_lines(pen, layout.title, SHEET_MARGIN_PIXELS, SHEET_MARGIN_PIXELS, get_font(15, bold=True), step=20)
    for x, head in zip(layout.lefts, layout.column_titles, strict=False):
        _draw_text_lines(pen, head, x, layout.tops[0] - LINE_HEIGHT_PIXELS * len(head) - 4, get_font(12, bold=True))
    for y, row, name in zip(layout.tops, grid, layout.row_titles, strict=False):
        _draw_text_lines(pen, name, SHEET_MARGIN_PIXELS, y, get_font(12, bold=True))
        for x, cell in zip(layout.lefts, row, strict=False):
            cell.draw(canvas, pen, x, y, _max_image_height(row))
    for i, bar in enumerate(bars):
        _draw_color_bar(
            canvas, pen, bar, SHEET_MARGIN_PIXELS, layout.bottom + i * 34, layout.size[0] - 2 * SHEET_MARGIN_PIXELS
        )
    return canvas


@dataclass(frozen=True)
class _SheetCell:
    image: Image.Image | None
    caption: str

    @classmethod
    def of(cls, tile: Tile | None, side: int) -> _SheetCell:
        return cls(None, "") if tile is None else cls(colors.resize_to_side(tile.image, side), tile.caption)

    @property
    def lines(self) -> list[str]:
        width = MIN_TILE_WIDTH_PIXELS if self.image is None else max(self.image.width, MIN_TILE_WIDTH_PIXELS)
        return wrap_text(self.caption, width, get_font(12)) if self.caption else []

    def draw(self, canvas: Image.Image, pen: ImageDraw.ImageDraw, x: int, y: int, row_height: int) -> None:
        if self.image is None:
            return
        w, h = self.image.size
        if self.image.mode == "RGBA":
            canvas.paste(self.image, (x, y), self.image)
        else:
            canvas.paste(self.image, (x, y))
            pen.rectangle((x - 1, y - 1, x + w, y + h), outline=TILE_BORDER_COLOR)
        _draw_text_lines(pen, self.lines, x, y + row_height + 5, get_font(12))


def _max_image_height(row: list[_SheetCell]) -> int:
    return max((c.image.height for c in row if c.image is not None), default=0)


@dataclass(frozen=True)
class _SheetLayout:
    title: list[str]
    column_titles: list[list[str]]
    row_titles: list[list[str]]
    lefts: list[int]
    tops: list[int]
    bottom: int
    size: tuple[int, int]

    @classmethod
    def of(
        cls,
        grid: list[list[_SheetCell]],
        title: str,
        columns: Sequence[str],
        names: Sequence[str],
        bars: Sequence[ColorBar],
    ) -> _SheetLayout:
        cell = max([MIN_TILE_WIDTH_PIXELS, *(c.image.width for row in grid for c in row if c.image is not None)])
        count = max(map(len, grid), default=0)
        title_width = _row_title_width(names)
        lefts = [SHEET_MARGIN_PIXELS + title_width + i * (cell + TILE_GAP_PIXELS) for i in range(count)]
        width = max(lefts[-1] + cell if lefts else 0, _header_width(title, bars)) + SHEET_MARGIN_PIXELS
        title_lines = wrap_text(title, width - 2 * SHEET_MARGIN_PIXELS, get_font(15, bold=True)) if title else []
        column_titles = [wrap_text(c, cell, get_font(12, bold=True)) if c else [] for c in columns]
        y = (
            SHEET_MARGIN_PIXELS
            + 20 * len(title_lines)
            + 6 * bool(title_lines)
            + LINE_HEIGHT_PIXELS * max(map(len, column_titles), default=0)
            + 4 * bool(column_titles)
        )
        tops = []
        for row in grid:
            tops.append(y)
            y += (
                _max_image_height(row)
                + 8
                + LINE_HEIGHT_PIXELS * max((len(c.lines) for c in row), default=0)
                + TILE_GAP_PIXELS
            )
        row_titles = [
            wrap_text(n, title_width - 8, get_font(12, bold=True), max_lines=6) if n else [] for n in names
        ] or [[]] * len(grid)
        return cls(
            title_lines,
            column_titles,
            row_titles,
            lefts,
            tops,
            y,
            (width, y + 34 * len(bars) + (SHEET_MARGIN_PIXELS - TILE_GAP_PIXELS) + 4),
        )


def _row_title_width(names: Sequence[str]) -> int:
    """Pixels left of the tiles, with a gap; none without row titles."""
    widths = [get_font(12, bold=True).getlength(line) for name in names for line in to_printable(name).split("\n")]
    return min(MAX_ROW_TITLE_WIDTH_PIXELS, round(max(widths)) + 16) if any(names) else 0


def _header_width(title: str, bars: Sequence[ColorBar]) -> int:
    """Where the title and the names of the color bars end, within bounds."""
    bar_widths = [COLOR_BAR_WIDTH_PIXELS + 12 + get_font(11).getlength(to_printable(bar.name)) for bar in bars]
    width = max([get_font(15, bold=True).getlength(to_printable(title)), *bar_widths])
    return SHEET_MARGIN_PIXELS + round(min(max(width, 2 * MAX_ROW_TITLE_WIDTH_PIXELS), MAX_HEADER_WIDTH_PIXELS))


def _draw_text_lines(
    pen: ImageDraw.ImageDraw, lines: Sequence[str], x: int, y: int, face: Font, step: int = LINE_HEIGHT_PIXELS
) -> None:
    for i, line in enumerate(lines):
        pen.text((x, y + i * step), line, TEXT_COLOR, face)


def _draw_color_bar(
    canvas: Image.Image, pen: ImageDraw.ImageDraw, bar: ColorBar, x: int, y: int, max_width: int
) -> None:
    """The colors, the ends of the range, and the name of what is measured."""
    width, face = min(COLOR_BAR_WIDTH_PIXELS, max_width), get_font(11)
    table = COLORMAP_BY_KIND[bar.kind]
    strip = np.broadcast_to(table[np.linspace(0, len(table) - 1, width).round().astype(int)], (8, width, 3))
    canvas.paste(Image.fromarray(np.ascontiguousarray(strip)), (x, y))
    pen.rectangle((x - 1, y - 1, x + width, y + 8), outline=TILE_BORDER_COLOR)
    for i, end in enumerate(bar.tick_labels):
        fraction = i / (len(bar.tick_labels) - 1)
        pen.text((x + fraction * (width - face.getlength(end)), y + 11), end, FAINT_COLOR, face)
    for line in wrap_text(bar.name, max_width - width - 10, face, max_lines=1) if bar.name else []:
        pen.text((x + width + 10, y - 3), line, FAINT_COLOR, face)
