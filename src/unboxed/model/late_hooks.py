"""Forward hooks that were added after a box was opened: seen where they change what passes through a module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from .hooks import tensors_in
from .identity import HookPlace


@contextmanager
def watched(places: Sequence[HookPlace], changes: Callable[[nn.Module], None]) -> Iterator[None]:
    """While open, `changes` is called with a module whenever one of these hooks changes what it takes or gives."""
    before = [(hooks, key, hooks[key]) for hooks, key in places if key in hooks]
    for hooks, key, hook in before:
        hooks[key] = partial(_watch, hook, changes)
    try:
        yield
    finally:
        for hooks, key, hook in before:
            if key in hooks:  # else it was removed meanwhile
                hooks[key] = hook


def _watch(hook: Callable[..., Any], changes: Callable[[nn.Module], None], module: nn.Module, *passed: Any) -> Any:
    """Call a hook with what passes: args, maybe kwargs and, after the forward, the output."""
    tensors = list(tensors_in(passed))
    versions = [None if t.is_inference() else t._version for t in tensors]
    new = hook(module, *passed)
    written = [None if t.is_inference() else t._version for t in tensors] != versions
    given = [] if new is None else list(map(id, tensors_in(new)))
    if written or (new is not None and given != list(map(id, tensors))[-len(given) :]):
        changes(module)
    return new
