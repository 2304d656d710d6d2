"""A batch of maps that differ from one base map in one window each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from weakref import ref

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, handle_torch_function
from torch.utils._pytree import tree_leaves, tree_map

from ..op_tables import canonical_op_name
from .base_run import BaseMap, BasePass

IntArray = npt.NDArray[np.int64]
OpFn = Callable[..., Any]


@dataclass(eq=False)
class WindowGroup:
    """Rows whose windows have equal size. Their positions are on the host, so that no device is waited for."""

    rows: IntArray  # (n,) of the batch
    top: IntArray  # (n,)
    left: IntArray  # (n,)
    values: Tensor  # (n, C, h, w); no other object has it, so an in-place op may write to it

    @property
    def size(self) -> tuple[int, int]:
        return self.values.shape[2], self.values.shape[3]

    def select(self, index: IntArray) -> WindowGroup:
        """Some of the rows."""
        if len(index) == len(self.rows):
            return self
        return WindowGroup(self.rows[index], self.top[index], self.left[index], select_rows(self.values, index))


def select_rows(values: Tensor, index: IntArray) -> Tensor:
    """values[index], as a view where the rows are consecutive."""
    if len(index) and index[-1] - index[0] == len(index) - 1 and (np.diff(index) == 1).all():
        return values[int(index[0]) : int(index[-1]) + 1]
    return values[torch.from_numpy(index).to(values.device)]


class WindowedTensor:
    """Represents a tensor (N, C, H, W) that equals `base` (1, C, H, W) except for a window in each row.

    Not a Tensor: torch's functions and methods are dispatched by `__torch_function__`. Local ops give windows again
    (`register_handler`); before any other op it becomes a dense tensor and remains it, so that views and later in-place
    ops act on the right values.
    """

    def __init__(self, base_pass: BasePass, base: BaseMap, groups: Sequence[WindowGroup], n_rows: int) -> None:
        self.base_pass, self.base_map, self.groups, self.n_rows = base_pass, base, list(groups), n_rows
        self._dense_values: Tensor | None = None
        base_pass.proxies.append(ref(self))

    @classmethod
    def from_windows(
        cls, base_pass: BasePass, base: Tensor, windows: Tensor, top: IntArray, left: IntArray
    ) -> WindowedTensor:
        """A new batch: base (1, C, H, W) with windows (N, C, h, w) at their corners (N,) and (N,)."""
        base_pass.restart_replay()
        base_map = base_pass.run(torch.clone, base)
        all_rows = np.arange(len(windows))
        return cls(
            base_pass,
            base_map,
            [WindowGroup(all_rows, top.astype(np.int64), left.astype(np.int64), windows)],
            len(windows),
        )

    # -- as a tensor ---------------------------------------------------------------------------------------------------

    def dense(self, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
        """The tensor (N, C, H, W) that this represents; from now on it is this one."""
        if self._dense_values is None:
            self._dense_values = self.dense_copy(layout)
            self.groups = []
            self.base_pass.n_dense_values += self._dense_values.numel()
            # later ops have about three such maps at one time
            self.base_pass.record_bytes_per_row(self.n_rows, *[self._dense_values] * 3)
        return self._dense_values

    @property
    def base_values(self) -> Tensor:
        """The base map with its values, (1, C, H, W)."""
        return self.base_pass.read(self.base_map)

    def dense_copy(self, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
        """A copy of the tensor that this represents; this stays windowed."""
        if self._dense_values is not None:
            return self._dense_values.clone()
        base = self.base_values.contiguous(memory_format=layout)  # in the layout of the copy
        full = torch.empty(self.n_rows, *base.shape[1:], dtype=base.dtype, device=base.device, memory_format=layout)
        full.copy_(base.expand_as(full))
        for g in self.groups:
            h, w = g.size
            for i, (row, top, left) in enumerate(zip(g.rows.tolist(), g.top.tolist(), g.left.tolist(), strict=True)):
                full[row, :, top : top + h, left : left + w] = g.values[i]
        return full

    def assign_in_place(self, other: WindowedTensor) -> WindowedTensor:
        """The effect of an in-place op: this object now represents another tensor."""
        self.base_map, self.groups, self._dense_values = other.base_map, other.groups, other._dense_values
        return self

    def map_windows(self, base: BaseMap, fn: Callable[[Tensor], Tensor]) -> WindowedTensor:
        """Apply a function to each window, which keeps its size, for a new base."""
        groups = [WindowGroup(g.rows, g.top, g.left, fn(g.values)) for g in self.groups]
        if base is not self.base_map:
            self.base_pass.free_unless_read_by_windows(self.base_map)
        self.base_pass.n_local_values += sum(g.values.numel() for g in groups)
        return WindowedTensor(self.base_pass, base, groups, self.n_rows)

    @property
    def is_windowed(self) -> bool:
        return self._dense_values is None

    def placeholder_tensor(self) -> Tensor:
        """A tensor of this shape, dtype and device without values."""
        if self._dense_values is not None:
            return self._dense_values
        return self.base_map.like.new_empty(1).expand(self.n_rows, *self.base_map.shape[1:])

    def __len__(self) -> int:
        return self.n_rows

    def __getattr__(self, name: str) -> Any:
        if name in ATTRIBUTES_RETURNING_SELF:  # it shares the values
            return self
        if name in METADATA_ATTRIBUTES:
            return getattr(self.placeholder_tensor(), name)
        if callable(getattr(torch.Tensor, name)):
            return partial(_dispatching_method(name), self)
        return getattr(self.dense(), name)

    @classmethod
    def __torch_function__(
        cls, func: OpFn, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return apply_windowed_or_dense(func, args, kwargs or {})


ATTRIBUTES_RETURNING_SELF = frozenset({"data"})
METADATA_ATTRIBUTES = frozenset(
    {"shape", "ndim", "dtype", "device", "layout", "is_cuda", "is_cpu", "is_sparse", "is_quantized", "is_leaf",
     "grad_fn", "requires_grad", "itemsize", "size", "dim", "ndimension", "numel", "nelement", "element_size",
     "get_device", "is_floating_point", "is_complex", "is_inference", "new_zeros", "new_ones", "new_empty", "new_full",
     "new_tensor"}
)  # fmt: skip
"""Attributes that do not need values."""

OPERATOR_METHODS = (
    *(f"__{kind}{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod", "and", "or", "xor")
      for kind in ("", "r", "i")),
    "__matmul__", "__rmatmul__", "__neg__", "__pos__", "__abs__", "__invert__",
    "__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__",
    "__getitem__", "__setitem__", "__iter__", "__bool__", "__float__", "__int__", "__index__", "__contains__",
)  # fmt: skip


@cache
def _dispatching_method(name: str) -> OpFn:
    """A method of tensors as a function that modes, and then `apply_windowed_or_dense`, intercept."""
    tensor_method = getattr(torch.Tensor, name)

    def dispatching_method(*args: Any, **kwargs: Any) -> Any:
        windowed = _windowed_tensors_in((args, kwargs))
        return (
            handle_torch_function(dispatching_method, windowed, *args, **kwargs)
            if windowed
            else tensor_method(*args, **kwargs)
        )

    dispatching_method.__name__ = name
    return dispatching_method


for _name in OPERATOR_METHODS:
    if hasattr(torch.Tensor, _name):
        setattr(WindowedTensor, _name, _dispatching_method(_name))
WindowedTensor.__hash__ = object.__hash__  # type: ignore[method-assign]  # as for tensors


# -- dispatch ----------------------------------------------------------------------------------------------------------

HandlerFn = Callable[..., Any]
HANDLER_BY_OP_NAME: dict[str, HandlerFn] = {}
"""Local implementations by the op's plain name: (func, args, kwargs) -> output, or NotImplemented."""


def register_handler(*names: str) -> Callable[[HandlerFn], HandlerFn]:
    def register_op_handler(handler: HandlerFn) -> HandlerFn:
        HANDLER_BY_OP_NAME.update(dict.fromkeys(names, handler))
        return handler

    return register_op_handler


def apply_windowed_or_dense(func: OpFn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An op on windowed tensors: local where possible, else dense."""
    args, kwargs = tree_map(_unwrap_dense, (args, kwargs))
    for name in ("input", "self"):
        if not args and name in kwargs:
            args = (kwargs.pop(name),)
    if _windowed_tensors_in((args, kwargs)):
        handler = HANDLER_BY_OP_NAME.get(canonical_op_name(func))
        out = NotImplemented if handler is None or "out" in kwargs else handler(func, args, kwargs)
        if out is not NotImplemented:
            return out
    args, kwargs = tree_map(to_dense, (args, kwargs))
    return func(*args, **kwargs)


def to_dense(value: Any) -> Any:
    """The dense tensor of a windowed one; other values unchanged."""
    return value.dense() if isinstance(value, WindowedTensor) else value


def _unwrap_dense(value: Any) -> Any:
    """The tensor of a windowed one that has become dense; other values unchanged."""
    return value if not isinstance(value, WindowedTensor) or value.is_windowed else value.dense()


def _windowed_tensors_in(value: Any) -> list[WindowedTensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, WindowedTensor)]


TIE_SENSITIVE_OPS = (
    "max_pool2d_with_indices",
    "adaptive_max_pool2d_with_indices",
    "fractional_max_pool2d_with_indices",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
)
INDEX_RETURNING_OPS = ("argmax", "argmin", "argsort", "sort", "topk", "kthvalue")
"""Ops that return the index of a maximum: under a constant mask many values are equal, and rounding decides."""


class WindowedMode(TorchFunctionMode):
    """While open, ops that accept only tensors (`torch.ops.aten.relu`) accept windowed tensors, too."""

    depends_on_ties = False  # whether the model used the index of a maximum in a map: windows may then be wrong

    def __torch_function__(
        self, func: OpFn, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = canonical_op_name(func)
        if name in TIE_SENSITIVE_OPS or (
            name in INDEX_RETURNING_OPS and any(getattr(a, "ndim", 0) > 2 for a in (*args, *kwargs.values()))
        ):
            self.depends_on_ties = True
        if _windowed_tensors_in((args, kwargs)):
            return apply_windowed_or_dense(func, args, kwargs)
        return func(*args, **kwargs)
