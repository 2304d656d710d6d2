"""What a model writes while it runs: found at a first forward, put back after it and after every later one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain, islice
from operator import attrgetter, is_, methodcaller
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

SMALL = 4096  # numbers: tensors up to this size are also compared by value at the first forward
BUFFERS, VALUES, VERSION = attrgetter("_buffers"), methodcaller("values"), attrgetter("_version")
STATISTICS = ("running_mean", "running_var")  # batch norm writes them, and its signature doesn't say so


class Saved:
    """A tensor's storage and, once `keep` was called, a copy of what it held."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.alias, self.value = tensor, tensor.detach(), None
        if tensor.numel() <= SMALL:
            self.keep()

    value: Tensor | None

    def keep(self) -> None:
        if self.value is None:
            self.value = self.alias.clone()

    @property
    def changed(self) -> bool:
        return self.moved or (self.value is not None and not _same(self.alias, self.value))

    @property
    def moved(self) -> bool:
        """Whether `tensor.data = ...` gave it another storage (or another dtype)."""
        now = self.tensor.detach()
        return (now.data_ptr(), now.shape, now.dtype) != (self.alias.data_ptr(), self.alias.shape, self.alias.dtype)

    def put_back(self) -> None:
        """By value and through `.data`: a raised version would break a graph in which the caller has saved it."""
        with torch.inference_mode(self.tensor.is_inference()):
            if self.moved:
                self.tensor.data = self.alias
            if self.value is not None:
                self.tensor.data.copy_(self.value)


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or (a.is_floating_point() and torch.equal(a.isnan(), b.isnan()) and
                                 torch.equal(a.nan_to_num(), b.nan_to_num()))  # fmt: skip


class _CopyOnWrite(TorchDispatchMode):
    """Copies each of some tensors right before an op first writes to it."""

    def __init__(self, saved: Iterable[Saved]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.at: dict[int, list[Saved]] = {}
        for s in saved:
            if s.tensor.numel():
                self.at.setdefault(s.alias.untyped_storage().data_ptr(), []).append(s)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for t in written(func, args, kwargs):
            for s in self.at.get(t.untyped_storage().data_ptr(), ()):
                s.keep()
        return func(*args, **kwargs)


def written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors that an op writes to, by its schema."""
    statistics = STATISTICS if "batch_norm" in func._schema.name else ()
    for i, argument in enumerate(func._schema.arguments):
        alias = argument.alias_info
        if (alias is not None and alias.is_write) or argument.name in statistics:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            yield from (t for t in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(t, Tensor))


@contextmanager
def discovering(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Put back what a forward inside writes to any of these tensors; the list names those, once it is left."""
    saved = [Saved(t) for t in tensors if t.layout == torch.strided and t.device.type != "meta"]
    found: list[Tensor] = []
    try:
        with _CopyOnWrite(saved):
            yield found
    finally:
        for s in saved:
            if s.changed:
                found.append(s.tensor)
                s.put_back()


@contextmanager
def restored(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Put back, afterwards, what these tensors hold."""
    saved = [Saved(t) for t in tensors]
    for s in saved:
        s.keep()
    try:
        yield
    finally:
        for s in saved:
            s.put_back()


def buffers_in_place(modules: Sequence[nn.Module]) -> AbstractContextManager[None]:
    """Afterwards the same buffers are registered under the same names: a model may replace them, or add some."""
    return _BuffersInPlace(modules)


class _BuffersInPlace:
    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = modules

    def __enter__(self) -> None:
        self.counts, self.names, self.tensors = self._registered()

    def __exit__(self, *error: object) -> None:
        counts, names, tensors = self._registered()
        if counts == self.counts and names == self.names and all(map(is_, tensors, self.tensors)):
            return
        before = zip(self.names, self.tensors, strict=True)
        for module, count in zip(self.modules, self.counts, strict=True):
            held, now = dict(islice(before, count)), module._buffers
            if len(now) != count or any(now.get(name, module) is not b for name, b in held.items()):
                _put_buffers(module, held)

    def _registered(self) -> tuple[list[int], list[str], list[Tensor | None]]:
        """How many buffers each module has, and the names and tensors of all: made and compared without a loop."""
        buffers = list(map(BUFFERS, self.modules))
        having = list(filter(None, buffers))
        return (
            list(map(len, buffers)),
            list(chain.from_iterable(having)),
            list(chain.from_iterable(map(VALUES, having))),
        )


def _put_buffers(module: nn.Module, before: dict[str, Tensor | None]) -> None:
    if isinstance(module, torch.jit.ScriptModule):  # gives out a new tensor at each look; its values are put back
        return
    module._non_persistent_buffers_set -= module._buffers.keys() - before.keys()
    module._buffers.clear()
    module._buffers.update(before)


def unwritten(tensors: Sequence[Tensor], late: Callable[[Tensor], None]) -> AbstractContextManager[None]:
    """Call `late` for each of these tensors that is written to all the same."""
    return _Unwritten(tensors, late)


class _Unwritten:
    def __init__(self, tensors: Sequence[Tensor], late: Callable[[Tensor], None]) -> None:
        self.tensors, self.late = tensors, late

    def __enter__(self) -> None:
        self.before = list(map(VERSION, self.tensors))

    def __exit__(self, *error: object) -> None:
        if (now := list(map(VERSION, self.tensors))) != self.before:
            for t, version, before in zip(self.tensors, now, self.before, strict=True):
                if version != before:
                    self.late(t)
