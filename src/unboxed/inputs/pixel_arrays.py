"""One image in any form, or an array of them, as tensors (C, H, W) or (N, C, H, W) in [0, 1]."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..atomic_write import to_printable
from ..errors import BrokenImageError, DataError, UnboxedWarning
from ..validation import expand_home
from .base import MAX_VALUE_UNLIKE_8_BITS, UNIT_RANGE_TOLERANCE, warn_of_small_white, white_advice
from .image_files import read_image, readable_formats, unreadable_file_reason, unreadable_image_reason
from .images import (
    pil_to_tensor,
    require_pixels,
    silencing_decoder_warnings,
    warn_of_color_or_size_mismatch,
    white_level_of_16_bit_images,
)
from .pixels import Pixels, PixelsOfAnySize

DecodeFn = Callable[[Tensor], Tensor]

WHITE_LEVEL_BY_DTYPE = {torch.uint8: 255.0, torch.uint16: 65535.0, torch.bool: 1.0}  # of integer images
ALLOWED_CHANNEL_COUNTS = (1, 3, 4)
IMAGE_FORMS_TEXT = "a tensor (C, H, W) or (H, W), a NumPy array, a Pillow image or the path of a file"
ITEM_FORMS_TEXT = f"wanted (image, label), with an image that is {IMAGE_FORMS_TEXT}"


def is_single_image_source(value: object) -> bool:
    """Whether this is one image: a Pillow image, a path, or the bytes that a Hugging Face data set holds."""
    return isinstance(value, (Image.Image, str, os.PathLike)) or is_encoded_image(value)


def is_image_folder(data: object, inputs: object) -> bool:
    """Whether this is the path of a folder, for a model of images."""
    return isinstance(inputs, Pixels) and isinstance(data, (str, os.PathLike)) and os.path.isdir(expand_home(data))


def is_encoded_image(value: object) -> bool:
    """Whether this is an image file as a Hugging Face data set holds it before decoding, {"bytes", "path"}."""
    return isinstance(value, Mapping) and set(value) == {"bytes", "path"}


def source_to_tensor(source: Any, like: Pixels | None) -> Tensor:
    """A Pillow image, a path or encoded bytes as (C, H, W), in the size and channels of `like`.

    Raises BrokenImageError for a file that cannot be read: passes over data leave it out.
    """
    if isinstance(source, Image.Image):
        with silencing_decoder_warnings():
            warn_of_color_or_size_mismatch(source, like)
            return pil_to_tensor(source, like)
    if is_encoded_image(source) and source["bytes"] is not None:
        return _decode_bytes(source["bytes"], like)
    path = expand_home(source["path"] if isinstance(source, Mapping) else source)
    if os.path.isdir(path):
        raise DataError(f"{to_printable(str(path))} is a folder: name one image, or pass ub.data.folder(path, box)")
    fault = unreadable_file_reason(path)
    if fault is None:
        try:
            return read_image(path, like)
        except UnboxedWarning:  # that the caller made an error
            raise
        except Exception as error:  # a hostile file can make a decoder raise anything
            fault = unreadable_image_reason(error)
    raise BrokenImageError(f"{to_printable(str(path))}: {fault}")


def _decode_bytes(encoded: bytes, like: Pixels | None) -> Tensor:
    try:
        with silencing_decoder_warnings(), Image.open(io.BytesIO(encoded), formats=readable_formats()) as image:
            warn_of_color_or_size_mismatch(image, like)
            return pil_to_tensor(image, like)
    except UnboxedWarning:  # that the caller made an error
        raise
    except Exception as error:  # a hostile file can make a decoder raise anything
        raise BrokenImageError(f"the bytes of an image: {unreadable_image_reason(error)}") from error


def image_to_tensor(image: Any, where: str, like: Pixels | None, decode: DecodeFn | None = None) -> Tensor:
    """One image in any form as (C, H, W), float32 in [0, 1]; `where` names it in errors.

    Files and Pillow images are resized and cropped to `like`; arrays and tensors must have its shape. `decode` undoes a
    normalization. Raises DataError, and BrokenImageError for a file that cannot be read.
    """
    keeps_size = isinstance(like, PixelsOfAnySize)
    if is_single_image_source(image):
        return source_to_tensor(image, None if like is None else require_pixels(like))
    if isinstance(image, np.ndarray):
        image = array_to_tensor(image, where, None if like is None else like.shape)
    elif isinstance(image, Tensor) and like is not None:
        image = move_channels_first(image, like.shape)
    if not isinstance(image, Tensor):
        raise DataError(f"the image in {where} is a {type(image).__name__}; {ITEM_FORMS_TEXT}")
    x = _to_unit_range(image.detach(), where, like, decode)
    x = x[None] if x.ndim == 2 else x
    if x.ndim != 3:
        raise DataError(f"the image in {where} has the shape {tuple(x.shape)}; {ITEM_FORMS_TEXT}")
    if like is not None and not keeps_size and tuple(x.shape) != like.shape:
        raise DataError(f"the image in {where} has the shape {tuple(x.shape)}; like wants {like.shape}")
    return x


def array_to_tensor(array: NDArray[Any], where: str, shape: tuple[int, ...] | None) -> Tensor:
    """A NumPy image (H, W), (H, W, C) or (C, H, W), or a batch (N, ...) of them, with its channels first.

    `shape` is that of the images wanted, (C, H, W); None: unknown. Raises DataError where the axes are ambiguous.
    """
    if array.dtype.kind not in "biuf":
        raise DataError(f"the image in {where} is an array of {array.dtype}; {ITEM_FORMS_TEXT}")
    if array.ndim >= 3 and _is_channels_last_array(array.shape[-3:], where, shape):
        array = np.moveaxis(array, -1, -3)
    wide = np.float64 if array.dtype.itemsize > 4 else np.float32
    native = np.dtype(wide) if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    return torch.from_numpy(array.astype(native, order="C"))


def move_channels_first(image: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Images (..., H, W, C) of a data set as (..., C, H, W), as arrays are; what may have them first is unchanged."""
    axes, channels_last = tuple(image.shape[-3:]), (*shape[1:], shape[0])
    return image.movedim(-1, -3) if axes == channels_last and axes != tuple(shape) else image


def _is_channels_last_array(axes: tuple[int, ...], where: str, shape: tuple[int, ...] | None) -> bool:
    """Whether these three axes of an array are (H, W, C), not (C, H, W). Raises DataError where they may be either."""
    channel_counts = ALLOWED_CHANNEL_COUNTS if shape is None else (shape[0],)
    may_be_first, may_be_last = axes[0] in channel_counts, axes[2] in channel_counts
    if shape is not None and (axes in (shape, (*shape[1:], shape[0]))):
        may_be_first, may_be_last = axes == shape, axes == (*shape[1:], shape[0])
    if may_be_first and may_be_last and axes != (1, 1, 1):
        question = f"are the channels of {where} first or last? Its axes are {axes}, so they may be either"
        raise DataError(f"{question}: pass a tensor (C, H, W), torch.as_tensor(array), with .permute(2, 0, 1) if last")
    return may_be_last and not may_be_first


def integers_to_unit_range(image: Tensor, like: Pixels | None) -> Tensor:
    """Images of a dtype whose white is known, uint8, uint16 or bool, as floats in [0, 1]; others as they are.

    White depends on the dtype and on `like` alone, so that splitting a batch changes nothing.
    """
    white = WHITE_LEVEL_BY_DTYPE.get(image.dtype)
    if white is None or image.is_meta:
        return image
    values = image.float()
    if image.dtype == torch.uint16 and values.numel():
        white = white_level_of_16_bit_images(values.max().item(), like)
    if image.dtype == torch.uint8 and image.ndim > 3 and image.numel():  # of one image its pass over data says it
        warn_of_small_white(int(image.max()))
    return values / white


def _to_unit_range(image: Tensor, where: str, like: Pixels | None, decode: DecodeFn | None) -> Tensor:
    """As float32 in [0, 1]; ambiguous values are refused."""
    if image.dtype in WHITE_LEVEL_BY_DTYPE:
        return integers_to_unit_range(image, like)
    if not image.is_floating_point():
        raise DataError(f"the image in {where} is {image.dtype}, which leaves its white unknown; pass uint8 or float")
    x = image.float() if decode is None else decode(image.float())
    _check_unit_range(x, where, decode)
    return x.clamp(0, 1)


def _check_unit_range(x: Tensor, where: str, decode: DecodeFn | None) -> None:
    if x.numel() == 0:
        raise DataError(f"the image in {where} is empty: its shape is {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        raise DataError(f"the image in {where} holds NaN or infinite values")
    lower, upper = x.min().item(), x.max().item()
    if lower >= -UNIT_RANGE_TOLERANCE and upper <= 1 + UNIT_RANGE_TOLERANCE:
        return
    message = f"images must lie in [0, 1]; the one in {where} runs from {lower:.3g} to {upper:.3g}"
    if decode is not None:
        raise DataError(f"{message} after decode: is it the inverse of how the data set normalizes?")
    if lower >= 0:
        is_8_bit = MAX_VALUE_UNLIKE_8_BITS < upper <= 255
        raise DataError(f"{message}: {white_advice(upper)}{', or keep them as uint8' * is_8_bit}")
    raise DataError(
        f"{message}: it looks normalized. Leave the normalization out, or wrap(..., decode=box.inputs.decode)"
    )
