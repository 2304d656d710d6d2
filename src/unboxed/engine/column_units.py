"""Tables in the unit that their columns are compared in: standard deviations, or the column's range.

Columns of a table have units of their own: the same change is nothing in one and beyond all values in another. Attacks
and noise are therefore measured in standard deviations of the columns (`Features(std=)`), or, where these are not
given, in their ranges (`low` and `high`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..errors import InputError, warn
from ..inputs.base import Inputs, constant_tensor, inputs_from_unit_interval
from ..inputs.features import Features
from ..inputs.multi import MultiInput
from ..inputs.tokens import Tokens

STD_UNIT_TEXT, RANGE_UNIT_TEXT, ORIGINAL_UNIT_TEXT = (
    "standard deviations of its column",
    "of its column's range",
    "(in its column's unit)",
)
MIN_ROWS_OF_SPREADS = 8  # from which the spread of a column says how it varies
MAX_SPREAD_RATIO = 10  # of columns' standard deviations, up to which one size of change makes sense for all
NO_SCALES_TEXT = "no std or bounds are given"


@dataclass(frozen=True)
class Slope:
    """What makes the slopes of a table comparable, whose columns have units of their own."""

    scales: tuple[float, ...]  # (D,) by which values are multiplied: `column_scales`, 1 where nothing is known of them
    unit: str  # of that product


def slope_and_unit(inputs: Inputs, name: str, power: int = 1) -> tuple[Slope, str]:
    """How the slopes of a table are compared, and their unit as they are.

    `name` is what is meant, "slope of the score"; `power` is 2 for squared slopes.
    """
    parts = [part for _, part in inputs.keys_and_parts()] if isinstance(inputs, MultiInput) else [inputs]
    scales = " or ".join(dict.fromkeys(map(_column_scale_text, parts)))
    unit = f"{name} per unit of the {'column' if isinstance(inputs, Features) else 'value'}"
    return Slope(tuple(scale**power for scale in column_scales(inputs)), f"{name} per {scales}"), unit


def _column_scale_text(inputs: Inputs) -> str:
    if not isinstance(inputs, Features):
        return "unit of the value"
    if not has_scales(inputs):
        return f"unit of the column ({NO_SCALES_TEXT})"
    return f"{'standard deviation' if inputs.has_std else 'range'} of the column"


@dataclass(frozen=True)
class ScaledInputs:
    """Inputs divided by one number per value: packed (N, D), for models of several inputs too."""

    base: Inputs
    scale: tuple[float, ...]  # (D,)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def to_original_units(self, u: Tensor) -> Tensor:
        """Valid inputs in their own units."""
        return self.base.clip(u * constant_tensor(self.scale, u))

    def to_scaled_units(self, x: Tensor) -> Tensor:
        return x / constant_tensor(self.scale, x)

    def check(self, u: Tensor) -> Tensor:
        return u

    def encode(self, u: Tensor) -> object:
        return self.base.encode(self.to_original_units(u))

    def decode(self, z: object) -> Tensor:
        return self.to_scaled_units(self.base.decode(z))

    def clip(self, u: Tensor) -> Tensor:
        return self.to_scaled_units(self.base.clip(u * constant_tensor(self.scale, u)))

    def pack(self, u: Any) -> Tensor:
        return self.base.pack(u)

    def unpack(self, u: Tensor) -> Tensor:
        """u itself: it stays packed until it is in the inputs' own units."""
        return u

    def from_unit_interval(self, levels: Tensor) -> Tensor:
        return self.to_scaled_units(inputs_from_unit_interval(self.base, levels))

    def random_inputs(self, n: int, generator: torch.Generator) -> Tensor:
        return self.to_scaled_units(self.base.random_inputs(n, generator))


def table_inputs(inputs: Inputs) -> Inputs | None:
    """The inputs themselves where they are a table or have one: what a result keeps for its figures; else None."""
    parts = [part for _, part in inputs.keys_and_parts()] if isinstance(inputs, MultiInput) else [inputs]
    return inputs if any(isinstance(part, Features) for part in parts) else None


def column_unit_text(inputs: Inputs) -> str:
    """The unit of a change of a column, to follow an amount."""
    if isinstance(inputs, Features):
        return STD_UNIT_TEXT if inputs.has_std else RANGE_UNIT_TEXT if has_scales(inputs) else ORIGINAL_UNIT_TEXT
    return ORIGINAL_UNIT_TEXT


def column_scales(inputs: Inputs) -> tuple[float, ...]:
    """How much one unit is of each value (D,), in the inputs' own units: 1 for pixels."""
    if isinstance(inputs, MultiInput):
        return tuple(scale for _, part in inputs.keys_and_parts() for scale in column_scales(part))
    if isinstance(inputs, Tokens):
        raise InputError("texts have no unit of change: attacks and the like need images or tables")
    if not isinstance(inputs, Features):
        return (1.0,) * math.prod(inputs.shape)
    if inputs.has_std:
        return inputs.std
    if not has_scales(inputs):
        return (1.0,) * len(inputs.names)
    return tuple(high - low if high > low else 1.0 for low, high in zip(inputs.low, inputs.high, strict=True))


def scale_of_values(inputs: Inputs, x: Tensor) -> Tensor:
    """`column_scales`, broadcast to x (N, ...)."""
    if table_inputs(inputs) is None:
        return x.new_ones(())
    return x.new_tensor(column_scales(inputs))[None]


def categorical_mask(inputs: Inputs) -> Tensor | None:
    """(D,) bool: the columns that take only some values; None where there are none."""
    parts = [part for _, part in inputs.keys_and_parts()] if isinstance(inputs, MultiInput) else [inputs]
    flags = [torch.tensor([name in part.categories for name in part.names]) if isinstance(part, Features)
             else torch.zeros(math.prod(part.shape), dtype=torch.bool) for part in parts]  # fmt: skip
    mask = torch.cat(flags)
    return mask if bool(mask.any()) else None


def to_scaled_box_and_inputs(box: Box, x: Tensor) -> tuple[Box, Tensor]:
    """The same model on inputs in these units, and x (N, D) of `validate_inputs` in them.

    Both are unchanged where the inputs are images, or tables without a unit to compare columns in.
    """
    if not isinstance(box.inputs, (Features, MultiInput)):
        return box, x
    _warn_of_unlike_columns(box.inputs, x)
    if set(scales := column_scales(box.inputs)) == {1.0}:
        return box, x
    inputs = ScaledInputs(box.inputs, scales)
    return box.with_model(box.model, inputs), inputs.to_scaled_units(x)


def _warn_of_unlike_columns(inputs: Features | MultiInput, x: Tensor) -> None:
    """Say so where one size of change is for columns without a unit in common, of which one varies far less."""
    if isinstance(inputs, MultiInput):
        for (_, part), values in zip(inputs.keys_and_parts(), inputs.split(x), strict=True):
            if isinstance(part, Features):
                _warn_of_unlike_columns(part, values)
        return
    if has_scales(inputs) or len(x) < MIN_ROWS_OF_SPREADS:
        return
    by_name = dict(zip(inputs.names, x.double().std(0).tolist(), strict=True))
    spreads = [(s, name) for name, s in by_name.items() if s > 0 and name not in inputs.categories]  # those stay
    if spreads and max(spreads)[0] > MAX_SPREAD_RATIO * min(spreads)[0]:
        warn(
            f"changes are measured in each column's own unit, and {max(spreads)[1]!r} varies far more than "
            f"{min(spreads)[1]!r}: open the model with the range of each column, ub.Features(names, low=frame.min(), "
            "high=frame.max()), and they are shares of it"
        )


def inputs_to_original_units(box: Box, u: Tensor, x: Tensor) -> Tensor:
    """Inputs u (N, D) of a box from `to_scaled_box_and_inputs` in their own units, or frames (T, N, D) of them.

    What was not changed is as in x (N, D).
    """
    if not isinstance(box.inputs, ScaledInputs):
        return u
    own = box.inputs.to_original_units(u.reshape(-1, u.shape[-1])).view_as(u)
    return torch.where(u == box.inputs.to_scaled_units(x), x, own)


def gradient_to_original_units(box: Box, grad: Tensor) -> Tensor:
    """A gradient (N, D) of a box from `to_scaled_box_and_inputs` as a gradient of the inputs in their own units."""
    return grad / constant_tensor(box.inputs.scale, grad) if isinstance(box.inputs, ScaledInputs) else grad


@dataclass(frozen=True)
class ColumnChange:
    """How far one column of a row was moved."""

    name: str
    before: float  # in its own unit
    after: float
    change: float  # in standard deviations of the column, or in its range
    unit: str

    @property
    def text(self) -> str:
        """Like "age 41 → 43.2"."""
        return f"{self.name} {self.before:.4g} → {self.after:.4g}"


def column_changes(inputs: Inputs, before: Tensor, after: Tensor) -> list[ColumnChange]:
    """The columns of a row (F,) that differ after a change, the farthest first. Raises nothing for other inputs."""
    if not isinstance(inputs, Features):
        return []
    scales, unit = column_scales(inputs), column_unit_text(inputs)
    rows = zip(map(str, inputs.names), before.tolist(), after.tolist(), scales, strict=True)
    changes = [ColumnChange(name, a, b, (b - a) / scale, unit) for name, a, b, scale in rows if a != b]
    return sorted(changes, key=lambda c: -abs(c.change))


def has_scales(inputs: Features) -> bool:
    """Whether columns have standard deviations, or all of them ranges."""
    return inputs.has_std or all(map(math.isfinite, (*inputs.low, *inputs.high)))
