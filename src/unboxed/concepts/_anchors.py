"""Where the positions of a layer are on the image: the centers of their fields, and maps brought to its size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..box import Box
from ..engine.read.receptive_bounds import probe_receptive_bounds
from ..model.batching import BatchSize, map_in_batches

MAX_PROBED_SIDE = 64  # rows and columns that are probed one by one; of larger images a few together
STRIDE_TOLERANCE = 0.05  # between the fields' beginnings and their ends
N_PROBED_CODES = 3  # codes on which a generator's layer is changed


@dataclass(frozen=True)
class Anchor:
    """The centers of positions 0, 1, ... along one axis: offset + stride * i, in pixels from the image's edge."""

    offset: float
    stride: float

    @classmethod
    def stretched(cls, n_positions: int, n_pixels: int) -> Anchor:
        """Equal parts of the side."""
        stride = n_pixels / n_positions
        return cls(stride / 2, stride)

    @classmethod
    def from_bounds(cls, first: Tensor, last: Tensor, n_pixels: int) -> Anchor | None:
        """The centers of fields from pixel first (n,) to last (n,), of which those at the edges are cut off.

        None where too few fields end inside of the image, or they are not evenly spaced.
        """
        is_reached = last > first
        lines = [_fit_line(side, known & is_reached) for side, known in ((first, first > 0), (last, last < n_pixels))]
        known = [line for line in lines if line is not None]
        if len(known) < len(lines):
            return None
        (start, stride), (end, other_stride) = known
        anchor = cls((start + end) / 2, (stride + other_stride) / 2)
        ends = anchor.offset, anchor.offset + anchor.stride * (len(first) - 1)
        is_even = abs(stride - other_stride) <= STRIDE_TOLERANCE * stride
        return anchor if is_even and min(ends) >= 0 and max(ends) <= n_pixels else None

    def weights(self, n_positions: int, n_pixels: int) -> Tensor:
        """(n_pixels, n_positions) of linear interpolation at the pixels' centers; the ends continue beyond."""
        center = (torch.arange(n_pixels, dtype=torch.float64) + 0.5 - self.offset) / self.stride
        distance = (center.clamp(0, n_positions - 1)[:, None] - torch.arange(n_positions, dtype=torch.float64)).abs()
        return (1 - distance).clamp_min(0)


def _fit_line(side: Tensor, is_known: Tensor) -> tuple[float, float] | None:
    """Offset and stride of the known values of side (n,), up to a pixel; None of fewer than two, or off the line."""
    at = is_known.nonzero().flatten().double()
    if len(at) < 2:
        return None
    values = side[is_known].double()
    stride = float((values[-1] - values[0]) / (at[-1] - at[0]))
    offset = float((values - stride * at).mean())
    is_on_line = bool(((offset + stride * at - values).abs() <= 1).all())
    return (offset, stride) if is_on_line and stride > 0 else None


@dataclass(frozen=True)
class Anchors:
    """Of the rows and of the columns of a layer with maps of size (h, w)."""

    rows: Anchor
    columns: Anchor

    def upsample(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps (N, C, h, w) at the size (H, W) of the image, bilinear between the centers."""
        vertical = self.rows.weights(maps.shape[-2], size[0]).to(maps)
        horizontal = self.columns.weights(maps.shape[-1], size[1]).to(maps)
        return vertical @ maps @ horizontal.T

    @classmethod
    def stretched(cls, maps: tuple[int, int], size: tuple[int, int]) -> Anchors:
        return cls(*(Anchor.stretched(n, pixels) for n, pixels in zip(maps, size, strict=True)))


def receptive_anchors(
    box: Box, address: str, maps: tuple[int, int], channels_last: bool, batch_size: BatchSize
) -> Anchors:
    """Of a layer's maps on the input images, by the bounds of its receptive fields."""
    size = box.inputs.shape[-2], box.inputs.shape[-1]
    fallback = Anchors.stretched(maps, size)
    axis, resolution = -1 if channels_last else 1, -(-max(size) // MAX_PROBED_SIDE)
    bounds, _ = probe_receptive_bounds(box, address, axis, resolution, batch_size)
    if bounds.ndim != 3:  # tokens, which lie on their patches
        return fallback
    bounds = bounds.cpu()
    center_row, center_column = bounds.shape[0] // 2, bounds.shape[1] // 2
    rows = Anchor.from_bounds(bounds[:, center_column, 0], bounds[:, center_column, 2], size[0])
    columns = Anchor.from_bounds(bounds[center_row, :, 1], bounds[center_row, :, 3], size[1])
    return Anchors(rows or fallback.rows, columns or fallback.columns)


def generator_layer_anchors(box: Box, address: str, maps: tuple[int, int], x: Tensor, batch_size: BatchSize) -> Anchors:
    """Of a generator's layer on its output images, by which pixels change when a row or a column of it is changed."""
    size = box.output_map_shape[0], box.output_map_shape[1]
    sides = []
    for axis in (2, 3):
        reached = torch.stack(
            [
                _changed_rows_or_columns(box, address, x[:N_PROBED_CODES], axis, i, batch_size)
                for i in range(maps[axis - 2])
            ]
        )
        first = reached.int().argmax(1)
        last = reached.shape[1] - reached.flip(1).int().argmax(1)
        last[~reached.any(1)] = first[~reached.any(1)] = 0
        anchor = Anchor.from_bounds(first, last, size[axis - 2])
        sides.append(anchor or Anchor.stretched(maps[axis - 2], size[axis - 2]))
    return Anchors(*sides)


def _changed_rows_or_columns(box: Box, address: str, x: Tensor, axis: int, index: int, batch_size: BatchSize) -> Tensor:
    """Which rows (axis 2) or columns (3) of the images change with one row or column of a layer (N, C, h, w)."""

    def changed(h: Tensor) -> Tensor:
        other = h.clone()
        part = other.select(axis, index)
        part += 1 + h.abs().mean()
        return other

    def run(rows: slice) -> Tensor:
        with box.isolated(grad=False):
            before, after = (box.forward(x[rows], ["output"], edits)["output"] for edits in ({}, {address: changed}))
        return (after - before).abs()

    difference = torch.cat(map_in_batches(run, len(x), *box.batch_size_and_max_rows(len(x), batch_size)))
    return (difference > 1e-6 * difference.max().clamp_min(1e-30)).any(0).any(0).any(1 if axis == 2 else 0).cpu()
