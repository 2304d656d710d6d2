"""The page's pictures: inlined while the page stays small, files beside it from then on."""

from __future__ import annotations

import base64
import re
from typing import Any

from PIL import Image

from ..plots import colors
from ..plots.files import ImageLike as Drawn
from ..plots.files import as_image, png_bytes
from ..plots.sheet import COLOR_TABLES, ColorBar
from .blocks import ImageRef
from .folder import PICTURES_DIR, ReportFolder

MAX_INLINE_BYTES = 3_500_000  # bytes of inlined pictures: base64 and the words keep the page below 5 MB
MAX_INLINE_PIXELS = 256  # pixels a side of a photo in the page


class PictureStore:
    """Turns arrays and Pillow images into pictures of the page, and keeps the larger ones as files."""

    def __init__(self, folder: ReportFolder, budget: int = MAX_INLINE_BYTES) -> None:
        self._folder, self._bytes_left = folder, budget
        self._n_files = 0

    def inline(self, image: Drawn, alt: str, side: int = 112, max_pixels: int = MAX_INLINE_PIXELS) -> ImageRef:
        """A picture of the page, shown at about `side` pixels: small ones at a whole multiple of their size."""
        im = as_image(image)
        pixelated = max(im.size) <= colors.NEAREST_MAX_PIXELS
        if not pixelated and max(im.size) > max_pixels:
            im = colors.resize_to(im, max_pixels)
        width, height = display_size(im.size, side)
        return ImageRef(self._source(png_bytes(im)), alt, width, height, pixelated)

    def full_size(self, image: Drawn, alt: str) -> ImageRef:
        """A picture shown pixel by pixel, as wide as it is."""
        im = as_image(image)
        return ImageRef(self._source(png_bytes(im)), alt, im.width, im.height, pixelated=True)

    def save_file(self, name: str, image: Drawn | bytes) -> str:
        """A picture as a file beside the page. Returns its path relative to it."""
        content = image if isinstance(image, bytes) else png_bytes(image)
        return self._folder.stage(f"{PICTURES_DIR}/{name}", content)

    def encoded_source(self, content: bytes, kind: str) -> str:
        """The address of a picture that is encoded already ("png", "jpeg")."""
        return self._source(content, kind)

    def color_scale(self, bar: ColorBar) -> tuple[ColorBar, ImageRef]:
        """A color scale with the picture of its range."""
        table = COLOR_TABLES[bar.kind]
        alt = f"color scale from {bar.tick_labels[0]} to {bar.tick_labels[-1]}"
        return bar, ImageRef(self._source(png_bytes(Image.fromarray(table[None, ::2].copy()))), alt, 128, 8)

    def _source(self, content: bytes, kind: str = "png") -> str:
        text = base64.b64encode(content).decode()
        self._bytes_left -= len(text)
        if self._bytes_left >= 0:
            return f"data:image/{kind};base64,{text}"
        self._n_files += 1
        return self._folder.stage(f"{PICTURES_DIR}/more-{self._n_files}.{kind}", content)


def display_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The size at which a picture (width, height) is shown in a place of `side` pixels."""
    longest = max(size)
    k = _integer_factor(longest, side) if longest <= colors.NEAREST_MAX_PIXELS else side / longest
    return max(1, round(size[0] * k)), max(1, round(size[1] * k))


def _integer_factor(longest: int, side: int) -> int:
    """The whole factor that comes closest to the place without going far beyond it."""
    k = max(1, int(1.08 * side / longest))
    max_overshoot = {1: 1.55, 2: 1.2}.get(k, 0.0)  # a picture of one and a half places is better than one of a half
    return k + 1 if (k + 1) * longest <= max_overshoot * side else k


def file_name(*words: Any) -> str:
    """Words as a file name: letters, digits and dashes of any class name."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(map(str, words)).lower()).strip("-")[:60] or "picture"
