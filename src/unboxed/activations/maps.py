"""Activation maps: the inputs and outputs of every layer, channel by channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.result_views import ResultTuple
from ..engine.results import ResultMixin
from ..errors import LayerError
from ..model.layers import input_address
from ..parameters import BatchSize, InputBatch, LayerAddresses
from ..settings import check_settings
from ..validation import address_list


@dataclass(frozen=True, eq=False, repr=False)
class LayerMaps(ResultMixin):
    """The input and output activations of one layer."""

    returns: ClassVar[str] = "activations"

    path: str  # the layer's address: with #k where the module runs more than once
    type: str  # of the module: "Conv2d"
    inputs: Tensor  # (N, ...)
    outputs: Tensor  # (N, ...), channels first where the model has them so


@card(
    name="Activation maps",
    source="Yosinski et al. 2015, arXiv:1506.06579, section 2",
    shows="What each layer passes to the next for this input, channel by channel.",
    does_not_show="Which of it matters for the prediction: later layers may ignore a bright map.",
    example=lambda method, box, x, y: method(box, x),
    order=1,
)
def maps(
    box: Box, x: InputBatch, layers: LayerAddresses = None, *, batch_size: BatchSize = "auto"
) -> tuple[LayerMaps, ...]:
    """The inputs and outputs of layers for inputs x.

    A first look at what each layer does with an input; `ub.plots.activations` shows it. For the raw activations alone
    use `box.read`; for what units respond to over a data set `top_examples`.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        layers: Addresses of the layers, as `box.layers` lists them. None: every module without children, in the order
            in which they run.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        One `LayerMaps` per layer: `inputs` and `outputs`, both (N, ...).

    Raises:
        LayerError: for an unknown layer, with the nearest names.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> (result,) = ub.activations.maps(box, x, ["conv1"])
        >>> tuple(result.inputs.shape), tuple(result.outputs.shape)
        ((2, 1, 28, 28), (2, 16, 24, 24))

    Source:
        Yosinski et al. 2015, arXiv:1506.06579, section 2.
    """
    check_settings(maps, locals())
    paths = _leaf_call_addresses(box) if layers is None else [box.layers.resolve(p) for p in address_list(layers)]
    if not paths:
        raise LayerError("no module of this model runs by itself; read functional ops with box.read(x, [':relu#0'])")
    input_by_path = {p: input_address(p) for p in paths}
    acts = box.read(x, [*paths, *input_by_path.values()], batch_size=batch_size)
    return ResultTuple(LayerMaps(p, box.layers[p].type, acts[input_by_path[p]], acts[p]) for p in paths)


def _leaf_call_addresses(box: Box) -> list[str]:
    return [address for row in box.layers.leaves if row.runs_per_example for address in row.addresses]
