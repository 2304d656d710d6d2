"""Pillow images to tensors: upright, opaque, with the size and channels that the model takes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import DataError
from .base import Inputs
from .pixels import Pixels

# Pillow also opens formats that start other programs (EPS) or that any bytes may match (TGA): unsafe for unknown files.
SAFE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's own conversion would clip them at 255


def require_pixels(like: Inputs) -> Pixels:
    """`like`, if image files can be converted to it. Raises DataError."""
    if not isinstance(like, Pixels):
        raise DataError(
            f"like must be Pixels, such as box.inputs: images are converted to it; got {type(like).__name__}"
        )
    if like.shape[0] not in (1, 3):
        raise DataError(f"image files have 1 (gray) or 3 (RGB) channels; like has {like.shape[0]}")
    return like


def file_fault(path: Path) -> str | None:
    """Why a file is not an image, judged by its header; None if it may be one."""
    if not os.path.isfile(path):
        return "a link to nothing" if os.path.islink(path) else "not a regular file"
    try:
        with silence_decoder_warnings(), Image.open(path, formats=SAFE_FORMATS):
            return None
    except Exception as error:  # a hostile header can make a decoder raise nearly anything
        return error_reason(error)


def read_image(path: Path, like: Pixels) -> Tensor:
    """The image in a file, (C, H, W) in [0, 1]; raises whatever its decoder raises."""
    with silence_decoder_warnings(), Image.open(path, formats=SAFE_FORMATS) as image:
        return to_tensor(image, like)


def error_reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"a decompression bomb: {error}"
    if isinstance(error, PermissionError):
        return "may not be read: permission denied"
    return f"broken image: {error or type(error).__name__}"


@contextmanager
def silence_decoder_warnings() -> Iterator[None]:
    """Ignore warnings of decoders about odd metadata; a decompression bomb is an error, not a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def to_tensor(image: Image.Image, like: Pixels | None = None) -> Tensor:
    """An image as (C, H, W), float32 in [0, 1], in the size and channels of `like`; None keeps both."""
    image = ImageOps.exif_transpose(image)
    if image.mode in (*SIXTEEN_BIT_MODES, "F"):
        return _deep_gray_tensor(image, like)
    image = _on_white(image)
    image = image.convert(_color_mode(image, like))
    if like is not None:
        image = _resize_and_crop(image, like)
    return torch.from_numpy(_channels_first(np.array(image, dtype=np.float32) / 255))


def _deep_gray_tensor(image: Image.Image, like: Pixels | None) -> Tensor:
    """A gray image of more than 8 bits, with its full depth."""
    gray = np.array(image, dtype=np.float32) / np.float32(1 if image.mode == "F" else 65535)
    if not (gray.min() >= 0 and gray.max() <= 1):
        kind = "floating point" if image.mode == "F" else "32-bit"
        raise DataError(
            f"a {kind} image with values from {gray.min():.3g} to {gray.max():.3g}: the value of white is unknown"
        )
    if like is None:
        return torch.from_numpy(gray)[None]
    resized = np.array(_resize_and_crop(Image.fromarray(gray), like))
    return torch.from_numpy(resized).clamp(0, 1).expand(like.shape).clone()


def _on_white(image: Image.Image) -> Image.Image:
    """The image over white, where it is transparent."""
    if not {"A", "a"} & set(image.getbands()) and "transparency" not in image.info:
        return image
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _color_mode(image: Image.Image, like: Pixels | None) -> str:
    if like is None:
        return "L" if image.mode in ("1", "L") else "RGB"
    return "L" if like.shape[0] == 1 else "RGB"


def _resize_and_crop(image: Image.Image, like: Pixels) -> Image.Image:
    """Resized, antialiased, to cover the wanted size or as `like.resize` says; then cropped around the center."""
    _, height, width = like.shape
    method = Image.Resampling[like.interpolation.upper()]
    if like.resize is None:
        return ImageOps.fit(image, (width, height), method)
    return _center_crop(image.resize(_resized_size(image, like.resize), method), width, height)


def _resized_size(image: Image.Image, resize: int | tuple[int, int]) -> tuple[int, int]:
    """(width, height) of `resize`, the short side, rounded as torchvision does; or (height, width)."""
    if isinstance(resize, tuple):
        return resize[1], resize[0]
    short = min(image.size)
    width, height = (resize if side == short else int(resize * side / short) for side in image.size)
    return width, height


def _center_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """The center of an image, with a black border where it is smaller; rounded down as transformers does."""
    left, top = int((image.width - width) / 2), int((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _channels_first(array: NDArray[Any]) -> NDArray[Any]:
    """(H, W) or (H, W, C) to (C, H, W)."""
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
