"""The base pass: what a model makes of the input that nothing was put into, computed once and used by every batch."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor

KEPT = 2**26  # bytes of base maps; beyond, the largest are worked out again when they are looked at
LATEST = 3  # maps that are not let go: what is being worked on


@dataclass(eq=False)
class Map:
    """A base map (1, C, H, W): a result of the base pass. Its values may be let go, for it knows how to make them."""

    asked: Any  # what is compared in a replay
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: torch.Size
    like: Tensor  # empty; of the same dtype and device
    values: Tensor | None
    looked_at: bool = False  # by windows, not only by the next op

    @property
    def dtype(self) -> torch.dtype:
        return self.like.dtype

    @property
    def size(self) -> int:
        """Bytes held now."""
        return 0 if self.values is None else self.values.numel() * self.values.element_size()


class BasePass:
    """Replays the results of a pass without windows, op by op, as long as a model asks for the same ops on the same
    tensors; from where it does not, they are computed anew. So a model that takes another way is right, only slower.

    It also notes what the windows cost: values computed in windows, values of maps that were made whole, and the most
    bytes held by one row.
    """

    def __init__(self) -> None:
        self.maps: list[Map] = []
        self.at = 0
        self.latest: deque[Map] = deque(maxlen=LATEST)
        self.kernels: dict[int, tuple[Tensor, Any, Tensor]] = {}
        self.local, self.dense, self.bytes_each = 0, 0, 0
        self.given: list[ref[Any]] = []  # what stood for tensors in this batch

    def restart(self) -> None:
        """A new batch begins: its ops are compared from the first one on."""
        self.at = 0
        self.given.clear()

    @property
    def is_kept(self) -> bool:
        """Whether somebody holds on to what stood for a tensor, after a batch."""
        if any(given() is not None for given in self.given):
            gc.collect()
        return any(given() is not None for given in self.given)

    def run(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Map:
        """func(*args) on base maps; it must give a new tensor and leave its arguments alone."""
        asked = (func, _marks(args), _marks(kwargs))
        if self.at == len(self.maps) or self.maps[self.at].asked != asked:
            out = self._made(func, args, kwargs)
            self.maps[self.at : self.at + 1] = [Map(asked, func, args, kwargs, out.shape, out.new_empty(0), out)]
            self._let_go(self.maps[self.at])
        self.at += 1
        return self.maps[self.at - 1]

    def _made(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        out: Tensor = func(*self._with_values(args), **self._with_values(kwargs))
        return out.contiguous(memory_format=torch.channels_last) if out.ndim == 4 else out  # is cut out row by row

    def _with_values(self, value: Any) -> Any:
        if isinstance(value, Map):
            return self._values(value)
        if isinstance(value, (tuple, list)):
            return type(value)(map(self._with_values, value))
        return {name: self._with_values(v) for name, v in value.items()} if isinstance(value, dict) else value

    def _values(self, base: Map) -> Tensor:
        values = base.values
        if values is None:
            values = base.values = self._made(base.func, base.args, base.kwargs)
        self._let_go(base)
        return values

    def look(self, base: Map) -> Tensor:
        """The values of a base map, (1, C, H, W), for windows."""
        base.looked_at = True
        return self._values(base)

    def spent(self, base: Map) -> None:
        """An op made something else of each of its values: if windows never looked at them, they can go."""
        if not base.looked_at:
            base.values = None

    def _let_go(self, touched: Map) -> None:
        """The largest of what is too much, but not what was touched last."""
        self.latest.append(touched)
        held = sum(m.size for m in self.maps)
        for large in sorted(self.maps, key=lambda m: -m.size):
            if held <= KEPT:
                return
            if not any(large is m for m in self.latest):
                held -= large.size
                large.values = None

    def laid_out(self, weight: Tensor) -> Tensor:
        """A kernel in the layout that windows have, which a convolution would otherwise make at each call."""
        if weight.is_contiguous(memory_format=torch.channels_last):
            return weight
        mark = _marks(weight)
        _, kept, copy = self.kernels.get(weight.data_ptr(), (weight, None, weight))
        if kept != mark:
            copy = weight.contiguous(memory_format=torch.channels_last)
            self.kernels[weight.data_ptr()] = (weight, mark, copy)
        return copy

    def note(self, rows: int, *tensors: Tensor) -> None:
        """What so many rows hold at a time."""
        held = sum(t.numel() * t.element_size() for t in tensors)
        self.bytes_each = max(self.bytes_each, held // max(1, rows))


def _marks(value: Any) -> Any:
    """What tells two arguments apart: tensors by where their values lie (views are made anew) and how often those were
    written; what is asked for is held, so that no place is used again.
    """
    if isinstance(value, Map):
        return id(value)  # which is held by what was made of it
    if isinstance(value, Tensor):
        written = 0 if value.is_inference() else value._version
        return value.data_ptr(), value.device, value.dtype, value.shape, value.stride(), written
    if isinstance(value, (tuple, list)):
        return tuple(_marks(part) for part in value)
    if isinstance(value, dict):
        return tuple((name, _marks(part)) for name, part in value.items())
    return type(value), value
