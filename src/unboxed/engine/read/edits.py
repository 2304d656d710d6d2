"""Rewriting activations: ready-made edits of units, and the layers that have units."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real

import torch
from torch import Tensor

from ...box import Box
from ...errors import InputError, LayerError
from ...inputs.labels import ClassLabels
from ...model.batching import BatchSize
from ...objectives import Objective, constant_to_like, mean_over_positions
from ...validation import check_float, check_int
from ..rows import broadcast_rows

LOG = logging.getLogger("unboxed")

UnitSelection = int | Sequence[int] | None
"""A channel, several of them, or None for all."""


@dataclass(frozen=True, eq=False)
class UnitEdit:
    """h <- factor * h + value for some channels k, at one position or at all of them.

    `value` is a number; (N,), a number per example; or values that broadcast with h[:, k], (1, ...) for all examples or
    (N, ...) per example.
    """

    factor: float
    value: float | Tensor = 0.0
    k: UnitSelection = None
    position: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.value, Real | Tensor):
            raise InputError(f"value must be a number or a tensor; got {self.value!r}")
        if self.k is not None:
            object.__setattr__(self, "k", _check_channels(self.k))
        if self.position is not None:
            object.__setattr__(self, "position", _check_position(self.position))

    def __call__(self, h: Tensor) -> Tensor:
        index = self._edited_index(h)
        edited, value = h.clone(), self.value
        if isinstance(value, Tensor):
            value = _broadcast_value(constant_to_like(value, h).to(h.dtype), h[index])
        try:
            edited[index] = value if self.factor == 0 else self.factor * h[index] + value  # 0 * inf would be NaN
        except RuntimeError as error:
            shape = tuple(value.shape) if isinstance(value, Tensor) else ()
            raise InputError(f"a value of shape {shape} does not fit into {tuple(h[index].shape)}") from error
        return edited

    def _edited_index(self, h: Tensor) -> tuple[slice | int | list[int], ...]:
        """The index of the values that change. Raises InputError where h has no such channel or position."""
        channels = [] if self.k is None else [self.k] if isinstance(self.k, int) else list(self.k)
        if h.ndim < 2 or any(not -h.shape[1] <= k < h.shape[1] for k in channels):
            raise InputError(
                f"the layer has {h.shape[1] if h.ndim > 1 else 0} channels; an edit names {channels or 'all'}"
            )
        position = self.position or ()
        if position and (
            len(position) != h.ndim - 2 or any(not -s <= i < s for i, s in zip(position, h.shape[2:], strict=True))
        ):
            raise InputError(f"the layer has positions {tuple(h.shape[2:])}; {position} is none of them")
        return (
            slice(None),
            slice(None) if self.k is None else self.k if isinstance(self.k, int) else channels,
            *position,
        )

    def rows(self, index: slice | Tensor) -> UnitEdit:
        """The same edit for some of the examples."""
        is_per_example = isinstance(self.value, Tensor) and self.value.ndim > 0 and len(self.value) > 1
        return replace(self, value=self.value[index]) if isinstance(self.value, Tensor) and is_per_example else self

    def check_batch(self, n: int) -> UnitEdit:
        """This edit, if it fits n examples. Raises InputError."""
        if isinstance(self.value, Tensor) and self.value.ndim and len(self.value) not in (1, n):
            raise InputError(f"an edit holds values for {len(self.value)} examples; there are {n}")
        return self


def _check_channels(k: object) -> int | list[int]:
    """A channel, or several. Raises InputError."""
    if isinstance(k, Tensor) and k.ndim < 2:
        k = k.tolist()
    if isinstance(k, str) or not isinstance(k, Integral | Iterable):
        raise InputError(f"a channel must be a whole number; got {k!r}")
    return [_check_index("a channel", i) for i in k] if isinstance(k, Iterable) else _check_index("a channel", k)


def _check_position(position: object) -> tuple[int, ...]:
    if isinstance(position, str) or not isinstance(position, Iterable):
        raise InputError(f"position must be indices such as (3,) or (2, 5); got {position!r}")
    return tuple(_check_index("a position", i) for i in position)


def _check_index(name: str, index: object) -> int:
    """A whole number; negative ones count from the end. Raises InputError."""
    if isinstance(index, bool) or not isinstance(index, Integral):
        raise InputError(f"{name} must be a whole number; got {index!r}")
    return int(index)


def _broadcast_value(value: Tensor, h: Tensor) -> Tensor:
    """Values with as many axes as h (N, ...). Broadcasting alone would align (N,) with the last axis."""
    if value.ndim == 1:
        return broadcast_rows(value, h)
    if 0 < value.ndim < h.ndim:
        raise InputError(f"a value of shape {tuple(value.shape)} does not have the axes of {tuple(h.shape)}")
    return value


def ablate(k: UnitSelection = None, *, position: tuple[int, ...] | None = None) -> UnitEdit:
    """An edit for `rewrite` that sets channels to zero.

    Args:
        k: Channel, several of them, or None for all.
        position: Indices on the layer's other axes, such as (3,) or (2, 5). None: all positions.

    Returns:
        A function from an activation (N, C, ...) to the edited one.

    Raises:
        InputError: for what is no channel or position; when called, for one that the layer does not have.

    Example:
        >>> import torch, unboxed as ub
        >>> ub.activations.ablate(1)(torch.ones(1, 3)).tolist()
        [[1.0, 0.0, 1.0]]
    """
    return UnitEdit(0.0, 0.0, k, position)


def scale(k: UnitSelection, factor: float, *, position: tuple[int, ...] | None = None) -> UnitEdit:
    """An edit for `rewrite` that multiplies channels.

    Args:
        k: Channel, several of them, or None for all.
        factor: Number by which they are multiplied.
        position: Indices on the layer's other axes, such as (3,) or (2, 5). None: all positions.

    Returns:
        A function from an activation (N, C, ...) to the edited one.

    Raises:
        InputError: for what is no channel, number or position; when called, for one that the layer does not have.

    Example:
        >>> import torch, unboxed as ub
        >>> ub.activations.scale([0, 2], 3.0)(torch.ones(1, 3)).tolist()
        [[3.0, 1.0, 3.0]]
    """
    return UnitEdit(check_float("factor", factor), 0.0, k, position)


def put(k: UnitSelection, value: float | Tensor, *, position: tuple[int, ...] | None = None) -> UnitEdit:
    """An edit for `rewrite` that sets channels to a value.

    Args:
        k: Channel, several of them, or None for all.
        value: Number, (N,) with one per example, or values of the shape of h[:, k], (1, ...) for all or (N, ...).
        position: Indices on the layer's other axes, such as (3,) or (2, 5). None: all positions.

    Returns:
        A function from an activation (N, C, ...) to the edited one.

    Raises:
        InputError: for what is no channel, value or position; when called, for one that does not fit the layer.

    Example:
        >>> import torch, unboxed as ub
        >>> ub.activations.put(1, torch.tensor([5.0, 7.0]))(torch.ones(2, 3)).tolist()
        [[1.0, 5.0, 1.0], [1.0, 7.0, 1.0]]
    """
    return UnitEdit(0.0, value, k, position)


def resolve_target(box: Box, target: ClassLabels | Objective | None, x: Tensor, batch_size: BatchSize) -> Objective:
    """The score of `target`, fixed for x and any edit: None is the class predicted for x itself."""
    if target is None:
        target = mean_over_positions(box(x, batch_size=batch_size)).argmax(1)
    return box.check_objective(box.objective(target, len(x)), len(x))


FINAL_ACTIVATION_TYPES = ("Softmax", "LogSoftmax", "Sigmoid", "LogSigmoid")


def unit_layer_addresses(box: Box) -> tuple[str, ...]:
    """The address of every call of a leaf module that returns rows with units, in the order in which they first run.

    Not a final softmax, which comes after the logits. Raises LayerError where there is none.
    """
    rows = [row for row in box.layers.leaves if row.runs_per_example and row.shape]
    if rows and rows[-1].type in FINAL_ACTIVATION_TYPES:
        rows = rows[:-1]
    leaf_addresses = tuple(address for row in rows for address in row.addresses)
    if not leaf_addresses:
        raise LayerError("no module of this model runs on its own; name functional ops, such as ':relu#0'")
    return leaf_addresses


def require_unit_layer(box: Box, address: str) -> str:
    """The full address of a layer that has units. Raises LayerError."""
    resolved = box.layers.resolve(address)
    if not box.has_batch_axis(resolved) or (":" not in resolved and not box.layers[resolved].shape):
        problem = f"has shape {box.layers[resolved].shape}" if ":" not in resolved else "mixes examples"
        raise LayerError(f"{address!r} {problem}: its first axis is not the batch, or it has no units")
    return resolved


def check_units(units: Sequence[int] | Tensor | int | None, n_channels: int, layer: str) -> list[int]:
    """The indices of units, each below `n_channels`. Raises InputError."""
    if units is None:
        return list(range(n_channels))
    if isinstance(units, (str, bytes)) or not isinstance(units, Sequence):
        units = units.tolist() if isinstance(units, Tensor) and units.ndim == 1 else [units]  # type: ignore[list-item]
    indices = [check_int("a unit", k) for k in units]
    if not indices or max(indices) >= n_channels:
        raise InputError(
            f"{layer} has units 0 to {n_channels - 1}; got {f'up to {max(indices)}' if indices else 'none'}"
        )
    return indices


def unit_or_position_masks(parts: Tensor, n_parts: int, shape: Sequence[int], axis: int | None) -> Tensor:
    """Masks (R, ...) over activations of `shape` that mark part p of each row: one channel, one position, or all."""
    if axis is None:
        return torch.ones(len(parts), *[1] * len(shape), dtype=torch.bool, device=parts.device)
    masks = torch.nn.functional.one_hot(parts, n_parts).bool()
    return masks.view(-1, n_parts, *[1] * (len(shape) - 1)) if axis == 1 else masks.view(-1, 1, *shape[1:])


def count_units_or_positions(shape: Sequence[int], axis: int | None) -> int:
    """The number of parts of activations of this shape (without N)."""
    return 1 if axis is None else shape[0] if axis == 1 else math.prod(shape[1:])
