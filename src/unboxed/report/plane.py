"""The block of an interactive map: points packed for `templates/map.js`, and images in one atlas."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ..plots import colors
from ..plots.embedding import class_colors, make_thumbnails, normalize_points
from .pictures import PageImageStore

MAX_UINT16_INDEX = 65_535  # larger indices take four bytes
MAX_THUMBNAIL_ATLAS_BYTES = 600_000  # bytes of the atlas
THUMBNAIL_SIDE_PIXELS_CANDIDATES = (
    64,
    48,
    40,
    32,
    28,
    24,
    20,
    16,
    14,
    12,
    10,
    8,
)  # of its images; the largest within the budget
MAX_THUMBNAIL_ATLAS_SIDE_PIXELS = 4096  # pixels of the atlas that every browser can draw from


@dataclass(frozen=True)
class LayerScatterMap:
    """A map: its name, a small line, points (N, 2), and the nearest neighbors of each in the layer, (N, k)."""

    name: str
    note: str
    points: Any
    neighbors: Any


@dataclass(frozen=True)
class ThumbnailAtlas:
    """Images side by side in one encoded image, `columns` per row, each width x height."""

    content: bytes
    kind: str  # "png" or "jpeg"
    width: int
    height: int
    columns: int
    pixelated: bool  # enlarged by nearest neighbor


@dataclass(frozen=True)
class ScatterMapBlock:
    """N points, one map per layer. `groups` (N,) index `names`; each of `lines` holds one caption line per point."""

    slug: str
    layers: Sequence[LayerScatterMap]
    groups: Sequence[int]
    names: Sequence[str]
    is_wrong: Sequence[bool]
    lines: Sequence[Sequence[str]]
    examples: Sequence[str]  # what they are called
    alt: str
    hint: str
    help: str
    atlas: ThumbnailAtlas | None = None
    selected: int = -1  # the point that is selected at first; -1: none
    is_of_words: bool = False  # points are words (`examples`), which are written and can be searched for
    kind: ClassVar[str] = "map"

    @property
    def colors(self) -> list[str]:
        return class_colors(len(self.names))

    def script_data(self, pictures: PageImageStore) -> dict[str, object]:
        """What the page's script needs; the atlas is stored in `pictures`."""
        n = len(self.examples)
        words = list(dict.fromkeys(word for line in self.lines for word in line))
        word_index = {word: i for i, word in enumerate(words)}
        index_type = np.uint16 if max(n, len(words)) <= MAX_UINT16_INDEX else np.uint32
        return {
            "n": n,
            "bytes_per_index": np.dtype(index_type).itemsize,
            "of_words": self.is_of_words,
            "k": np.asarray(self.layers[0].neighbors).shape[1],
            "layers": [_layer_to_script_data(layer, index_type) for layer in self.layers],
            "groups": array_to_base64(self.groups, np.uint8),
            "wrong": array_to_base64(self.is_wrong, np.uint8),
            "examples": list(self.examples),
            "order": array_to_base64(np.random.default_rng(0).permutation(n), index_type),
            "words": words,
            "lines": [array_to_base64([word_index[word] for word in line], index_type) for line in self.lines],
            "names": list(self.names),
            "colors": self.colors,
            "hint": self.hint,
            "selected": self.selected,
            "atlas": None if self.atlas is None else _thumbnail_atlas_to_script_data(self.atlas, pictures),
        }


def _layer_to_script_data(layer: LayerScatterMap, index_type: type[np.generic]) -> dict[str, str]:
    points = (normalize_points(layer.points, margin=0.01) * MAX_UINT16_INDEX).round()
    return {
        "name": layer.name,
        "points": array_to_base64(points, np.uint16),
        "near": array_to_base64(layer.neighbors, index_type),
    }


def _thumbnail_atlas_to_script_data(atlas: ThumbnailAtlas, pictures: PageImageStore) -> dict[str, object]:
    sizes = {"width": atlas.width, "height": atlas.height, "columns": atlas.columns, "hard": atlas.pixelated}
    return {"src": pictures.store_and_return_src(atlas.content, atlas.kind), **sizes}


def array_to_base64(values: Any, dtype: type[np.generic]) -> str:
    """Numbers as little-endian bytes in base64, as a typed array reads them."""
    array = np.ascontiguousarray(np.asarray(values), dtype=np.dtype(dtype).newbyteorder("<"))
    return base64.b64encode(array.tobytes()).decode()


def make_thumbnail_atlas(images: Any, max_bytes: int = MAX_THUMBNAIL_ATLAS_BYTES) -> ThumbnailAtlas:
    """Images (N, C, H, W) as large as the budget allows, at most 64 pixels and not enlarged."""
    columns = math.ceil(math.sqrt(len(images)))
    image_side = max(images.shape[2:])
    sides = [
        min(image_side, THUMBNAIL_SIDE_PIXELS_CANDIDATES[0]),
        *(s for s in THUMBNAIL_SIDE_PIXELS_CANDIDATES if s < image_side),
    ]
    image_atlas = None
    for side in (s for s in sides if s * columns <= MAX_THUMBNAIL_ATLAS_SIDE_PIXELS):
        image_atlas = _make_thumbnail_atlas_with_side(images, side, columns)
        if len(image_atlas.content) <= max_bytes:
            return image_atlas
    return image_atlas or _make_thumbnail_atlas_with_side(
        images, max(1, MAX_THUMBNAIL_ATLAS_SIDE_PIXELS // columns), columns
    )


def _make_thumbnail_atlas_with_side(images: Any, side: int, columns: int) -> ThumbnailAtlas:
    pictures = np.stack(make_thumbnails(images, side))  # (N, h, w, 3)
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
    return ThumbnailAtlas(
        buffer.getvalue(),
        "png" if gray else "jpeg",
        w,
        h,
        columns,
        max(h, w) <= min(colors.MAX_PIXELATED_SIDE_PIXELS, 40),
    )
