"""What identifies a model when it is opened, to see later whether it has changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any

from torch import Tensor, nn

ModelIdentityValues = list[object]
HooksByHandleId = dict[int, Any]  # of a module, by the ids of their handles, which torch never reuses
HookRef = tuple[HooksByHandleId, int]
GET_MODULE_FIELDS = itemgetter("_modules", "_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks")
GET_DTYPE, GET_DEVICE, GET_NBYTES = attrgetter("dtype"), Tensor.get_device, attrgetter("nbytes")


class TransientHook(partial):  # type: ignore[type-arg]
    """A forward hook that a box adds for one forward pass: not the model's own, for all threads."""


def model_identity_and_hooks(modules: Sequence[nn.Module], mode: str) -> tuple[ModelIdentityValues, list[HookRef]]:
    """The modules' children, parameters, missing buffers and (as-is) train flags; and the hooks that are not a box's.

    Values are not part of it: a training step changes no layer. Children and parameters are identified by their ids,
    which are valid as long as they exist, so the caller keeps them alive. Each call of a box calls this: of a
    parameter's shape only the size is compared, in half the time.
    """
    values: ModelIdentityValues = []
    parameters_or_none: list[Tensor | None] = []
    hook_dicts: list[HooksByHandleId] = []
    for m in modules:
        children, parameters, buffers, hooks, pre_hooks = GET_MODULE_FIELDS(m.__dict__)
        if children:
            values += map(id, children.values())
        if parameters:
            parameters_or_none += parameters.values()
        if buffers:  # examples depend on one another in a batch norm without statistics
            values += map(type, buffers.values())  # of None or a tensor
        if hooks or pre_hooks:
            hook_dicts += (hooks, pre_hooks)
    tensors = [p for p in parameters_or_none if p is not None]
    for read in (id, GET_DTYPE, GET_DEVICE, GET_NBYTES):
        values += map(read, tensors)
    flags = [m.training for m in modules] if mode == "as-is" else []
    return values + flags, [(hooks, key) for hooks in hook_dicts for key in _non_transient_hook_keys(hooks)]


def has_forward_hooks(modules: Iterable[nn.Module]) -> bool:
    """Whether one of the modules has a forward hook: an error may then be the hook's."""
    return any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def _non_transient_hook_keys(hooks: HooksByHandleId) -> list[int]:
    return [key for key, hook in list(hooks.items()) if type(hook) is not TransientHook]
