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
from .colors import Bytes, resize_to

ImageLike = Bytes | Image.Image


def as_image(source: ImageLike) -> Image.Image:
    return source if isinstance(source, Image.Image) else Image.fromarray(np.ascontiguousarray(source))


def save(image: ImageLike, path: str | os.PathLike[str]) -> Path:
    """Write one picture in the format of the name's ending (PNG if there is none). Raises WriteError."""
    path = Path(path)
    buffer = BytesIO()
    kind = _pillow_format(path)
    options = {"compress_level": 3} if kind == "PNG" else {}  # a sheet may be drawn in the middle of training
    as_image(image).save(buffer, kind, **options)
    return write_bytes(path, buffer.getvalue())


def save_gif(
    frames: Sequence[ImageLike], path: str | os.PathLike[str], *, ms: int = 80, last_ms: int = 1200, side: int = 140
) -> Path:
    """Write frames as a looping GIF: `ms` milliseconds each, the last held for `hold`. Raises WriteError."""
    return write_bytes(Path(path), gif_bytes(frames, ms=ms, last_ms=last_ms, side=side))


def gif_bytes(frames: Sequence[ImageLike], *, ms: int = 80, last_ms: int = 1200, side: int = 140) -> bytes:
    """The bytes of what `gif` writes."""
    if not len(frames):
        raise InputError("a GIF needs at least one frame; got none")
    images = [_to_palette(resize_to(as_image(f), side).convert("RGB")) for f in frames]
    times, buffer = [ms] * (len(images) - 1) + [last_ms], BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=times, loop=0)
    return buffer.getvalue()


def png_bytes(image: ImageLike) -> bytes:
    """The bytes of a PNG, one byte a pixel where 256 colors suffice."""
    buffer, paletted = BytesIO(), _palette_if_exact(as_image(image))
    paletted.save(buffer, "PNG", optimize=paletted.mode == "P")  # photos gain little, and take long
    return buffer.getvalue()


def _to_palette(im: Image.Image) -> Image.Image:
    """With a palette: exact where 256 colors suffice, else the nearest of a quickly found one."""
    paletted = _palette_if_exact(im)
    return paletted if paletted.mode == "P" else im.quantize(256, Image.Quantize.FASTOCTREE)


def _palette_if_exact(im: Image.Image) -> Image.Image:
    """The same pixels with a palette where there are at most 256 colors, which most maps and gray images have."""
    if im.mode not in ("RGB", "RGBA"):
        return im
    pixels = np.ascontiguousarray(im.convert("RGBA"))  # (H, W, 4)
    unique_colors, index = np.unique(pixels.view(np.uint32).reshape(im.size[::-1]), return_inverse=True)
    if len(unique_colors) > 256:
        return im
    palette = unique_colors.view(np.uint8).reshape(-1, 4)
    paletted = Image.fromarray(index.reshape(im.size[::-1]).astype(np.uint8))
    paletted.putpalette(palette[:, :3].tobytes())
    if im.mode == "RGBA":
        paletted.info["transparency"] = palette[:, 3].tobytes()
    return paletted


def _pillow_format(path: Path) -> str:
    formats = Image.registered_extensions()
    ending = path.suffix.lower()
    if ending and ending not in formats:
        raise WriteError(f"can't write {path.name}: {ending!r} is no picture format that Pillow knows; use .png")
    return formats.get(ending, "PNG")
