"""The page's pictures: inlined while the page stays small, files beside it from then on."""

from __future__ import annotations

import base64
import re
from typing import Any

from PIL import Image

from ..plots import colors
from ..plots.files import Picture as Drawn
from ..plots.files import as_image, png
from ..plots.sheet import TABLES, Bar
from .blocks import Picture
from .folder import PICTURES, Folder

BUDGET = 3_500_000  # bytes of inlined pictures: base64 and the words keep the page below 5 MB
LARGEST = 256  # pixels a side of a photo in the page


class Pictures:
    """Turns arrays and Pillow images into pictures of the page, and keeps the larger ones as files."""

    def __init__(self, folder: Folder, budget: int = BUDGET) -> None:
        self._folder, self._left = folder, budget
        self._count = 0

    def inline(self, picture: Drawn, alt: str, side: int = 112, largest: int = LARGEST) -> Picture:
        """A picture of the page, shown at about `side` pixels: small ones at a whole multiple of their size."""
        im = as_image(picture)
        hard = max(im.size) <= colors.HARD
        if not hard and max(im.size) > largest:
            im = colors.fitted(im, largest)
        width, height = shown(im.size, side)
        return Picture(self._source(png(im)), alt, width, height, hard)

    def natural(self, picture: Drawn, alt: str) -> Picture:
        """A picture shown pixel by pixel, as wide as it is."""
        im = as_image(picture)
        return Picture(self._source(png(im)), alt, im.width, im.height, hard=True)

    def keep(self, name: str, picture: Drawn | bytes) -> str:
        """A picture as a file beside the page. Returns its path relative to it."""
        content = picture if isinstance(picture, bytes) else png(picture)
        return self._folder.put(f"{PICTURES}/{name}", content)

    def raw(self, content: bytes, kind: str) -> str:
        """The address of a picture that is encoded already ("png", "jpeg")."""
        return self._source(content, kind)

    def scale(self, bar: Bar) -> tuple[Bar, Picture]:
        """A color scale with the picture of its range."""
        table = TABLES[bar.kind]
        alt = f"color scale from {bar.ends[0]} to {bar.ends[-1]}"
        return bar, Picture(self._source(png(Image.fromarray(table[None, ::2].copy()))), alt, 128, 8)

    def _source(self, content: bytes, kind: str = "png") -> str:
        text = base64.b64encode(content).decode()
        self._left -= len(text)
        if self._left >= 0:
            return f"data:image/{kind};base64,{text}"
        self._count += 1
        return self._folder.put(f"{PICTURES}/more-{self._count}.{kind}", content)


def shown(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The size at which a picture (width, height) is shown in a place of `side` pixels."""
    longest = max(size)
    k = _factor(longest, side) if longest <= colors.HARD else side / longest
    return max(1, round(size[0] * k)), max(1, round(size[1] * k))


def _factor(longest: int, side: int) -> int:
    """The whole factor that comes closest to the place without going far beyond it."""
    k = max(1, int(1.08 * side / longest))
    beyond = {1: 1.55, 2: 1.2}.get(k, 0.0)  # a picture of one and a half places is better than one of a half
    return k + 1 if (k + 1) * longest <= beyond * side else k


def file_name(*words: Any) -> str:
    """Words as a file name: letters, digits and dashes of any class name."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(map(str, words)).lower()).strip("-")[:60] or "picture"
