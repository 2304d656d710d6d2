"""Small models, boxes and inputs that several tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
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
    entry = awkward.get_model(name)
    box = ub.Box(entry.model, entry.inputs, **entry.box_settings)
    return box, entry.images(3).to(box.dtype)


def plain_images(n: int = 3) -> Tensor:
    """Images of the plain model, in double precision."""
    return awkward.get_model("plain").images(n).double()


def digits_box() -> ub.Box:
    return ub.Box(*ub.zoo.load("digits-cnn"))


def digits(n: int) -> tuple[ub.Box, Tensor]:
    """The zoo's digits model, and n digits."""
    return digits_box(), ub.data.digits("test").first(n)[0]


def uniform(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near_a_boundary(classes: int, n: int, scale: float = 20.0) -> tuple[ub.Box, Tensor, Tensor, nn.Linear]:
    """Logits W x + b of n gray images near a boundary, so that the ends of their range are far off."""
    torch.manual_seed(0)
    last = nn.Linear(36, classes).requires_grad_(False)
    last.weight *= scale
    x = 0.5 + 0.05 * torch.randn(n, 1, 6, 6).double()
    last.double().bias -= last(x.flatten(1)).mean(0)
    box = ub.Box(nn.Sequential(nn.Flatten(), last), ub.Pixels((1, 6, 6)))
    return box, x, box.predict(x), last


def curved(n: int) -> tuple[ub.Box, Tensor, Tensor]:
    """A model whose boundaries are no planes, with n images and the classes that it gives them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, 5)).requires_grad_(False).double()
    model[1].weight *= 6
    box, x = ub.Box(model, ub.Pixels((1, 6, 6))), torch.rand(n, 1, 6, 6).double()
    return box, x, box.predict(x)


def assert_in_its_ball(c: Any, made: Any, norm: str, eps: float) -> None:
    """Images of an attack on a case lie in the ball and in [0, 1], and success is what the model says of them."""
    d = (made.images - c.x).double().flatten(1)
    far = d.abs().amax(1) if norm == "linf" else d.norm(dim=1)
    assert (far <= eps * (1 + 1e-6) + 1e-7).all()
    assert made.images.min() >= 0
    assert made.images.max() <= 1
    assert torch.equal(made.success, c.box.predict(made.images) != c.y)
    assert torch.equal(made.images[2], c.x[2])  # which the model gets wrong as it is


@contextmanager
def interrupted(model: nn.Module, at: int, *, once: bool = False) -> Iterator[None]:
    """While open, KeyboardInterrupt is raised in the forward that is the `at`-th with gradients.

    Also in those without gradients that follow before the next with them, unless `once`.
    """
    calls = 0

    def hook(module: nn.Module, args: Any) -> None:
        nonlocal calls
        calls += torch.is_grad_enabled()
        if calls == at:
            calls += once
            raise KeyboardInterrupt

    handle = model.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class Bomb:
    """Pickled, it makes a folder where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.mark),))
