"""Objectives inside the model: channels, neurons, positions, directions, whole layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError
from .algebra import Constant, Objective, layer_objective
from .calls import remember_call
from .outputs import as_classes

IndexLike = int | Tensor | Constant  # one for all examples, or (N,) ints, one an example


@remember_call
def channel(layer: str, k: IndexLike) -> Objective:
    """The mean of channel k of a layer over its positions (of unit k, for a layer without positions)."""

    def score(h: Tensor, k: _StoredIndex) -> Tensor:
        return _select_channel(h, k, layer).reshape(len(h), -1).mean(1)

    channel_index = _as_index(k, "a channel")
    return _indexed_objective(
        channel, layer, (channel_index,), score, f"{layer} channel {_format_indices(channel_index)}"
    )


@remember_call
def neuron(layer: str, k: IndexLike, *position: IndexLike) -> Objective:
    """One neuron: channel k at a position, by default the central one."""

    def score(h: Tensor, k: _StoredIndex, *position: _StoredIndex) -> Tensor:
        indices = _position_or_center(h, position, layer)
        h = _select_channel(h, k, layer)
        for i in indices:
            h = _select_index(h, i)
        return h

    channel_index, at = _as_index(k, "a channel"), _as_indices(position)
    return _indexed_objective(
        neuron,
        layer,
        (channel_index, *at),
        score,
        f"{layer} channel {_format_indices(channel_index)} at {_format_indices(*at)}",
    )


@remember_call
def spatial(layer: str, *position: IndexLike) -> Objective:
    """The mean square of all channels at one position, by default the central one (Olah et al. 2017)."""

    def score(h: Tensor, *position: _StoredIndex) -> Tensor:
        indices = _position_or_center(h, position, layer)
        h = h.movedim(1, -1)  # (N, ..., C)
        for i in indices:
            h = _select_index(h, i)
        return h.flatten(1).pow(2).mean(1)

    at = _as_indices(position)
    return _indexed_objective(spatial, layer, at, score, f"{layer} at {_format_indices(*at)}")


@remember_call
def energy(layer: str) -> Objective:
    """The mean square of all that a layer gives: what DeepDream climbs (Mordvintsev et al. 2015)."""
    return layer_objective(layer, lambda h: h.flatten(1).pow(2).mean(1), f"{layer} as a whole")


@remember_call
def direction(layer: str, v: Tensor) -> Objective:
    """The mean over positions of <h, v>: v has one value a channel (C,), or the layer's whole shape."""
    vector = Constant(v)

    def score(h: Tensor) -> Tensor:
        w = vector.to_like(h)
        if w.shape == h.shape[1:]:
            return (h * w).flatten(1).sum(1)
        if w.ndim != 1 or len(w) != h.shape[1]:
            raise InputError(
                f"{layer} gives {tuple(h.shape[1:])}; a direction has {h.shape[1]} values; got {tuple(v.shape)}"
            )
        return torch.einsum("nc...,c->n...", h, w).flatten(1).mean(1)

    return layer_objective(layer, score, f"{layer} along a direction")


_StoredIndex = int | Constant


def _as_index(index: IndexLike, what: str) -> _StoredIndex:
    """A place as the objective holds it: an int, or (N,) longs. Raises InputError."""
    if isinstance(index, Constant):
        return index
    indices = as_classes(index, what)
    if indices.ndim > 1:
        raise InputError(f"{what} is an int, or (N,) ints one an example; got shape {tuple(indices.shape)}")
    return Constant(indices.long()) if indices.ndim else int(indices)


def _as_indices(position: tuple[IndexLike, ...]) -> tuple[_StoredIndex, ...]:
    return tuple(_as_index(i, "a position") for i in position)


def _indexed_objective(
    rebuild: Callable[..., Objective],
    layer: str,
    indices: tuple[_StoredIndex, ...],
    score: Callable[..., Tensor],
    name: str,
) -> Objective:
    """The objective `score(h, *places)`, whose places follow the rows where they have one an example.

    `remake(layer, *places)` is the same for other rows.
    """
    lengths = {len(p) for p in indices if isinstance(p, Constant)}
    if len(lengths) > 1:
        raise InputError(f"{name} holds places for {' and '.join(map(str, sorted(lengths)))} examples; give one each")

    def select(i: slice | Tensor) -> Objective:
        return rebuild(layer, *(p[i] if isinstance(p, Constant) else p for p in indices))

    return layer_objective(layer, lambda h: score(h, *indices), name, select if lengths else None, *lengths)


def _format_indices(*indices: _StoredIndex) -> str:
    return ", ".join("one each" if isinstance(p, Constant) else str(p) for p in indices) or "the center"


def _select_channel(h: Tensor, k: _StoredIndex, layer: str) -> Tensor:
    """Channel k, (N, ...)."""
    if h.ndim < 2 or not _is_in_range(k, h.shape[1]):
        raise InputError(
            f"{layer} has {h.shape[1] if h.ndim > 1 else 0} channels; there is no number {_format_index(k)}"
        )
    return _select_index(h, k)


def _format_index(k: _StoredIndex) -> str:
    return " or ".join(map(str, k.value_range() or ())) if isinstance(k, Constant) else str(k)


def _position_or_center(h: Tensor, position: tuple[_StoredIndex, ...], layer: str) -> tuple[_StoredIndex, ...]:
    """The position, or the central one. Raises InputError where the layer has none such."""
    indices = position or tuple(s // 2 for s in h.shape[2:])
    if len(indices) != h.ndim - 2 or not all(_is_in_range(i, s) for i, s in zip(indices, h.shape[2:], strict=True)):
        position_text = ", ".join(map(_format_index, position))
        raise InputError(f"{layer} has positions {tuple(h.shape[2:])}; ({position_text}) is none of them")
    return indices


def _is_in_range(i: _StoredIndex, size: int) -> bool:
    """Whether there is such a number; those on an accelerator are not waited for."""
    lower, upper = (i.value_range() or (0, 0)) if isinstance(i, Constant) else (i, i)
    return -size <= lower and upper < size


def _select_index(h: Tensor, i: _StoredIndex) -> Tensor:
    """Number i of the second axis, (N, ...)."""
    if isinstance(i, Constant):
        return h[torch.arange(len(h), device=h.device), i.to_like(h)]
    return h[:, i]
