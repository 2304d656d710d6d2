"""Filters: the weights of the first layer as pictures of what each unit looks for."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from ..box import Box
from ..cards import card
from ..errors import LayerError


@card(
    name="Filters",
    source="Krizhevsky et al. 2012, figure 3",
    tells="The pattern of pixels that each unit of the first layer answers to most.",
    not_tells="What deeper layers look for: their weights are not in pixels.",
    example=lambda method, box, x, y: method(box),
)
def filters(box: Box, layer: str | None = None) -> Tensor:
    """The weights of a convolution, (K, C, h, w), or of a linear layer on pixels as images, (K, C, H, W).

    By default the first layer that has either. In the net's own units: for inputs after normalization.
    Raises LayerError where the layer has no such weights.
    """
    path = _first(box) if layer is None else box.layers.resolve(layer).partition("#")[0]
    picture = _as_pictures(box, box.modules[path])
    if picture is None:
        raise LayerError(f"{path!r} ({box.layers[path].type}) has no weights that are pictures of its input")
    with torch.inference_mode(False):
        return picture.detach().to(box.dtype, copy=True)


def _first(box: Box) -> str:
    """In the order in which layers run; where some are scripted, and not seen to run, as they are defined."""
    scripted = any(isinstance(m, torch.jit.ScriptModule) for m in box.modules.values())
    for path in box.modules if scripted else [row.path for row in box.layers.leaves]:
        if _as_pictures(box, box.modules[path]) is not None:
            return path
    raise LayerError("no convolution, and no linear layer on the pixels themselves, has weights to show")


def _as_pictures(box: Box, module: nn.Module) -> Tensor | None:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    if weight.ndim == 4 and not isinstance(module, nn.ConvTranspose2d):
        return weight
    on_pixels = weight.ndim == 2 and len(box.inputs.shape) == 3 and weight.shape[1] == prod(box.inputs.shape)
    return weight.reshape(-1, *box.inputs.shape) if on_pixels else None
