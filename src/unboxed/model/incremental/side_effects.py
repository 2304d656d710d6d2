"""What a model keeps of a run: found, and put back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from torch import nn

from .base_run import BasePass
from .windowed import Windowed

MUTABLE = (dict, list, set, deque)


@contextmanager
def put_back(modules: Iterable[nn.Module], base_pass: BasePass) -> Iterator[None]:
    """Where modules hold windows at the end, in their attributes or what lies in those, stands what stood there
    before; where nothing stood, nothing does. It is so after errors, too.
    """
    before = [(h, h.copy()) for h in _holders(vars(m) for m in modules) if isinstance(h, MUTABLE)]
    try:
        yield
    finally:
        if base_pass.is_kept:
            for held, copy in reversed(before):  # what lies in another is put right first
                _restore(held, copy)


def _restore(held: Any, copy: Any) -> None:
    if not any(_keeps(value) for value in _inner(held)):
        return
    if not isinstance(held, dict):
        held.clear()
        held.update(copy) if isinstance(held, set) else held.extend(copy)
        return
    for name in [name for name, value in held.items() if _keeps(value)]:
        if name in copy:
            held[name] = copy[name]
        else:
            del held[name]


def _holders(values: Iterable[Any]) -> Iterator[Any]:
    """Each once, the outer ones first; tuples, too."""
    seen: set[int] = set()
    pending = deque(values)
    while pending:
        value = pending.popleft()
        if isinstance(value, (*MUTABLE, tuple)) and id(value) not in seen:
            seen.add(id(value))
            pending.extend(_inner(value))
            yield value


def _keeps(value: Any) -> bool:
    """Whether it is a window, or one lies in it."""
    return any(isinstance(v, Windowed) for v in (value, *chain.from_iterable(map(_inner, _holders([value])))))


def _inner(held: Any) -> Iterable[Any]:
    return held.values() if isinstance(held, dict) else held
