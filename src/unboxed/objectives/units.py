"""Objectives inside the net: channels, neurons, positions, directions, whole layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError
from .algebra import Index, Objective, held, of

Place = int | Tensor  # one for all examples, or (N,) ints, one an example


def channel(layer: str, k: Place) -> Objective:
    """The mean of channel k of a layer over its positions (of unit k, for a layer without positions)."""

    def score(h: Tensor, k: Place) -> Tensor:
        return _unit(h, k, layer).flatten(1).mean(1)

    return _placed(layer, (k,), score, f"{layer} channel {_said(k)}")


def neuron(layer: str, k: Place, *position: Place) -> Objective:
    """One neuron: channel k at a position, by default the central one."""

    def score(h: Tensor, k: Place, *position: Place) -> Tensor:
        at = position or tuple(s // 2 for s in h.shape[2:])
        if len(at) != h.ndim - 2 or any(not _inside(i, s) for i, s in zip(at, h.shape[2:], strict=False)):
            places = tuple(map(_said, position))
            raise InputError(f"{layer} has positions {tuple(h.shape[2:])}; {places} is none of them")
        h = _unit(h, k, layer)
        for i in at:
            h = _picked(h, i)
        return h

    where = ", ".join(map(_said, position)) or "the center"
    return _placed(layer, (k, *position), score, f"{layer} channel {_said(k)} at {where}")


def spatial(layer: str, *position: Place) -> Objective:
    """The mean square of all channels at one position, by default the central one (Olah et al. 2017)."""

    def score(h: Tensor, *position: Place) -> Tensor:
        at = position or tuple(s // 2 for s in h.shape[2:])
        if len(at) != h.ndim - 2 or any(not _inside(i, s) for i, s in zip(at, h.shape[2:], strict=False)):
            places = tuple(map(_said, position))
            raise InputError(f"{layer} has positions {tuple(h.shape[2:])}; {places} is none of them")
        h = h.movedim(1, -1)  # (N, ..., C)
        for i in at:
            h = _picked(h, i)
        return h.flatten(1).pow(2).mean(1)

    where = ", ".join(map(_said, position)) or "the center"
    return _placed(layer, position, score, f"{layer} at {where}")


def energy(layer: str) -> Objective:
    """The mean square of all that a layer gives: what DeepDream climbs (Mordvintsev et al. 2015)."""
    return of(layer, lambda h: h.flatten(1).pow(2).mean(1), f"{layer} as a whole")


def direction(layer: str, v: Tensor) -> Objective:
    """The mean over positions of <h, v>: v has one value a channel (C,), or the layer's whole shape."""

    def score(h: Tensor) -> Tensor:
        w = held(v, h).to(h)
        if w.shape == h.shape[1:]:
            return (h * w).flatten(1).sum(1)
        if w.ndim != 1 or len(w) != h.shape[1]:
            raise InputError(
                f"{layer} gives {tuple(h.shape[1:])}; a direction has {h.shape[1]} values; got {tuple(v.shape)}"
            )
        return torch.einsum("nc...,c->n...", h, w).flatten(1).mean(1)

    return of(layer, score, f"{layer} along a direction")


def _placed(layer: str, places: tuple[Place, ...], score: Callable[..., Tensor], name: str) -> Objective:
    """The objective `score(h, *places)`, whose places follow the rows where they have one an example."""
    sizes = {len(p) for p in places if isinstance(p, Tensor) and p.ndim}
    if len(sizes) > 1:
        raise InputError(f"{name} holds places for {' and '.join(map(str, sorted(sizes)))} examples; give one each")

    def select(i: Index) -> Objective:
        return _placed(layer, tuple(p[i] if _many(p) else p for p in places), score, name)  # type: ignore[index]

    return of(layer, lambda h: score(h, *places), name, select if sizes else None, *sizes)


def _many(place: Place) -> bool:
    return isinstance(place, Tensor) and place.ndim > 0


def _said(place: Place) -> str:
    return "one each" if _many(place) else str(int(place))


def _unit(h: Tensor, k: Place, layer: str) -> Tensor:
    """Channel k, (N, ...)."""
    if h.ndim < 2 or not _inside(k, h.shape[1]):
        raise InputError(f"{layer} has {h.shape[1] if h.ndim > 1 else 0} channels; there is no number {_number(k)}")
    return _picked(h, k)


def _number(k: Place) -> str:
    return f"{int(k.min())} or {int(k.max())}" if isinstance(k, Tensor) and k.numel() else str(k)


def _inside(i: Place, size: int) -> bool:
    """Whether there is such a number; those on an accelerator are not waited for."""
    if isinstance(i, Tensor) and i.ndim:
        return i.device.type != "cpu" or bool(((i >= -size) & (i < size)).all())
    return bool(-size <= i < size)


def _picked(h: Tensor, i: Place) -> Tensor:
    """Number i of the second axis, (N, ...)."""
    if isinstance(i, Tensor) and i.ndim:
        return h[torch.arange(len(h), device=h.device), held(i, h)]
    return h[:, i]
