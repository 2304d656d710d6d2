"""Generated images: a sheet of them, a strip of their frames, a GIF."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..engine.rows import evenly_spaced_indices
from ..errors import InputError
from . import colors
from .colors import Uint8Array, to_float64_array
from .files import save_gif
from .sheet import Tile, contact_sheet
from .text import hyphens_to_minus_signs


def image_sheet(
    result: Any, *, captions: Sequence[str] = (), title: str = "", columns: int = 8, max_images: int | None = None
) -> Image.Image:
    """Generated images on one sheet, with captions.

    Args:
        result: A result with `images` (N, C, H, W), or such images in [0, 1]. Its `transparency`, if any, is used.
        captions: Text below each image; () prints what each is of and its score, where the result has them.
        title: Printed above.
        columns: Number of images per row, at most.
        max_images: Show only the first images; None shows all.

    Returns:
        The sheet.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> drawn = ub.synthesis.class_image(box, [0, 1], steps=2)
        >>> ub.plots.image_sheet(drawn, captions=["zero", "one"]).width
        326
    """
    images = _images_with_transparency(result)[:max_images]
    words = list(captions)[:max_images] or _image_captions(result)[: len(images)] or [""] * len(images)
    tiles = [Tile(p, w) for p, w in zip(images, words, strict=True)]
    return contact_sheet([tiles[i : i + columns] for i in range(0, len(tiles), columns)], title=title)


def frame_strip(
    result: Any, *, names: Sequence[str] = (), title: str = "", max_frames: int = 8, max_rows: int | None = None
) -> Image.Image:
    """The frames of generated images, from the start (left) to the end (right), a row per image.

    Args:
        result: A result with `frames` (T, N, C, H, W): of a method that was called with a `frame_every`.
        names: Titles of the rows, on their left.
        title: Printed above.
        max_frames: Number of frames shown, evenly spaced, the first and the last among them.
        max_rows: Show only the first images; None shows all.

    Returns:
        The strip.

    Raises:
        InputError: when the result has no frames.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> morph = ub.synthesis.morph(box, x, 3, steps=4)
        >>> ub.plots.frame_strip(morph, max_frames=3).height
        365
    """
    frames = _require_frames(result)[:, :max_rows]  # (T, N, C, H, W)
    frame_indices = evenly_spaced_indices(len(frames), max_frames)
    rows = [[Tile(colors.image_to_rgb(frames[t, i])) for t in frame_indices] for i in range(frames.shape[1])]
    return contact_sheet(
        rows, title=title, columns=[f"{t / max(1, len(frames) - 1):.0%}" for t in frame_indices], names=names
    )


def save_animation(result: Any, path: str | os.PathLike[str], *, row: int = 0, ms: int = 80, side: int = 280) -> Path:
    """Write the frames of one generated image as a looping GIF.

    Args:
        result: A result with `frames` (T, N, C, H, W): of a method that was called with a `frame_every`.
        path: File to write.
        row: Which of the N images.
        ms: Duration of each frame in milliseconds.
        side: Size in pixels of each image: small ones are enlarged by a whole factor, photos are shrunk to it.

    Returns:
        The path.

    Raises:
        InputError: when the result has no frames.
        WriteError: when the file cannot be written.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> import tempfile
        >>> morph = ub.synthesis.morph(box, x, 3, steps=4)
        >>> ub.plots.save_animation(morph, f"{tempfile.mkdtemp()}/morph.gif").name
        'morph.gif'
    """
    return save_gif([colors.image_to_rgb(f) for f in _require_frames(result)[:, row]], path, ms=ms, side=side)


def _image_captions(result: Any) -> list[str]:
    """What each image is of, and its score; empty where the result has neither."""
    scores, names = getattr(result, "scores", None), getattr(result, "names", None)
    if scores is None:
        return [] if names is None else [*names]
    values = to_float64_array(scores)
    return [score_caption(s, name) for s, name in zip(values, names or [""] * len(values), strict=True)]


def score_caption(score: float, name: str) -> str:
    """The caption of a score, of what its name says.

    >>> score_caption(-9.957, "3"), score_caption(0.5, "")
    ('score of 3: −9.96', 'score 0.5')
    """
    return hyphens_to_minus_signs(f"score of {name}: {score:.3g}" if name else f"score {score:.3g}")


def _images_with_transparency(result: Any) -> list[Uint8Array | Image.Image]:
    images = getattr(result, "images", result)
    if getattr(result, "transparency", None) is None:
        return [colors.image_to_rgb(x) for x in images]
    return [
        _with_alpha(x, t)
        for x, t in zip(to_float64_array(result.images), to_float64_array(result.transparency), strict=True)
    ]


def _with_alpha(x: Any, transparency: Any) -> Image.Image:
    """An image with its transparency as the alpha channel, full from the 95th percentile on."""
    depth = transparency.mean(0)
    alpha = (depth / max(float(np.quantile(depth, 0.95)), 1e-12)).clip(0, 1)
    return Image.fromarray(np.dstack([colors.image_to_rgb(x), (alpha * 255).round().astype(np.uint8)]))


def _require_frames(result: Any) -> Any:
    if result.frames is None:
        raise InputError("the result has no frames: call the method with frame_every=k")
    return result.frames
