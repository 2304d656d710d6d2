"""A batch of maps that differ from one base map in a window each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from weakref import ref

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, handle_torch_function

from ..op_tables import name_of
from .base_run import BasePass, Map

Ints = npt.NDArray[np.int64]
Op = Callable[..., Any]


@dataclass(eq=False)
class Group:
    """Rows whose windows are equally large. Where they lie is known to the host, so that a device is not waited for."""

    rows: Ints  # (n,) of the batch
    top: Ints  # (n,)
    left: Ints  # (n,)
    values: Tensor  # (n, C, h, w); no other object holds it, so an op in place may write it

    @property
    def size(self) -> tuple[int, int]:
        return self.values.shape[2], self.values.shape[3]

    def pick(self, index: Ints) -> Group:
        """Some of the rows."""
        if len(index) == len(self.rows):
            return self
        return Group(self.rows[index], self.top[index], self.left[index], picked(self.values, index))


def picked(values: Tensor, index: Ints) -> Tensor:
    """values[index], as a view where the rows follow one another."""
    if len(index) and index[-1] - index[0] == len(index) - 1 and (np.diff(index) == 1).all():
        return values[int(index[0]) : int(index[-1]) + 1]
    return values[torch.from_numpy(index).to(values.device)]


class Windowed:
    """Stands for a tensor (N, C, H, W) that is `base` (1, C, H, W) but for a window in each row.

    Not a Tensor: torch's functions and the methods of tensors find their way by `__torch_function__`. Ops that are
    local stay windows (`handles`); before any other it becomes a dense tensor, and is this one from then on, so that
    views and later ops in place hit what they should.
    """

    def __init__(self, base_pass: BasePass, base: Map, groups: Sequence[Group], n: int) -> None:
        self.base_pass, self.base_map, self.groups, self.n_rows = base_pass, base, list(groups), n
        self._full: Tensor | None = None
        base_pass.given.append(ref(self))

    @classmethod
    def begin(cls, base_pass: BasePass, base: Tensor, windows: Tensor, top: Ints, left: Ints) -> Windowed:
        """A new batch: windows (N, C, h, w) put into base (1, C, H, W) at their corners (N,) and (N,)."""
        base_pass.restart()
        start = base_pass.run(torch.clone, base)
        every = np.arange(len(windows))
        return cls(base_pass, start, [Group(every, top.astype(np.int64), left.astype(np.int64), windows)], len(windows))

    # -- as a tensor ---------------------------------------------------------------------------------------------------

    def dense(self, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
        """The tensor (N, C, H, W) that this stands for; from now on it is this one."""
        if self._full is None:
            self._full = self.peek(layout)
            self.groups = []
            self.base_pass.dense += self._full.numel()
            self.base_pass.note(self.n_rows, self._full, self._full, self._full)  # what follows holds a few such maps
        return self._full

    @property
    def base(self) -> Tensor:
        """The base map with its values, (1, C, H, W)."""
        return self.base_pass.look(self.base_map)

    def peek(self, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
        """A copy of the tensor that this stands for, which stays as it is."""
        if self._full is not None:
            return self._full.clone()
        base = self.base.contiguous(memory_format=layout)  # rows are then copied as they lie
        full = torch.empty(self.n_rows, *base.shape[1:], dtype=base.dtype, device=base.device, memory_format=layout)
        full.copy_(base.expand_as(full))
        for g in self.groups:
            h, w = g.size
            for i, (row, top, left) in enumerate(zip(g.rows.tolist(), g.top.tolist(), g.left.tolist(), strict=True)):
                full[row, :, top : top + h, left : left + w] = g.values[i]
        return full

    def become(self, other: Windowed) -> Windowed:
        """What an op in place does: this object now stands for another value."""
        self.base_map, self.groups, self._full = other.base_map, other.groups, other._full
        return self

    def mapped(self, base: Map, by: Callable[[Tensor], Tensor]) -> Windowed:
        """Each window made into another of its size, beside a new base."""
        groups = [Group(g.rows, g.top, g.left, by(g.values)) for g in self.groups]
        if base is not self.base_map:
            self.base_pass.spent(self.base_map)
        self.base_pass.local += sum(g.values.numel() for g in groups)
        return Windowed(self.base_pass, base, groups, self.n_rows)

    @property
    def is_local(self) -> bool:
        return self._full is None

    def placeholder(self) -> Tensor:
        """A tensor of this shape, dtype and device that holds no values of its own."""
        if self._full is not None:
            return self._full
        return self.base_map.like.new_empty(1).expand(self.n_rows, *self.base_map.shape[1:])

    def __len__(self) -> int:
        return self.n_rows

    def __getattr__(self, name: str) -> Any:
        if name in SELF:  # it stands for the same values, written or not
            return self
        if name in ABOUT:
            return getattr(self.placeholder(), name)
        if callable(getattr(torch.Tensor, name)):
            return partial(_method(name), self)
        return getattr(self.dense(), name)

    @classmethod
    def __torch_function__(
        cls, func: Op, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return apply(func, args, kwargs or {})


SELF = frozenset({"data"})
ABOUT = frozenset(
    {"shape", "ndim", "dtype", "device", "layout", "is_cuda", "is_cpu", "is_sparse", "is_quantized", "is_leaf",
     "grad_fn", "requires_grad", "itemsize", "size", "dim", "ndimension", "numel", "nelement", "element_size",
     "get_device", "is_floating_point", "is_complex", "is_inference", "new_zeros", "new_ones", "new_empty", "new_full",
     "new_tensor"}
)  # fmt: skip
"""What is known of a tensor without its values."""

OPERATORS = (
    *(f"__{kind}{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod", "and", "or", "xor")
      for kind in ("", "r", "i")),
    "__matmul__", "__rmatmul__", "__neg__", "__pos__", "__abs__", "__invert__",
    "__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__",
    "__getitem__", "__setitem__", "__iter__", "__bool__", "__float__", "__int__", "__index__", "__contains__",
)  # fmt: skip


@cache
def _method(name: str) -> Op:
    """A method of tensors as a function that every mode and then `apply` gets to see."""
    own = getattr(torch.Tensor, name)

    def method(*args: Any, **kwargs: Any) -> Any:
        met = tuple(_windowed((args, kwargs)))
        return handle_torch_function(method, met, *args, **kwargs) if met else own(*args, **kwargs)

    method.__name__ = name
    return method


for _name in OPERATORS:
    if hasattr(torch.Tensor, _name):
        setattr(Windowed, _name, _method(_name))
Windowed.__hash__ = object.__hash__  # type: ignore[method-assign]  # as for tensors


# -- how ops find their way --------------------------------------------------------------------------------------------

Handler = Callable[..., Any]
HANDLERS: dict[str, Handler] = {}
"""What keeps an op local, by the op's plain name: (func, args, kwargs) -> result, or NotImplemented for "not here"."""


def handles(*names: str) -> Callable[[Handler], Handler]:
    def enter(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return enter


def apply(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An op on windows: local where it can be, dense otherwise."""
    args, kwargs = _exchanged(args, _settled), _exchanged(kwargs, _settled)
    for name in ("input", "self"):
        if not args and name in kwargs:
            args = (kwargs.pop(name),)
    if any(True for _ in _windowed((args, kwargs))):
        handler = HANDLERS.get(name_of(func))
        out = NotImplemented if handler is None or "out" in kwargs else handler(func, args, kwargs)
        if out is not NotImplemented:
            return out
    return func(*_exchanged(args, plain), **_exchanged(kwargs, plain))


def plain(value: Any) -> Any:
    """A tensor for what stands for one."""
    return value.dense() if isinstance(value, Windowed) else value


def _settled(value: Any) -> Any:
    """The tensor, for what has become one."""
    return value if not isinstance(value, Windowed) or value.is_local else value.dense()


def _exchanged(value: Any, by: Callable[[Any], Any]) -> Any:
    if type(value) in (tuple, list):
        return type(value)(_exchanged(part, by) for part in value)
    if type(value) is dict:
        return {name: _exchanged(part, by) for name, part in value.items()}
    return by(value)


def _windowed(value: Any) -> Iterator[Windowed]:
    if isinstance(value, Windowed):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _windowed(part)
    elif isinstance(value, dict):
        yield from _windowed(tuple(value.values()))


TIES = ("max_pool2d_with_indices", "adaptive_max_pool2d_with_indices", "fractional_max_pool2d_with_indices",
        "max_unpool1d", "max_unpool2d", "max_unpool3d")  # fmt: skip
PLACES = ("argmax", "argmin", "argsort", "sort", "topk", "kthvalue")
"""Ops that tell where the largest values lie: below a constant cover many are equal, and rounding then chooses."""


class Everywhere(TorchFunctionMode):
    """While open, ops that look for tensors only (`torch.ops.aten.relu`) find windows too.

    `tied` tells whether the model asked for places of largest values in maps: then windows are no stand-in.
    """

    tied = False

    def __torch_function__(
        self, func: Op, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if name in TIES or (name in PLACES and any(getattr(a, "ndim", 0) > 2 for a in (*args, *kwargs.values()))):
            self.tied = True
        if any(True for _ in _windowed((args, kwargs))):
            return apply(func, args, kwargs)
        return func(*args, **kwargs)
