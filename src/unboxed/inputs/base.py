"""The protocol of inputs, and what images and tables share: settings as numbers, and their text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, warn

MAX_PRINTED_COLUMNS_OR_CHANNELS = 5  # columns or channels that are printed one by one
UNIT_RANGE_TOLERANCE = 1e-4  # resampling and float rounding leave an image this far outside of [0, 1]

MAX_VALUE_UNLIKE_8_BITS = 16  # images whose values end there have hardly 255 for white


@runtime_checkable
class Inputs(Protocol):
    """What a box needs of its inputs: `Pixels`, `Features` and `MultiInput` have it; a kind of your own may, too.

    It describes one input, converts batches (N, ...) between the units of the box and those of the model, and packs
    what a user passes into one tensor.

    Example:
        >>> from unboxed import Pixels
        >>> from unboxed.inputs.base import Inputs
        >>> isinstance(Pixels((1, 28, 28)), Inputs)
        True
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input, without N."""
        ...

    def check(self, x: Any) -> Any:
        """x itself, if it is a batch of valid inputs; else InputError."""
        ...

    def encode(self, x: Tensor) -> Any:
        """What the model takes: x normalized."""
        ...

    def decode(self, z: Any) -> Tensor:
        """The inverse of `encode`."""
        ...

    def clip(self, x: Tensor) -> Tensor:
        """x moved into the valid range."""
        ...

    def random_inputs(self, n: int, generator: torch.Generator) -> Tensor:
        """n random valid inputs (n, ...)."""
        ...

    def pack(self, x: Any) -> Tensor:
        """The one tensor (N, ...) that methods work on, of inputs as a user passes them; x itself where it is that."""
        ...

    def unpack(self, h: Tensor) -> Any:
        """The inverse of `pack`, for inputs, and for maps and frames of them."""
        ...


def inputs_from_unit_interval(inputs: Inputs, u: Tensor) -> Tensor:
    """Valid inputs for levels u (N, ...) in [0, 1], 0 the lowest valid value and 1 the highest.

    A kind of input of a user's own without `from_unit_interval` gives random inputs.
    """
    if from_unit_interval := getattr(inputs, "from_unit_interval", None):
        return cast(Tensor, from_unit_interval(u))
    x = inputs.random_inputs(len(u), torch.Generator(u.device).manual_seed(0))
    return x[torch.arange(len(u)) % len(x)]


def check_channels_last_setting(inputs: Inputs, channels_last: bool) -> bool:
    """The setting itself. Raises InputError where inputs have no channels."""
    if not isinstance(channels_last, bool):
        raise InputError(f"channels_last is True or False; got {channels_last!r}")
    if channels_last and len(inputs.shape) != 3:
        raise InputError(f"channels_last is for images (C, H, W); an input has shape {inputs.shape}")
    return channels_last


def non_default_setting_texts(inputs: object, **defaults: float) -> list[str]:
    """The settings that are not the default, "name=value": one number where all values are equal, else the first."""
    texts = []
    for name, default in defaults.items():
        value = getattr(inputs, name)
        values = value if isinstance(value, tuple) else (value,)
        many = len(values) > MAX_PRINTED_COLUMNS_OR_CHANNELS
        printed = [f"{v:g}" for v in (values[:3] if many else values)] + ["..."] * many
        if set(values) != {default}:
            texts.append(f"{name}={values[0]:g}" if len(set(values)) == 1 else f"{name}=({', '.join(printed)})")
    return texts


def in_order_of_columns(value: Any, names: Sequence[str]) -> Any:
    """A Series with a value for each of these columns, such as frame.mean(), in their order; others unchanged."""
    is_by_column = hasattr(value, "to_numpy") and {*names} <= {*getattr(value, "index", ())}
    return value[list(names)] if is_by_column else value


def to_number_or_list(value: Any) -> Any:
    """A tensor, array or Series as a number or a list of numbers; axes of size one are dropped, as in (C, 1, 1)."""
    value = value.to_numpy() if hasattr(value, "to_numpy") else value
    if isinstance(value, (Tensor, np.ndarray)):
        if math.prod(value.shape) != max(value.shape, default=1):
            return f"a tensor {tuple(value.shape)}"
        return value.reshape(-1).tolist() if value.ndim else value.item()
    return list(value) if isinstance(value, (range, set, frozenset)) else value


def constant_tensor(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Numbers as a tensor, in the dtype and on the device of another."""
    return _cached_constant_tensor(values, like.dtype, like.device)


@lru_cache(maxsize=64)
def _cached_constant_tensor(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Cached: a copy to an accelerator at each step would take long."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def misplaced_inputs_hint(value: object) -> str:
    """What is meant by a shape, by names of columns, or by a batch of inputs."""
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim in (3, 4, 5):
        return f"; its images are ub.Pixels({tuple(value.shape[1:])})"
    if isinstance(value, (tuple, list)) and value and all(isinstance(v, int) for v in value):
        return f"; images of this shape are ub.Pixels({tuple(value)})"
    if isinstance(value, (tuple, list)) and value and all(isinstance(v, str) for v in value):
        return "; columns of these names are ub.Features(names)"
    return ""


def white_advice(high: float) -> str:
    """What to divide images by that go from 0 to `high`, beyond 1."""
    if high > 255:
        return "divide them by the largest value there can be, 65535 for 16 bits"
    if high > MAX_VALUE_UNLIKE_8_BITS:
        return "they look like 8-bit values, divide them by 255"
    return f"divide them by the largest value there can be: {high:.3g} if that is white, 255 of dark 8-bit images"


def warn_of_small_white(largest: int) -> None:
    """Warn of 8-bit images of which none is bright, by their largest value: white is hardly 255."""
    if 0 < largest <= MAX_VALUE_UNLIKE_8_BITS:
        warn(
            f"the largest of these 8-bit values is {largest}, and they are divided by 255: if {largest} is white, pass "
            f"floats, x / {largest}"
        )
