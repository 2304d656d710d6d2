"""Models and images that several benchmarks use: of the real data (UNBOXED_REAL_DATA names its folder), and untrained.

Each model comes with what its inputs are: `ub.Box(*resnet20())` opens it, and `--model benchmarks/models.py:resnet20`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import unboxed as ub
from unboxed.inputs.image_files import read_image
from unboxed.loading import weights

ROOT = Path(os.environ.get("UNBOXED_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PER_FILE = 1000  # CIFAR images in one PNG


def resnet20(trained: bool = True, seed: int = 0) -> tuple[nn.Module, ub.Pixels]:
    """ResNet-20 of He et al. 2016, section 4.2, by option A, with CIFAR-10 weights (91.8 % on the test images)."""
    model = _seeded(ResNet20, seed)
    if trained:
        weights(model, ROOT / "cifar10" / "resnet20-12fca82f.th")
    return model, ub.Pixels((3, 32, 32), MEAN, STD)


def resnet56(seed: int = 0) -> tuple[nn.Module, ub.Pixels]:
    """ResNet-56 of He et al. 2016, section 4.2, by option A, untrained."""
    return _seeded(ResNet56, seed), ub.Pixels((3, 32, 32), MEAN, STD)


def squeezenet1_0(trained: bool = True, seed: int = 0) -> tuple[nn.Module, ub.Pixels]:
    """SqueezeNet 1.0 of Iandola et al. 2016, with ImageNet weights; its layers have torchvision's names."""
    model = _seeded(SqueezeNet, seed)
    if trained:
        with np.load(ROOT / "imagenet_squeezenet" / "squeezenet1_0.npz") as state:
            model.load_state_dict({name: torch.from_numpy(state[name]) for name in state.files})
    return model, ub.Pixels((3, 224, 224), MEAN, STD)


def vgg16(seed: int = 0) -> tuple[nn.Module, ub.Pixels]:
    """VGG-16 of Simonyan & Zisserman 2015, configuration D, untrained; its layers have torchvision's names."""
    return _seeded(VGG16, seed), ub.Pixels((3, 224, 224), MEAN, STD)


def cifar(n: int = 4000) -> tuple[Tensor, Tensor]:
    """The first n (at most 4,000) of the CIFAR-10 training images (n, 3, 32, 32) in [0, 1], and their labels (n,)."""
    folder = ROOT / "cifar10"
    files = [folder / f"cifar10_batch_{i}.png" for i in range(-(-n // PER_FILE))]
    rows = np.concatenate([np.asarray(Image.open(file)) for file in files])[:n]  # (n, 1024, 3)
    x = torch.from_numpy(rows.astype(np.float32) / 255).view(-1, 32, 32, 3).permute(0, 3, 1, 2).contiguous()
    return x, torch.from_numpy(np.load(folder / "cifar10_batch_0_3_labels.npy")[:n].astype(np.int64))


def photo(name: str, like: ub.Pixels) -> Tensor:
    """One of the photos, (1, C, H, W), in the size that a model takes."""
    return read_image(ROOT / "photos" / name, like)[None]


def imagenet_classes() -> tuple[str, ...]:
    names = json.loads((ROOT / "imagenet_squeezenet" / "imagenet_class_index.json").read_text(encoding="utf-8"))
    synsets, words = zip(*(names[str(k)] for k in range(1000)), strict=True)
    times = Counter(words)  # two classes are named "crane", two "maillot"
    return tuple(w if times[w] == 1 else f"{w} ({synset})" for synset, w in zip(synsets, words, strict=True))


def _seeded(build: type[nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()


class Block(nn.Module):
    """Two convolutions and a shortcut without weights: every second pixel, and zeros for the new channels."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.stride, self.new = stride, (width - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new, self.new))
        out: Tensor = self.relu2(h + x)
        return out


class ResNet20(nn.Module):
    blocks = 3  # a stage

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(self.blocks)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), *(Block(32, 32, 1) for _ in range(1, self.blocks)))
        self.layer3 = nn.Sequential(Block(32, 64, 2), *(Block(64, 64, 1) for _ in range(1, self.blocks)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.relu(self.bn1(self.conv1(x))))  # (N, 16, 32, 32)
        x = self.layer3(self.layer2(x))  # (N, 64, 8, 8)
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits


class ResNet56(ResNet20):
    blocks = 9


class Fire(nn.Module):
    def __init__(self, before: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze, self.squeeze_activation = nn.Conv2d(before, squeeze, 1), nn.ReLU()
        self.expand1x1, self.expand1x1_activation = nn.Conv2d(squeeze, expand, 1), nn.ReLU()
        self.expand3x3, self.expand3x3_activation = nn.Conv2d(squeeze, expand, 3, padding=1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        both = [self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))]
        return torch.cat(both, 1)


class SqueezeNet(nn.Module):
    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(96, 16, 64), Fire(128, 16, 64), Fire(128, 32, 128), nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(256, 32, 128), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256),
            nn.MaxPool2d(3, 2, ceil_mode=True), Fire(512, 64, 256),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(512, classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x)).flatten(1)
        return logits


class VGG16(nn.Module):
    WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0: pooling

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in self.WIDTHS:
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(True)] if width else [nn.MaxPool2d(2)]
            before = width or before
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 49, 4096), nn.ReLU(True), nn.Dropout(),
            nn.Linear(4096, 4096), nn.ReLU(True), nn.Dropout(), nn.Linear(4096, classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def resnet18(seed: int = 0) -> tuple[nn.Module, ub.Pixels]:
    """ResNet-18 of He et al. 2016, table 1, untrained; its layers have torchvision's names."""
    return _seeded(ResNet18, seed), ub.Pixels((3, 224, 224), MEAN, STD)


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut, by a 1x1 convolution where the shape changes."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or before != width:
            self.downsample = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        h: Tensor = self.relu(out)
        return h


class ResNet18(nn.Module):
    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        for i, (before, width) in enumerate(((64, 64), (64, 128), (128, 256), (256, 512))):
            blocks = BasicBlock(before, width, 2 if i else 1), BasicBlock(width, width, 1)
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # (N, 64, 56, 56)
        h = self.layer4(self.layer3(self.layer2(self.layer1(h))))  # (N, 512, 7, 7)
        logits: Tensor = self.fc(self.avgpool(h).flatten(1))
        return logits
