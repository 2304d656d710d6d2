"""Convolution and pooling: a window grows by their receptive field, and they run on what it covers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .base_run import BaseMap
from .regions import Size, crop_rectangles, read_region
from .windowed import IntArray, OpFn, WindowedTensor, WindowGroup, register_handler

MAX_WINDOW_COVERAGE_FRACTION = 0.85  # share of positions in windows above which the full map is computed
MAX_CROPPED_BYTES_AT_ONCE = 2**21  # that are cropped from maps at one time
MIN_SAVED_MULTIPLICATIONS_PER_EXTRA_WINDOW_GROUP = 2e7  # by a further group of windows, to be worth its calls


@dataclass(frozen=True)
class KernelGeometry:
    """How a kernel slides over a map, (vertical, horizontal) each."""

    kernel: Size
    stride: Size
    dilation: Size
    padding: Size  # before the first pixel
    n_multiplications: float  # per output position

    def last_element_offset(self, axis: int) -> int:
        return (self.kernel[axis] - 1) * self.dilation[axis]

    def output_range(self, axis: int, start: IntArray, size: int, limit: int) -> tuple[IntArray, IntArray]:
        """The outputs [low, high) that depend on the pixels [start, start + size); at least one."""
        s, first = self.stride[axis], start + self.padding[axis]
        low = -(-(first - self.last_element_offset(axis)) // s)
        high = (first + size - 1) // s + 1
        low = low.clip(0, limit - 1)
        return low, np.maximum(high.clip(0, limit), low + 1)

    def input_start_and_size(self, axis: int, low: IntArray, size: int) -> tuple[IntArray, int]:
        """The first pixel that outputs from `low` on depend on, and how many pixels `size` outputs depend on."""
        s = self.stride[axis]
        return low * s - self.padding[axis], (size - 1) * s + self.last_element_offset(axis) + 1


def apply_sliding_kernel(
    x: WindowedTensor,
    geometry: KernelGeometry,
    base: BaseMap,
    run_on_crop: Callable[[Tensor, IntArray, IntArray], Tensor],
    run_on_full: OpFn,
    fill: float = 0.0,
) -> Any:
    """`run_on_crop` (without padding) on the inputs of changed outputs; `run_on_full` where full maps cost no more."""
    limit = base.shape[-2:]
    pieces = [piece for g in x.groups for piece in _split_group_by_output_size(g, geometry, limit)]
    if sum(len(g.rows) * h * w for g, _, _, (h, w) in pieces) > MAX_WINDOW_COVERAGE_FRACTION * x.n_rows * limit.numel():
        return run_on_full(x.dense(torch.channels_last))
    groups = []
    for g, top, left, size in pieces:
        if size == tuple(limit) and g.size == tuple(x.base_map.shape[-2:]):
            new = run_on_full(g.values)
        else:
            (y, h), (x0, w) = (
                geometry.input_start_and_size(0, top, size[0]),
                geometry.input_start_and_size(1, left, size[1]),
            )
            row_batches = _memory_bounded_row_batches(len(g.rows), h * w * g.values.shape[1] * g.values.element_size())
            cuts = ((read_region(x, g.select(r), y[r], x0[r], (h, w), fill), top[r], left[r]) for r in row_batches)
            new = _concatenate_and_free((run_on_crop(*cut) for cut in cuts), len(g.rows))
            x.base_pass.record_bytes_per_row(len(g.rows), g.values, new)
        groups.append(WindowGroup(g.rows, top, left, new))
        x.base_pass.n_local_values += new.numel()
    return WindowedTensor(x.base_pass, base, groups, x.n_rows)


def _memory_bounded_row_batches(n: int, bytes_per_row: int) -> list[IntArray]:
    """Rows in bounded batches: the crop for an op is a copy, larger than the op's output."""
    step = max(1, MAX_CROPPED_BYTES_AT_ONCE // max(1, bytes_per_row))
    return [np.arange(start, min(start + step, n)) for start in range(0, n, step)]


def _concatenate_and_free(parts: Iterator[Tensor], n: int) -> Tensor:
    """One tensor (n, C, h, w) of its parts, which are freed one by one."""
    first = next(parts)
    if len(first) == n:
        return first
    shape = (n, *first.shape[1:])
    out = torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=torch.channels_last)
    out[: len(first)] = first
    start = len(first)
    del first
    for part in parts:
        out[start : start + len(part)] = part
        start += len(part)
    return out


def _split_group_by_output_size(
    g: WindowGroup, geometry: KernelGeometry, limit: Sequence[int]
) -> Iterator[tuple[WindowGroup, IntArray, IntArray, Size]]:
    """The group, or parts of it with smaller outputs, with the corners and size of their outputs."""
    (top, bottom), (left, right) = (
        geometry.output_range(a, s, n, limit[a]) for a, s, n in ((0, g.top, g.size[0]), (1, g.left, g.size[1]))
    )
    sizes = np.stack([bottom - top, right - left], 1)  # (n, 2)
    max_size = sizes.max(0)
    unique_sizes, size_index = np.unique(sizes, axis=0, return_inverse=True)
    n_saved = float(len(sizes) * max_size.prod() - sizes.prod(1).sum()) * geometry.n_multiplications
    if len(unique_sizes) > 1 and n_saved < MIN_SAVED_MULTIPLICATIONS_PER_EXTRA_WINDOW_GROUP * (len(unique_sizes) - 1):
        unique_sizes, size_index = max_size[None], np.zeros(len(sizes), dtype=np.int64)
    for k, (h, w) in enumerate(unique_sizes.tolist()):
        rows = np.flatnonzero(size_index.reshape(-1) == k)
        yield g.select(rows), np.minimum(top[rows], limit[0] - h), np.minimum(left[rows], limit[1] - w), (h, w)


def to_height_width_pair(value: Any) -> Size:
    """A setting as (vertical, horizontal)."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return int(values[0]), int(values[-1])


# -- the ops -----------------------------------------------------------------------------------------------------------


def _conv2d(
    x: Any,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    if not isinstance(x, WindowedTensor) or isinstance(weight, WindowedTensor) or weight.ndim != 4:
        return NotImplemented
    kernel, dilated = (weight.shape[2], weight.shape[3]), to_height_width_pair(dilation)
    if padding == "same":
        pad = tuple(d * (k - 1) // 2 for d, k in zip(dilated, kernel, strict=True))
    else:
        pad = (0, 0) if padding == "valid" else to_height_width_pair(padding)
    geometry = KernelGeometry(kernel, to_height_width_pair(stride), dilated, (pad[0], pad[1]), float(weight.numel()))

    fast_weight = x.base_pass.channels_last_weight(weight)

    def run_on_full(h: Tensor) -> Tensor:
        return F.conv2d(h, fast_weight, bias, stride, padding, dilation, groups)

    def run_on_crop(h: Tensor, top: IntArray, left: IntArray) -> Tensor:
        return F.conv2d(h, fast_weight, bias, stride, 0, dilation, groups)

    base = x.base_pass.run(F.conv2d, x.base_map, weight, bias, stride, padding, dilation, groups)
    return apply_sliding_kernel(x, geometry, base, run_on_crop, run_on_full)


@register_handler("conv2d")
def conv2d(func: OpFn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _conv2d(*args, **kwargs)


@register_handler("convolution", "_convolution")
def convolution(func: OpFn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """conv2d as torch's dispatcher calls it."""
    if kwargs or len(args) < 9 or args[6]:  # transposed
        return NotImplemented
    x, weight, bias, stride, padding, dilation, _, _, groups = args[:9]
    return _conv2d(x, weight, bias, stride, padding, dilation, groups)


@register_handler("max_pool2d")
def max_pool2d(func: OpFn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _max_pool2d(*args, **kwargs)


def _max_pool2d(
    x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:  # fmt: skip
    if not isinstance(x, WindowedTensor) or return_indices:
        return NotImplemented
    strides = kernel_size if stride in (None, (), []) else stride
    geometry = KernelGeometry(
        to_height_width_pair(kernel_size),
        to_height_width_pair(strides),
        to_height_width_pair(dilation),
        to_height_width_pair(padding),
        1.0,
    )

    def run_on_full(h: Tensor) -> Tensor:
        return torch.max_pool2d(h, kernel_size, strides, padding, dilation, ceil_mode)

    def run_on_crop(h: Tensor, top: IntArray, left: IntArray) -> Tensor:
        return torch.max_pool2d(h, kernel_size, strides, 0, dilation)

    base = x.base_pass.run(torch.max_pool2d, x.base_map, kernel_size, strides, padding, dilation, ceil_mode)
    return apply_sliding_kernel(x, geometry, base, run_on_crop, run_on_full, fill=-float("inf"))


@register_handler("avg_pool2d")
def avg_pool2d(func: OpFn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _avg_pool2d(*args, **kwargs)


def _avg_pool2d(
    x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Any:  # fmt: skip
    """A sum divided by how many pixels torch counts at each position: fewer at a border, in some modes."""
    if not isinstance(x, WindowedTensor):
        return NotImplemented
    strides = kernel_size if stride in (None, (), []) else stride
    geometry = KernelGeometry(
        to_height_width_pair(kernel_size), to_height_width_pair(strides), (1, 1), to_height_width_pair(padding), 1.0
    )
    pool_args = (strides, padding, ceil_mode, count_include_pad)

    def run_on_full(h: Tensor) -> Tensor:
        return F.avg_pool2d(h, kernel_size, *pool_args, divisor_override)

    def run_on_crop(h: Tensor, top: IntArray, left: IntArray) -> Tensor:
        sums = F.avg_pool2d(h, kernel_size, strides, divisor_override=1)
        if divisor_override:
            return sums / divisor_override
        ones = x.base_map.like.new_ones(1, 1, *x.base_map.shape[2:])
        counts = F.avg_pool2d(ones, kernel_size, *pool_args, 1) / F.avg_pool2d(ones, kernel_size, *pool_args)
        return sums / crop_rectangles(counts.round(), top, left, (sums.shape[2], sums.shape[3])).permute(0, 3, 1, 2)

    base = x.base_pass.run(F.avg_pool2d, x.base_map, kernel_size, *pool_args, divisor_override)
    return apply_sliding_kernel(x, geometry, base, run_on_crop, run_on_full)
