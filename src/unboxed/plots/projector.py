"""Features and maps as files for TensorBoard's embedding projector, with their images as sprites that it can show."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..atomic_write import encode_utf8, write_bytes
from ..errors import InputError
from .colors import Array, to_float64_array
from .embedding import make_thumbnails
from .files import png_bytes

if TYPE_CHECKING:
    from ..activations import TsneMaps

MAX_SPRITE_SIDE_PIXELS = 8192  # per side of a sprite: the limit of WebGL
MAX_THUMBNAIL_SIDE_PIXELS = 64  # per side; images are never enlarged
MIN_THUMBNAIL_SIDE_PIXELS = 16  # per side; rather than smaller thumbnails, the points are split into several embeddings
PROJECTOR_CONFIG_FILE_NAME = "projector_config.pbtxt"


def projector(
    features: TsneMaps | Mapping[str, Any] | Any,
    folder: str | os.PathLike[str],
    *,
    images: Any = None,
    labels: Any = None,
    classes: Sequence[str] = (),
    max_pixels: int = MAX_SPRITE_SIDE_PIXELS,
) -> Path:
    """Write features or t-SNE maps for the embedding projector of TensorBoard: `tensorboard --logdir folder`.

    Args:
        features: Features (N, D), {name: (N, D)}, or the maps of `activations.tsne`.
        folder: Folder of the files; it is made if need be.
        images: Images (N, C, H, W) in [0, 1], shown at the points as thumbnails; None shows dots.
        labels: Classes (N,), printed at the points.
        classes: Names of the classes.
        max_pixels: Largest side of a sprite. Thumbnails are shrunk to 16 pixels; points whose thumbnails do not fit
            even then are split into several embeddings ("fc1, part 1"), each with its own sprite.

    Returns:
        The path of the configuration file.

    Raises:
        InputError: for features that are not finite, or other numbers of images or labels.
        WriteError: when the folder cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from unboxed.plots.projector import projector
        >>> projector(torch.rand(4, 3), tempfile.mkdtemp(), labels=torch.tensor([0, 1, 0, 1])).name
        'projector_config.pbtxt'
    """
    tables = _features_by_name(features)
    n = len(next(iter(tables.values())))
    if any(len(other) != n for other in (images, labels) if other is not None):
        raise InputError(f"wanted one image and one label per point; there are {n} points")
    folder, side, parts = Path(folder), 0, [slice(0, n)]
    if images is not None:
        side, parts = _thumbnail_side_and_sprite_slices(n, max(images.shape[2:]), max_pixels)
    entries = []
    for number, rows in enumerate(parts):
        suffix = f"-{number + 1}" if len(parts) > 1 else ""
        shared_entry = _write_metadata_and_sprite(folder, suffix, rows, images, labels, classes, side, max_pixels)
        for index, (name, table) in enumerate(tables.items()):
            path = f"tensors-{index}{suffix}.tsv"
            write_bytes(folder / path, _vectors_to_tsv_bytes(table[rows]))
            title = f"{name}, part {number + 1}" if len(parts) > 1 else name
            entries.append({"tensor_name": title, "tensor_path": path, **shared_entry})
    return write_bytes(folder / PROJECTOR_CONFIG_FILE_NAME, encode_utf8("".join(map(_projector_config_entry, entries))))


def _features_by_name(features: Any) -> dict[str, Array]:
    """{name: (N, D)}. Raises InputError."""
    layers = getattr(features, "layers", None)
    by_name = {m.path: m.points for m in layers} if layers is not None else features
    named = dict(by_name) if isinstance(by_name, Mapping) else {"features": by_name}
    tables = {_name_without_tabs(name): to_float64_array(table) for name, table in named.items()}
    sizes = {table.shape[0] if table.ndim == 2 else -1 for table in tables.values()}
    if len(sizes) != 1 or min(sizes) < 1 or not all(np.isfinite(t).all() for t in tables.values()):
        shapes = ", ".join(f"{name} {t.shape}" for name, t in tables.items()) or "nothing"
        raise InputError(f"wanted finite features (N, D), as many points in each; got {shapes}")
    return tables


def _thumbnail_side_and_sprite_slices(n_points: int, image_side: int, max_pixels: int) -> tuple[int, list[slice]]:
    """The side of a thumbnail, and the points of each sprite: one sprite if its thumbnails are large enough."""
    side = min(
        image_side,
        MAX_THUMBNAIL_SIDE_PIXELS,
        max_pixels,
        max(min(MIN_THUMBNAIL_SIDE_PIXELS, image_side), max_pixels // math.ceil(math.sqrt(n_points))),
    )
    per_sprite = (max_pixels // side) ** 2
    count = -(-n_points // per_sprite)
    size = -(-n_points // count)
    return side, [slice(i, min(i + size, n_points)) for i in range(0, n_points, size)]


def _write_metadata_and_sprite(
    folder: Path, suffix: str, rows: slice, images: Any, labels: Any, classes: Sequence[str], side: int, max_pixels: int
) -> dict[str, Any]:
    """Metadata and sprite of these points, which every embedding of them shares."""
    entry: dict[str, Any] = {}
    if labels is not None:
        entry["metadata_path"] = f"metadata{suffix}.tsv"
        write_bytes(folder / entry["metadata_path"], _metadata_to_tsv_bytes(labels[rows], classes, rows.start))
    if images is not None:
        sprite, size = _make_sprite_and_thumbnail_size(images[rows], side, max_pixels)
        entry["sprite"] = {"image_path": f"sprite{suffix}.png", "single_image_dim": size}
        write_bytes(folder / f"sprite{suffix}.png", png_bytes(sprite))
    return entry


def _vectors_to_tsv_bytes(rows: Array) -> bytes:
    return "".join("\t".join(f"{v:.7g}" for v in row) + "\n" for row in rows.tolist()).encode()


def _metadata_to_tsv_bytes(labels: Any, classes: Sequence[str], first_index: int) -> bytes:
    """A table with a header and two columns: the label, and the number of the example."""
    words = [
        _name_without_tabs(classes[k] if k < len(classes) else str(k))
        for k in to_float64_array(labels).astype(int).tolist()
    ]
    lines = ["label\texample", *(f"{word}\t{first_index + i}" for i, word in enumerate(words))]
    return encode_utf8("\n".join(lines) + "\n")


def _name_without_tabs(name: object) -> str:
    """A name without tabs and line breaks."""
    return " ".join(str(name).split()) or "(no name)"


def _make_sprite_and_thumbnail_size(images: Any, side: int, max_pixels: int) -> tuple[Image.Image, tuple[int, int]]:
    """Thumbnails row by row, as the projector reads them, and their (width, height)."""
    thumbnails = [np.asarray(p) for p in make_thumbnails(images, side)]
    h, w = thumbnails[0].shape[:2]
    columns = min(max_pixels // w, math.ceil(math.sqrt(len(thumbnails) * h / w)))
    columns = max(columns, -(-len(thumbnails) // (max_pixels // h)))
    rows = -(-len(thumbnails) // columns)
    canvas = np.zeros((rows * columns, h, w, 3), dtype=np.uint8)
    canvas[: len(thumbnails)] = thumbnails
    canvas = canvas.reshape(rows, columns, h, w, 3).swapaxes(1, 2).reshape(rows * h, columns * w, 3)
    return Image.fromarray(canvas), (w, h)


def _projector_config_entry(values: Mapping[str, Any]) -> str:
    """One embedding of a ProjectorConfig in protobuf's text format."""
    lines = [f"  {key}: {json.dumps(v, ensure_ascii=False)}" for key, v in values.items() if isinstance(v, str)]
    if sprite := values.get("sprite"):
        sizes = " ".join(f"single_image_dim: {s}" for s in sprite["single_image_dim"])
        lines.append(f"  sprite {{ image_path: {json.dumps(sprite['image_path'])} {sizes} }}")
    return "embeddings {\n" + "\n".join(lines) + "\n}\n"
