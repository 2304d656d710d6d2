"""The base pass: the activations of the base input, computed once and used by every batch."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

MAX_TOTAL_CACHED_BASE_MAP_BYTES = (
    2**26
)  # of base maps; beyond, the largest are freed, and computed again when they are read
N_PINNED_RECENT_BASE_MAPS = 3  # maps used last, which are not freed


@dataclass(eq=False)
class BaseMap:
    """A base map (1, C, H, W): an output of the base pass. Its values may be freed, as it can compute them again."""

    call_key: Any  # what is compared in a replay
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: torch.Size
    like: Tensor  # empty; of the same dtype and device
    values: Tensor | None
    is_read_by_windows: bool = False  # not only by the next op

    @property
    def dtype(self) -> torch.dtype:
        return self.like.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in memory now."""
        return 0 if self.values is None else self.values.numel() * self.values.element_size()


class BasePass:
    """Replays the outputs of a pass without windows, op by op, as long as a model calls the same ops on the same
    tensors; from the first other op on they are computed again. So a model that changes its path is right, but slower.

    It also counts the cost of windows: values computed in windows, values of maps made dense, and the largest number of
    bytes of one row.
    """

    def __init__(self) -> None:
        self.maps: list[BaseMap] = []
        self.position = 0
        self.pinned: deque[BaseMap] = deque(maxlen=N_PINNED_RECENT_BASE_MAPS)
        self.kernels: dict[int, tuple[Tensor, Any, Tensor]] = {}
        self.n_local_values, self.n_dense_values, self.bytes_per_row = 0, 0, 0
        self.proxies: list[ref[Any]] = []  # the windowed tensors of this batch

    def restart_replay(self) -> None:
        """Begin a new batch: its ops are compared from the first one on."""
        self.position = 0
        self.proxies.clear()

    @property
    def has_referenced_windowed_tensors(self) -> bool:
        """Whether a windowed tensor is still referenced after a batch."""
        if any(proxy() is not None for proxy in self.proxies):
            gc.collect()
        return any(proxy() is not None for proxy in self.proxies)

    def run(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> BaseMap:
        """func(*args) on base maps; it must return a new tensor and not change its arguments."""
        leaves, structure = tree_flatten((args, kwargs))
        call_key = (func, structure, tuple(map(_argument_fingerprint, leaves)))
        if self.position == len(self.maps) or self.maps[self.position].call_key != call_key:
            out = self._compute_op(func, args, kwargs)
            self.maps[self.position : self.position + 1] = [
                BaseMap(call_key, func, args, kwargs, out.shape, out.new_empty(0), out)
            ]
            self._pin_and_evict_largest(self.maps[self.position])
        self.position += 1
        return self.maps[self.position - 1]

    def _compute_op(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        args, kwargs = tree_map_only(BaseMap, self._cached_or_recomputed_values, (args, kwargs))
        out: Tensor = func(*args, **kwargs)
        return out.contiguous(memory_format=torch.channels_last) if out.ndim == 4 else out  # is cropped row by row

    def _cached_or_recomputed_values(self, base: BaseMap) -> Tensor:
        values = base.values
        if values is None:
            values = base.values = self._compute_op(base.func, base.args, base.kwargs)
        self._pin_and_evict_largest(base)
        return values

    def read(self, base: BaseMap) -> Tensor:
        """The values of a base map, (1, C, H, W), for windows."""
        base.is_read_by_windows = True
        return self._cached_or_recomputed_values(base)

    def free_unless_read_by_windows(self, base: BaseMap) -> None:
        """Free the values of a map whose every value was used by an op, if windows never read them."""
        if not base.is_read_by_windows:
            base.values = None

    def _pin_and_evict_largest(self, latest: BaseMap) -> None:
        """Free the largest maps beyond the limit, but not those used last."""
        self.pinned.append(latest)
        total_bytes = sum(m.nbytes for m in self.maps)
        for base_map in sorted(self.maps, key=lambda m: -m.nbytes):
            if total_bytes <= MAX_TOTAL_CACHED_BASE_MAP_BYTES:
                return
            if not any(base_map is m for m in self.pinned):
                total_bytes -= base_map.nbytes
                base_map.values = None

    def channels_last_weight(self, weight: Tensor) -> Tensor:
        """A kernel in the layout of windows, into which a convolution would else convert it at each call."""
        if weight.is_contiguous(memory_format=torch.channels_last):
            return weight
        fingerprint = _argument_fingerprint(weight)
        _, cached_fingerprint, copy = self.kernels.get(weight.data_ptr(), (weight, None, weight))
        if cached_fingerprint != fingerprint:
            copy = weight.contiguous(memory_format=torch.channels_last)
            self.kernels[weight.data_ptr()] = (weight, fingerprint, copy)
        return copy

    def record_bytes_per_row(self, n_rows: int, *tensors: Tensor) -> None:
        """Record the memory of n rows at one time."""
        total_bytes = sum(t.numel() * t.element_size() for t in tensors)
        self.bytes_per_row = max(self.bytes_per_row, total_bytes // max(1, n_rows))


def _argument_fingerprint(value: Any) -> Any:
    """What identifies an argument: of tensors the address of their values and how often those were written. The
    arguments are kept alive, so that no address is reused.
    """
    if isinstance(value, BaseMap):
        return id(value)  # kept alive by the maps computed from it
    if isinstance(value, Tensor):
        version = 0 if value.is_inference() else value._version
        return value.data_ptr(), value.device, value.dtype, value.shape, value.stride(), version
    return type(value), value
