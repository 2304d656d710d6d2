"""The caller's torch.autocast, which would round products and sums that are not the model's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch

DEVICE_TYPES = ("cpu", "cuda", "mps")
_NOTHING = nullcontext()


def leaving_autocast() -> AbstractContextManager[object]:
    """A context outside the caller's autocast, on every device where it is enabled; else nothing, at no cost."""
    if not torch._C._is_any_autocast_enabled():
        return _NOTHING
    return _disabling_autocast([device for device in DEVICE_TYPES if torch.is_autocast_enabled(device)])


@contextmanager
def _disabling_autocast(device_types: Sequence[str]) -> Iterator[None]:
    with ExitStack() as stack:
        for device in device_types:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield
