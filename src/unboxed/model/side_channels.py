"""Side channels: modules that read tensors which are not arguments, or pass on ones which are not outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .buffer_writes import tensors_written_by_op
from .hooks import tensors_in
from .op_mode import DispatchMode


@dataclass(eq=False)
class ForwardCall:
    """One call of a module's forward."""

    module: nn.Module
    inputs: list[Tensor]
    is_replayable: bool = False  # whether a recorded output can replace it

    def __post_init__(self) -> None:
        self.input_storages = set(filter(None, map(_storage_pointer, self.inputs)))


class SideChannelDetectorMode(DispatchMode):
    """Records during which calls each tensor is written, and finds reads that only a side channel explains: an
    attribute, a list, a hook, a global. Tensors written before the run, such as weights, are not tracked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.side_channel_modules: set[nn.Module] = set()
        self.running_calls: tuple[ForwardCall, ...] = ()
        self.writers: dict[int, set[tuple[ForwardCall, ...]]] = {}  # {storage: calls that ran when it was written}
        self.references: list[Any] = []  # so that no storage address is reused

    @contextmanager
    def tracking_call(self, call: ForwardCall) -> Iterator[None]:
        before = self.running_calls
        self.running_calls = (*before, call)
        try:
            yield
        finally:
            self.running_calls = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        input_storages = set(filter(None, map(_storage_pointer, tensors_in((args, kwargs)))))
        for storage in input_storages:
            self._record_side_channel_read(storage)
        new_storages = set(filter(None, map(_storage_pointer, tensors_in(out)))) - input_storages
        for storage in new_storages | set(
            filter(None, map(_storage_pointer, tensors_written_by_op(func, args, kwargs)))
        ):
            self.writers.setdefault(storage, set()).add(self.running_calls)
        self.references.append(out)
        return out

    def _record_side_channel_read(self, storage: int) -> None:
        for writers in self.writers.get(storage, ()):
            passed_on = {b.module for b in writers if b.is_replayable and b not in self.running_calls}
            received = {b.module for b in self.running_calls if b not in writers and storage not in b.input_storages}
            self.side_channel_modules |= passed_on | received


def _storage_pointer(h: Tensor) -> int:
    """The address of a tensor's values; 0 for one without any."""
    return h.untyped_storage().data_ptr() if h.layout == torch.strided else 0
