"""Inputs: what a valid input of the model is, and how it becomes what the model wants."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Real
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..validation import check_float, check_int
from .batches import check_tensor, value_range

MAX_UNDERSHOOT = 0.05  # further below zero lie normalized images
MAX_IMAGE_VALUES = 2**36  # values of an image: beyond any memory
MAX_PRINTED = 5  # columns or channels that are printed one by one
RANGE_TOLERANCE = 1e-4  # resampling and float rounding leave an image this far outside of [0, 1]


@runtime_checkable
class Inputs(Protocol):
    """What a box asks of its inputs. `shape` is one example's, without N."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def check(self, x: Any) -> Any: ...
    def encode(self, x: Tensor) -> Any: ...
    def decode(self, z: Any) -> Tensor: ...
    def clip(self, x: Tensor) -> Tensor: ...
    def sample(self, n: int, generator: torch.Generator) -> Tensor: ...


@dataclass(frozen=True, repr=False)
class Pixels:
    """Images (N, C, H, W) in [0, 1]; `mean` and `std` are what the model was trained with, in units of [0, 1].

    Each is a number, or one per channel: a sequence, an array or a tensor. Normalization happens inside the box, so all
    methods, constraints and pictures are in pixel units. Raises InputError.
    """

    shape: tuple[int, int, int]
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        shape = tuple(self.shape) if isinstance(self.shape, Sequence) else ()
        if len(shape) != 3:
            raise InputError(f"Pixels wants the shape (channels, height, width) of one image; got {self.shape!r}")
        object.__setattr__(self, "shape", tuple(check_int("a side of the shape", s, minimum=1) for s in shape))
        for name, above, below in (("mean", -10.0, 10.0), ("std", 0.0, 10.0)):
            try:
                object.__setattr__(self, name, self._check_channels(name, above, below))
            except InputError as error:
                raise InputError(f"{error}; it is in units of [0, 1]: divide 8-bit values by 255") from None

    def __repr__(self) -> str:
        return f"Pixels({', '.join([str(self.shape), *_non_default_settings(self, mean=0.0, std=1.0)])})"

    def _check_channels(self, name: str, above: float, below: float) -> float | tuple[float, ...]:
        """A number, or one a channel, in units of [0, 1]."""
        value = _to_list(getattr(self, name))
        if not isinstance(value, (tuple, list)):
            return check_float(name, value, above, below)
        if len(value) not in (1, self.shape[0]):
            channels = f"{len(value)} values for {self.shape[0]} channels"
            raise InputError(f"{name} has {channels}; give one, or one a channel")
        return tuple(check_float(name, v, above, below) for v in value)

    def encode(self, x: Tensor) -> Tensor:
        """What the model wants: (x - mean) / std."""
        return (x - self._per_channel(self.mean, x)) / self._per_channel(self.std, x)

    def decode(self, z: Tensor) -> Tensor:
        """Back to pixels in [0, 1]."""
        return z * self._per_channel(self.std, z) + self._per_channel(self.mean, z)

    def clip(self, x: Tensor) -> Tensor:
        return x.clamp(0, 1)

    def from_unit(self, u: Tensor) -> Tensor:
        """Images of the levels u in [0, 1]: the levels themselves."""
        return u

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Noise images (n, C, H, W) in [0, 1]: valid inputs for a first look at the model."""
        message = f"there is no memory for {n} images of the shape {self.shape}"
        too_large = InputError(f"{message}; wanted (channels, height, width) of one image that the model takes")
        if math.prod(self.shape) > MAX_IMAGE_VALUES:  # some systems hand out memory that they don't have
            raise too_large
        try:
            return torch.rand(n, *self.shape, generator=generator, device=generator.device)
        except (RuntimeError, TypeError) as error:
            raise too_large from error

    def check(self, x: Tensor) -> Tensor:
        """Return x if it is a batch of such images; raise InputError that says what to do otherwise."""
        low, high = check_tensor(x, self.shape, "images in [0, 1]")
        if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
            raise InputError(self._range_message(low, high))
        return x

    def _range_message(self, low: float, high: float) -> str:
        message = (
            f"images must lie in [0, 1]; these run from {_format_out_of_range(low)} to {_format_out_of_range(high)}"
        )
        if low > -MAX_UNDERSHOOT and high <= 2:
            return f"{message}: clip them with x.clamp(0, 1), or divide them by the largest value there can be"
        if low >= 0 and high > 255:
            return f"{message}: divide them by the largest value there can be, 65535 for 16 bits"
        if low >= 0:
            return f"{message}: they look like 8-bit values, divide them by 255"
        if self.mean != 0.0 or self.std != 1.0:
            return f"{message}: they look normalized already. The box normalizes; pass pixels, or box.inputs.decode(x)"
        return f"{message}: they look normalized. Give Pixels their mean and std and pass images in [0, 1]"

    def _per_channel(self, value: float | tuple[float, ...], like: Tensor) -> Tensor | float:
        if isinstance(value, (int, float)):
            return value
        return _tensor_like(value, like).view(-1, 1, 1)


@dataclass(frozen=True, repr=False)
class Features:
    """Tabular rows (N, F): a name, bounds, mean and std a column; `categories` maps a column to its allowed values.

    Bounds, mean and std are one number for all columns, or one per column: a sequence, an array or a tensor. A column
    without bounds has -inf and inf. Raises InputError.
    """

    names: tuple[str, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    categories: Mapping[str, Sequence[float]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", _check_names(self.names))
        for name, default in (("low", -math.inf), ("high", math.inf), ("mean", 0.0), ("std", 1.0)):
            object.__setattr__(self, name, self._check_columns(name, default))
        for column, low, high in zip(self.names, self.low, self.high, strict=True):
            if not low <= high or low == math.inf or high == -math.inf:
                raise InputError(f"{column!r} has no values between its bounds, low={low:g} and high={high:g}")
        if unknown := sorted(map(str, set(self.categories) - set(self.names))):
            raise InputError(f"categories name columns that don't exist: {', '.join(unknown)}")
        object.__setattr__(self, "categories", {k: _check_category(k, v) for k, v in self.categories.items()})

    def __repr__(self) -> str:
        n, is_short = len(self.names), len(self.names) <= MAX_PRINTED
        names = str(self.names) if is_short else f"{n} columns: {', '.join(map(str, self.names[:3]))}, ..."
        settings = _non_default_settings(self, low=-math.inf, high=math.inf, mean=0.0, std=1.0)
        categories = [f"categories of {', '.join(map(str, self.categories))}"] if self.categories else []
        return f"Features({', '.join([names, *settings, *categories])})"

    def _check_columns(self, name: str, default: float) -> tuple[float, ...]:
        """A number a column. Raises InputError."""
        value = _to_list(getattr(self, name))
        if not isinstance(value, (tuple, list)):
            value = (value,) * len(self.names)
        if len(value) not in (0, len(self.names)):
            columns = f"{len(value)} values for {len(self.names)} columns"
            raise InputError(f"{name} has {columns}; give one number for all, or one a column")
        if name in ("low", "high"):
            return tuple(v if _is_infinite(v) else check_float(name, v) for v in value) or (default,) * len(self.names)
        above = 0.0 if name == "std" else -math.inf
        return tuple(check_float(name, v, above) for v in value) or (default,) * len(self.names)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.names),)

    def encode(self, x: Tensor) -> Tensor:
        return (x - _tensor_like(self.mean, x)) / _tensor_like(self.std, x)

    def decode(self, z: Tensor) -> Tensor:
        return z * _tensor_like(self.std, z) + _tensor_like(self.mean, z)

    def clip(self, x: Tensor) -> Tensor:
        return x.clamp(_tensor_like(self.low, x), _tensor_like(self.high, x))

    def from_unit(self, u: Tensor) -> Tensor:
        """Rows of the levels u (N, F) in [0, 1]: within 4 std of the mean, and at the bounds where u is 0 or 1."""
        std, center = _tensor_like(self.std, u), self.clip(self.decode(torch.zeros_like(u)))
        low, high = self.clip(center - 4 * std), self.clip(center + 4 * std)
        x = low + (high - low) * u
        for end, bounds in ((0, self.low), (1, self.high)):
            bound = _tensor_like(bounds, u)
            x = torch.where((u == end) & bound.isfinite(), bound, x)
        return self._fill_categories(x, lambda i, k: (u[:, i] * k).long().clamp(max=k - 1))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(n, len(self.names), generator=generator, device=generator.device)
        pick_index = lambda i, k: torch.randint(k, (n,), generator=generator, device=generator.device)  # noqa: E731
        return self._fill_categories(self.clip(self.decode(z)), pick_index)

    def _fill_categories(self, x: Tensor, pick_index: Callable[[int, int], Tensor]) -> Tensor:
        """x with columns of categories filled in: `pick(column, k)` says which (N,) of its k values each row has."""
        for name, values in self.categories.items():
            column = self.names.index(name)
            x[:, column] = x.new_tensor(list(values))[pick_index(column, len(values))]
        return x

    def check(self, x: Tensor) -> Tensor:
        check_tensor(x, self.shape, "rows of features")
        for i, name in enumerate(self.names):
            self._check_column(name, x[:, i], self.low[i], self.high[i])
        return x

    def _check_column(self, name: str, column: Tensor, low: float, high: float) -> None:
        lowest, highest = value_range(column)
        if lowest < low - RANGE_TOLERANCE or highest > high + RANGE_TOLERANCE:
            raise InputError(
                f"column {name!r} must lie in [{low:g}, {high:g}]; it runs from {lowest:.3g} to {highest:.3g}"
            )
        if name in self.categories:
            allowed = column.new_tensor(list(self.categories[name]))
            if not torch.isin(column, allowed).all():
                raise InputError(f"column {name!r} has values beside its categories {list(self.categories[name])}")


def _non_default_settings(inputs: object, **defaults: float) -> list[str]:
    """The settings that are not the default, in few words: one number where all are alike, else the first ones."""
    texts = []
    for name, default in defaults.items():
        value = getattr(inputs, name)
        values = value if isinstance(value, tuple) else (value,)
        numbers = [f"{v:g}" for v in (values if len(values) <= MAX_PRINTED else values[:3])] + ["..."] * (
            len(values) > MAX_PRINTED
        )
        if set(values) != {default}:
            texts.append(f"{name}={values[0]:g}" if len(set(values)) == 1 else f"{name}=({', '.join(numbers)})")
    return texts


def _to_list(value: Any) -> Any:
    """A tensor or array as a number or a list of numbers; axes of size one are passed over, as in (C, 1, 1)."""
    if isinstance(value, (Tensor, np.ndarray)):
        if math.prod(value.shape) != max(value.shape, default=1):
            return f"a tensor {tuple(value.shape)}"
        return value.reshape(-1).tolist() if value.ndim else value.item()
    return list(value) if isinstance(value, (range, set, frozenset)) else value


def _is_infinite(value: object) -> bool:
    return isinstance(value, Real) and math.isinf(value)


def _check_names(names: object) -> tuple[str, ...]:
    """Column names. Raises InputError."""
    if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):
        raise InputError(f"Features wants a tuple of column names, such as ('age', 'height'); got {names!r}")
    columns = tuple(names)
    if not columns:
        raise InputError("Features wants at least one column name")
    if len(set(columns)) < len(columns):
        raise InputError(f"Features wants a different name for each column; got {columns!r}")
    return columns


def _check_category(name: str, values: Any) -> tuple[float, ...]:
    """A column's allowed values. Raises InputError."""
    values = _to_list(values)
    if not isinstance(values, (tuple, list)) or not values:
        raise InputError(f"the categories of {name!r} are a sequence of the numbers that it takes; got {values!r}")
    return tuple(check_float(f"a category of {name!r}", v) for v in values)


def inputs_at_levels(inputs: Inputs, u: Tensor) -> Tensor:
    """Valid inputs of the levels u (N, ...) in [0, 1], 0 their lowest and 1 their highest.

    Inputs of a user's own that have no `from_unit` give what they sample.
    """
    if from_unit := getattr(inputs, "from_unit", None):
        return cast(Tensor, from_unit(u))
    x = inputs.sample(len(u), torch.Generator(u.device).manual_seed(0))
    return x[torch.arange(len(u)) % len(x)]


def check_channels_last(inputs: Inputs, channels_last: bool) -> bool:
    """Raises InputError where there are no channels to be last."""
    if not isinstance(channels_last, bool):
        raise InputError(f"channels_last is True or False; got {channels_last!r}")
    if channels_last and len(inputs.shape) != 3:
        raise InputError(f"channels_last is for images (C, H, W); an input has shape {inputs.shape}")
    return channels_last


def _format_out_of_range(value: float) -> str:
    """A number in as many digits as set it apart from 0 and 1."""
    return next((s for d in (3, 5, 7) if float(s := f"{value:.{d}g}") not in (0.0, 1.0)), f"{value:g}")


def _tensor_like(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Numbers beside a tensor: in its dtype, on its device."""
    return _cached_tensor(values, like.dtype, like.device)


@lru_cache(maxsize=64)
def _cached_tensor(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Once, for a copy to an accelerator at each step takes its time."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
