"""What a box saw of a model when it opened it, to tell whether the model was changed since."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from torch import nn

Identity = list[object]


class TransientHook(partial):  # type: ignore[type-arg]
    """A forward hook that a box adds for one forward: it makes no other model, whichever thread looks meanwhile."""


def identity(modules: Sequence[nn.Module], mode: str) -> Identity:
    """The modules' children, their parameters' dtypes, devices and shapes, buffers' dtypes and shapes, and hooks.

    The train flags, too, where they count. Values don't count: a step of a training changes no layer. Children and
    parameters are told by their ids, which hold as long as they do, so whoever compares them keeps those; hooks by
    their handles' ids, which torch gives once.
    """
    found: Identity = []
    for m in modules:
        own = m.__dict__  # each call of a box comes here: m._modules and the like take twice as long
        if children := own["_modules"]:
            found += map(id, children.values())
        for p in own["_parameters"].values():
            if p is not None:
                found += (id(p), p.dtype, p.get_device(), p.shape)
        for b in own["_buffers"].values():  # without statistics, batch norm couples rows
            found.append(b if b is None else (b.dtype, b.shape))
        if own["_forward_hooks"] or own["_forward_pre_hooks"]:
            found += _hooks(m)
    return [*found, *(m.training for m in modules)] if mode == "as-is" else found


def _hooks(module: nn.Module) -> Iterator[int]:
    """The ids of the handles of hooks that others added."""
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        yield from (key for key, hook in list(hooks.items()) if type(hook) is not TransientHook)
