"""Ops that look at neighbors, convolution and pooling: a window grows by their halo, and they run on what it covers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .base_run import Map
from .regions import Size, crop, region
from .windowed import Group, Ints, Op, Windowed, handles

COVERED = 0.85  # of the positions: with more in windows the whole map is computed
CUT = 2**21  # bytes that are cut out of maps at a time
APART = 2e7  # multiplications that a further group of windows must save, to be worth its calls


@dataclass(frozen=True)
class Slide:
    """How a kernel slides over a map: (vertical, horizontal) each; `pad` is what lies before the first pixel."""

    kernel: Size
    stride: Size
    dilation: Size
    pad: Size
    work: float  # multiplications for one output position

    def reach(self, axis: int) -> int:
        return (self.kernel[axis] - 1) * self.dilation[axis]

    def touched(self, axis: int, start: Ints, size: int, limit: int) -> tuple[Ints, Ints]:
        """The outputs [low, high) that see something of the pixels [start, start + size); one at least."""
        s, first = self.stride[axis], start + self.pad[axis]
        low = -(-(first - self.reach(axis)) // s)
        high = (first + size - 1) // s + 1
        low = low.clip(0, limit - 1)
        return low, np.maximum(high.clip(0, limit), low + 1)

    def seen(self, axis: int, low: Ints, size: int) -> tuple[Ints, int]:
        """The first pixel that outputs from `low` on see, and how many do `size` outputs."""
        s = self.stride[axis]
        return low * s - self.pad[axis], (size - 1) * s + self.reach(axis) + 1


def slid(
    x: Windowed, how: Slide, base: Map, run: Callable[[Tensor, Ints, Ints], Tensor], whole: Op, fill: float = 0.0
) -> Any:
    """`run` (without padding) on what the windows reach; `whole` where it is as well done on whole maps."""
    limit = base.shape[-2:]
    parts = [part for g in x.groups for part in _split(g, how, limit)]
    if sum(len(g.rows) * h * w for g, _, _, (h, w) in parts) > COVERED * x.n_rows * limit.numel():
        return whole(x.dense(torch.channels_last))
    groups = []
    for g, top, left, size in parts:
        if size == tuple(limit) and g.size == tuple(x.base_map.shape[-2:]):
            new = whole(g.values)
        else:
            (y, h), (x0, w) = how.seen(0, top, size[0]), how.seen(1, left, size[1])
            steps = _steps(len(g.rows), h * w * g.values.shape[1] * g.values.element_size())
            cuts = ((region(x, g.pick(r), y[r], x0[r], (h, w), fill), top[r], left[r]) for r in steps)
            new = _joined((run(*cut) for cut in cuts), len(g.rows))
            x.base_pass.note(len(g.rows), g.values, new)
        groups.append(Group(g.rows, top, left, new))
        x.base_pass.local += new.numel()
    return Windowed(x.base_pass, base, groups, x.n_rows)


def _steps(n: int, bytes_each: int) -> list[Ints]:
    """Rows, some at a time: what is cut out for an op is a copy, larger than what the op gives."""
    step = max(1, CUT // max(1, bytes_each))
    return [np.arange(start, min(start + step, n)) for start in range(0, n, step)]


def _joined(parts: Iterator[Tensor], n: int) -> Tensor:
    """One tensor (n, C, h, w) of its parts, which are let go one by one."""
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


def _split(g: Group, how: Slide, limit: Sequence[int]) -> Iterator[tuple[Group, Ints, Ints, Size]]:
    """The group, or parts of it whose outputs are less large, with the corners and sizes of those."""
    (top, bottom), (left, right) = (
        how.touched(a, s, n, limit[a]) for a, s, n in ((0, g.top, g.size[0]), (1, g.left, g.size[1]))
    )
    sizes = np.stack([bottom - top, right - left], 1)  # (n, 2)
    most = sizes.max(0)
    kinds, kind = np.unique(sizes, axis=0, return_inverse=True)
    saved = float(len(sizes) * most.prod() - sizes.prod(1).sum()) * how.work
    if len(kinds) > 1 and saved < APART * (len(kinds) - 1):
        kinds, kind = most[None], np.zeros(len(sizes), dtype=np.int64)
    for k, (h, w) in enumerate(kinds.tolist()):
        rows = np.flatnonzero(kind.reshape(-1) == k)
        yield g.pick(rows), np.minimum(top[rows], limit[0] - h), np.minimum(left[rows], limit[1] - w), (h, w)


def pair(value: Any) -> Size:
    """A setting for both axes."""
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
    if not isinstance(x, Windowed) or isinstance(weight, Windowed) or weight.ndim != 4:
        return NotImplemented
    kernel, dilated = (weight.shape[2], weight.shape[3]), pair(dilation)
    if padding == "same":
        pad = tuple(d * (k - 1) // 2 for d, k in zip(dilated, kernel, strict=True))
    else:
        pad = (0, 0) if padding == "valid" else pair(padding)
    how = Slide(kernel, pair(stride), dilated, (pad[0], pad[1]), float(weight.numel()))

    kept = x.base_pass.laid_out(weight)

    def whole(h: Tensor) -> Tensor:
        return F.conv2d(h, kept, bias, stride, padding, dilation, groups)

    def run(h: Tensor, top: Ints, left: Ints) -> Tensor:
        return F.conv2d(h, kept, bias, stride, 0, dilation, groups)

    base = x.base_pass.run(F.conv2d, x.base_map, weight, bias, stride, padding, dilation, groups)
    return slid(x, how, base, run, whole)


@handles("conv2d")
def conv2d(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _conv2d(*args, **kwargs)


@handles("convolution", "_convolution")
def convolution(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """As the dispatcher spells it."""
    if kwargs or len(args) < 9 or args[6]:  # transposed
        return NotImplemented
    x, weight, bias, stride, padding, dilation, _, _, groups = args[:9]
    return _conv2d(x, weight, bias, stride, padding, dilation, groups)


@handles("max_pool2d")
def max_pool2d(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _max_pool2d(*args, **kwargs)


def _max_pool2d(
    x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:  # fmt: skip
    if not isinstance(x, Windowed) or return_indices:
        return NotImplemented
    steps = kernel_size if stride in (None, (), []) else stride
    how = Slide(pair(kernel_size), pair(steps), pair(dilation), pair(padding), 1.0)

    def whole(h: Tensor) -> Tensor:
        return torch.max_pool2d(h, kernel_size, steps, padding, dilation, ceil_mode)

    def run(h: Tensor, top: Ints, left: Ints) -> Tensor:
        return torch.max_pool2d(h, kernel_size, steps, 0, dilation)

    base = x.base_pass.run(torch.max_pool2d, x.base_map, kernel_size, steps, padding, dilation, ceil_mode)
    return slid(x, how, base, run, whole, fill=-float("inf"))


@handles("avg_pool2d")
def avg_pool2d(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _avg_pool2d(*args, **kwargs)


def _avg_pool2d(
    x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Any:  # fmt: skip
    """As a sum, divided by how many pixels torch counts at each position: fewer at a border, in some modes."""
    if not isinstance(x, Windowed):
        return NotImplemented
    steps = kernel_size if stride in (None, (), []) else stride
    how = Slide(pair(kernel_size), pair(steps), (1, 1), pair(padding), 1.0)
    given = (steps, padding, ceil_mode, count_include_pad)

    def whole(h: Tensor) -> Tensor:
        return F.avg_pool2d(h, kernel_size, *given, divisor_override)

    def run(h: Tensor, top: Ints, left: Ints) -> Tensor:
        sums = F.avg_pool2d(h, kernel_size, steps, divisor_override=1)
        if divisor_override:
            return sums / divisor_override
        ones = x.base_map.like.new_ones(1, 1, *x.base_map.shape[2:])
        counts = F.avg_pool2d(ones, kernel_size, *given, 1) / F.avg_pool2d(ones, kernel_size, *given)
        return sums / crop(counts.round(), top, left, (sums.shape[2], sums.shape[3])).permute(0, 3, 1, 2)

    base = x.base_pass.run(F.avg_pool2d, x.base_map, kernel_size, *given, divisor_override)
    return slid(x, how, base, run, whole)
