"""Which layers have their units on the second axis, and which on the last: nets of tokens and channels-last blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..box import Box
from ..inputs import Pixels
from ..net.layers import Layer

LAST = (
    "Linear", "LayerNorm", "RMSNorm", "RNN", "LSTM", "GRU", "Attention", "Transformer", "Embedding",
)  # fmt: skip
LAST_EXACTLY = frozenset({"Bilinear", "Conv1D"})  # GPT-2's Conv1D is a linear layer
SECOND = ("Conv", "Pool", "BatchNorm", "InstanceNorm", "GroupNorm", "LocalResponseNorm", "Pixel", "Upsampl", "2d", "3d")
TURNS = ("Permute", "Transpose", "Rearrange", "Reshape", "View", "Flatten")  # and what comes out can't be told


def channels_first(box: Box) -> list[Layer]:
    """The leaves whose units are surely on axis 1, as they first run; rows without positions always are.

    A layer's type tells, or for what keeps its axes (an activation, dropout) the layers of its shape before it, else
    those of as many axes. What can't be told is left out.
    """
    return [row for row, first in _told(box) if first]


def _told(box: Box) -> Iterator[tuple[Layer, bool]]:
    known: dict[tuple[int, ...], set[bool]] = {}
    latest = {len(box.inputs.shape): True} if isinstance(box.inputs, Pixels) else {}
    for row in box.layers.leaves:
        if not row.rows:
            continue
        first = _by_type(row.type)
        if len(row.shape) < 2 or math.prod(row.shape[1:]) == 1 == row.shape[-1] and first is None:
            yield row, True
        elif first is not None:
            known.setdefault(row.shape, set()).add(first)
            latest[len(row.shape)] = first
            yield row, first
        elif any(name in row.type for name in TURNS):
            yield row, False
        else:
            yield row, known.get(row.shape, {latest.get(len(row.shape), False)}) == {True}


def _by_type(name: str) -> bool | None:
    """Whether its units are on axis 1; None where the type doesn't tell."""
    if name in LAST_EXACTLY:
        return False
    if "Norm2d" in name or "Conv" in name:
        return True
    if any(part in name for part in LAST):
        return False
    return True if any(part in name for part in SECOND) else None
