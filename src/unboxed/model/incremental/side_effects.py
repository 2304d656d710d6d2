"""What a model keeps of a run: found, and put back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from torch import nn

from .base_run import BasePass
from .windowed import WindowedTensor

MUTABLE_CONTAINERS = (dict, list, set, deque)


@contextmanager
def restore_containers(modules: Iterable[nn.Module], base_pass: BasePass) -> Iterator[None]:
    """Where modules hold windows at the end, in their attributes or what lies in those, stands what stood there
    before; where nothing stood, nothing does. It is so after errors, too.
    """
    snapshots = [(h, h.copy()) for h in _iter_containers(vars(m) for m in modules) if isinstance(h, MUTABLE_CONTAINERS)]
    try:
        yield
    finally:
        if base_pass.has_live_proxies:
            for container, copy in reversed(snapshots):  # what lies in another is put right first
                _restore_container(container, copy)


def _restore_container(container: Any, copy: Any) -> None:
    if not any(_contains_windowed(value) for value in _contents(container)):
        return
    if not isinstance(container, dict):
        container.clear()
        container.update(copy) if isinstance(container, set) else container.extend(copy)
        return
    for name in [name for name, value in container.items() if _contains_windowed(value)]:
        if name in copy:
            container[name] = copy[name]
        else:
            del container[name]


def _iter_containers(values: Iterable[Any]) -> Iterator[Any]:
    """Each once, the outer ones first; tuples, too."""
    seen: set[int] = set()
    pending = deque(values)
    while pending:
        value = pending.popleft()
        if isinstance(value, (*MUTABLE_CONTAINERS, tuple)) and id(value) not in seen:
            seen.add(id(value))
            pending.extend(_contents(value))
            yield value


def _contains_windowed(value: Any) -> bool:
    """Whether it is a window, or one lies in it."""
    return any(
        isinstance(v, WindowedTensor) for v in (value, *chain.from_iterable(map(_contents, _iter_containers([value]))))
    )


def _contents(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container
