"""`Plain` with every spelling of ReLU: a rule for ReLU reaches all of them, or says which one it does not know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import PlainCNN, register_model


class PlainCNNWithReLU(PlainCNN):
    """`Plain` without ReLU modules: `relu` is the ReLU."""

    def __init__(self, relu: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        del self.relu1, self.relu2
        self.relu = relu

    def first_block(self, x: Tensor) -> Any:
        return self.relu(self.conv1(x))

    def second_block(self, h: Tensor) -> Any:
        return self.relu(self.conv2(h))


def _call_in_place_and_return_input(relu: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def apply(h: Tensor) -> Any:
        relu(h)
        return h

    return apply


RELU_FN_BY_SPELLING: dict[str, Callable[[Tensor], Tensor]] = {
    "functional_relu": F.relu,
    "functional_relu_inplace": lambda h: F.relu(h, inplace=True),
    "torch_relu": torch.relu,
    "tensor_relu": lambda h: h.relu(),
    "aten_relu": torch.ops.aten.relu,
    "aten_relu_default": torch.ops.aten.relu.default,
    "functional_relu_ignored": _call_in_place_and_return_input(F.relu_),
    "torch_relu_ignored": _call_in_place_and_return_input(torch.relu_),
    "tensor_relu_ignored": _call_in_place_and_return_input(lambda h: h.relu_()),
    "aten_relu_ignored": _call_in_place_and_return_input(torch.ops.aten.relu_),
}
for _name, _relu in RELU_FN_BY_SPELLING.items():

    def _build_variant(relu: Callable[[Tensor], Tensor] = _relu) -> nn.Module:
        return PlainCNNWithReLU(relu)

    _build_variant.__name__ = _name
    register_model(twin="plain")(_build_variant)


@register_model(twin="plain")
def inplace_relu() -> nn.Module:
    model = PlainCNN()
    model.relu1, model.relu2 = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
    return model.eval()


@register_model(twin="plain")
def relu_called_twice() -> nn.Module:
    model = PlainCNN()
    model.relu2 = model.relu1
    return model


class CNNWithReLULookalike(PlainCNNWithReLU):
    """Computes what `Plain` computes, with an op that rules for ReLU don't know."""


RELU_LOOKALIKE_FN_BY_NAME: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp": lambda h: h.clamp(min=0),
    "clamp_min": lambda h: torch.clamp_min(h, 0),
    "maximum": lambda h: torch.maximum(h, torch.zeros_like(h)),
    "threshold": lambda h: F.threshold(h, 0, 0),
    "relu6": F.relu6,
    "where": lambda h: torch.where(h > 0, h, torch.zeros_like(h)),
    "mask": lambda h: h * (h > 0),
}


@register_model(twin="plain")
def clamped_hidden_layer() -> nn.Module:
    return CNNWithReLULookalike(RELU_LOOKALIKE_FN_BY_NAME["clamp"])
