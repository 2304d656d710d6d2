"""Side effects: what a model stores during a run is found and restored."""

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
def restoring_containers(modules: Iterable[nn.Module], base_pass: BasePass) -> Iterator[None]:
    """Afterwards, also after errors, restore attributes and containers of modules that have windowed tensors."""
    snapshots = [(h, h.copy()) for h in _iter_containers(vars(m) for m in modules) if isinstance(h, MUTABLE_CONTAINERS)]
    try:
        yield
    finally:
        if base_pass.has_referenced_windowed_tensors:
            for container, copy in reversed(snapshots):  # inner ones first
                _restore_container(container, copy)


def _restore_container(container: Any, copy: Any) -> None:
    if not any(_contains_windowed(value) for value in _container_values(container)):
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
    """Each container once, outer ones first; tuples, too."""
    seen: set[int] = set()
    pending = deque(values)
    while pending:
        value = pending.popleft()
        if isinstance(value, (*MUTABLE_CONTAINERS, tuple)) and id(value) not in seen:
            seen.add(id(value))
            pending.extend(_container_values(value))
            yield value


def _contains_windowed(value: Any) -> bool:
    """Whether it is or contains a windowed tensor."""
    return any(
        isinstance(v, WindowedTensor)
        for v in (value, *chain.from_iterable(map(_container_values, _iter_containers([value]))))
    )


def _container_values(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container
