"""Objectives inside the model: channels, neurons, positions, directions, layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError
from .algebra import Constant, Objective, layer_objective
from .calls import remember_call
from .outputs import to_class_tensor

IndexLike = int | Tensor | Constant  # one for all examples, or one int per example (N,)


@remember_call
def channel(layer: str, k: IndexLike) -> Objective:
    """The mean of a channel over its positions; the unit itself for a layer without positions.

    Args:
        layer: Address of the layer, as `box.layers` lists them.
        k: Channel: an int, or one per example (N,).

    Returns:
        An `Objective` on the layer.

    Raises:
        InputError: for what is no channel number, and when scored, for a channel that the layer does not have.

    Example:
        >>> import torch, unboxed as ub
        >>> ub.channel("conv2", 1)({"conv2": torch.ones(2, 3, 4, 4)})
        tensor([1., 1.])
    """

    def score(h: Tensor, k: _StoredIndex) -> Tensor:
        return _select_channel(h, k, layer).reshape(len(h), -1).mean(1)

    channel_index = _to_stored_index(k, "a channel")
    return _objective_with_example_indices(
        channel, layer, (channel_index,), score, f"{layer} channel {_indices_text(channel_index)}"
    )


@remember_call
def neuron(layer: str, k: IndexLike, *position: IndexLike) -> Objective:
    """One neuron: a channel at one position.

    Args:
        layer: Address of the layer, as `box.layers` lists them.
        k: Channel: an int, or one per example (N,).
        position: Position, one number per axis, each an int or one per example (N,). The center when not given.

    Returns:
        An `Objective` on the layer.

    Raises:
        InputError: for what is no number, and when scored, for a channel or position that the layer does not have.

    Example:
        >>> import torch, unboxed as ub
        >>> ub.neuron("conv2", 3, 10, 12)
        Objective(conv2 channel 3 at 10, 12)
        >>> ub.neuron("conv2", 0, 0, 1)({"conv2": torch.arange(4.0).view(1, 1, 2, 2)})
        tensor([1.])
    """

    def score(h: Tensor, k: _StoredIndex, *position: _StoredIndex) -> Tensor:
        indices = _check_position_or_center(h, position, layer)
        h = _select_channel(h, k, layer)
        for i in indices:
            h = _select_on_second_axis(h, i)
        return h

    channel_index, at = _to_stored_index(k, "a channel"), _to_stored_indices(position)
    return _objective_with_example_indices(
        neuron,
        layer,
        (channel_index, *at),
        score,
        f"{layer} channel {_indices_text(channel_index)} at {_indices_text(*at)}",
    )


@remember_call
def spatial(layer: str, *position: IndexLike) -> Objective:
    """The mean square of all channels at one position.

    Args:
        layer: Address of the layer, as `box.layers` lists them.
        position: Position, one number per axis, each an int or one per example (N,). The center when not given.

    Returns:
        An `Objective` on the layer.

    Raises:
        InputError: for what is no number, and when scored, for a position that the layer does not have.

    Example:
        >>> import torch, unboxed as ub
        >>> ub.spatial("conv2", 0, 1)({"conv2": torch.full((1, 3, 2, 2), 2.0)})
        tensor([4.])

    Source:
        Olah et al. 2017, "Feature Visualization".
    """

    def score(h: Tensor, *position: _StoredIndex) -> Tensor:
        indices = _check_position_or_center(h, position, layer)
        h = h.movedim(1, -1)  # (N, ..., C)
        for i in indices:
            h = _select_on_second_axis(h, i)
        return h.flatten(1).pow(2).mean(1)

    at = _to_stored_indices(position)
    return _objective_with_example_indices(spatial, layer, at, score, f"{layer} at {_indices_text(*at)}")


@remember_call
def energy(layer: str) -> Objective:
    """The mean square of a layer's activation: the objective of DeepDream.

    Args:
        layer: Address of the layer, as `box.layers` lists them.

    Returns:
        An `Objective` on the layer.

    Example:
        >>> import torch, unboxed as ub
        >>> ub.energy("conv2")({"conv2": torch.full((1, 3, 2, 2), 2.0)})
        tensor([4.])

    Source:
        Mordvintsev et al. 2015, "Inceptionism".
    """
    return layer_objective(layer, lambda h: h.flatten(1).pow(2).mean(1), f"{layer} energy")


@remember_call
def direction(layer: str, v: Tensor) -> Objective:
    """The dot product of a layer's activation with a direction.

    Args:
        layer: Address of the layer, as `box.layers` lists them.
        v: Direction: one value per channel (C,), averaged over positions, or the shape of the layer.

    Returns:
        An `Objective` on the layer.

    Raises:
        InputError: when scored, for a direction of another shape.

    Example:
        >>> import torch, unboxed as ub
        >>> ub.direction("fc1", torch.tensor([1.0, -1.0]))({"fc1": torch.tensor([[3.0, 1.0]])})
        tensor([2.])
    """
    vector = Constant(v)

    def score(h: Tensor) -> Tensor:
        w = vector.to_like(h)
        if w.shape == h.shape[1:]:
            return (h * w).flatten(1).sum(1)
        if w.ndim != 1 or len(w) != h.shape[1]:
            raise InputError(
                f"{layer} has shape {tuple(h.shape[1:])}; a direction has {h.shape[1]} values; got {tuple(v.shape)}"
            )
        return torch.einsum("nc...,c->n...", h, w).flatten(1).mean(1)

    return layer_objective(layer, score, f"{layer} along a direction")


_StoredIndex = int | Constant


def _to_stored_index(index: IndexLike, what: str) -> _StoredIndex:
    """An index as the objective holds it: an int, or int64 (N,). Raises InputError."""
    if isinstance(index, Constant):
        return index
    indices = to_class_tensor(index, what)
    if indices.ndim > 1:
        raise InputError(f"{what} must be an int, or one int per example (N,); got shape {tuple(indices.shape)}")
    return Constant(indices.long()) if indices.ndim else int(indices)


def _to_stored_indices(position: tuple[IndexLike, ...]) -> tuple[_StoredIndex, ...]:
    return tuple(_to_stored_index(i, "a position") for i in position)


def _objective_with_example_indices(
    rebuild: Callable[..., Objective],
    layer: str,
    indices: tuple[_StoredIndex, ...],
    score: Callable[..., Tensor],
    name: str,
) -> Objective:
    """The objective `score(h, *indices)`; `rebuild(layer, *indices)` makes it for other rows."""
    lengths = {len(p) for p in indices if isinstance(p, Constant)}
    if len(lengths) > 1:
        raise InputError(
            f"{name} holds indices for {' and '.join(map(str, sorted(lengths)))} examples; give one per example"
        )

    def select(i: slice | Tensor) -> Objective:
        return rebuild(layer, *(p[i] if isinstance(p, Constant) else p for p in indices))

    return layer_objective(layer, lambda h: score(h, *indices), name, select if lengths else None, *lengths)


def _indices_text(*indices: _StoredIndex) -> str:
    return ", ".join("one per example" if isinstance(p, Constant) else str(p) for p in indices) or "the center"


def _select_channel(h: Tensor, k: _StoredIndex, layer: str) -> Tensor:
    """Channel k, (N, ...)."""
    if h.ndim < 2 or not _is_index_in_range(k, h.shape[1]):
        raise InputError(
            f"{layer} has {h.shape[1] if h.ndim > 1 else 0} channels; there is no channel {_index_range_text(k)}"
        )
    return _select_on_second_axis(h, k)


def _index_range_text(k: _StoredIndex) -> str:
    return " or ".join(map(str, k.value_range() or ())) if isinstance(k, Constant) else str(k)


def _check_position_or_center(h: Tensor, position: tuple[_StoredIndex, ...], layer: str) -> tuple[_StoredIndex, ...]:
    """The position, or the center. Raises InputError where the layer does not have it."""
    indices = position or tuple(s // 2 for s in h.shape[2:])
    if len(indices) != h.ndim - 2 or not all(
        _is_index_in_range(i, s) for i, s in zip(indices, h.shape[2:], strict=True)
    ):
        position_text = ", ".join(map(_index_range_text, position))
        raise InputError(f"{layer} has positions {tuple(h.shape[2:])}; ({position_text}) is none of them")
    return indices


def _is_index_in_range(i: _StoredIndex, size: int) -> bool:
    """Whether the index exists; on an accelerator it is not checked, which would wait for it."""
    lower, upper = (i.value_range() or (0, 0)) if isinstance(i, Constant) else (i, i)
    return -size <= lower and upper < size


def _select_on_second_axis(h: Tensor, i: _StoredIndex) -> Tensor:
    """The i-th entry of the second axis, (N, ...)."""
    if isinstance(i, Constant):
        return h[torch.arange(len(h), device=h.device), i.to_like(h)]
    return h[:, i]
