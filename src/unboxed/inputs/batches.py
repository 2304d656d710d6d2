"""Batches of inputs: checks that they are plain tensors of finite floats, and the arguments of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..validation import listed_names
from .base import MAX_VALUE_UNLIKE_8_BITS, white_advice


def min_and_max_of_valid_batch(
    x: object, shape: tuple[int, ...], what: str, columns: Sequence[str] = ()
) -> tuple[float, float]:
    """The minimum and maximum of a batch of finite floats. Raises InputError, which names the columns of rows."""
    if not isinstance(x, Tensor) or not _is_valid_batch(x, shape):
        raise InputError(_invalid_batch_text(x, shape, what))
    low, high = min_and_max(x)  # both NaN where any value is
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = (~torch.isfinite(x)).flatten(1).any(1).nonzero().flatten().tolist()
        named = [name for name, is_finite in zip(columns, torch.isfinite(x[bad[0]]), strict=False) if not is_finite]
        where = f" in {'the column' if len(named) == 1 else 'the columns'} {listed_names(named)}" if named else ""
        problem = f"NaN or infinite values in {len(bad)} of {len(x)} examples"
        raise InputError(f"{problem}, the first at index {bad[0]}{where}")
    return low, high


def _is_valid_batch(x: Tensor, shape: tuple[int, ...]) -> bool:
    fits = x.shape[1:] == shape and x.shape[0] > 0 and x.is_floating_point()
    return fits and x.layout == torch.strided and not x.is_meta and not x.is_quantized


def _invalid_batch_text(x: object, shape: tuple[int, ...], what: str) -> str:
    """Why x is not a batch of floats."""
    wanted = f"{what}, shape (N, {', '.join(map(str, shape))})"
    if not isinstance(x, Tensor):
        return f"wanted a tensor of {wanted}; got {type(x).__name__}. {_conversion_hint(x, len(shape) == 3)}"
    if x.layout != torch.strided or x.device.type == "meta" or x.is_quantized:
        return f"wanted a plain dense tensor of {wanted}; got {x.layout} on {x.device}"
    if tuple(x.shape) == shape:
        return f"wanted {wanted}; got one example without the batch axis. Pass x[None]"
    if tuple(x.shape[1:]) != shape:
        return f"wanted {wanted}; got shape {tuple(x.shape)}{_shape_hint(tuple(x.shape), shape)}"
    if len(x) == 0:
        return f"wanted {wanted}; got an empty batch"
    return f"wanted floating point {what}; got {x.dtype}{_integers_hint(x, len(shape) > 1)}"


def _integers_hint(x: Tensor, is_image: bool) -> str:
    """What makes floats of whole numbers (N, ...)."""
    if x.is_complex():
        return ""
    if not is_image:
        return ". Pass x.float()"
    low, high = min_and_max(x.double())
    if low < 0:
        return ""
    if high <= 1:
        return ". Pass x.float()"
    is_8_bit = MAX_VALUE_UNLIKE_8_BITS < high <= 255
    return f": {white_advice(high)}{', or pass x.to(torch.uint8)' * is_8_bit}"


def _shape_hint(got: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """What brings images of another shape into the wanted one, (C, H, W)."""
    if len(shape) != 3:
        return ""
    channels, *size = shape
    if list(got) == size and channels == 1:
        return ". Pass x[None, None]"
    if list(got[1:]) == size and channels == 1:
        return ". Pass x[:, None]"
    if got[1:] == (*size, channels):
        return ": the channels are last. Pass x.permute(0, 3, 1, 2)"
    if list(got[1:]) == size:
        return f": gray images. Pass x[:, None].expand(-1, {channels}, -1, -1)"
    if len(got) == 4 and list(got[1:3]) == size and (hint := _channel_count_hint(got[3], channels)):
        return f": the channels are last. With x = x.permute(0, 3, 1, 2){hint.replace(': ', ', ', 1)}"
    if len(got) in (3, 4) and got[-3] == channels and list(got[-2:]) != size:
        return "; ub.image(images, like=box) resizes Pillow images and files"
    if len(got) != 4:
        return ": x.flatten(0, 1) joins several batches" if len(got) == 5 and got[2:] == shape else ""
    return _channel_count_hint(got[1], channels) if list(got[2:]) == size else ""


def _channel_count_hint(n: int, wanted: int) -> str:
    if n == 1:
        return f": gray images. Pass x.expand(-1, {wanted}, -1, -1)"
    if wanted == 1 and n == 3:
        return ": color images. Pass x.mean(1, keepdim=True) for gray ones"
    return ": the fourth channel is the transparency. Pass x[:, :3]" if (n, wanted) == (4, 3) else ""


def _conversion_hint(x: object, is_image: bool) -> str:
    """How to convert another object to a batch."""
    if hasattr(x, "tensors"):
        return "x, y = data.tensors() gives the tensors of a data set"
    if isinstance(x, (str, PathLike)):
        return (
            "ub.image(path, like=box) reads an image"
            if is_image
            else "ub.data.table(path, box) reads the rows of a CSV, TSV or Parquet file"
        )
    first = x[0] if isinstance(x, (list, tuple)) and x else x
    if isinstance(first, Tensor):
        return "torch.stack(x) joins a list of examples, torch.cat(x) a list of batches"
    if type(first).__module__.partition(".")[0] == "PIL":
        return "ub.image(image, like=box) converts an image"
    return "torch.as_tensor(x) converts an array"


def min_and_max(x: Tensor) -> tuple[float, float]:
    low, high = torch.aminmax(x.detach() if x.requires_grad else x)
    return low.item(), high.item()


def to_model_arguments(z: Any, dtype: torch.dtype, channels_last: bool) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Encoded inputs as positional and keyword arguments: new tensors, as a model may overwrite its input."""
    if isinstance(z, dict):
        return (), {name: _cast_floats(value, dtype) for name, value in z.items()}
    if isinstance(z, tuple):
        return tuple(_cast_floats(value, dtype) for value in z), {}
    z = z if z.dtype == dtype else z.to(dtype)
    return (z.contiguous(memory_format=torch.channels_last) if channels_last else z,), {}


def _cast_floats(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A value in the model's dtype; ids of tokens stay whole numbers."""
    return value.to(dtype) if value.is_floating_point() else value
