"""What the units of a layer are, and the layers that have some."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..box import Box
from ..engine.read.channel_axes import channels_first_layers
from ..errors import LayerError
from ..objectives import MODEL_ENDS, channel


def unit_layers(box: Box, layers: Sequence[str] | str | None, axis: int = 1) -> list[str]:
    """The layers' addresses; by default every leaf that has weights (if none has, every leaf), at each of its calls.

    Where the units' `axis` is 1, those by default are the layers that surely have them there.
    Raises LayerError for an unknown one, and for one whose first axis is not the batch.
    """
    named = layers if layers is None or (isinstance(layers, Sequence) and not isinstance(layers, str)) else [layers]
    paths = (
        _default_layers(box, axis)
        if named is None
        else [a if a in MODEL_ENDS else box.layers.resolve(a) for a in named]
    )
    if not paths:
        if axis == 1 and _default_layers(box, -1):
            raise LayerError(
                "no layer surely has its units on axis 1: name layers, or pass axis=-1 where it is the last"
            )
        raise LayerError("no module of this model runs by itself: name the layers, for one [':relu#0'] or ['logits']")
    for path in paths:
        box.check_objective(channel(path, 0), 1)  # the batch is its first axis
    return list(dict.fromkeys(paths))


def _default_layers(box: Box, axis: int) -> list[str]:
    rows = channels_first_layers(box) if axis == 1 else box.layers.leaves
    leaves = [row for row in rows if row.has_input and row.has_batch_axis and row.shape]
    with_weights = [row for row in leaves if row.n_parameters] or leaves
    return [address for row in with_weights for address in row.addresses]


def units_to_axis_1(h: Tensor, axis: int, path: str) -> Tensor:
    """An activation (n, ...) with its units second: (n, C, *P). Raises LayerError where there is no such axis."""
    if not (1 <= axis < h.ndim or (-h.ndim < axis < 0)):
        raise LayerError(f"{path!r} gives {tuple(h.shape[1:])} for an example: axis {axis} can't be its units'")
    if h.is_complex():
        raise LayerError(f"{path!r} gives complex numbers, which have no largest")
    h = h.movedim(axis, 1)
    is_full_precision = h.is_floating_point() and h.dtype not in (torch.bfloat16, torch.float16)
    return h if is_full_precision else h.float()


def peak_positions(h: Tensor) -> Tensor:
    """Where each unit (n, C, *P) is largest: (n, C), as a place among its positions in one row; the first of equals."""
    return h.flatten(2).argmax(2) if h.ndim > 2 else torch.zeros_like(h, dtype=torch.long)


def unravel_positions(flat_position: Tensor, position_shape: Sequence[int]) -> Tensor:
    """Places in one row (...) as positions (..., P) on the layer's axes."""
    if not position_shape:
        return flat_position.new_empty((*flat_position.shape, 0))
    return torch.stack(torch.unravel_index(flat_position, tuple(position_shape)), -1)
