"""`Plain` with every spelling of ReLU: a rule for ReLU reaches all of them, or says which one it does not know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Plain, awkward


class Spelled(Plain):
    """`Plain` without ReLU modules: `how` is the ReLU."""

    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        del self.relu1, self.relu2
        self.how = how

    def first(self, x: Tensor) -> Any:
        return self.how(self.conv1(x))

    def second(self, h: Tensor) -> Any:
        return self.how(self.conv2(h))


def _ignoring(act: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def how(h: Tensor) -> Any:
        act(h)
        return h

    return how


SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "functional_relu": F.relu,
    "functional_relu_inplace": lambda h: F.relu(h, inplace=True),
    "torch_relu": torch.relu,
    "tensor_relu": lambda h: h.relu(),
    "aten_relu": torch.ops.aten.relu,
    "aten_relu_default": torch.ops.aten.relu.default,
    "functional_relu_ignored": _ignoring(F.relu_),
    "torch_relu_ignored": _ignoring(torch.relu_),
    "tensor_relu_ignored": _ignoring(lambda h: h.relu_()),
    "aten_relu_ignored": _ignoring(torch.ops.aten.relu_),
}
for _name, _how in SPELLINGS.items():

    def _spelled(how: Callable[[Tensor], Tensor] = _how) -> nn.Module:
        return Spelled(how)

    _spelled.__name__ = _name
    awkward(twin="plain")(_spelled)


@awkward(twin="plain")
def inplace_relu() -> nn.Module:
    model = Plain()
    model.relu1, model.relu2 = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
    return model.eval()


@awkward(twin="plain")
def relu_called_twice() -> nn.Module:
    model = Plain()
    model.relu2 = model.relu1
    return model


class FakeReLU(Spelled):
    """Computes what `Plain` computes, with an op that rules for ReLU don't know."""


FAKES: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp": lambda h: h.clamp(min=0),
    "clamp_min": lambda h: torch.clamp_min(h, 0),
    "maximum": lambda h: torch.maximum(h, torch.zeros_like(h)),
    "threshold": lambda h: F.threshold(h, 0, 0),
    "relu6": F.relu6,
    "where": lambda h: torch.where(h > 0, h, torch.zeros_like(h)),
    "mask": lambda h: h * (h > 0),
}


@awkward(twin="plain")
def clamped_hidden() -> nn.Module:
    return FakeReLU(FAKES["clamp"])
