"""How a layer's positions correspond to the image: channels-first or channels-last axes, or tokens of a patch grid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ...box import Box
from ...errors import InputError, LayerError
from ...inputs.multi import MultiInput
from ...inputs.pixels import Pixels
from ...model.hooks import Address
from ...model.layers import Layer
from .channel_axes import channels_first_layers, is_channels_first_type
from .sizes import Size

MAX_PREFIX_TOKENS = 8  # tokens before those of the patches, at most: one for the class, registers


class PositionGrid(NamedTuple):
    """How activations (N, ...) become maps (N, C, h, w). `extra` tokens precede those of the grid."""

    size: Size
    channels_last: bool = False  # channels last, (N, h, w, C)
    is_tokens: bool = False  # (N, extra + h * w, C)
    n_extra_tokens: int = 0

    def to_maps(self, h: Tensor) -> Tensor:
        """Maps (N, C, h, w) of activations, or of gradients; of volumes their slices below one another."""
        if not self.is_tokens and h.ndim in (3, 5):  # of a signal, of a volume
            return h.reshape(len(h), h.shape[1], *self.size)
        if self.is_tokens:
            return h[:, self.n_extra_tokens :].mT.reshape(len(h), -1, *self.size)
        return h.movedim(3, 1) if self.channels_last else h


def image_size(box: Box) -> Size:
    """(H, W) of the box's images; of several inputs that of all images among them. Raises InputError."""
    modalities = box.inputs.parts if isinstance(box.inputs, MultiInput) else (box.inputs,)
    parts = modalities if isinstance(modalities, tuple) else tuple(modalities.values())
    images = [part for part in parts if isinstance(part, Pixels)]
    sizes = {(part.shape[1], part.shape[2]) for part in images}
    if len(sizes) != 1:
        taken = "images of several sizes: box.fix_other_inputs(name, x) is a box of one of them"
        n_images_text = taken if images else "none, so there is no image to lay a map on"
        raise InputError(
            f"a map over the image needs a model that takes images (Pixels); this model takes {n_images_text}"
        )
    return sizes.pop()


def resize_maps_to_input(box: Box, maps: Tensor, layer_shape: tuple[int, ...], upsample: bool) -> Tensor:
    """Maps (N, 1, h, w), at the size of the image if `upsample`, with the axes of the inputs: (N, 1, T) of signals."""
    inputs = box.inputs
    if not isinstance(inputs, Pixels) or inputs.n_axes == 2:
        return upsample_bilinear(maps, image_size(box)) if upsample else maps
    maps = maps.reshape(len(maps), 1, *layer_shape[1:]) if len(layer_shape) == 1 + inputs.n_axes else maps
    if not upsample:
        return maps
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[maps.ndim]
    size = inputs.model_shape[1:] if maps.ndim == 2 + inputs.n_axes else inputs.shape[1:]
    return F.interpolate(maps, size, mode=mode, align_corners=False).reshape(len(maps), 1, *inputs.own_shape[1:])


def upsample_bilinear(maps: Tensor, size: Size) -> Tensor:
    """Maps (N, 1, h, w) at the size of the image, bilinear."""
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def layers_with_grids(box: Box) -> Iterator[tuple[Layer, PositionGrid]]:
    """The leaf modules with more than one position on the image, in the order in which they first run."""
    channels_first_paths = {layer.path for layer in channels_first_layers(box)}
    map_shapes = {layer.shape for layer in box.layers.leaves if is_channels_first_type(layer.type)}
    map_size: Size | None = None  # of the last map before the tokens, or of the last merged tokens
    token_widths: set[int] = set()  # of the tokens of this size
    grid_by_shape: dict[tuple[int, ...], PositionGrid] = {}  # of the last tokens of each shape
    for layer in box.layers.leaves:
        if not (layer.has_batch_axis and layer.shape) or (
            layer.shape not in map_shapes and _has_attention_weight_shape(layer, grid_by_shape)
        ):
            continue
        is_channels_first = layer.path in channels_first_paths
        grid = _signal_or_volume_grid(box, layer, is_channels_first) or _image_map_grid(layer, is_channels_first)
        grid = grid or _layer_token_grid(box, layer, map_size, grid_by_shape)
        if grid is None and (grid := _merged_token_grid(box, layer, map_size, token_widths)) is None:
            continue
        if grid.size != map_size and (map_size is not None or not grid.is_tokens):
            map_size, token_widths = grid.size, set()
        if grid.is_tokens:
            token_widths.add(layer.shape[1])
            grid_by_shape[layer.shape] = grid
        yield layer, grid


def _has_attention_weight_shape(layer: Layer, grid_by_shape: Mapping[tuple[int, ...], PositionGrid]) -> bool:
    """Whether this is the shape (heads, T, T) of attention weights, and not of maps."""
    token_counts = {shape[0] for shape in grid_by_shape}
    return len(layer.shape) == 3 and is_channels_first_type(layer.type) is None and {*layer.shape[1:]} <= token_counts


def _signal_or_volume_grid(box: Box, layer: Layer, is_channels_first: bool) -> PositionGrid | None:
    """The grid of maps (C, t) of signals, or (C, d, h, w) of volumes, as the images that these are."""
    n_axes = getattr(box.inputs, "n_axes", 2)
    if n_axes == 2 or not is_channels_first or len(layer.shape) != 1 + n_axes:
        return None
    return as_image_grid(layer.shape)


def as_image_grid(shape: tuple[int, ...]) -> PositionGrid | None:
    """The grid of maps (C, t) or (C, d, h, w) as images of one row, or of their slices; None of one position."""
    size = (math.prod(shape[1:-1]), shape[-1])
    return PositionGrid(size) if math.prod(size) > 1 else None


def _image_map_grid(layer: Layer, is_channels_first: bool) -> PositionGrid | None:
    if len(layer.shape) != 3 or not (is_channels_first or is_channels_last_layer(layer)):
        return None
    size = (layer.shape[1], layer.shape[2]) if is_channels_first else (layer.shape[0], layer.shape[1])
    return PositionGrid(size, channels_last=not is_channels_first) if math.prod(size) > 1 else None


def is_channels_last_layer(layer: Layer) -> bool:
    """Whether a module of this type surely has its channels on the last axis."""
    return is_channels_first_type(layer.type) is False


def _layer_token_grid(
    box: Box, layer: Layer, map_size: Size | None, grid_by_shape: Mapping[tuple[int, ...], PositionGrid]
) -> PositionGrid | None:
    """The grid of tokens: that of the last map, or of earlier tokens of this shape (keys may be fewer)."""
    if len(layer.shape) != 2 or layer.type in ("LSTM", "GRU", "RNN") or is_channels_first_type(layer.type) is True:
        return None
    return token_grid(box, layer.shape[0], map_size) or grid_by_shape.get(layer.shape)


def _merged_token_grid(box: Box, layer: Layer, map_size: Size | None, token_widths: set[int]) -> PositionGrid | None:
    """The grid of tokens that are merged from 2 x 2 earlier ones, as in Swin transformers.

    A quarter of the number of tokens is ambiguous: they may be queries. The layer's weights are four tokens wide.
    """
    weight = getattr(box.modules[layer.path], "weight", None)
    if map_size is None or len(layer.shape) != 2 or not isinstance(weight, Tensor) or not weight.ndim:
        return None
    size = -(-map_size[0] // 2), -(-map_size[1] // 2)
    is_merged = layer.shape[0] == math.prod(size) > 1 and any(weight.shape[-1] == 4 * w for w in token_widths)
    return PositionGrid(size, is_tokens=True) if is_merged else None


def token_grid(box: Box, n_tokens: int, map_size: Size | None = None) -> PositionGrid | None:
    """The grid of this many tokens: of the map that they were made from if there is one, else of square patches."""
    if map_size is not None:
        n_extra_tokens = n_tokens - math.prod(map_size)
        return (
            PositionGrid(map_size, is_tokens=True, n_extra_tokens=n_extra_tokens)
            if 0 <= n_extra_tokens <= MAX_PREFIX_TOKENS and math.prod(map_size) > 1
            else None
        )
    height, width = image_size(box)
    for n_extra_tokens in (0, 1):
        side = math.isqrt(height * width // max(1, n_tokens - n_extra_tokens))
        if (
            side > 1
            and height % side == width % side == 0
            and height * width == side * side * (n_tokens - n_extra_tokens)
        ):
            size = height // side, width // side
            return PositionGrid(size, is_tokens=True, n_extra_tokens=n_extra_tokens) if math.prod(size) > 1 else None
    return None


def grid_of_layer(box: Box, address: str, shape: tuple[int, ...]) -> PositionGrid:
    """The grid of the layer at an address, whose examples have this shape. Raises LayerError."""
    parsed = Address.parse(address)
    layer = box.layers[address] if parsed.op is None else None
    grid, n_axes = None, getattr(box.inputs, "n_axes", 2)
    if n_axes != 2 and len(shape) == 1 + n_axes:
        grid = as_image_grid(shape)
    elif len(shape) == 3:
        channels_last = layer is not None and layer.is_leaf and is_channels_last_layer(layer)
        grid = PositionGrid(
            (shape[0], shape[1]) if channels_last else (shape[1], shape[2]), channels_last=channels_last
        )
    elif len(shape) == 2:
        all_grids = list(layers_with_grids(box))
        matching = [g for _, g in all_grids if g.is_tokens and g.n_extra_tokens + math.prod(g.size) == shape[0]]
        map_sizes = [g.size for _, g in all_grids if not g.is_tokens]
        grid = matching[-1] if matching else token_grid(box, shape[0], map_sizes[-1] if map_sizes else None)
    if grid is None or math.prod(grid.size) < 2:
        raise LayerError(
            f"{address!r} gives {shape}, which has no positions on the image; {_layers_with_positions_text(box)}"
        )
    return grid


def _layers_with_positions_text(box: Box) -> str:
    """The layers with positions, for an error."""
    names = [layer.path for layer, _ in layers_with_grids(box)]
    return f"these layers do: {', '.join(map(repr, names[-4:]))}" if names else "no layer of this model does"
