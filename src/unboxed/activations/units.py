"""What the units of a layer are, and the layers that have some."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..box import Box
from ..engine.read.channel_axes import channels_first
from ..errors import LayerError
from ..objectives import MODEL_ENDS, channel


def unit_layers(box: Box, layers: Sequence[str] | str | None, axis: int = 1) -> list[str]:
    """The layers' addresses; by default every leaf that has weights (if none has, every leaf), at each of its calls.

    Where the units' `axis` is 1, those by default are the layers that surely have them there.
    Raises LayerError for an unknown one, and for one whose first axis is not the batch.
    """
    named = layers if layers is None or (isinstance(layers, Sequence) and not isinstance(layers, str)) else [layers]
    paths = _every(box, axis) if named is None else [a if a in MODEL_ENDS else box.layers.resolve(a) for a in named]
    if not paths:
        if axis == 1 and _every(box, -1):
            raise LayerError(
                "no layer surely has its units on axis 1: name layers, or pass axis=-1 where it is the last"
            )
        raise LayerError("no module of this model runs by itself: name the layers, for one [':relu#0'] or ['logits']")
    for path in paths:
        box.check_objective(channel(path, 0), 1)  # the batch is its first axis
    return list(dict.fromkeys(paths))


def _every(box: Box, axis: int) -> list[str]:
    rows = channels_first(box) if axis == 1 else box.layers.leaves
    leaves = [row for row in rows if row.has_input and row.has_batch_axis and row.shape]
    weighted = [row for row in leaves if row.n_parameters] or leaves
    return [address for row in weighted for address in row.addresses]


def by_unit(h: Tensor, axis: int, path: str) -> Tensor:
    """An activation (n, ...) with its units second: (n, C, *P). Raises LayerError where there is no such axis."""
    if not (1 <= axis < h.ndim or (-h.ndim < axis < 0)):
        raise LayerError(f"{path!r} gives {tuple(h.shape[1:])} for an example: axis {axis} can't be its units'")
    if h.is_complex():
        raise LayerError(f"{path!r} gives complex numbers, which have no largest")
    h = h.movedim(axis, 1)
    wide = h.is_floating_point() and h.dtype not in (torch.bfloat16, torch.float16)
    return h if wide else h.float()


def peaks(h: Tensor) -> Tensor:
    """Where each unit (n, C, *P) is largest: (n, C), as a place among its positions in one row; the first of equals."""
    return h.flatten(2).argmax(2) if h.ndim > 2 else torch.zeros_like(h, dtype=torch.long)


def unraveled(place: Tensor, positions: Sequence[int]) -> Tensor:
    """Places in one row (...) as positions (..., P) on the layer's axes."""
    if not positions:
        return place.new_empty((*place.shape, 0))
    return torch.stack(torch.unravel_index(place, tuple(positions)), -1)
