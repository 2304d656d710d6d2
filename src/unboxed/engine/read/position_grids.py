"""Where a layer's positions lie on the image: axes behind the channels, in front of them, or tokens of a patch grid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ...box import Box
from ...errors import InputError, LayerError
from ...inputs.multi import MultiInput
from ...inputs.pixels import Pixels
from ...model.hooks import Address
from ...model.layers import Layer
from .channel_axes import channels_first, channels_first_by_type
from .sizes import Size

EXTRA = 8  # tokens before those of the patches, at most: one for the class, registers


@dataclass(frozen=True)
class Grid:
    """How activations (N, ...) become maps (N, C, h, w). `extra` tokens stand before those of the grid."""

    size: Size
    last: bool = False  # channels last, (N, h, w, C)
    tokens: bool = False  # (N, extra + h * w, C)
    extra: int = 0

    def maps(self, h: Tensor) -> Tensor:
        """(N, C, h, w) of activations, or of gradients alike."""
        if self.tokens:
            return h[:, self.extra :].mT.reshape(len(h), -1, *self.size)
        return h.movedim(3, 1) if self.last else h


def image_size(box: Box) -> Size:
    """(H, W) of the box's images; of the only images among several inputs. Raises InputError."""
    several = box.inputs.parts if isinstance(box.inputs, MultiInput) else (box.inputs,)
    parts = several if isinstance(several, tuple) else tuple(several.values())
    images = [part for part in parts if isinstance(part, Pixels)]
    if len(images) != 1:
        takes = f"{len(images)} of them" if images else "none, so there is no image to lay a map on"
        raise InputError(f"a map over the image needs a model that takes one image (Pixels); this model takes {takes}")
    return images[0].shape[1], images[0].shape[2]


def upsampled(maps: Tensor, size: Size) -> Tensor:
    """Maps (N, 1, h, w) at the size of the image, bilinear."""
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def grids(box: Box) -> Iterator[tuple[Layer, Grid]]:
    """The leaves whose positions lie on the image, more than one of them, as they first run."""
    first = {row.path for row in channels_first(box)}
    maps = {row.shape for row in box.layers.leaves if channels_first_by_type(row.type)}
    seen: Size | None = None  # of the last map before the tokens, or of the tokens as they were last merged
    widths: set[int] = set()  # of the tokens of this size
    laid: dict[tuple[int, ...], Grid] = {}  # where tokens of each shape last lay
    for row in box.layers.leaves:
        if not (row.rows and row.shape) or (row.shape not in maps and _of_attention(row, laid)):
            continue
        grid = _spatial(row, row.path in first) or _of_tokens(box, row, seen, laid)
        if grid is None and (grid := _merged(box, row, seen, widths)) is None:
            continue
        if grid.size != seen and (seen is not None or not grid.tokens):
            seen, widths = grid.size, set()
        if grid.tokens:
            widths.add(row.shape[1])
            laid[row.shape] = grid
        yield row, grid


def _of_attention(row: Layer, laid: Mapping[tuple[int, ...], Grid]) -> bool:
    """Whether these are weights of attention, (heads, T, T) of so many tokens, and no maps."""
    tokens = {shape[0] for shape in laid}
    return len(row.shape) == 3 and channels_first_by_type(row.type) is None and {*row.shape[1:]} <= tokens


def _spatial(row: Layer, first: bool) -> Grid | None:
    if len(row.shape) != 3 or not (first or last_by_type(row)):
        return None
    size = (row.shape[1], row.shape[2]) if first else (row.shape[0], row.shape[1])
    return Grid(size, last=not first) if math.prod(size) > 1 else None


def last_by_type(row: Layer) -> bool:
    """Whether a module of this type surely has its units on the last axis."""
    return channels_first_by_type(row.type) is False


def _of_tokens(box: Box, row: Layer, seen: Size | None, laid: Mapping[tuple[int, ...], Grid]) -> Grid | None:
    """The grid of tokens: that of the map seen last, or where tokens of this shape lay before (keys may be fewer)."""
    if len(row.shape) != 2 or row.type in ("LSTM", "GRU", "RNN") or channels_first_by_type(row.type) is True:
        return None
    return token_grid(box, row.shape[0], seen) or laid.get(row.shape)


def _merged(box: Box, row: Layer, seen: Size | None, widths: set[int]) -> Grid | None:
    """The grid of tokens that are four of those before side by side, 2 x 2 patches of them, as in Swin transformers.

    A fourth of the tokens are not enough to tell: they may be queries. The layer's weights are four tokens wide.
    """
    weight = getattr(box.modules[row.path], "weight", None)
    if seen is None or len(row.shape) != 2 or not isinstance(weight, Tensor) or not weight.ndim:
        return None
    size = -(-seen[0] // 2), -(-seen[1] // 2)
    merged = row.shape[0] == math.prod(size) > 1 and any(weight.shape[-1] == 4 * w for w in widths)
    return Grid(size, tokens=True) if merged else None


def token_grid(box: Box, tokens: int, seen: Size | None = None) -> Grid | None:
    """The grid of so many tokens: of the map that they were cut from if one is seen, else of square patches."""
    if seen is not None:
        extra = tokens - math.prod(seen)
        return Grid(seen, tokens=True, extra=extra) if 0 <= extra <= EXTRA and math.prod(seen) > 1 else None
    height, width = image_size(box)
    for extra in (0, 1):
        side = math.isqrt(height * width // max(1, tokens - extra))
        if side > 1 and height % side == width % side == 0 and height * width == side * side * (tokens - extra):
            size = height // side, width // side
            return Grid(size, tokens=True, extra=extra) if math.prod(size) > 1 else None
    return None


def of_address(box: Box, address: str, shape: tuple[int, ...]) -> Grid:
    """The grid of what is found at an address, whose examples have this shape. Raises LayerError."""
    place = Address.parse(address)
    row = box.layers[address] if place.op is None else None
    grid = None
    if len(shape) == 3:
        last = row is not None and row.leaf and last_by_type(row)
        grid = Grid((shape[0], shape[1]) if last else (shape[1], shape[2]), last=last)
    elif len(shape) == 2:
        known = list(grids(box))
        fitting = [g for _, g in known if g.tokens and g.extra + math.prod(g.size) == shape[0]]
        maps = [g.size for _, g in known if not g.tokens]
        grid = fitting[-1] if fitting else token_grid(box, shape[0], maps[-1] if maps else None)
    if grid is None or math.prod(grid.size) < 2:
        raise LayerError(f"{address!r} gives {shape}, which has no positions on the image; {_fitting(box)}")
    return grid


def _fitting(box: Box) -> str:
    """Which layers have positions, in words."""
    names = [row.path for row, _ in grids(box)]
    return f"these layers do: {', '.join(map(repr, names[-4:]))}" if names else "no layer of this model does"
