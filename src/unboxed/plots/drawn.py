"""Drawn images as pictures: a sheet of them, a strip over the steps, a GIF."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError
from . import colors
from .colors import Bytes, array
from .files import gif
from .sheet import Tile, sheet


def drawings(drawn: Any, *, captions: Sequence[str] = (), title: str = "", columns: int = 8) -> Image.Image:
    """The images of a result of `synthesis`, or images (N, C, H, W), at most `columns` a row.

    Below each stands its score; where there is transparency, it is used.
    """
    pictures = _pictures(drawn)
    words = list(captions) or _words(drawn, len(pictures))
    tiles = [Tile(p, w) for p, w in zip(pictures, words, strict=True)]
    return sheet([tiles[i : i + columns] for i in range(0, len(tiles), columns)], title=title)


def strip(drawn: Any, *, names: Sequence[str] = (), title: str = "", most: int = 8) -> Image.Image:
    """A row an image, from the start (left) to the end; frames between are spread evenly. Raises InputError."""
    frames = _frames(drawn)  # (T, N, C, H, W)
    at = np.unique(np.linspace(0, len(frames) - 1, most).round().astype(int))
    rows = [[Tile(colors.image(frames[t, i])) for t in at] for i in range(frames.shape[1])]
    return sheet(rows, title=title, columns=[f"{t / max(1, len(frames) - 1):.0%}" for t in at], names=names)


def animation(drawn: Any, path: str | os.PathLike[str], *, row: int = 0, ms: int = 80, side: int = 280) -> Path:
    """Write one image's frames as a looping GIF. Raises InputError without frames, WriteError."""
    return gif([colors.image(f) for f in _frames(drawn)[:, row]], path, ms=ms, side=side)


def _words(drawn: Any, n: int) -> list[str]:
    """What stands below the images: their units where they have some, and their scores."""
    scores, targets = getattr(drawn, "scores", None), getattr(drawn, "targets", None)
    said = [[] for _ in range(n)] if targets is None else [[f"no. {int(t)}"] for t in targets]
    if scores is not None:
        said = [[*words, f"score {s:.3g}"] for words, s in zip(said, array(scores), strict=True)]
    return ["\n".join(words) for words in said]


def _pictures(drawn: Any) -> list[Bytes | Image.Image]:
    images = drawn.images if hasattr(drawn, "images") else getattr(drawn, "result", drawn)  # of a morph, the last
    if getattr(drawn, "transparency", None) is None:
        return [colors.image(x) for x in images]
    return [_shown_where(x, t) for x, t in zip(array(drawn.images), array(drawn.transparency), strict=True)]


def _shown_where(x: Any, transparency: Any) -> Image.Image:
    """An image with its transparency as the alpha channel, full from the 95th percentile on."""
    depth = transparency.mean(0)
    alpha = (depth / max(float(np.quantile(depth, 0.95)), 1e-12)).clip(0, 1)
    return Image.fromarray(np.dstack([colors.image(x), (alpha * 255).round().astype(np.uint8)]))


def _frames(drawn: Any) -> Any:
    if drawn.frames is None:
        raise InputError("no frames were kept: call the method with every=k")
    return drawn.frames
