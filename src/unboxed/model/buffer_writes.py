"""What a model writes while it runs: found in the first forward pass, and restored after each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain, islice
from operator import attrgetter, is_, methodcaller
from typing import Any

import torch
from torch import Tensor, nn

from .op_mode import DispatchMode

# Values: tensors up to this size are also compared by value at the first forward pass
MAX_EAGERLY_COPIED_TENSOR_VALUES = 4096
GET_BUFFERS, CALL_VALUES, GET_TENSOR_VERSION = attrgetter("_buffers"), methodcaller("values"), attrgetter("_version")
UNDECLARED_BATCH_NORM_WRITES = ("running_mean", "running_var")  # batch norm writes them, which its schema does not say


class LazySnapshot:
    """A tensor's storage and, once `save_copy` was called, a copy of its values."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.alias, self.value = tensor, tensor.detach(), None
        if tensor.numel() <= MAX_EAGERLY_COPIED_TENSOR_VALUES:
            self.save_copy()

    value: Tensor | None

    def save_copy(self) -> None:
        if self.value is None:
            self.value = self.alias.clone()

    @property
    def has_changed(self) -> bool:
        return self.has_new_storage or (self.value is not None and not _equal_with_nan(self.alias, self.value))

    @property
    def has_new_storage(self) -> bool:
        """Whether `tensor.data = ...` gave it another storage (or another dtype)."""
        current = self.tensor.detach()
        return (current.data_ptr(), current.shape, current.dtype) != (
            self.alias.data_ptr(),
            self.alias.shape,
            self.alias.dtype,
        )

    def restore(self) -> None:
        """Restore through `.data`: a raised version would break a graph in which the caller has saved the tensor."""
        with torch.inference_mode(self.tensor.is_inference()):
            if self.has_new_storage:
                self.tensor.data = self.alias
            if self.value is not None:
                self.tensor.data.copy_(self.value)


def _equal_with_nan(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or (a.is_floating_point() and torch.equal(a.isnan(), b.isnan()) and
                                 torch.equal(a.nan_to_num(), b.nan_to_num()))  # fmt: skip


class _CopyOnWriteMode(DispatchMode):
    """Copies each of some tensors right before an op first writes to it."""

    def __init__(self, snapshots: Iterable[LazySnapshot]) -> None:
        super().__init__()
        self.by_storage: dict[int, list[LazySnapshot]] = {}
        for s in snapshots:
            if s.tensor.numel():
                self.by_storage.setdefault(s.alias.untyped_storage().data_ptr(), []).append(s)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for t in tensors_written_by_op(func, args, kwargs):
            for s in self.by_storage.get(t.untyped_storage().data_ptr(), ()):
                s.save_copy()
        return func(*args, **kwargs)


def tensors_written_by_op(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors that an op writes to, by its schema."""
    for i, name in _written_arguments(func):
        value = args[i] if i < len(args) else kwargs.get(name)
        yield from (t for t in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(t, Tensor))


@cache
def _written_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    """The (position, name) of each argument that an op writes to."""
    also_written = UNDECLARED_BATCH_NORM_WRITES if "batch_norm" in func._schema.name else ()
    return tuple(
        (i, argument.name)
        for i, argument in enumerate(func._schema.arguments)
        if (argument.alias_info is not None and argument.alias_info.is_write) or argument.name in also_written
    )


@contextmanager
def restoring_and_listing_writes(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Restore what is written inside to any of these tensors; on exit, the list has those that were written to."""
    snapshots = [LazySnapshot(t) for t in tensors if t.layout == torch.strided and t.device.type != "meta"]
    changed: list[Tensor] = []
    try:
        with _CopyOnWriteMode(snapshots):
            yield changed
    finally:
        for s in snapshots:
            if s.has_changed:
                changed.append(s.tensor)
                s.restore()


@contextmanager
def preserving_tensor_values(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Restore the values of these tensors afterwards."""
    snapshots = [LazySnapshot(t) for t in tensors]
    for s in snapshots:
        s.save_copy()
    try:
        yield
    finally:
        for s in snapshots:
            s.restore()


class preserving_buffer_registration:
    """Restore the registered buffers afterwards: a model may replace them, or add some."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = modules

    def __enter__(self) -> None:
        self.counts, self.names, self.tensors = self._registered_buffers()

    def __exit__(self, *error: object) -> None:
        if not (self.names or any(map(GET_BUFFERS, self.modules))):
            return
        counts, names, tensors = self._registered_buffers()
        if counts == self.counts and names == self.names and all(map(is_, tensors, self.tensors)):
            return
        before = zip(self.names, self.tensors, strict=True)
        for module, count in zip(self.modules, self.counts, strict=True):
            items, current = dict(islice(before, count)), module._buffers
            if len(current) != count or any(current.get(name, module) is not b for name, b in items.items()):
                _restore_registered_buffers(module, items)

    def _registered_buffers(self) -> tuple[list[int], list[str], list[Tensor | None]]:
        """How many buffers each module has, and the names and tensors of all, without a Python loop."""
        buffers = list(map(GET_BUFFERS, self.modules))
        having = list(filter(None, buffers))
        return (
            list(map(len, buffers)),
            list(chain.from_iterable(having)),
            list(chain.from_iterable(map(CALL_VALUES, having))),
        )


def _restore_registered_buffers(module: nn.Module, before: dict[str, Tensor | None]) -> None:
    if isinstance(module, torch.jit.ScriptModule):  # gives a new tensor at each access; its values are restored
        return
    module._non_persistent_buffers_set -= module._buffers.keys() - before.keys()
    module._buffers.clear()
    module._buffers.update(before)


class reporting_writes_on_exit:
    """On exit, call `on_write` for each of these tensors that was written to."""

    def __init__(self, tensors: Sequence[Tensor], on_write: Callable[[Tensor], None]) -> None:
        self.tensors, self.on_write = tensors, on_write

    def __enter__(self) -> None:
        self.before = list(map(GET_TENSOR_VERSION, self.tensors))

    def __exit__(self, *error: object) -> None:
        if (current := list(map(GET_TENSOR_VERSION, self.tensors))) != self.before:
            for t, version, before in zip(self.tensors, current, self.before, strict=True):
                if version != before:
                    self.on_write(t)
