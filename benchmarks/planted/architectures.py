"""The architectures of the planted models: small enough to train in a minute on one core."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def conv(before: int, width: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, width, kernel, stride, kernel // 2, groups=groups, bias=False)


class PlainCNN(nn.Module):
    """Convolutions, max pooling, dense layers."""

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, 16, 5, padding=2), nn.Conv2d(16, 24, 3, padding=1)
        self.conv3 = nn.Conv2d(24, 32, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc1, self.fc2 = nn.Linear(32 * (side // 8) ** 2, 64), nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.conv1, self.conv2, self.conv3):
            x = self.pool(torch.relu(layer(x)))
        logits: Tensor = self.fc2(torch.relu(self.fc1(x.flatten(1))))
        return logits


class StridedCNN(nn.Module):
    """Strided convolutions with BatchNorm and without pooling, then the mean over positions (and one linear layer)."""

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        first = conv(channels, 16, 7, 4) if side > 64 else conv(channels, 16, 3, 2)
        layers: list[nn.Module] = [first, nn.BatchNorm2d(16), nn.ReLU()]
        for before, width, stride in ((16, 32, 2), (32, 48, 1), *[(48, 48, 1)] * (side > 64)):
            layers += [conv(before, width, 3, stride), nn.BatchNorm2d(width), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.pool(self.features(x)).flatten(1))
        return logits


class Block(nn.Module):
    """Two convolutions with BatchNorm, and a shortcut."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(before, width, stride=stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width), nn.BatchNorm2d(width)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        same = stride == 1 and before == width
        self.shortcut = nn.Identity() if same else nn.Sequential(conv(before, width, 1, stride), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(h + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """Residual blocks with BatchNorm, then the mean over positions."""

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        self.conv1 = conv(channels, 12, 7, 4) if side > 64 else conv(channels, 12, 5, 2)
        self.bn1 = nn.BatchNorm2d(12)
        self.relu = nn.ReLU()
        self.layer1, self.layer2, self.layer3 = Block(12, 16, 1), Block(16, 24, 2), Block(24, 40, 1)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(40, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer3(self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x))))))
        logits: Tensor = self.fc(self.pool(h).flatten(1))
        return logits


class Depthwise(nn.Module):
    """Depthwise-separable convolutions with BatchNorm and ReLU6, as in MobileNet."""

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        first = conv(channels, 16, 7, 4) if side > 64 else conv(channels, 16, 5, 2)
        layers: list[nn.Module] = [first, nn.BatchNorm2d(16), nn.ReLU6()]
        for before, width, step in ((16, 32, 1), (32, 48, 2), (48, 64, 1)):
            layers += [conv(before, before, 3, step, groups=before), nn.BatchNorm2d(before), nn.ReLU6()]
            layers += [conv(before, width, 1), nn.BatchNorm2d(width), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.pool(self.features(x)).flatten(1))
        return logits


class Attention(nn.Module):
    """One layer of a transformer, normalized first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class ViT(nn.Module):
    """A small vision transformer on overlapping patches, 4 pixels apart; the answer is the class token's."""

    def __init__(self, channels: int, side: int, classes: int, width: int = 40) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, 8, 4, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, (side // 4) ** 2 + 1, width) * 0.02)
        self.layers = nn.Sequential(Attention(width, 4), Attention(width, 4))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2)  # (N, T, width)
        h = torch.cat([self.token.expand(len(h), -1, -1), h], 1) + self.position
        logits: Tensor = self.head(self.norm(self.layers(h))[:, 0])
        return logits


class MLP(nn.Module):
    """Dense layers; of images all pixels, of tables all columns."""

    def __init__(self, n_inputs: int, classes: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for before, width in zip((n_inputs, *widths[:-1]), widths, strict=True):
            layers += [nn.Linear(before, width), nn.ReLU()]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(x))
        return logits


class ResidualMLP(nn.Module):
    """Dense residual layers with BatchNorm, for tables."""

    def __init__(self, n_inputs: int, classes: int, width: int = 48) -> None:
        super().__init__()
        self.first = nn.Linear(n_inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width)) for _ in range(2)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        logits: Tensor = self.head(torch.relu(h))
        return logits


IMAGE_MODELS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "cnn": PlainCNN,
    "strided": StridedCNN,
    "resnet": ResNet,
    "depthwise": Depthwise,
    "vit": ViT,
    "mlp": lambda channels, side, classes: MLP(channels * side**2, classes, (128, 64)),
}
TABLE_MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "mlp": lambda columns, classes: MLP(columns, classes, (64, 64)),
    "residual-mlp": ResidualMLP,
}
