"""One input beside every method's map of it, each with the verdict on the method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from . import colors
from .draw import alone
from .sheet import Tile, sheet

COLUMNS = 4


def explained(
    x: Any, maps: Mapping[str, Any], verdicts: Mapping[str, str], *, title: str = "", columns: int = COLUMNS
) -> Image.Image:
    """An input (C, H, W) and {name: its map (C or 1, H, W)}, in the order given, with {name: words} below each.

    Methods are in units of their own, so each map has its own scale, printed below it.
    """
    tiles = [Tile(colors.image(x), "input")]
    for name, m in maps.items():
        picture, span = alone(m)
        tiles.append(Tile(picture, f"{name}\n{verdicts.get(name, '')}\n{span}"))
    rows: list[list[Tile | None]] = [list(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    rows[-1] += [None] * (columns - len(rows[-1])) if len(rows) > 1 else []
    return sheet(rows, title=title, side=168)
