"""Pillow images to tensors: upright, opaque, with the size and channels that the model takes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import DataError, warn
from .base import Inputs
from .pixels import MAX_16_BIT_VALUE, Pixels, PixelsOfAnySize

SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's own conversion would clip them at 255
MAX_12_BIT_VALUE = 4095
LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's gray
EXIF_ORIENTATION_TAG, TIFF_BITS_PER_SAMPLE_TAG = 274, 258  # of EXIF, of a TIFF
# Of 255: the mean difference between the largest and the smallest channel of a color image
MIN_COLOR_CHANNEL_DIFFERENCE_LEVELS = 10.0
WARN_ABOVE_SHRINK_FACTOR = 16  # an image with a shorter side that many times the model's is of another kind


def require_pixels(like: Inputs) -> Pixels:
    """`like`, if image files can be converted to it. Raises DataError."""
    if not isinstance(like, Inputs):
        raise DataError(f"like must be Pixels, such as box.inputs; got {type(like).__name__}")
    if not isinstance(like, Pixels):
        problem = f"files of images are for a model of images (Pixels); this one takes {type(like).__name__}"
        raise DataError(f"{problem}: give it tensors, such as (rows, labels), or a Dataset (--data file.py:factory)")
    if like.shape[0] not in (1, 3):
        problem = f"image files have 1 (gray) or 3 (RGB) channels; like has {like.shape[0]}"
        raise DataError(f"{problem}: read them yourself, and pass tensors or a Dataset of them")
    return like


@contextmanager
def silencing_decoder_warnings() -> Iterator[None]:
    """Ignore warnings of decoders about odd metadata; a decompression bomb is an error, not a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(PIL|tifffile|numpy|unboxed\.inputs)\b")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def pil_to_tensor(image: Image.Image, like: Pixels | None = None) -> Tensor:
    """An image as (C, H, W), float32 in [0, 1], in the size and channels of `like`.

    Without `like` it keeps both; `PixelsOfAnySize` says the channels alone.
    """
    bits = declared_bits_per_channel(image)
    image = ImageOps.exif_transpose(image)
    if image.mode in (*SIXTEEN_BIT_MODES, "F"):
        return levels_to_tensor(_deep_gray_levels(image)[..., None], like, bits)
    image = _composite_on_white(image)
    image = _resize_and_crop(image.convert(_pillow_color_mode(image, like)), like)
    return torch.from_numpy(_to_channels_first(np.array(image, dtype=np.float32) / 255))


def _deep_gray_levels(image: Image.Image) -> NDArray[Any]:
    """The levels (H, W) of a gray image of more than 8 bits: uint16, or float32 in [0, 1]. Raises DataError."""
    gray = np.array(image)
    kind, largest = ("floating point", 1) if image.mode == "F" else ("32-bit", MAX_16_BIT_VALUE)
    if not (gray.min() >= 0 and gray.max() <= largest):
        scale = np.float32(largest)
        low, high = gray.min() / scale, gray.max() / scale
        raise DataError(f"a {kind} image with values from {low:.3g} to {high:.3g}: the value of white is unknown")
    return gray.astype(np.float32 if image.mode == "F" else np.uint16)


def declared_bits_per_channel(image: Image.Image) -> int:
    """The bits per channel that a file itself states, where Pillow gives 16: 12 of a TIFF of 12 bits."""
    bits = getattr(image, "tag_v2", {}).get(TIFF_BITS_PER_SAMPLE_TAG, ())
    return bits[0] if bits and 8 < bits[0] < 16 else 16


def white_level_of_16_bit_images(largest: float, like: Pixels | None) -> int:
    """The white of 16-bit images: what `like` says, whatever values an image has, so that all are read alike.

    `largest` is the largest value; one that fits into 12 bits is warned of. Raises DataError for one above white.
    """
    white = MAX_16_BIT_VALUE if like is None else like.white
    if largest > white:
        advice = "say the largest value that there can be"
        raise DataError(f"a 16-bit image has values up to {largest:g}, and Pixels(white={white}): {advice}")
    if white == MAX_16_BIT_VALUE and 0 < largest <= MAX_12_BIT_VALUE:
        warn(f"16-bit images are read with {MAX_16_BIT_VALUE} as white, and some have no value above "
             f"{MAX_12_BIT_VALUE}: where only 12 bits are used, say Pixels(..., white={MAX_12_BIT_VALUE})")  # fmt: skip
    return white


def apply_exif_orientation(levels: NDArray[Any], image: Image.Image) -> NDArray[Any]:
    """Levels (H, W, C) turned as the EXIF orientation of their image says."""
    orientation = image.getexif().get(EXIF_ORIENTATION_TAG, 1)
    if orientation in (5, 6, 7, 8):
        levels = levels.transpose(1, 0, 2)
    flip_vertical, flip_horizontal = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return levels[:: -1 if flip_vertical else 1, :: -1 if flip_horizontal else 1]


def levels_to_tensor(levels: NDArray[Any], like: Pixels | None, bits: int = 16) -> Tensor:
    """Levels (H, W, C), uint16 or float32 in [0, 1], as `pil_to_tensor`, in full depth; `bits` is what they use."""
    channels = None if like is None else like.shape[0]
    depth = (
        1
        if levels.dtype != np.uint16
        else 2**bits - 1
        if bits < 16
        else white_level_of_16_bit_images(levels.max(), like)
    )
    values = levels.astype(np.float32) / np.float32(depth)
    if values.shape[2] in (2, 4):  # over white, where transparent
        alpha = values[..., -1:]
        values = values[..., :-1] * alpha + (1 - alpha)
    if channels == 1 and values.shape[2] == 3:
        values = values @ np.array(LUMA_WEIGHTS, np.float32)[:, None]
    planes = [_resize_and_crop_plane(values[..., c], like) for c in range(values.shape[2])]
    x = torch.from_numpy(np.stack(planes)).clamp(0, 1)  # (C, H, W)
    return x if channels in (None, len(x)) else x.expand(channels or 1, *x.shape[1:]).clone()


def _resize_and_crop_plane(plane: NDArray[Any], like: Pixels | None) -> NDArray[Any]:
    return np.array(_resize_and_crop(Image.fromarray(np.ascontiguousarray(plane)), like))


def warn_of_color_or_size_mismatch(image: Image.Image, like: Pixels | None) -> None:
    """Warn of an image of quite another kind than the model's: in color for a gray model, or many times its size."""
    if like is None or isinstance(like, PixelsOfAnySize):
        return
    channels, height, width = like.shape
    size = f"{height}x{width}"
    if channels == 1 and image.mode in ("RGB", "RGBA", "CMYK", "YCbCr", "P", "LAB", "HSV") and _is_colorful(image):
        warn(f"color images are made gray, as this model takes one channel ({size}): were they made for it?")
    if min(image.size) > WARN_ABOVE_SHRINK_FACTOR * min(height, width):
        warn(
            f"images are more than {WARN_ABOVE_SHRINK_FACTOR} times the {size} that this model takes: "
            "little is left of their "
            "detail. Were they made for it?"
        )


def _is_colorful(image: Image.Image) -> bool:
    """Whether the channels of an image differ; it is judged on a small copy."""
    thumbnail = np.array(_composite_on_white(image).resize((16, 16)).convert("RGB"), dtype=np.float32)
    return float(np.ptp(thumbnail, axis=2).mean()) > MIN_COLOR_CHANNEL_DIFFERENCE_LEVELS


def _composite_on_white(image: Image.Image) -> Image.Image:
    """The image over white, where it is transparent."""
    if not {"A", "a"} & set(image.getbands()) and "transparency" not in image.info:
        return image
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _pillow_color_mode(image: Image.Image, like: Pixels | None) -> str:
    is_gray = image.mode in ("1", "L") if like is None else like.shape[0] == 1
    return "L" if is_gray else "RGB"


def _resize_and_crop(image: Image.Image, like: Pixels | None) -> Image.Image:
    """Resized, antialiased, to cover the wanted size or as `like.resize` says; then cropped around the center."""
    if like is None or isinstance(like, PixelsOfAnySize):
        return image
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


def _to_channels_first(array: NDArray[Any]) -> NDArray[Any]:
    """(H, W) or (H, W, C) to (C, H, W)."""
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
