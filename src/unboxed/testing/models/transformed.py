"""What torch makes of a model: checkpointed, scripted, exported, compiled."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .base import MODELS, PlainCNN, register_model


class ActivationCheckpointedCNN(PlainCNN):
    """`Plain` whose second half is recomputed in the backward pass."""

    reentrant = False

    def forward(self, x: Tensor) -> Any:
        with warnings.catch_warnings():  # a reentrant checkpoint warns wherever it runs without gradients
            warnings.filterwarnings("ignore", "None of the inputs have requires_grad=True")
            h = checkpoint(self.second_block, self.first_block(x), use_reentrant=self.reentrant)
        return self.fc(h.flatten(1))


@register_model(twin="plain")
def checkpointed() -> nn.Module:
    return ActivationCheckpointedCNN()


@register_model(twin="plain")
def checkpointed_reentrant() -> nn.Module:
    model = ActivationCheckpointedCNN()
    model.reentrant = True
    return model


@register_model(twin="plain")
def scripted_part() -> nn.Module:
    class Net(PlainCNN):
        block: Any

        def first_block(self, x: Tensor) -> Any:
            return self.block(x)

    model = Net()
    model.block = torch.jit.script(nn.Sequential(model.conv1, model.relu1).eval())
    return model


@register_model(twin="plain")
def scripted_and_optimized() -> nn.Module:
    model = MODELS["scripted_part"]().model
    for _ in range(4):  # the profiling executor optimizes from the second run on
        model(torch.rand(3, 1, 8, 8, requires_grad=True)).sum().backward()
    model.zero_grad()
    return model


@cache
def _exported_program() -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    return torch.export.export(PlainCNN(), (torch.rand(2, 1, 8, 8),), dynamic_shapes=({0: batch},))


@register_model(twin="plain")
def exported() -> nn.Module:
    return torch.export.unflatten(_exported_program())


@register_model(twin="plain")
def exported_flat() -> nn.Module:
    model = _exported_program().module()
    for module in model.modules():  # it shares its parameters with the program, which later copies are made from
        for name, p in module._parameters.items():
            module._parameters[name] = None if p is None else nn.Parameter(p.detach().clone())
    return model


@register_model(twin="plain")
def compiled() -> nn.Module:
    model: Any = torch.compile(PlainCNN(), backend="eager")
    model(torch.rand(2, 1, 8, 8))  # hooks added from here on would not fire
    return model  # type: ignore[no-any-return]


@register_model(twin="plain")
def compiled_part() -> nn.Module:
    class Net(PlainCNN):
        block: Any

        def first_block(self, x: Tensor) -> Any:
            return self.block(x)

    model = Net()
    model.block = torch.compile(nn.Sequential(model.conv1, model.relu1), backend="eager")
    del model.conv1, model.relu1
    model(torch.rand(2, 1, 8, 8))
    return model


def inductor(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Compiled by the default backend; not in `NETS`, for it takes a C++ compiler and a while."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = torch.compile(MODELS["plain"]().model.to(dtype))
        model(torch.rand(2, 1, 8, 8, dtype=dtype))
    return model  # type: ignore[no-any-return]
