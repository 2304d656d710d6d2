"""Filters: the weights of the first layer as pictures of what each unit looks for."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from ..box import Box
from ..cards import card
from ..errors import LayerError
from ..multi_input import MultiInput


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
    if layer is not None:
        path = box.layers.resolve(layer).partition("#")[0]
        picture = _pictures(box, path, named=True)
        if picture is None:
            kind = box.layers[path].type
            raise LayerError(f"{path!r} ({kind}) has no weights that are pictures of its input")
        return picture
    for path in _in_order(box):
        if (picture := _pictures(box, path)) is not None:
            return picture
    raise LayerError("no convolution, and no linear layer, works on the pixels themselves")


def _in_order(box: Box) -> list[str]:
    """As the layers run; where some are scripted, and not seen to run, as they are defined."""
    scripted = any(isinstance(m, torch.jit.ScriptModule) for m in box.modules.values())
    return list(box.modules) if scripted else [row.path for row in box.layers.leaves]


def _pictures(box: Box, path: str, named: bool = False) -> Tensor | None:
    """The layer's weights as the forward has them, if they are pictures: of the pixels, or of what a named one gets."""
    module = box.modules[path]
    with box.quiet(grad=False):  # a parametrized weight is computed, and may be written, when it is looked at
        on_pixels = _works_on_pixels(box, path)
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or not (on_pixels or named):
            return None
        flat = on_pixels and weight.ndim == 2 and weight.shape[1] == prod(box.inputs.shape)
        if flat and len(box.inputs.shape) == 3:
            return weight.reshape(-1, *box.inputs.shape).to(box.dtype, copy=True)
        convolves = weight.ndim == 4 and not isinstance(module, nn.ConvTranspose2d)
        return weight.to(box.dtype, copy=True) if convolves else None


def _works_on_pixels(box: Box, path: str) -> bool:
    """Whether what the layer receives are the input's pixels in their order (of a scripted layer it is taken so)."""
    if isinstance(box.modules[path], torch.jit.ScriptModule):
        return True
    if not any(row.path == path and row.takes for row in box.layers):
        return False
    noise = box.inputs.sample(2, torch.Generator(box.device).manual_seed(0)).to(box.dtype)
    parts = box.inputs.split(noise) if isinstance(box.inputs, MultiInput) else [noise]
    received = box.forward(noise, [f"{path}:input#0"])[f"{path}:input#0"]  # (2, C, H, W) or (2, C * H * W)
    return any(_same_pixels(received, part) for part in parts)


def _same_pixels(received: Tensor, noise: Tensor) -> bool:
    """Whether one is the other, (2, C, H, W) or flat: scaled, clipped or noisy, but not in another order."""
    if received.shape not in (noise.shape, noise.flatten(1).shape):
        return False
    together = torch.stack([received.flatten().to(noise), noise.flatten()])
    return bool(together.corrcoef()[0, 1].abs() > 0.5)
