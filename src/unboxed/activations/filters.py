"""Filters: the weights of the first layer as images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..box import Box
from ..cards import card
from ..engine.results import ResultMixin
from ..errors import LayerError
from ..inputs.features import Features
from ..inputs.multi import MultiInput
from ..parameters import LayerAddress
from ..settings import check_settings

MIN_SAME_CHANNEL_CORRELATION = 0.5  # from which on two channels count as the same pixels


@dataclass(frozen=True, eq=False, repr=False)
class Filters(ResultMixin):
    """The filters of a layer: its weights as images."""

    returns: ClassVar[str] = "activations"

    layer: str  # the layer's path
    type: str  # of the module: "Conv2d"
    weights: Tensor  # (K, C, h, w), in the input's order of channels

    @property
    def shape(self) -> torch.Size:
        """The shape of the weights: (K, C, h, w)."""
        return self.weights.shape

    def __len__(self) -> int:
        return len(self.weights)


@card(
    name="Filters",
    source="Krizhevsky et al. 2012, figure 3",
    shows="The pattern that each unit of the first layer responds to most.",
    does_not_show="What deeper layers look for: their weights are not in units of the input.",
    example=lambda method, box, x, y: method(box),
    order=2,
)
def filters(box: Box, layer: LayerAddress = None) -> Filters:
    """The weights of the first convolution or linear layer, as images in the input's order of channels.

    Only the first layer's weights are in units of the input; for what deeper units look for use
    `ub.synthesis.channels`.

    Args:
        box: The opened model.
        layer: Address of the layer, as `box.layers` lists them. None: the first convolution, or linear layer on pixels,
            also behind padding, a normalization or a permutation of channels.

    Returns:
        `Filters`: `weights` (K, C, h, w) of a convolution, (K, C, H, W) of a linear layer on images (C, H, W), in the
        model's own units: for inputs after normalization; and `layer`, whose they are. It shows itself.

    Raises:
        LayerError: for an unknown layer, or one whose weights are not images.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> ub.activations.filters(box)
        Filters(layer='conv1', type='Conv2d', weights=(16, 1, 5, 5))

    Source:
        Krizhevsky et al. 2012, figure 3.
    """
    check_settings(filters, locals())
    if layer is not None:
        path = box.layers.resolve(layer).partition("#")[0]
        image = _weights_as_images(box, path, named_by_user=True)
        if image is None:
            kind = box.layers[path].type
            raise LayerError(f"{path!r} ({kind}) has no weights in the shape of images")
        return _filters_of_layer(box, path, image)
    for path in _layer_paths_in_run_order(box):
        if (image := _weights_as_images(box, path)) is not None:
            return _filters_of_layer(box, path, image)
    if isinstance(box.inputs, Features):
        raise LayerError(
            "filters are weights in the shape of images, and this model takes a table: for what each column counts use "
            "ub.attribution.gradient_x_input"
        )
    raise LayerError("no convolution and no linear layer takes the pixels themselves")


def _filters_of_layer(box: Box, path: str, weights: Tensor) -> Filters:
    return Filters(path, type(box.modules[path]).__name__.removeprefix("Parametrized"), weights)


def _layer_paths_in_run_order(box: Box) -> list[str]:
    """In the order in which layers run; where some are scripted, which no hook observes, as they are defined."""
    scripted = any(isinstance(m, torch.jit.ScriptModule) for m in box.modules.values())
    return list(box.modules) if scripted else [row.path for row in box.layers.leaves]


def _weights_as_images(box: Box, path: str, named_by_user: bool = False) -> Tensor | None:
    """The layer's weights if they are images: of the pixels, or of the inputs of a layer that was named."""
    module = box.modules[path]
    with box.isolated(grad=False):  # a parametrized weight is computed, and may be written, when it is read
        channel_order = _pixel_channel_order(box, path)
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or (channel_order is None and not named_by_user):
            return None
        is_flat = channel_order is not None and weight.ndim == 2 and weight.shape[1] == prod(box.inputs.shape)
        if is_flat and len(box.inputs.shape) == 3:
            return weight.reshape(-1, *box.inputs.shape).to(box.dtype, copy=True)
        if weight.ndim != 4 or isinstance(module, nn.ConvTranspose2d):
            return None
        has_all_channels = channel_order and len(channel_order) == weight.shape[1]  # not one of several groups
        return (weight[:, channel_order] if has_all_channels else weight).to(box.dtype, copy=True)


def _pixel_channel_order(box: Box, path: str) -> list[int] | None:
    """The position of each channel of the pixels in a layer's input; None where the input is not the pixels.

    For a flat input, and for a scripted layer, which cannot be checked, the list is empty: the order stays.
    """
    if isinstance(box.modules[path], torch.jit.ScriptModule):
        return []
    if not any(row.path == path and row.has_input for row in box.layers):
        return None
    noise = box.inputs.random_inputs(2, torch.Generator(box.device).manual_seed(0)).to(box.dtype)
    parts = box.inputs.split(noise) if isinstance(box.inputs, MultiInput) else [noise]
    layer_input = box.forward(noise, [f"{path}:input#0"])[
        f"{path}:input#0"
    ]  # (2, C, H, W), maybe padded, or (2, C * H * W)
    layer_input = layer_input.to(noise)
    return next((order for part in parts if (order := _channel_order_in_input(layer_input, part)) is not None), None)


def _channel_order_in_input(layer_input: Tensor, noise: Tensor) -> list[int] | None:
    """The position of each channel of the noise (2, C, H, W) in a layer's input; an empty list where it is flat."""
    if layer_input.shape == noise.flatten(1).shape:
        return (
            []
            if float(_abs_correlation_matrix(layer_input.reshape(1, -1), noise.reshape(1, -1)))
            > MIN_SAME_CHANNEL_CORRELATION
            else None
        )
    if noise.ndim != 4 or layer_input.ndim != 4 or layer_input.shape[1] != noise.shape[1]:
        return None
    candidate_orders = (
        _channel_order_by_correlation(part, noise)
        for part in _iter_windows_center_first(layer_input, noise.shape[2], noise.shape[3])
    )
    return next((order for order in candidate_orders if order is not None), None)


def _iter_windows_center_first(maps: Tensor, height: int, width: int) -> Iterator[Tensor]:
    """All windows of a size in maps (N, C, H, W), central ones first: after padding, the image is one of them."""
    down, right = maps.shape[2] - height, maps.shape[3] - width
    offsets = [(i, j) for i in range(down + 1) for j in range(right + 1)]  # none where the maps are smaller
    for i, j in sorted(offsets, key=lambda p: abs(2 * p[0] - down) + abs(2 * p[1] - right)):
        yield maps[:, :, i : i + height, j : j + width]


def _channel_order_by_correlation(layer_input: Tensor, noise: Tensor) -> list[int] | None:
    """The position of each channel of the noise (N, C, H, W): pixels may be scaled, shifted, clipped or noisy."""
    is_correlated = (
        _abs_correlation_matrix(layer_input.transpose(0, 1).flatten(1), noise.transpose(0, 1).flatten(1))
        > MIN_SAME_CHANNEL_CORRELATION
    )  # (C, C)
    is_one_to_one = bool((is_correlated.sum(0) == 1).all() and (is_correlated.sum(1) == 1).all())
    return is_correlated.long().argmax(0).tolist() if is_one_to_one else None


def _abs_correlation_matrix(a: Tensor, b: Tensor) -> Tensor:
    """The absolute correlations (A, B) of rows (A, M) and (B, M)."""
    a, b = (F.normalize(h - h.mean(1, keepdim=True)) for h in (a, b))
    return (a @ b.mT).abs()
