"""What a box saw of a model when it opened it, to tell whether the model was changed since."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

Identity = list[object]
HookPlace = tuple[dict[int, Any], int]  # a module's hooks, and the id of one's handle, which torch gives once


class TransientHook(partial):  # type: ignore[type-arg]
    """A forward hook that a box adds for one forward: none of the model's, whichever thread looks meanwhile."""


def identity(modules: Sequence[nn.Module], mode: str) -> Identity:
    """The modules' children, parameters by dtype, device and shape, buffers by dtype and shape; where they count, flags.

    Values don't count: a step of a training changes no layer. Children and parameters are told by their ids, which hold
    as long as they do, so whoever compares them keeps those.
    """
    found: Identity = []
    for m in modules:
        own = m.__dict__  # each call of a box comes here, and m._modules takes twice as long
        if children := own["_modules"]:
            found += map(id, children.values())
        for p in own["_parameters"].values():
            if p is not None:
                found += (id(p), p.dtype, p.get_device(), p.shape)
        for b in own["_buffers"].values():  # a batch norm whose statistics are None couples rows
            found.append(b if b is None else (b.dtype, b.shape))
    return [*found, *(m.training for m in modules)] if mode == "as-is" else found


def foreign_hooks(modules: Sequence[nn.Module]) -> list[HookPlace]:
    """The forward and forward pre-hooks that others added."""
    found: list[HookPlace] = []
    for m in modules:
        own = m.__dict__
        for hooks in (own["_forward_hooks"], own["_forward_pre_hooks"]):
            if hooks:
                found += [(hooks, key) for key, hook in list(hooks.items()) if type(hook) is not TransientHook]
    return found
