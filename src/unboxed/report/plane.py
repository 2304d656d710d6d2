"""The block of a map that one can move about in: points packed for `templates/map.js`, and images in one atlas."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ..errors import InputError
from ..plots import colors
from ..plots.map import palette, placed, small

MOST = 65_535  # points: their numbers are of two bytes
BUDGET = 600_000  # bytes of the atlas
SIDES = (64, 48, 40, 32, 28, 24, 20, 16, 14, 12, 10, 8)  # of its images, the largest that keeps the budget
WIDEST = 4096  # pixels of the atlas that every browser can draw from


@dataclass(frozen=True)
class Layer:
    """A map: its name, a small line, places (N, 2), and the nearest others of each in the layer, (N, k)."""

    name: str
    note: str
    points: Any
    near: Any


@dataclass(frozen=True)
class Atlas:
    """Images side by side in one picture, `columns` a row, each width x height."""

    content: bytes
    kind: str  # "png" or "jpeg"
    width: int
    height: int
    columns: int
    hard: bool  # shown with hard pixels


@dataclass(frozen=True)
class Plane:
    """N points, one map a layer. `groups` (N,) index `names`; `lines` are what is said of each, a sequence a line."""

    slug: str
    layers: Sequence[Layer]
    groups: Sequence[int]
    names: Sequence[str]
    wrong: Sequence[bool]
    lines: Sequence[Sequence[str]]
    rows: Sequence[int]  # the examples' numbers in the data
    alt: str
    hint: str
    help: str
    atlas: dict[str, object] | None = None
    kind: ClassVar[str] = "map"

    @property
    def colors(self) -> list[str]:
        return palette(len(self.names))

    @property
    def data(self) -> dict[str, object]:
        """What the page's script needs."""
        n = len(self.rows)
        if n > MOST:
            raise InputError(f"a map in a page holds {MOST:,} points; got {n:,}")
        words = list(dict.fromkeys(word for line in self.lines for word in line))
        number = {word: i for i, word in enumerate(words)}
        return {
            "n": n,
            "k": np.asarray(self.layers[0].near).shape[1],
            "layers": [self._packed(layer) for layer in self.layers],
            "groups": packed(self.groups, np.uint8),
            "wrong": packed(self.wrong, np.uint8),
            "rows": packed(self.rows, np.uint32),
            "order": packed(np.random.default_rng(0).permutation(n), np.uint16),
            "words": words,
            "lines": [packed([number[word] for word in line], np.uint16) for line in self.lines],
            "names": list(self.names),
            "colors": self.colors,
            "hint": self.hint,
            "atlas": self.atlas,
        }

    @staticmethod
    def _packed(layer: Layer) -> dict[str, str]:
        points = (placed(layer.points, margin=0.01) * 65535).round()
        return {"name": layer.name, "points": packed(points, np.uint16), "near": packed(layer.near, np.uint16)}


def packed(values: Any, kind: type[np.generic]) -> str:
    """Numbers as little-endian bytes in base64, as a typed array reads them."""
    array = np.ascontiguousarray(np.asarray(values), dtype=np.dtype(kind).newbyteorder("<"))
    return base64.b64encode(array.tobytes()).decode()


def atlas(images: Any, budget: int = BUDGET) -> Atlas:
    """Images (N, C, H, W) as large as the budget allows, at most 64 pixels and not enlarged."""
    columns = math.ceil(math.sqrt(len(images)))
    own = max(images.shape[2:])
    sides = [min(own, SIDES[0]), *(s for s in SIDES if s < own)]
    made = None
    for side in (s for s in sides if s * columns <= WIDEST):
        made = _atlas(images, side, columns)
        if len(made.content) <= budget:
            return made
    return made or _atlas(images, max(1, WIDEST // columns), columns)


def _atlas(images: Any, side: int, columns: int) -> Atlas:
    pictures = np.stack(small(images, side))  # (N, h, w, 3)
    n, h, w, _ = pictures.shape
    rows = -(-n // columns)
    sheet = np.zeros((rows * columns, h, w, 3), dtype=np.uint8)
    sheet[:n] = pictures
    sheet = sheet.reshape(rows, columns, h, w, 3).swapaxes(1, 2).reshape(rows * h, columns * w, 3)
    gray = bool((sheet == sheet[..., :1]).all())
    buffer = BytesIO()
    if gray:
        Image.fromarray(sheet[..., 0] // 17 * 17).save(buffer, "PNG", optimize=True)  # 16 levels of gray
    else:
        Image.fromarray(sheet).save(buffer, "JPEG", quality=82)
    return Atlas(buffer.getvalue(), "png" if gray else "jpeg", w, h, columns, max(h, w) <= min(colors.HARD, 40))
