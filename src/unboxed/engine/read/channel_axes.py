"""Which layers have their channels on axis 1, and which on the last: transformers, and channels-last blocks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from ...box import Box
from ...errors import LayerError
from ...inputs.pixels import Pixels
from ...model.hooks import Address
from ...model.layers import Layer

CHANNELS_FIRST_TYPE_NAME_PARTS = (
    "2d",
    "3d",
    "Conv1d",
    "ConvTranspose",
    "Pool",
    "BatchNorm",
    "InstanceNorm",
    "GroupNorm",
    "LocalResponseNorm",
    "PixelShuffle",
    "PixelUnshuffle",
    "Upsampl",
)
CHANNELS_LAST_TYPE_NAME_PARTS = (
    "Linear",
    "LayerNorm",
    "RMSNorm",
    "RmsNorm",
    "RNN",
    "LSTM",
    "GRU",
    "Attention",
    "Transformer",
    "Embedding",
)
CHANNELS_LAST_TYPE_NAMES = frozenset({"Bilinear", "Conv1D"})  # GPT-2's Conv1D is a linear layer
AXIS_CHANGING_TYPE_NAME_PARTS = (
    "Permute",
    "Transpose",
    "Rearrange",
    "Reshape",
    "View",
    "Flatten",
    "Unfold",
)  # the axes of the output are ambiguous


def channels_first_layers(box: Box) -> list[Layer]:
    """The leaf modules whose channels are surely on axis 1, in the order in which they first run.

    A layer's type determines it; for one that keeps the axes (an activation, dropout) the last layer of its shape
    before it, or else the last with as many axes. Ambiguous layers are left out; of (N, C) channels are on axis 1.
    """
    return [layer for layer, first in _leaves_and_channels_first(box) if first]


def _leaves_and_channels_first(box: Box) -> Iterator[tuple[Layer, bool]]:
    """Each leaf module that returns rows, and whether its channels are on axis 1."""
    axis_by_shape: dict[tuple[int, ...], set[bool]] = {}
    axis_by_ndim = {len(getattr(box.inputs, "model_shape", box.inputs.shape)): isinstance(box.inputs, Pixels)}
    for layer in box.layers.leaves:
        if not (layer.has_batch_axis and layer.shape):
            continue
        if len(layer.shape) == 1:
            yield layer, True
        elif (is_channels_first := is_channels_first_type(layer.type)) is not None:
            axis_by_shape.setdefault(layer.shape, set()).add(is_channels_first)
            axis_by_ndim[len(layer.shape)] = is_channels_first
            yield layer, is_channels_first
        elif any(name in layer.type for name in AXIS_CHANGING_TYPE_NAME_PARTS):
            yield layer, False
        else:
            yield layer, axis_by_shape.get(layer.shape, {axis_by_ndim.get(len(layer.shape), False)}) == {True}


@lru_cache(maxsize=1024)
def is_channels_first_type(type_name: str) -> bool | None:
    """Whether a module's channels are on axis 1; None where its type does not determine it."""
    if any(part in type_name for part in CHANNELS_FIRST_TYPE_NAME_PARTS):
        return True
    return (
        False
        if type_name in CHANNELS_LAST_TYPE_NAMES or any(part in type_name for part in CHANNELS_LAST_TYPE_NAME_PARTS)
        else None
    )


def unit_axis(box: Box, address: str, n_axes: int) -> int:
    """The axis of the units of a layer with `n_axes` axes (the batch is axis 0): 1 or the last.

    What a module receives has them where its type says; where neither that nor the layers around determine it, images
    have them on axis 1, anything else on the last.
    """
    parsed, is_first = Address.parse(address), None
    if n_axes < 3:
        return 1
    if parsed.op == "input":
        is_first = is_channels_first_type(box.layers[parsed.path].type)
    elif parsed.op is None:
        is_first = {layer.path: first for layer, first in _leaves_and_channels_first(box)}.get(parsed.path)
    if is_first is None:
        is_first = isinstance(box.inputs, Pixels) and n_axes == len(box.inputs.shape) + 1
    return 1 if is_first else n_axes - 1


def units_to_axis_1(h: Tensor, axis: int, path: str) -> Tensor:
    """An activation (n, ...) with its units second: (n, C, *P). Raises LayerError where there is no such axis."""
    if not (1 <= axis < h.ndim or (-h.ndim < axis < 0)):
        raise LayerError(f"{path!r} has shape {tuple(h.shape[1:])} per example: axis {axis} can't be that of its units")
    if h.is_complex():
        raise LayerError(f"{path!r} has complex activations, which have no largest")
    h = h.movedim(axis, 1)
    is_full_precision = h.is_floating_point() and h.dtype not in (torch.bfloat16, torch.float16)
    return h if is_full_precision else h.float()
