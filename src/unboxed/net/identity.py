"""What a box saw of a model when it opened it, to tell whether the model was changed since."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

Identity = list[object]


def identity(modules: Sequence[nn.Module], mode: str) -> Identity:
    """The modules' children, their parameters with dtype and device and, where they count, their train flags, by id.

    Values don't count: a step of a training changes no layer. Ids hold as long as the modules and the parameters do, so
    whoever compares them keeps those.
    """
    found: Identity = []
    for m in modules:
        if m._modules:
            found += map(id, m._modules.values())
        for p in m._parameters.values():
            if p is not None:
                found += (id(p), p.dtype, p.get_device())
    return [*found, *(m.training for m in modules)] if mode == "as-is" else found
