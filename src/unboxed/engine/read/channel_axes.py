"""Which layers have their units on axis 1, and which on the last: models of tokens, and channels-last blocks."""

from __future__ import annotations

from collections.abc import Iterator

from ...box import Box
from ...inputs.pixels import Pixels
from ...model.layers import Layer

SECOND = ("2d", "3d", "Conv1d", "ConvTranspose", "Pool", "BatchNorm", "InstanceNorm", "GroupNorm", "LocalResponseNorm",
          "PixelShuffle", "PixelUnshuffle", "Upsampl")  # fmt: skip
LAST = ("Linear", "LayerNorm", "RMSNorm", "RmsNorm", "RNN", "LSTM", "GRU", "Attention", "Transformer", "Embedding")
LAST_EXACTLY = frozenset({"Bilinear", "Conv1D"})  # GPT-2's Conv1D is a linear layer
TURNS = ("Permute", "Transpose", "Rearrange", "Reshape", "View", "Flatten", "Unfold")  # what comes out can't be told


def channels_first(box: Box) -> list[Layer]:
    """The leaves whose units are surely on axis 1, as they first run; rows without positions always are.

    A layer's type tells; for what keeps its axes (an activation, dropout) the layers of its shape before it, or else
    the latest of as many axes. What can't be told is left out.
    """
    return [row for row, first in _told(box) if first]


def _told(box: Box) -> Iterator[tuple[Layer, bool]]:
    """Each leaf that gives rows, and whether its units are on axis 1."""
    known: dict[tuple[int, ...], set[bool]] = {}
    latest = {len(box.inputs.shape): isinstance(box.inputs, Pixels)}
    for row in box.layers.leaves:
        if not (row.rows and row.shape):
            continue
        if len(row.shape) == 1:
            yield row, True
        elif (first := channels_first_by_type(row.type)) is not None:
            known.setdefault(row.shape, set()).add(first)
            latest[len(row.shape)] = first
            yield row, first
        elif any(name in row.type for name in TURNS):
            yield row, False
        else:
            yield row, known.get(row.shape, {latest.get(len(row.shape), False)}) == {True}


def channels_first_by_type(name: str) -> bool | None:
    """Whether a module's units are on axis 1; None where its type doesn't tell."""
    if any(part in name for part in SECOND):
        return True
    return False if name in LAST_EXACTLY or any(part in name for part in LAST) else None
