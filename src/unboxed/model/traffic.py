"""Which modules take tensors otherwise than as arguments, or hand them on otherwise than as their output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .buffer_writes import written
from .hooks import tensors_in


@dataclass(eq=False)
class Body:
    """One call of a module's forward."""

    module: nn.Module
    inputs: list[Tensor]
    answers: bool = False  # whether a recorded output can stand for it

    def __post_init__(self) -> None:
        self.given = set(filter(None, map(_storage, self.inputs)))


class Traffic(TorchDispatchMode):
    """Notes in which bodies each tensor is written, and finds it read where only another way leads: an attribute, a
    list, a hook, a global. Such modules are `open_modules`. What is written before the run, as weights are, is free.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.open_modules: set[nn.Module] = set()
        self.running: tuple[Body, ...] = ()
        self.writers: dict[int, set[tuple[Body, ...]]] = {}  # of a storage: the bodies that ran when it was written
        self.alive: list[Any] = []  # so that no storage is used again

    @contextmanager
    def inside(self, body: Body) -> Iterator[None]:
        before = self.running
        self.running = (*before, body)
        try:
            yield
        finally:
            self.running = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = set(filter(None, map(_storage, tensors_in((args, kwargs)))))
        for storage in given:
            self._read(storage)
        made = set(filter(None, map(_storage, tensors_in(out)))) - given
        for storage in made | set(filter(None, map(_storage, written(func, args, kwargs)))):
            self.writers.setdefault(storage, set()).add(self.running)
        self.alive.append(out)
        return out

    def _read(self, storage: int) -> None:
        for writers in self.writers.get(storage, ()):
            handed_on = {b.module for b in writers if b.answers and b not in self.running}
            taken = {b.module for b in self.running if b not in writers and storage not in b.given}
            self.open_modules |= handed_on | taken


def _storage(h: Tensor) -> int:
    """Where a tensor's values lie; 0 for one without any."""
    return h.untyped_storage().data_ptr() if h.layout == torch.strided else 0
