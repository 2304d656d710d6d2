"""Drawn images as pictures: a sheet of them, a strip over the steps, a GIF."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..engine.rows import evenly_spaced
from ..errors import InputError
from . import colors
from .colors import Bytes, as_array
from .files import save_gif
from .sheet import Tile, contact_sheet


def image_sheet(result: Any, *, captions: Sequence[str] = (), title: str = "", columns: int = 8) -> Image.Image:
    """The images of a result of `synthesis`, or images (N, C, H, W), at most `columns` a row.

    Below each stands its score; where there is transparency, it is used.
    """
    images = _result_images(result)
    padded_captions = list(captions) or _captions(result, len(images))
    tiles = [Tile(p, w) for p, w in zip(images, padded_captions, strict=True)]
    return contact_sheet([tiles[i : i + columns] for i in range(0, len(tiles), columns)], title=title)


def frame_strip(result: Any, *, names: Sequence[str] = (), title: str = "", max_frames: int = 8) -> Image.Image:
    """One row per image, from the start (left) to the end; frames are evenly spaced. Raises InputError."""
    frames = _require_frames(result)  # (T, N, C, H, W)
    frame_indices = evenly_spaced(len(frames), max_frames)
    rows = [[Tile(colors.image_to_rgb(frames[t, i])) for t in frame_indices] for i in range(frames.shape[1])]
    return contact_sheet(
        rows, title=title, columns=[f"{t / max(1, len(frames) - 1):.0%}" for t in frame_indices], names=names
    )


def save_animation(result: Any, path: str | os.PathLike[str], *, row: int = 0, ms: int = 80, side: int = 280) -> Path:
    """Write one image's frames as a looping GIF. Raises InputError without frames, WriteError."""
    return save_gif([colors.image_to_rgb(f) for f in _require_frames(result)[:, row]], path, ms=ms, side=side)


def _captions(result: Any, n: int) -> list[str]:
    """The text below the images: what each is of, and its score."""
    scores, names = getattr(result, "scores", None), getattr(result, "names", None)
    lines = [[] for _ in range(n)] if names is None else [[name] for name in names]
    if scores is not None:
        lines = [[*caption_lines, f"score {s:.3g}"] for caption_lines, s in zip(lines, as_array(scores), strict=True)]
    return ["\n".join(words) for words in lines]


def _result_images(result: Any) -> list[Bytes | Image.Image]:
    images = getattr(result, "images", result)
    if getattr(result, "transparency", None) is None:
        return [colors.image_to_rgb(x) for x in images]
    return [_with_alpha(x, t) for x, t in zip(as_array(result.images), as_array(result.transparency), strict=True)]


def _with_alpha(x: Any, transparency: Any) -> Image.Image:
    """An image with its transparency as the alpha channel, full from the 95th percentile on."""
    depth = transparency.mean(0)
    alpha = (depth / max(float(np.quantile(depth, 0.95)), 1e-12)).clip(0, 1)
    return Image.fromarray(np.dstack([colors.image_to_rgb(x), (alpha * 255).round().astype(np.uint8)]))


def _require_frames(result: Any) -> Any:
    if result.frames is None:
        raise InputError("there are no frames: call the method with frame_every=k")
    return result.frames
