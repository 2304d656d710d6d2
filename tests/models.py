"""Small models, boxes and inputs that several tests share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import awkward
import unboxed as ub


class SmallConv(nn.Module):
    """(N, 1, 8, 8) -> (N, 10), with batch norm and dropout: something of each kind that a checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout()
        self.fc = nn.Linear(4 * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(F.relu(self.norm(self.conv(x))).flatten(1)))


def small_conv(seed: int = 0) -> SmallConv:
    torch.manual_seed(seed)
    return SmallConv().eval()


def seeded(build: Any, *args: Any) -> nn.Module:
    """`build(*args)` in double precision and eval, the same each time."""
    torch.manual_seed(0)
    return build(*args).double().eval()


def boxed(name: str) -> tuple[ub.Box, Tensor]:
    """An awkward model, opened, and three inputs."""
    entry = awkward.get(name)
    box = ub.Box(entry.model, entry.inputs, **entry.box)
    return box, entry.images(3).to(box.dtype)


def plain_images(n: int = 3) -> Tensor:
    """Images of the plain model, in double precision."""
    return awkward.get("plain").images(n).double()


def digits_box() -> ub.Box:
    return ub.Box(*ub.zoo.load("digits-cnn"))


def digits(n: int) -> tuple[ub.Box, Tensor]:
    """The zoo's digits model, and n digits."""
    return digits_box(), ub.data.digits("test").first(n)[0]


def uniform(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Bomb:
    """Pickled, it makes a folder where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.mark),))
