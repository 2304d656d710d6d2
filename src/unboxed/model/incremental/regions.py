"""Cropping regions of a map that has windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .windowed import IntArray, WindowedTensor, WindowGroup

Size = tuple[int, int]


def read_region(
    windowed: WindowedTensor, group: WindowGroup, top: IntArray, left: IntArray, size: Size, fill: float = 0.0
) -> Tensor:
    """The values of a group's rows in rectangles (n, C, *size) at these corners; `fill` outside of the map."""
    (h, w), corner = size, (group.top, group.left)
    if group.size == size and (group.top == top).all() and (group.left == left).all():
        return group.values
    cut = crop_rectangles(windowed.base_values, top, left, size, fill)  # (n, h, w, C)
    values = group.values.permute(0, 2, 3, 1)
    for rows, (dy, dx) in _rows_by_shift(corner[0] - top, corner[1] - left):
        (y, sy), (x, sx) = _overlap_slices(dy, group.size[0], h), _overlap_slices(dx, group.size[1], w)
        cut[rows, y, x] = values[rows, sy, sx]
    return cut.permute(0, 3, 1, 2)


def crop_rectangles(base: Tensor, top: IntArray, left: IntArray, size: Size, fill: float = 0.0) -> Tensor:
    """Rectangles (n, *size, C) of a map (1, C, H, W)."""
    (h, w), (channels, height, width) = size, base.shape[1:]
    ys, xs = top[:, None] + np.arange(h), left[:, None] + np.arange(w)
    flat = ys.clip(0, height - 1)[:, :, None] * width + xs.clip(0, width - 1)[:, None, :]
    index = torch.from_numpy(flat.reshape(-1)).to(base.device)
    cut = base.permute(0, 2, 3, 1).reshape(height * width, channels).index_select(0, index).view(-1, h, w, channels)
    for i in np.flatnonzero((top < 0) | (left < 0) | (top + h > height) | (left + w > width)).tolist():
        y, x = int(top[i]), int(left[i])
        for side in (cut[i, : max(0, -y)], cut[i, height - y :], cut[i, :, : max(0, -x)], cut[i, :, width - x :]):
            side.fill_(fill)
    return cut


def _rows_by_shift(dy: IntArray, dx: IntArray) -> Iterator[tuple[slice | Tensor, tuple[int, int]]]:
    """Rows with the same shift."""
    shifts, inverse = np.unique(np.stack([dy, dx], 1), axis=0, return_inverse=True)
    for k, shift in enumerate(shifts.tolist()):
        rows = np.flatnonzero(inverse.reshape(-1) == k)
        is_contiguous = rows[-1] - rows[0] == len(rows) - 1
        yield slice(int(rows[0]), int(rows[-1]) + 1) if is_contiguous else torch.from_numpy(rows), (shift[0], shift[1])


def _overlap_slices(shift: int, window_size: int, size: int) -> tuple[slice, slice]:
    """The part of a region that a shifted window covers, and which part of the window that is."""
    low, high = max(0, shift), max(0, shift, min(size, shift + window_size))
    return slice(low, high), slice(low - shift, high - shift)


def regions_covering_all_windows(
    maps: Sequence[WindowedTensor],
) -> Iterator[tuple[IntArray, IntArray, IntArray, list[Tensor]]]:
    """Rows, corners, and the values of several maps of one size in regions that contain the windows of all."""
    if len(maps) == 1:
        for g in maps[0].groups:
            yield g.rows, g.top, g.left, [g.values]
        return
    height, width = maps[0].base_map.shape[2:]
    for groups in _intersect_row_groups(maps):
        top, h = _covering_spans_of_equal_size([g.top for g in groups], [g.size[0] for g in groups], height)
        left, w = _covering_spans_of_equal_size([g.left for g in groups], [g.size[1] for g in groups], width)
        cuts = [read_region(p, g, top, left, (h, w)) for p, g in zip(maps, groups, strict=True)]
        yield groups[0].rows, top, left, cuts


def _covering_spans_of_equal_size(starts: Sequence[IntArray], sizes: Sequence[int], limit: int) -> tuple[IntArray, int]:
    """The starts and the common size of spans that contain all of some spans."""
    low = np.minimum.reduce(list(starts))
    size = int((np.maximum.reduce([s + n for s, n in zip(starts, sizes, strict=True)]) - low).max())
    return np.minimum(low, limit - size), size


def _intersect_row_groups(maps: Sequence[WindowedTensor]) -> Iterator[list[WindowGroup]]:
    """Groups of the same rows in each map, as maps may be grouped differently."""
    group_positions = np.zeros((len(maps), maps[0].n_rows, 2), dtype=np.int64)  # of each row: its group, index in it
    for k, windowed in enumerate(maps):
        for j, g in enumerate(windowed.groups):
            group_positions[k, g.rows, 0], group_positions[k, g.rows, 1] = j, np.arange(len(g.rows))
    group_sets, inverse = np.unique(group_positions[:, :, 0], axis=1, return_inverse=True)
    for i in range(group_sets.shape[1]):
        rows = np.flatnonzero(inverse.reshape(-1) == i)
        yield [part.groups[group_sets[k, i]].select(group_positions[k, rows, 1]) for k, part in enumerate(maps)]
