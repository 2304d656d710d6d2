"""Objectives inside the model: channels, neurons, positions, directions, whole layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError
from .algebra import Held, Objective, of
from .outputs import as_classes
from .recorded import recorded

Place = int | Tensor | Held  # one for all examples, or (N,) ints, one an example


@recorded
def channel(layer: str, k: Place) -> Objective:
    """The mean of channel k of a layer over its positions (of unit k, for a layer without positions)."""

    def score(h: Tensor, k: _Where) -> Tensor:
        return _unit(h, k, layer).reshape(len(h), -1).mean(1)

    unit = _where(k, "a channel")
    return _placed(channel, layer, (unit,), score, f"{layer} channel {_said(unit)}")


@recorded
def neuron(layer: str, k: Place, *position: Place) -> Objective:
    """One neuron: channel k at a position, by default the central one."""

    def score(h: Tensor, k: _Where, *position: _Where) -> Tensor:
        at = _position(h, position, layer)
        h = _unit(h, k, layer)
        for i in at:
            h = _picked(h, i)
        return h

    unit, at = _where(k, "a channel"), _wheres(position)
    return _placed(neuron, layer, (unit, *at), score, f"{layer} channel {_said(unit)} at {_said(*at)}")


@recorded
def spatial(layer: str, *position: Place) -> Objective:
    """The mean square of all channels at one position, by default the central one (Olah et al. 2017)."""

    def score(h: Tensor, *position: _Where) -> Tensor:
        at = _position(h, position, layer)
        h = h.movedim(1, -1)  # (N, ..., C)
        for i in at:
            h = _picked(h, i)
        return h.flatten(1).pow(2).mean(1)

    at = _wheres(position)
    return _placed(spatial, layer, at, score, f"{layer} at {_said(*at)}")


@recorded
def energy(layer: str) -> Objective:
    """The mean square of all that a layer gives: what DeepDream climbs (Mordvintsev et al. 2015)."""
    return of(layer, lambda h: h.flatten(1).pow(2).mean(1), f"{layer} as a whole")


@recorded
def direction(layer: str, v: Tensor) -> Objective:
    """The mean over positions of <h, v>: v has one value a channel (C,), or the layer's whole shape."""
    own = Held(v)

    def score(h: Tensor) -> Tensor:
        w = own.beside(h)
        if w.shape == h.shape[1:]:
            return (h * w).flatten(1).sum(1)
        if w.ndim != 1 or len(w) != h.shape[1]:
            raise InputError(
                f"{layer} gives {tuple(h.shape[1:])}; a direction has {h.shape[1]} values; got {tuple(v.shape)}"
            )
        return torch.einsum("nc...,c->n...", h, w).flatten(1).mean(1)

    return of(layer, score, f"{layer} along a direction")


_Where = int | Held


def _where(place: Place, what: str) -> _Where:
    """A place as the objective holds it: an int, or (N,) longs. Raises InputError."""
    if isinstance(place, Held):
        return place
    places = as_classes(place, what)
    if places.ndim > 1:
        raise InputError(f"{what} is an int, or (N,) ints one an example; got shape {tuple(places.shape)}")
    return Held(places.long()) if places.ndim else int(places)


def _wheres(position: tuple[Place, ...]) -> tuple[_Where, ...]:
    return tuple(_where(i, "a position") for i in position)


def _placed(
    remake: Callable[..., Objective], layer: str, places: tuple[_Where, ...], score: Callable[..., Tensor], name: str
) -> Objective:
    """The objective `score(h, *places)`, whose places follow the rows where they have one an example.

    `remake(layer, *places)` is the same for other rows.
    """
    sizes = {len(p) for p in places if isinstance(p, Held)}
    if len(sizes) > 1:
        raise InputError(f"{name} holds places for {' and '.join(map(str, sorted(sizes)))} examples; give one each")

    def select(i: slice | Tensor) -> Objective:
        return remake(layer, *(p[i] if isinstance(p, Held) else p for p in places))

    return of(layer, lambda h: score(h, *places), name, select if sizes else None, *sizes)


def _said(*places: _Where) -> str:
    return ", ".join("one each" if isinstance(p, Held) else str(p) for p in places) or "the center"


def _unit(h: Tensor, k: _Where, layer: str) -> Tensor:
    """Channel k, (N, ...)."""
    if h.ndim < 2 or not _inside(k, h.shape[1]):
        raise InputError(f"{layer} has {h.shape[1] if h.ndim > 1 else 0} channels; there is no number {_number(k)}")
    return _picked(h, k)


def _number(k: _Where) -> str:
    return " or ".join(map(str, k.span() or ())) if isinstance(k, Held) else str(k)


def _position(h: Tensor, position: tuple[_Where, ...], layer: str) -> tuple[_Where, ...]:
    """The position, or the central one. Raises InputError where the layer has none such."""
    at = position or tuple(s // 2 for s in h.shape[2:])
    if len(at) != h.ndim - 2 or not all(_inside(i, s) for i, s in zip(at, h.shape[2:], strict=True)):
        places = ", ".join(map(_number, position))
        raise InputError(f"{layer} has positions {tuple(h.shape[2:])}; ({places}) is none of them")
    return at


def _inside(i: _Where, size: int) -> bool:
    """Whether there is such a number; those on an accelerator are not waited for."""
    least, most = (i.span() or (0, 0)) if isinstance(i, Held) else (i, i)
    return -size <= least and most < size


def _picked(h: Tensor, i: _Where) -> Tensor:
    """Number i of the second axis, (N, ...)."""
    if isinstance(i, Held):
        return h[torch.arange(len(h), device=h.device), i.beside(h)]
    return h[:, i]
