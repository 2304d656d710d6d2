"""The images of a page: arrays until the page is rendered, then inlined while it stays small, files from then on."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..plots import colors
from ..plots.files import ImageLike, as_pillow_image, png_bytes
from ..plots.sheet import COLORMAP_BY_KIND, ColorBar
from .folder import IMAGES_DIR_NAME, ReportFolder

MAX_INLINE_IMAGE_BYTES = 3_500_000  # bytes of inlined images: base64 and the text keep the page below 5 MB
MAX_ENCODED_PHOTO_SIDE_PIXELS = 256  # pixels a side of a photo in the page


@dataclass(frozen=True, eq=False)
class PageImage:
    """An image for the page, not encoded yet: shown at about `side` pixels, or pixel by pixel where `side` is None."""

    image: ImageLike
    alt: str
    side: int | None = 112
    is_chart: bool = False  # dark ink on white, which the dark page turns over

    @classmethod
    def of_chart(cls, chart: ImageLike, alt: str) -> PageImage:
        """A chart, pixel by pixel."""
        return cls(chart, alt, None, is_chart=True)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height on the page, in pixels."""
        image = self.image
        size = image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])
        return size if self.side is None else display_size_pixels(size, self.side)


@dataclass(frozen=True, eq=False)
class PageFile:
    """An image beside the page: its name, its content (or the bytes of a file) and what it is."""

    name: str
    content: ImageLike | bytes
    text: str


@dataclass(frozen=True)
class EncodedImageRef:
    """An encoded image: where it is (a data URI or a file beside the page), what it shows, its size in pixels."""

    src: str
    alt: str
    width: int
    height: int
    css_class: str = ""  # "hard": enlarged by nearest neighbor; "chart"


class PageImageStore:
    """Encodes images for the page, and writes the larger ones as files; without a folder all are in the page."""

    def __init__(self, folder: ReportFolder | None = None, budget: int = MAX_INLINE_IMAGE_BYTES) -> None:
        self._folder, self._bytes_left = folder, budget
        self._n_files = 0

    def encode(self, picture: PageImage) -> EncodedImageRef:
        """Encode a picture: small ones are shown at a whole multiple of their size, large photos are shrunk first."""
        im = as_pillow_image(picture.image)
        pixelated = picture.side is None or max(im.size) <= colors.MAX_PIXELATED_SIDE_PIXELS
        if not pixelated and max(im.size) > MAX_ENCODED_PHOTO_SIDE_PIXELS:
            im = colors.resize_to_side(im, MAX_ENCODED_PHOTO_SIDE_PIXELS)
        css_class = "chart" if picture.is_chart else "hard" if pixelated else ""
        return EncodedImageRef(self.store_and_return_src(png_bytes(im)), picture.alt, *picture.size, css_class)

    def save(self, file: PageFile) -> str:
        """Write a file beside the page. Returns its path relative to it."""
        content = file.content if isinstance(file.content, bytes) else png_bytes(file.content)
        if self._folder is None:
            return self.store_and_return_src(content, Path(file.name).suffix.removeprefix(".") or "png")
        return self._folder.stage(f"{IMAGES_DIR_NAME}/{file.name}", content)

    def encode_color_scale(self, bar: ColorBar) -> EncodedImageRef:
        """The image of a color scale."""
        table = COLORMAP_BY_KIND[bar.kind]
        alt = f"color scale from {bar.tick_labels[0]} to {bar.tick_labels[-1]}"
        return EncodedImageRef(
            self.store_and_return_src(png_bytes(Image.fromarray(table[None, ::2].copy()))), alt, 128, 8
        )

    def store_and_return_src(self, content: bytes, kind: str = "png") -> str:
        """The address of an encoded image ("png", "jpeg")."""
        text = base64.b64encode(content).decode()
        self._bytes_left -= len(text)
        if self._folder is None or self._bytes_left >= 0:
            return f"data:image/{kind};base64,{text}"
        self._n_files += 1
        return self._folder.stage(f"{IMAGES_DIR_NAME}/more-{self._n_files}.{kind}", content)


def display_size_pixels(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The size at which an image (width, height) is shown where there are `side` pixels."""
    longest = max(size)
    k = _integer_zoom_factor(longest, side) if longest <= colors.MAX_PIXELATED_SIDE_PIXELS else side / longest
    return max(1, round(size[0] * k)), max(1, round(size[1] * k))


def _integer_zoom_factor(longest: int, side: int) -> int:
    """The whole factor that comes closest to `side` without going far beyond it."""
    k = max(1, int(1.08 * side / longest))
    max_overshoot = {1: 1.55, 2: 1.2}.get(k, 0.0)  # an image of one and a half sides is better than one of a half
    return k + 1 if (k + 1) * longest <= max_overshoot * side else k


def to_file_name(*words: Any) -> str:
    """Words as a file name: letters, digits and dashes of any class name."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(map(str, words)).lower()).strip("-")[:60] or "picture"
