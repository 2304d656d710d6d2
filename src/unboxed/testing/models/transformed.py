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
    net = Checkpointed()
    net.reentrant = True
    return net


@awkward(twin="plain")
def scripted_part() -> nn.Module:
    class Net(Plain):
        block: Any

        def first(self, x: Tensor) -> Any:
            return self.block(x)

    net = Net()
    net.block = torch.jit.script(nn.Sequential(net.conv1, net.relu1).eval())
    return net


@awkward(twin="plain")
def scripted_and_optimized() -> nn.Module:
    net = NETS["scripted_part"]().net
    for _ in range(4):  # the profiling executor optimizes from the second run on
        net(torch.rand(3, 1, 8, 8, requires_grad=True)).sum().backward()
    net.zero_grad()
    return net


@cache
def _exported() -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    return torch.export.export(Plain(), (torch.rand(2, 1, 8, 8),), dynamic_shapes=({0: batch},))


@awkward(twin="plain")
def exported() -> nn.Module:
    return torch.export.unflatten(_exported())


@awkward(twin="plain")
def exported_flat() -> nn.Module:
    net = _exported().module()
    for module in net.modules():  # it shares its parameters with the program, which later copies are made from
        for name, p in module._parameters.items():
            module._parameters[name] = None if p is None else nn.Parameter(p.detach().clone())
    return net


@awkward(twin="plain")
def compiled() -> nn.Module:
    net: Any = torch.compile(Plain(), backend="eager")
    net(torch.rand(2, 1, 8, 8))  # hooks added from here on would not fire
    return net  # type: ignore[no-any-return]


@awkward(twin="plain")
def compiled_part() -> nn.Module:
    class Net(Plain):
        block: Any

        def first(self, x: Tensor) -> Any:
            return self.block(x)

    net = Net()
    net.block = torch.compile(nn.Sequential(net.conv1, net.relu1), backend="eager")
    del net.conv1, net.relu1
    net(torch.rand(2, 1, 8, 8))
    return net


def inductor() -> nn.Module:
    """Compiled by the default backend; not in `NETS`, for it takes a C++ compiler and a while."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net: Any = torch.compile(NETS["plain"]().net)
        net(torch.rand(2, 1, 8, 8))
    return net  # type: ignore[no-any-return]
