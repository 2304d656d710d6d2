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

MAX_CACHE_BYTES = 2**26  # bytes of base maps; beyond, the largest are worked out again when they are looked at
N_PINNED_MAPS = 3  # maps that are not let go: what is being worked on


@dataclass(eq=False)
class BaseMap:
    """A base map (1, C, H, W): a result of the base pass. Its values may be let go, for it knows how to make them."""

    call_key: Any  # what is compared in a replay
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: torch.Size
    like: Tensor  # empty; of the same dtype and device
    values: Tensor | None
    is_read_by_windows: bool = False  # by windows, not only by the next op

    @property
    def dtype(self) -> torch.dtype:
        return self.like.dtype

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return 0 if self.values is None else self.values.numel() * self.values.element_size()


class BasePass:
    """Replays the results of a pass without windows, op by op, as long as a model asks for the same ops on the same
    tensors; from where it does not, they are computed anew. So a model that takes another way is right, only slower.

    It also notes what the windows cost: values computed in windows, values of maps that were made whole, and the most
    bytes held by one row.
    """

    def __init__(self) -> None:
        self.maps: list[BaseMap] = []
        self.position = 0
        self.pinned: deque[BaseMap] = deque(maxlen=N_PINNED_MAPS)
        self.kernels: dict[int, tuple[Tensor, Any, Tensor]] = {}
        self.n_local_values, self.n_dense_values, self.bytes_per_row = 0, 0, 0
        self.proxies: list[ref[Any]] = []  # what stood for tensors in this batch

    def restart(self) -> None:
        """A new batch begins: its ops are compared from the first one on."""
        self.position = 0
        self.proxies.clear()

    @property
    def has_live_proxies(self) -> bool:
        """Whether somebody holds on to what stood for a tensor, after a batch."""
        if any(proxy() is not None for proxy in self.proxies):
            gc.collect()
        return any(given() is not None for given in self.proxies)

    def run(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> BaseMap:
        """func(*args) on base maps; it must give a new tensor and leave its arguments alone."""
        call_key = (func, _fingerprint(args), _fingerprint(kwargs))
        if self.position == len(self.maps) or self.maps[self.position].call_key != call_key:
            out = self._compute(func, args, kwargs)
            self.maps[self.position : self.position + 1] = [
                BaseMap(call_key, func, args, kwargs, out.shape, out.new_empty(0), out)
            ]
            self._evict(self.maps[self.position])
        self.position += 1
        return self.maps[self.position - 1]

    def _compute(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        out: Tensor = func(*self._resolve_maps(args), **self._resolve_maps(kwargs))
        return out.contiguous(memory_format=torch.channels_last) if out.ndim == 4 else out  # is cut out row by row

    def _resolve_maps(self, value: Any) -> Any:
        if isinstance(value, BaseMap):
            return self._get_values(value)
        if isinstance(value, (tuple, list)):
            return type(value)(map(self._resolve_maps, value))
        return {name: self._resolve_maps(v) for name, v in value.items()} if isinstance(value, dict) else value

    def _get_values(self, base: BaseMap) -> Tensor:
        values = base.values
        if values is None:
            values = base.values = self._compute(base.func, base.args, base.kwargs)
        self._evict(base)
        return values

    def read(self, base: BaseMap) -> Tensor:
        """The values of a base map, (1, C, H, W), for windows."""
        base.is_read_by_windows = True
        return self._get_values(base)

    def release(self, base: BaseMap) -> None:
        """An op made something else of each of its values: if windows never looked at them, they can go."""
        if not base.is_read_by_windows:
            base.values = None

    def _evict(self, latest: BaseMap) -> None:
        """The largest of what is too much, but not what was touched last."""
        self.pinned.append(latest)
        total_bytes = sum(m.nbytes for m in self.maps)
        for base_map in sorted(self.maps, key=lambda m: -m.nbytes):
            if total_bytes <= MAX_CACHE_BYTES:
                return
            if not any(base_map is m for m in self.pinned):
                total_bytes -= base_map.nbytes
                base_map.values = None

    def channels_last_weight(self, weight: Tensor) -> Tensor:
        """A kernel in the layout that windows have, which a convolution would otherwise make at each call."""
        if weight.is_contiguous(memory_format=torch.channels_last):
            return weight
        fingerprint = _fingerprint(weight)
        _, cached_fingerprint, copy = self.kernels.get(weight.data_ptr(), (weight, None, weight))
        if cached_fingerprint != fingerprint:
            copy = weight.contiguous(memory_format=torch.channels_last)
            self.kernels[weight.data_ptr()] = (weight, fingerprint, copy)
        return copy

    def record_bytes(self, n_rows: int, *tensors: Tensor) -> None:
        """What so many rows hold at a time."""
        total_bytes = sum(t.numel() * t.element_size() for t in tensors)
        self.bytes_per_row = max(self.bytes_per_row, total_bytes // max(1, n_rows))


def _fingerprint(value: Any) -> Any:
    """What tells two arguments apart: tensors by where their values lie (views are made anew) and how often those were
    written; what is asked for is held, so that no place is used again.
    """
    if isinstance(value, BaseMap):
        return id(value)  # which is held by what was made of it
    if isinstance(value, Tensor):
        version = 0 if value.is_inference() else value._version
        return value.data_ptr(), value.device, value.dtype, value.shape, value.stride(), version
    if isinstance(value, (tuple, list)):
        return tuple(_fingerprint(part) for part in value)
    if isinstance(value, dict):
        return tuple((name, _fingerprint(part)) for name, part in value.items())
    return type(value), value
