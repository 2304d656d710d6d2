"""The models of the benchmarks are the published ones: they answer as their weights were said to."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

import unboxed as ub
from real_data import ROOT, needs_cifar, needs_photos

FILE = Path(__file__).parents[2] / "benchmarks" / "models.py"


@pytest.fixture(scope="module")
def models() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_nets", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ROOT = ROOT
    return module


@needs_cifar
def test_resnet20(models: ModuleType) -> None:
    """99.8 % of the 4,000 images, which it was trained on."""
    box = ub.Box(*models.resnet20(), classes=models.CIFAR_CLASSES)
    x, y = models.cifar(1200)
    assert y[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert x.shape == (1200, 3, 32, 32)
    assert float((box.predict(x[-400:]) == y[-400:]).double().mean()) >= 0.99


SEEN = {"parrot.jpg": "macaw", "bird.png": "chickadee", "cat.png": "Egyptian_cat", "both.png": "bull_mastiff"}


@needs_photos
def test_squeezenet(models: ModuleType) -> None:
    """How sure it is depends on how the photos were resized; what it says does not."""
    box = ub.Box(*models.squeezenet1_0(), classes=models.imagenet_classes())
    p = box.probs(torch.cat([models.photo(name, box.inputs) for name in SEEN]))
    assert [box.classes[k] for k in p.argmax(1)] == list(SEEN.values())
    assert p.amax(1).min() > 0.3


def test_untrained_models_are_the_same_each_time(models: ModuleType) -> None:
    """They need no files."""
    for make in (models.resnet20, models.squeezenet1_0):
        (a, inputs), (b, _) = make(trained=False), make(trained=False)
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
        assert inputs.shape[0] == 3


def test_vgg16_has_sixteen_layers_of_weights(models: ModuleType) -> None:
    with torch.device("meta"):
        model = models.VGG16()
    assert sum(p.ndim > 1 for p in model.parameters()) == 16
    assert sum(p.numel() for p in model.parameters()) == 138_357_544  # Simonyan & Zisserman 2015, table 2: 138 million
