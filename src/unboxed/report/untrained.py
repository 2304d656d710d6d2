"""The same architecture without its training, to stand beside the trained net."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..box import Box


def untrained(box: Box, seed: int) -> Box:
    """A box around a copy of the net with new weights; the net itself is not touched.

    Modules draw their own start (`reset_parameters`); where a module has none, its weights change places at random.
    """
    net = copy.deepcopy(box.net)
    with torch.random.fork_rng(devices=[box.device] if box.device.type == "cuda" else []):
        torch.manual_seed(seed)
        _forget(net)
    return box.around(net)


@torch.no_grad()
def _forget(net: nn.Module) -> None:
    new: set[Tensor] = set()
    for module in net.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
            new |= set(module.parameters())
    for weight in net.parameters():
        if weight not in new:
            flat = weight.flatten()
            weight.copy_(flat[torch.randperm(len(flat), device=flat.device)].view_as(weight))
