"""Modules that are used in odd ways, and outputs that are no single tensor of logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import N_CLASSES, PlainCNN, register_model


@register_model()
def conv_called_twice() -> nn.Module:
    class Net(PlainCNN):
        conv3: nn.Module

        def second_block(self, h: Tensor) -> Any:
            return super().second_block(self.relu2(self.conv3(self.conv3(h))))

    model = Net()
    model.conv3 = nn.Conv2d(4, 4, 3, padding=1)
    return model


@register_model(twin="plain")
def aliased_modules() -> nn.Module:
    model = PlainCNN()
    model.all = nn.ModuleList([model.conv1, model.relu1, model.conv2])
    return model


@register_model()
def out_of_place_first_op() -> nn.Module:
    class Net(PlainCNN):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x * 2 - 0.5)

    return Net()


@register_model(twin="out_of_place_first_op")
def inplace_first_op() -> nn.Module:
    class Net(PlainCNN):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x.mul_(2).sub_(0.5))

    return Net()


@register_model(twin="plain")
def swallows_exceptions() -> nn.Module:
    class Net(PlainCNN):
        def forward(self, x: Tensor) -> Any:
            try:
                return super().forward(x)
            except Exception:
                return torch.zeros(len(x), N_CLASSES)

    return Net()


@register_model(twin="plain")
def user_hooks() -> nn.Module:
    model = PlainCNN()
    model.conv1.register_forward_hook(lambda module, args, out: out.clone())
    model.conv2.register_forward_pre_hook(lambda module, args: (args[0] * 1,))
    model.fc.register_full_backward_hook(lambda module, grad_in, grad_out: None)
    model.register_forward_hook(lambda module, args, kwargs, out: None, with_kwargs=True, always_call=True)

    def fail_on_gradient(grad: Tensor) -> None:
        raise ZeroDivisionError("a gradient in the parameters was computed, though none was asked for")

    model.conv1.weight.register_hook(fail_on_gradient)  # type: ignore[no-untyped-call]
    return model


# ---- outputs ---------------------------------------------------------------------------------------------------------


@register_model(twin="plain")
def dict_output() -> nn.Module:
    class Net(PlainCNN):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            h = self.second_block(self.first_block(x))
            return {"hidden": h, "logits": self.fc(h.flatten(1))}

    return Net()


@register_model(twin="plain")
def tuple_output() -> nn.Module:
    class Net(PlainCNN):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
            h = self.second_block(self.first_block(x))
            return h, self.fc(h.flatten(1)), None

    return Net()


if find_spec("transformers"):

    @register_model(twin="plain")
    def model_output() -> nn.Module:
        from transformers.utils.generic import ModelOutput

        @dataclass(eq=False)
        class Output(ModelOutput):
            loss: Tensor | None = None
            logits: Tensor | None = None
            hidden: Tensor | None = None

        class Net(PlainCNN):
            def forward(self, x: Tensor) -> Output:
                h = self.second_block(self.first_block(x))
                return Output(logits=self.fc(h.flatten(1)), hidden=h)

        return Net()


class CNNWithFinalOp(PlainCNN):
    """`Plain` with one more op at the end."""

    def __init__(self, final_op: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.final_op = final_op

    def forward(self, x: Tensor) -> Any:
        return self.final_op(super().forward(x))


@register_model(twin="plain")
def log_softmax() -> nn.Module:
    return CNNWithFinalOp(lambda z: F.log_softmax(z, dim=1))


@register_model(twin="plain")
def log_softmax_method() -> nn.Module:
    return CNNWithFinalOp(lambda z: z.log_softmax(-1))


@register_model(twin="plain")
def log_softmax_module() -> nn.Module:
    return CNNWithFinalOp(nn.LogSoftmax(dim=1)).eval()


@register_model(twin="plain")
def softmax() -> nn.Module:
    return CNNWithFinalOp(lambda z: torch.softmax(z, 1))


@register_model(twin="plain")
def softmax_module() -> nn.Module:
    return CNNWithFinalOp(nn.Softmax(dim=1)).eval()


@register_model()
def relu_logits() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, N_CLASSES), nn.ReLU()).eval()
