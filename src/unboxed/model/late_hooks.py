"""Forward hooks added after a box was opened: detected where they change an activation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from .hooks import tensors_in
from .identity import HookRef


@contextmanager
def detecting_hook_edits(hook_refs: Sequence[HookRef], on_change: Callable[[nn.Module], None]) -> Iterator[None]:
    """While open, call `on_change` with a module whenever one of these hooks changes its input or output."""
    before = [(hooks, key, hooks[key]) for hooks, key in hook_refs if key in hooks]
    for hooks, key, hook in before:
        hooks[key] = partial(_call_hook_and_detect_change, hook, on_change)
    try:
        yield
    finally:
        for hooks, key, hook in before:
            if key in hooks:  # else it was removed
                hooks[key] = hook


def _call_hook_and_detect_change(
    hook: Callable[..., Any], on_change: Callable[[nn.Module], None], module: nn.Module, *values: Any
) -> Any:
    """Call a hook with its values: args, perhaps kwargs and, for a forward hook, the output."""
    tensors = list(tensors_in(values))
    versions = [None if t.is_inference() else t._version for t in tensors]
    result = hook(module, *values)
    is_written = [None if t.is_inference() else t._version for t in tensors] != versions
    result_ids = [] if result is None else list(map(id, tensors_in(result)))
    if is_written or (result is not None and result_ids != list(map(id, tensors))[-len(result_ids) :]):
        on_change(module)
    return result
