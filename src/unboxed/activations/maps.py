"""Activation maps: what every layer receives and gives, channel by channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..box import Box
from ..cards import card
from ..errors import LayerError
from ..model.batching import BatchSize
from ..model.layers import input_address


@dataclass(frozen=True, eq=False)
class LayerMaps:
    path: str  # its address: with #k where the module runs more than once
    type: str
    inputs: Tensor  # (N, ...)
    outputs: Tensor  # (N, ...), channels first as the model has them


@card(
    name="Activation maps",
    source="Yosinski et al. 2015, arXiv:1506.06579, section 2",
    shows="What each layer hands to the next for this input, channel by channel.",
    does_not_show="Which of it matters for the answer: a bright map may be ignored above.",
    example=lambda method, box, x, y: method(box, x),
)
def maps(
    box: Box, x: Tensor, layers: Sequence[str] | None = None, *, batch_size: BatchSize = "auto"
) -> tuple[LayerMaps, ...]:
    """What the named layers (by default every leaf, in the order in which they run) receive and give for inputs x.

    Raises LayerError for an unknown layer, with the nearest names.
    """
    paths = _all_calls(box) if layers is None else [box.layers.resolve(p) for p in layers]
    if not paths:
        raise LayerError("no module of this model runs by itself; read functional ops with box.read(x, [':relu#0'])")
    input_by_path = {p: input_address(p) for p in paths}
    acts = box.read(x, [*paths, *input_by_path.values()], batch_size=batch_size)
    return tuple(LayerMaps(p, box.layers[p].type, acts[input_by_path[p]], acts[p]) for p in paths)


def _all_calls(box: Box) -> list[str]:
    return [address for row in box.layers.leaves if row.has_input and row.has_batch_axis for address in row.addresses]
