"""Dtypes, shapes and architectures."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...inputs.pixels import Pixels
from .base import COLOR_INPUTS, N_CLASSES, PlainCNN, register_model


@register_model(twin="plain")
def double() -> nn.Module:
    return PlainCNN().double()


@register_model()
def bfloat16() -> nn.Module:
    return PlainCNN().bfloat16()


@register_model()
def non_square() -> tuple[nn.Module, Pixels]:
    return PlainCNN(height=10, width=7), Pixels((1, 10, 7))


@register_model()
def color() -> tuple[nn.Module, Pixels]:
    return PlainCNN(channels=3), COLOR_INPUTS


@register_model(twin="color")
def channels_last() -> tuple[nn.Module, Pixels]:
    model: Any = PlainCNN(channels=3)
    return model.to(memory_format=torch.channels_last), COLOR_INPUTS


# ---- architectures ---------------------------------------------------------------------------------------------------


@register_model()
def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, N_CLASSES)).eval()


@register_model()
def lstm() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.fc = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, N_CLASSES)

        def forward(self, x: Tensor) -> Any:
            h, _ = self.lstm(x[:, 0])
            return self.fc(h[:, -1])

    return Net().eval()


class PatchModel(nn.Module):
    """Four patches of 4x4 pixels as tokens (N, 4, 8), mixed by `mix`, averaged and classified."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.embed, self.mixer, self.fc = nn.Conv2d(1, 8, 4, stride=4), mixer, nn.Linear(8, N_CLASSES)
        self.position = nn.Parameter(0.1 * torch.randn(1, 4, 8))
        self.eval()

    def tokens(self, x: Tensor) -> Any:
        return self.embed(x).flatten(2).mT + self.position

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.mixer(self.tokens(x)).mean(1))


@register_model()
def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return PatchModel(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


@register_model()
def attention() -> nn.Module:
    class Net(PatchModel):
        def forward(self, x: Tensor) -> Any:
            h = self.tokens(x)
            a, _ = self.mixer(h, h, h, need_weights=False)
            return self.fc((h + a).relu().mean(1))

    return Net(nn.MultiheadAttention(8, 2, batch_first=True))


@register_model()
def residual() -> nn.Module:
    class Net(PlainCNN):
        depthwise: nn.Module
        norm: nn.Module

        def second_block(self, h: Tensor) -> Any:
            skip = h
            h = self.norm(self.depthwise(F.relu6(h)))
            h.add_(skip)
            return super().second_block(F.relu_(h))

    model = Net()
    model.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
    model.norm = nn.BatchNorm2d(4)
    return model.eval()


@register_model()
def weight_normed() -> nn.Module:
    model = PlainCNN()
    nn.utils.parametrizations.weight_norm(model.conv1)
    return model


@register_model()
def spectral_normed() -> nn.Module:
    model = PlainCNN()
    nn.utils.parametrizations.spectral_norm(model.conv2)
    return model.train()


@register_model()
def parameterless() -> nn.Module:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return 8 * F.adaptive_avg_pool2d(x, 2).flatten(1)

    return Net().eval()
