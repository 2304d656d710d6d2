"""Images to files: written in full under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from ..atomic_write import write_bytes
from ..errors import InputError, WriteError
from .colors import Uint8Array, resize_to_side

ImageLike = Uint8Array | Image.Image


def as_pillow_image(source: ImageLike) -> Image.Image:
    return source if isinstance(source, Image.Image) else Image.fromarray(np.ascontiguousarray(source))


KNOWN_ENDINGS_TEXT = (
    "use .png (also .pdf, .jpg, ...); of a result .npz and .json have its values, .html is a page of it"
)


def save(image: ImageLike, path: str | os.PathLike[str]) -> Path:
    """Write an image to a file, in the format of the name's ending.

    The file is written in full or not at all. Take `save_png` for images whose exact values matter.

    Args:
        image: A Pillow image, or an array (H, W), (H, W, 3) or (H, W, 4), uint8.
        path: File to write; PNG where the name has no ending.

    Returns:
        The path.

    Raises:
        WriteError: when Pillow does not know the ending, or the file cannot be written.

    Example:
        >>> import tempfile, numpy as np, unboxed as ub
        >>> folder = tempfile.mkdtemp()
        >>> ub.plots.save(np.zeros((8, 8, 3), np.uint8), f"{folder}/black.png").name
        'black.png'
    """
    path = Path(path)
    buffer = BytesIO()
    kind = _pillow_format(path)
    options = {"compress_level": 3} if kind == "PNG" else {}  # sheets are also written in the middle of training
    as_pillow_image(image).save(buffer, kind, **options)
    return write_bytes(path, buffer.getvalue())


def save_gif(
    frames: Sequence[ImageLike], path: str | os.PathLike[str], *, ms: int = 80, last_ms: int = 1200, side: int = 140
) -> Path:
    """Write frames as a looping GIF.

    Take `save_animation` for the frames of a result.

    Args:
        frames: Pillow images or arrays (H, W, 3), uint8, the first one first.
        path: File to write.
        ms: Duration of each frame in milliseconds.
        last_ms: Duration of the last frame in milliseconds.
        side: Size in pixels of each image: small ones are enlarged by a whole factor, photos are shrunk to it.

    Returns:
        The path.

    Raises:
        InputError: without frames.
        WriteError: when the file cannot be written.

    Example:
        >>> import tempfile, numpy as np, unboxed as ub
        >>> frames = [np.full((8, 8, 3), v, np.uint8) for v in (0, 120, 250)]
        >>> ub.plots.save_gif(frames, f"{tempfile.mkdtemp()}/fade.gif").name
        'fade.gif'
    """
    return write_bytes(Path(path), gif_bytes(frames, ms=ms, last_ms=last_ms, side=side))


def gif_bytes(frames: Sequence[ImageLike], *, ms: int = 80, last_ms: int = 1200, side: int = 140) -> bytes:
    """The content of the file that `save_gif` writes. Raises InputError without frames."""
    if not len(frames):
        raise InputError("a GIF needs at least one frame; got none")
    images = [_reduce_to_palette(resize_to_side(as_pillow_image(f), side).convert("RGB")) for f in frames]
    times, buffer = [ms] * (len(images) - 1) + [last_ms], BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=times, loop=0)
    return buffer.getvalue()


def png_bytes(image: ImageLike) -> bytes:
    """An image as the content of a PNG file, for web pages and archives.

    Args:
        image: A Pillow image, or an array (H, W), (H, W, 3) or (H, W, 4), uint8.

    Returns:
        The bytes; with a palette, one byte per pixel, where the image has at most 256 colors. Every pixel is kept.

    Example:
        >>> import numpy as np, unboxed as ub
        >>> ub.plots.png_bytes(np.zeros((8, 8, 3), np.uint8))[:4]
        b'\\x89PNG'
    """
    buffer, paletted = BytesIO(), _reduce_to_palette_if_exact(as_pillow_image(image))
    paletted.save(buffer, "PNG", optimize=paletted.mode == "P")  # photos gain little, and take long
    return buffer.getvalue()


def _reduce_to_palette(im: Image.Image) -> Image.Image:
    """With a palette: exact for at most 256 colors, else the nearest colors of an octree."""
    paletted = _reduce_to_palette_if_exact(im)
    return paletted if paletted.mode == "P" else im.quantize(256, Image.Quantize.FASTOCTREE)


def _reduce_to_palette_if_exact(im: Image.Image) -> Image.Image:
    """The same pixels with a palette if there are at most 256 colors, as in most maps and gray images."""
    if im.mode not in ("RGB", "RGBA"):
        return im
    rgba = im.convert("RGBA")
    colors = rgba.getcolors(256)
    if colors is None:
        return im
    unique_colors = np.sort(np.array([color for _, color in colors], np.uint8).view(np.uint32)[:, 0])
    pixels = np.ascontiguousarray(rgba).view(np.uint32)[..., 0]  # (H, W)
    palette = unique_colors.view(np.uint8).reshape(-1, 4)
    paletted = Image.fromarray(np.searchsorted(unique_colors, pixels).astype(np.uint8))
    paletted.putpalette(palette[:, :3].tobytes())
    if im.mode == "RGBA":
        paletted.info["transparency"] = palette[:, 3].tobytes()
    return paletted


def _pillow_format(path: Path) -> str:
    formats = Image.registered_extensions()
    ending = path.suffix.lower()
    if ending and ending not in formats:
        raise WriteError(f"can't write {path.name}: {ending!r} is no format of images here; {KNOWN_ENDINGS_TEXT}")
    return formats.get(ending, "PNG")
