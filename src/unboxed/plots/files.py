"""Pictures to files, written whole: a temporary name in the same folder, then a rename."""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from ..atomic_write import write_bytes
from ..errors import InputError, WriteError
from .colors import Bytes, fitted

Picture = Bytes | Image.Image


def as_image(picture: Picture) -> Image.Image:
    return picture if isinstance(picture, Image.Image) else Image.fromarray(np.ascontiguousarray(picture))


def save(picture: Picture, path: str | os.PathLike[str]) -> Path:
    """Write one picture in the format of the name's ending (PNG if there is none). Raises WriteError."""
    path = Path(path)
    buffer = BytesIO()
    kind = _format(path)
    fast = {"compress_level": 3} if kind == "PNG" else {}  # a sheet may be drawn in the middle of training
    as_image(picture).save(buffer, kind, **fast)
    return write_bytes(path, buffer.getvalue())


def gif(
    frames: Sequence[Picture], path: str | os.PathLike[str], *, ms: int = 80, hold: int = 1200, side: int = 140
) -> Path:
    """Write frames as a looping GIF: `ms` milliseconds each, the last held for `hold`. Raises WriteError."""
    return write_bytes(Path(path), gif_bytes(frames, ms=ms, hold=hold, side=side))


def gif_bytes(frames: Sequence[Picture], *, ms: int = 80, hold: int = 1200, side: int = 140) -> bytes:
    """The bytes of what `gif` writes."""
    if not len(frames):
        raise InputError("a GIF needs at least one frame; got none")
    images = [_indexed(fitted(as_image(f), side).convert("RGB")) for f in frames]
    times, buffer = [ms] * (len(images) - 1) + [hold], BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=times, loop=0)
    return buffer.getvalue()


def png(picture: Picture) -> bytes:
    """The bytes of a PNG, one byte a pixel where 256 colors suffice."""
    buffer, small = BytesIO(), _small(as_image(picture))
    small.save(buffer, "PNG", optimize=small.mode == "P")  # photos gain little, and take long
    return buffer.getvalue()


def _indexed(im: Image.Image) -> Image.Image:
    """With a palette: exact where 256 colors suffice, else the nearest of a quickly found one."""
    small = _small(im)
    return small if small.mode == "P" else im.quantize(256, Image.Quantize.FASTOCTREE)


def _small(im: Image.Image) -> Image.Image:
    """The same pixels with a palette where there are at most 256 colors, which most maps and gray images have."""
    if im.mode not in ("RGB", "RGBA"):
        return im
    pixels = np.ascontiguousarray(im.convert("RGBA"))  # (H, W, 4)
    found, index = np.unique(pixels.view(np.uint32).reshape(im.size[::-1]), return_inverse=True)
    if len(found) > 256:
        return im
    palette = found.view(np.uint8).reshape(-1, 4)
    paletted = Image.fromarray(index.reshape(im.size[::-1]).astype(np.uint8))
    paletted.putpalette(palette[:, :3].tobytes())
    if im.mode == "RGBA":
        paletted.info["transparency"] = palette[:, 3].tobytes()
    return paletted


def _format(path: Path) -> str:
    known = Image.registered_extensions()
    ending = path.suffix.lower()
    if ending and ending not in known:
        raise WriteError(f"can't write {path.name}: {ending!r} is no picture format that Pillow knows; use .png")
    return known.get(ending, "PNG")
