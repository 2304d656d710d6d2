"""One input beside every method's map of it, each with the verdict on the method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from . import colors
from .draw import map_on_own_scale
from .sheet import Tile, contact_sheet

MAX_COLUMNS = 4


def explanation_sheet(
    x: Any, maps: Mapping[str, Any], verdicts: Mapping[str, str], *, title: str = "", columns: int = MAX_COLUMNS
) -> Image.Image:
    """An input (C, H, W) and {name: its map (C or 1, H, W)}, in the order given, with {name: words} below each.

    Methods are in units of their own, so each map has its own scale, printed below it.
    """
    tiles = [Tile(colors.image_to_rgb(x), "input")]
    for name, m in maps.items():
        rgb, scale_text = map_on_own_scale(m)
        tiles.append(Tile(rgb, f"{name}\n{verdicts.get(name, '')}\n{scale_text}"))
    rows: list[list[Tile | None]] = [list(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    rows[-1] += [None] * (columns - len(rows[-1])) if len(rows) > 1 else []
    return contact_sheet(rows, title=title, side=168)
