"""What a box saw of a model when it opened it, to tell whether the model was changed since."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from torch import nn

Identity = list[object]
Hooks = dict[int, Any]  # a module's, by the ids of their handles, which torch gives once
HookRef = tuple[Hooks, int]
MODULE_FIELDS = itemgetter("_modules", "_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks")


class TransientHook(partial):  # type: ignore[type-arg]
    """A forward hook that a box adds for one forward: none of the model's, whichever thread looks meanwhile."""


def model_identity(modules: Sequence[nn.Module], mode: str) -> tuple[Identity, list[HookRef]]:
    """The modules' children, parameters and missing buffers, their train flags where they count; the hooks of others.

    Values don't count: a step of a training changes no layer. Children and parameters are told by their ids, which hold
    as long as they do, so whoever compares them keeps those. Each call of a box comes here: of a parameter's shape only
    the size is asked, in half the time.
    """
    values: Identity = []
    hook_dicts: list[Hooks] = []
    for m in modules:
        children, parameters, buffers, hooks, pre_hooks = MODULE_FIELDS(m.__dict__)
        if children:
            values += map(id, children.values())
        for p in parameters.values():
            if p is not None:
                values += (id(p), p.dtype, p.get_device(), p.nbytes)
        if buffers:  # a batch norm without its statistics couples rows
            values += map(type, buffers.values())  # None's or a tensor's
        if hooks or pre_hooks:
            hook_dicts += (hooks, pre_hooks)
    flags = [m.training for m in modules] if mode == "as-is" else []
    return values + flags, [(hooks, key) for hooks in hook_dicts for key in _lasting_hook_keys(hooks)]


def _lasting_hook_keys(hooks: Hooks) -> list[int]:
    return [key for key, hook in list(hooks.items()) if type(hook) is not TransientHook]
