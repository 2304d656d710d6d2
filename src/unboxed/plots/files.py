"""Pictures to files, written whole: a temporary name in the same folder, then a rename."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError, WriteError
from .colors import Bytes, fitted

Picture = Bytes | Image.Image


def as_image(picture: Picture) -> Image.Image:
    return picture if isinstance(picture, Image.Image) else Image.fromarray(np.ascontiguousarray(picture))


def save(picture: Picture, path: str | os.PathLike[str]) -> Path:
    """Write one picture in the format of the name's ending (PNG if there is none). Raises WriteError."""
    path = Path(path)
    im, kind = as_image(picture), _format(path)
    return whole(path, lambda file: im.save(file, kind))


def gif(
    frames: Sequence[Picture], path: str | os.PathLike[str], *, ms: int = 80, hold: int = 1200, side: int = 140
) -> Path:
    """Write frames as a looping GIF: `ms` milliseconds each, the last held for `hold`. Raises WriteError."""
    if not len(frames):
        raise InputError("a GIF needs at least one frame; got none")
    images = [fitted(as_image(f), side).convert("P", palette=Image.Palette.ADAPTIVE) for f in frames]
    times = [ms] * (len(images) - 1) + [hold]
    first, rest = images[0], images[1:]
    return whole(
        Path(path), lambda file: first.save(file, "GIF", save_all=True, append_images=rest, duration=times, loop=0)
    )


def png(picture: Picture) -> bytes:
    """The bytes of a PNG, one byte a pixel where 256 colors suffice."""
    buffer = BytesIO()
    _small(as_image(picture)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _small(im: Image.Image) -> Image.Image:
    """The same pixels with a palette where there are at most 256 colors, which most maps and gray images have."""
    if im.mode != "RGB":
        return im
    pixels = np.asarray(im).reshape(-1, 3)
    keys = pixels.astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32)
    found, index = np.unique(keys, return_inverse=True)
    if len(found) > 256:
        return im
    palette = np.stack([found >> 16, found >> 8 & 255, found & 255], 1).astype(np.uint8)
    paletted = Image.fromarray(index.reshape(im.height, im.width).astype(np.uint8), "P")
    paletted.putpalette(palette.tobytes())
    return paletted


def whole(path: Path, write: Callable[[BytesIO], object]) -> Path:
    """Write a file whole, or not at all. Raises WriteError, and then leaves nothing behind."""
    buffer = BytesIO()
    write(buffer)
    return write_bytes(path, buffer.getvalue())


def write_bytes(path: Path, content: bytes) -> Path:
    """Put bytes in a file under a temporary name, then rename it. Raises WriteError."""
    part = path.with_name(f".{path.name[:80]}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        raise WriteError(f"can't write {path}: {error.strerror or error}. Choose a folder you may write to") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return path


def _format(path: Path) -> str:
    known = Image.registered_extensions()
    ending = path.suffix.lower()
    if ending and ending not in known:
        raise WriteError(f"can't write {path.name}: {ending!r} is no picture format that Pillow knows; use .png")
    return known.get(ending, "PNG")
