"""One input and its maps by many methods, each with the verdict on the method: images, and rows of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from . import colors
from .draw import map_to_rgb_and_range_text
from .sheet import Tile, contact_sheet
from .tables import contribution_bars, stack_panels

MAX_EXPLANATION_SHEET_COLUMNS = 4


def explanation_sheet(
    x: Any,
    maps: Mapping[str, Any],
    verdicts: Mapping[str, str],
    *,
    title: str = "",
    columns: int = MAX_EXPLANATION_SHEET_COLUMNS,
) -> Image.Image:
    """An input (C, H, W) and its maps {name: (C or 1, H, W)}, with the methods' verdicts {name: text} below them.

    Methods have different units, so each map has its own scale, printed below it.
    """
    tiles = [Tile(colors.image_to_rgb(x), "input")]
    for name, m in maps.items():
        rgb, scale_text = map_to_rgb_and_range_text(m)
        tiles.append(Tile(rgb, f"{name}\n{verdicts.get(name, '')}\n{scale_text}"))
    rows: list[list[Tile | None]] = [list(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    rows[-1] += [None] * (columns - len(rows[-1])) if len(rows) > 1 else []
    return contact_sheet(rows, title=title, side=168)


def row_explanation_sheet(
    x: Any, maps: Mapping[str, Any], verdicts: Mapping[str, str], names: Sequence[str], *, title: str = ""
) -> Image.Image:
    """A row of a table (F,) and what each of its columns contributes {method: (F,)}, the methods below one another."""
    panels = [
        contribution_bars(m, x, names, title=f"{method}: {verdicts.get(method, '')}", label="attribution to the score")
        for method, m in maps.items()
    ]
    return stack_panels([contact_sheet([], title=title), *panels])
