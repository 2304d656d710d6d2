"""The units of a layer, and the layers that have units."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..box import Box
from ..engine.read.channel_axes import channels_first_layers
from ..engine.read.features import resolve_address
from ..errors import LayerError
from ..objectives import channel
from ..validation import address_list


def resolve_unit_layers(box: Box, layers: Sequence[str] | str | None, axis: int = 1) -> list[str]:
    """The layers' addresses; by default every leaf that has weights (if none has, every leaf), at each of its calls.

    Where the units' `axis` is 1, those by default are the layers that are known to have them there.
    Raises LayerError for an unknown one, and for one whose first axis is not the batch.
    """
    addresses = None if layers is None else address_list(layers)
    paths = _default_unit_layers(box, axis) if addresses is None else [resolve_address(box, a) for a in addresses]
    if not paths:
        if axis == 1 and _default_unit_layers(box, -1):
            raise LayerError(
                "no layer is known to have its units on axis 1: name layers, or give axis=-1 where it is the last"
            )
        raise LayerError("no module of this model runs by itself: name the layers, such as [':relu#0'] or ['logits']")
    for path in paths:
        box.check_objective(channel(path, 0), 1)  # the batch is its first axis
    return list(dict.fromkeys(paths))


def _default_unit_layers(box: Box, axis: int) -> list[str]:
    rows = channels_first_layers(box) if axis == 1 else box.layers.leaves
    leaves = [row for row in rows if row.runs_per_example and row.shape]
    with_weights = [row for row in leaves if row.n_parameters] or leaves
    return [address for row in with_weights for address in row.addresses]


def argmax_positions(h: Tensor) -> Tensor:
    """Where each unit (n, C, *P) is largest, as a flat index (n, C); the first of equals."""
    return h.flatten(2).argmax(2) if h.ndim > 2 else torch.zeros_like(h, dtype=torch.long)


def unravel_positions(flat_position: Tensor, position_shape: Sequence[int]) -> Tensor:
    """Flat indices (...) as positions (..., P) on the layer's axes."""
    if not position_shape:
        return flat_position.new_empty((*flat_position.shape, 0))
    return torch.stack(torch.unravel_index(flat_position, tuple(position_shape)), -1)
