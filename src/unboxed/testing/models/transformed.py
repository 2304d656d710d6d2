"""What torch makes of a model: checkpointed, scripted, exported, compiled."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .base import NETS, Plain, awkward


class Checkpointed(Plain):
    """`Plain` whose second half is recomputed in the backward pass."""

    reentrant = False

    def forward(self, x: Tensor) -> Any:
        with warnings.catch_warnings():  # a reentrant checkpoint warns wherever it runs without gradients
            warnings.filterwarnings("ignore", "None of the inputs have requires_grad=True")
            h = checkpoint(self.second, self.first(x), use_reentrant=self.reentrant)
        return self.fc(h.flatten(1))


@awkward(twin="plain")
def checkpointed() -> nn.Module:
    return Checkpointed()


@awkward(twin="plain")
def checkpointed_reentrant() -> nn.Module:
    model = Checkpointed()
    model.reentrant = True
    return model


@awkward(twin="plain")
def scripted_part() -> nn.Module:
    class Net(Plain):
        block: Any

        def first(self, x: Tensor) -> Any:
            return self.block(x)

    model = Net()
    model.block = torch.jit.script(nn.Sequential(model.conv1, model.relu1).eval())
    return model


@awkward(twin="plain")
def scripted_and_optimized() -> nn.Module:
    model = NETS["scripted_part"]().model
    for _ in range(4):  # the profiling executor optimizes from the second run on
        model(torch.rand(3, 1, 8, 8, requires_grad=True)).sum().backward()
    model.zero_grad()
    return model


@cache
def _exported() -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    return torch.export.export(Plain(), (torch.rand(2, 1, 8, 8),), dynamic_shapes=({0: batch},))


@awkward(twin="plain")
def exported() -> nn.Module:
    return torch.export.unflatten(_exported())


@awkward(twin="plain")
def exported_flat() -> nn.Module:
    model = _exported().module()
    for module in model.modules():  # it shares its parameters with the program, which later copies are made from
        for name, p in module._parameters.items():
            module._parameters[name] = None if p is None else nn.Parameter(p.detach().clone())
    return model


@awkward(twin="plain")
def compiled() -> nn.Module:
    model: Any = torch.compile(Plain(), backend="eager")
    model(torch.rand(2, 1, 8, 8))  # hooks added from here on would not fire
    return model  # type: ignore[no-any-return]


@awkward(twin="plain")
def compiled_part() -> nn.Module:
    class Net(Plain):
        block: Any

        def first(self, x: Tensor) -> Any:
            return self.block(x)

    model = Net()
    model.block = torch.compile(nn.Sequential(model.conv1, model.relu1), backend="eager")
    del model.conv1, model.relu1
    model(torch.rand(2, 1, 8, 8))
    return model


def inductor() -> nn.Module:
    """Compiled by the default backend; not in `NETS`, for it takes a C++ compiler and a while."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = torch.compile(NETS["plain"]().model)
        model(torch.rand(2, 1, 8, 8))
    return model  # type: ignore[no-any-return]
