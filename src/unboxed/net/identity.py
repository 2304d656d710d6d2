"""What a box saw of a model when it opened it, to tell whether the model was changed since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Identity:
    """The modules' children, their parameters with dtype and device, and, where they count, their train flags."""

    children: Sequence[nn.Module | None]
    parameters: Sequence[Tensor | None]
    kinds: Sequence[tuple[torch.dtype, torch.device]]
    training: Sequence[bool]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and (
            self.kinds == other.kinds
            and self.training == other.training
            and _same(self.children, other.children)
            and _same(self.parameters, other.parameters)
        )


def identity(modules: Sequence[nn.Module], mode: str) -> Identity:
    """Of a model's modules. Values don't count: a training or an attack on the weights changes no layer."""
    children = [child for m in modules if m._modules for child in m._modules.values()]
    parameters = [p for m in modules if m._parameters for p in m._parameters.values()]
    kinds = [(p.dtype, p.device) for p in parameters if p is not None]
    return Identity(children, parameters, kinds, [m.training for m in modules] if mode == "as-is" else [])


def _same(a: Sequence[object], b: Sequence[object]) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))
