"""Tables: one input of a model, with one number per column."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..validation import check_float
from .base import (
    MAX_PRINTED_COLUMNS_OR_CHANNELS,
    UNIT_RANGE_TOLERANCE,
    constant_tensor,
    in_order_of_columns,
    non_default_setting_texts,
    to_number_or_list,
)
from .batches import min_and_max, min_and_max_of_valid_batch


class UnsetValues(tuple[float, ...]):
    """The values of a setting that was not given; `dataclasses.replace` passes them on as such."""


@dataclass(frozen=True, repr=False)
class Features:
    """Tabular inputs: rows (N, F) in the units of the table. The box normalizes them.

    Bounds, mean and std are one number for all columns or one per column: a sequence, an array or a tensor.

    Args:
        names: Names of the F columns.
        low: Smallest valid values; -inf when not given. Attacks and synthesis stay inside.
        high: Largest valid values; inf when not given.
        mean: What the training of the model subtracted; 0 when not given.
        std: What it then divided by; 1 when not given. Attacks and smoothing measure changes in it, also where it is
            given as 1; without it, where all columns have bounds, in fractions of the range from low to high.
        categories: {column: its allowed values} of columns that take only some. Attacks leave these columns alone.

    Raises:
        InputError: for names that repeat, bounds without a value between them, std not above 0, or other lengths.

    Example:
        >>> import torch, unboxed as ub
        >>> table = ub.Features(("age", "height"), low=0, mean=(40, 1.7), std=(20, 0.1))
        >>> table.encode(torch.tensor([[60.0, 1.7]]))
        tensor([[1., 0.]])
    """

    names: tuple[str, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    categories: Mapping[str, Sequence[float]] = field(default_factory=dict, hash=False)
    has_std: bool = field(init=False)  # whether it was given

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", _check_column_names(self.names))
        for name, default in (("low", -math.inf), ("high", math.inf), ("mean", 0.0), ("std", 1.0)):
            object.__setattr__(self, name, self._validated_column_values(name, default))
        object.__setattr__(self, "has_std", not isinstance(self.std, UnsetValues))
        for column, low, high in zip(self.names, self.low, self.high, strict=True):
            if not low <= high or low == math.inf or high == -math.inf:
                raise InputError(f"{column!r} has no values between its bounds, low={low:g} and high={high:g}")
        if unknown := sorted(map(str, set(self.categories) - set(self.names))):
            raise InputError(f"categories name columns that don't exist: {', '.join(unknown)}")
        object.__setattr__(
            self, "categories", {k: _validated_category_values(k, v) for k, v in self.categories.items()}
        )

    def __repr__(self) -> str:
        n, is_short = len(self.names), len(self.names) <= MAX_PRINTED_COLUMNS_OR_CHANNELS
        names = str(self.names) if is_short else f"{n} columns: {', '.join(map(str, self.names[:3]))}, ..."
        std = math.nan if self.has_std else 1.0  # one that was given is printed, even as 1
        settings = non_default_setting_texts(self, low=-math.inf, high=math.inf, mean=0.0, std=std)
        categories = [f"categories of {', '.join(map(str, self.categories))}"] if self.categories else []
        return f"Features({', '.join([names, *settings, *categories])})"

    def _validated_column_values(self, name: str, default: float) -> tuple[float, ...]:
        """One number per column. Raises InputError."""
        value = in_order_of_columns(getattr(self, name), self.names)
        value = value if isinstance(value, UnsetValues) else to_number_or_list(value)
        if isinstance(value, UnsetValues) or (isinstance(value, (tuple, list)) and not value):
            return UnsetValues((default,) * len(self.names))
        if not isinstance(value, (tuple, list)):
            value = (value,) * len(self.names)
        if len(value) != len(self.names):
            columns = f"{len(value)} values for {len(self.names)} columns"
            raise InputError(f"{name} has {columns}; give one number for all, or one per column")
        if name in ("low", "high"):
            return tuple(v if _is_infinite(v) else check_float(name, v) for v in value)
        above = 0.0 if name == "std" else -math.inf
        return tuple(check_float(name, v, above) for v in value)

    @property
    def has_mean(self) -> bool:
        """Whether the mean was given: it is then taken as that of the data."""
        return not isinstance(self.mean, UnsetValues)

    @property
    def shape(self) -> tuple[int, ...]:
        """(F,), the shape of one row."""
        return (len(self.names),)

    def encode(self, x: Tensor) -> Tensor:
        """What the model takes: (x - mean) / std."""
        return (x - constant_tensor(self.mean, x)) / constant_tensor(self.std, x)

    def decode(self, z: Tensor) -> Tensor:
        """The inverse of `encode`: rows in the units of the table."""
        return z * constant_tensor(self.std, z) + constant_tensor(self.mean, z)

    def pack(self, x: Tensor) -> Tensor:
        """x itself: rows are one tensor."""
        return x

    def unpack(self, h: Tensor) -> Tensor:
        """h itself."""
        return h

    def clip(self, x: Tensor) -> Tensor:
        """x moved into the bounds."""
        return x.clamp(constant_tensor(self.low, x), constant_tensor(self.high, x))

    def from_unit_interval(self, u: Tensor) -> Tensor:
        """Rows for levels u (N, F) in [0, 1]: within 4 std of the mean, and at finite bounds where u is 0 or 1."""
        std, center = constant_tensor(self.std, u), self.clip(self.decode(torch.zeros_like(u)))
        low, high = self.clip(center - 4 * std), self.clip(center + 4 * std)
        x = low + (high - low) * u
        for end, bounds in ((0, self.low), (1, self.high)):
            bound = constant_tensor(bounds, u)
            x = torch.where((u == end) & bound.isfinite(), bound, x)
        return self._fill_categories(x, lambda i, k: (u[:, i] * k).long().clamp(max=k - 1))

    def random_inputs(self, n: int, generator: torch.Generator) -> Tensor:
        """n random valid rows (n, F): normal with mean and std, clipped to the bounds."""
        z = torch.randn(n, len(self.names), generator=generator, device=generator.device)
        pick_index = lambda i, k: torch.randint(k, (n,), generator=generator, device=generator.device)  # noqa: E731
        return self._fill_categories(self.clip(self.decode(z)), pick_index)

    def _fill_categories(self, x: Tensor, pick_index: Callable[[int, int], Tensor]) -> Tensor:
        """x with its categorical columns filled in: `pick_index(column, k)` gives the index (N,) among its k values."""
        for name, values in self.categories.items():
            column = self.names.index(name)
            x[:, column] = x.new_tensor(list(values))[pick_index(column, len(values))]
        return x

    def check(self, x: Tensor) -> Tensor:
        """x itself, if it is a batch of valid rows; else InputError that names the column."""
        min_and_max_of_valid_batch(x, self.shape, "rows of features", self.names)
        for i, name in enumerate(self.names):
            self._check_column(name, x[:, i], self.low[i], self.high[i])
        return x

    def _check_column(self, name: str, column: Tensor, low: float, high: float) -> None:
        lowest, highest = min_and_max(column)
        if lowest < low - UNIT_RANGE_TOLERANCE or highest > high + UNIT_RANGE_TOLERANCE:
            raise InputError(
                f"column {name!r} must be in [{low:g}, {high:g}]; it goes from {lowest:.3g} to {highest:.3g}"
            )
        if name in self.categories:
            allowed = column.new_tensor(list(self.categories[name]))
            if not torch.isin(column, allowed).all():
                raise InputError(
                    f"column {name!r} has values that are not among its categories {list(self.categories[name])}"
                )


def _is_infinite(value: object) -> bool:
    return isinstance(value, Real) and math.isinf(value)


def _check_column_names(names: object) -> tuple[str, ...]:
    """Column names. Raises InputError."""
    if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):
        raise InputError(f"Features needs a tuple of column names, such as ('age', 'height'); got {names!r}")
    columns = tuple(names)
    if not columns:
        raise InputError("Features needs at least one column name")
    if len(set(columns)) < len(columns):
        raise InputError(f"Features needs a different name for each column; got {columns!r}")
    return columns


def _validated_category_values(name: str, values: Any) -> tuple[float, ...]:
    """A column's allowed values. Raises InputError."""
    values = to_number_or_list(values)
    if not isinstance(values, (tuple, list)) or not values:
        raise InputError(f"the categories of {name!r} must be a sequence of numbers; got {values!r}")
    if any(isinstance(v, str) for v in values):
        dummies = f"categories={{'{name}_{values[0]}': [0, 1], ...}}"
        problem = f"the categories of {name!r} are texts, {list(values)!r}, and a model of tables takes numbers"
        raise InputError(f"{problem}: make it a column of 0 and 1 for each, as pandas.get_dummies does, {dummies}")
    return tuple(check_float(f"a category of {name!r}", v) for v in values)
