"""Dtypes, shapes and architectures."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...inputs.pixels import Pixels
from .base import CLASSES, COLOR, Plain, awkward


@awkward(twin="plain")
def double() -> nn.Module:
    return Plain().double()


@awkward()
def bfloat16() -> nn.Module:
    return Plain().bfloat16()


@awkward()
def narrow() -> tuple[nn.Module, Pixels]:
    return Plain(height=10, width=7), Pixels((1, 10, 7))


@awkward()
def color() -> tuple[nn.Module, Pixels]:
    return Plain(channels=3), COLOR


@awkward(twin="color")
def channels_last() -> tuple[nn.Module, Pixels]:
    model: Any = Plain(channels=3)
    return model.to(memory_format=torch.channels_last), COLOR


# ---- architectures ---------------------------------------------------------------------------------------------------


@awkward()
def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, CLASSES)).eval()


@awkward()
def lstm() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.fc = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Any:
            h, _ = self.lstm(x[:, 0])
            return self.fc(h[:, -1])

    return Net().eval()


class Patches(nn.Module):
    """Four patches of 4x4 pixels as tokens (N, 4, 8), mixed by `mix`, averaged and classified."""

    def __init__(self, mix: nn.Module) -> None:
        super().__init__()
        self.embed, self.mix, self.fc = nn.Conv2d(1, 8, 4, stride=4), mix, nn.Linear(8, CLASSES)
        self.position = nn.Parameter(0.1 * torch.randn(1, 4, 8))
        self.eval()

    def tokens(self, x: Tensor) -> Any:
        return self.embed(x).flatten(2).mT + self.position

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.mix(self.tokens(x)).mean(1))


@awkward()
def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return Patches(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


@awkward()
def attention() -> nn.Module:
    class Net(Patches):
        def forward(self, x: Tensor) -> Any:
            h = self.tokens(x)
            a, _ = self.mix(h, h, h, need_weights=False)
            return self.fc((h + a).relu().mean(1))

    return Net(nn.MultiheadAttention(8, 2, batch_first=True))


@awkward()
def residual() -> nn.Module:
    class Net(Plain):
        depthwise: nn.Module
        norm: nn.Module

        def second(self, h: Tensor) -> Any:
            skip = h
            h = self.norm(self.depthwise(F.relu6(h)))
            h.add_(skip)
            return super().second(F.relu_(h))

    model = Net()
    model.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
    model.norm = nn.BatchNorm2d(4)
    return model.eval()


@awkward()
def weight_normed() -> nn.Module:
    model = Plain()
    nn.utils.parametrizations.weight_norm(model.conv1)
    return model


@awkward()
def spectral_normed() -> nn.Module:
    model = Plain()
    nn.utils.parametrizations.spectral_norm(model.conv2)
    return model.train()


@awkward()
def parameterless() -> nn.Module:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return 8 * F.adaptive_avg_pool2d(x, 2).flatten(1)

    return Net().eval()
