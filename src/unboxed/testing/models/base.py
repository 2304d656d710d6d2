"""The registry of awkward models, and the plain model of which most are variants."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...inputs.pixels import Pixels

N_CLASSES = 4


@dataclass(frozen=True)
class AwkwardModel:
    """A model with the arguments of its box; `twin` is the name of a plain model that computes the same function."""

    model: nn.Module
    inputs: Pixels
    box_settings: dict[str, Any] = field(default_factory=dict)
    twin: str | None = None

    def images(self, n_images: int = 3, seed: int = 0) -> Tensor:
        """Images (n, C, H, W) in [0, 1], float32."""
        return torch.rand(n_images, *self.inputs.shape, generator=torch.Generator().manual_seed(seed))


MODELS: dict[str, Callable[[], AwkwardModel]] = {}
_KIND_BY_MODEL: dict[str, str] = {}
_TWIN_BY_MODEL: dict[str, str | None] = {}


def kind_of_model(model_name: str) -> str:
    """The kind of a model of the zoo: the name of its file."""
    return _KIND_BY_MODEL[model_name]


def twin_name(name: str) -> str | None:
    """The name of the plain version of a model of the zoo, or None, without building the model."""
    return _TWIN_BY_MODEL[name]


def register_model(twin: str | None = None, **box: Any) -> Callable[[Callable[[], Any]], Callable[[], AwkwardModel]]:
    """Add a model to the zoo: the function returns it, or it and its inputs; its weights come from seed 0."""

    def register_build_function(build: Callable[[], Any]) -> Callable[[], AwkwardModel]:
        def build_seeded() -> AwkwardModel:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # building may use what torch deprecates; running it may not warn
                torch.default_generator.manual_seed(0)
                built = build()
            model, inputs = built if isinstance(built, tuple) else (built, GRAY_INPUTS)
            return AwkwardModel(model, inputs, box, twin)

        MODELS[build.__name__] = build_seeded
        _TWIN_BY_MODEL[build.__name__] = twin
        _KIND_BY_MODEL[build.__name__] = build.__module__.rpartition(".")[2]
        return build_seeded

    return register_build_function


def get_model(name: str, dtype: torch.dtype | None = None) -> AwkwardModel:
    """A fresh copy of the model `name` of the zoo, moved to `dtype` if given."""
    if name not in MODELS:
        raise InputError(f"the zoo has no model {name!r}; it has {', '.join(MODELS)}")
    entry = MODELS[name]()
    return entry if dtype is None else replace(entry, model=entry.model.to(dtype))


GRAY_INPUTS = Pixels((1, 8, 8), mean=0.4, std=0.5)
COLOR_INPUTS = Pixels((3, 8, 8), mean=(0.4, 0.5, 0.6), std=(0.5, 0.4, 0.5))


class PlainCNN(nn.Module):
    """Two convolutions, two ReLUs and a linear layer, each a module called once: nothing awkward."""

    def __init__(self, channels: int = 1, height: int = 8, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.fc = nn.Linear(4 * ((height + 1) // 2) * ((width + 1) // 2), N_CLASSES)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self._scale_logits_apart((torch.rand(32, channels, height, width) - 0.4) / 0.5)
        self.eval()

    @torch.no_grad()
    def _scale_logits_apart(self, x: Tensor) -> None:
        """Make outputs differ between images, as those of a trained model."""
        h = self.conv2(self.conv1(x).relu()).relu().flatten(1)
        self.fc.weight.mul_(2 / self.fc(h).std(0).mean())
        self.fc.bias.sub_(self.fc(h).mean(0))

    def first_block(self, x: Tensor) -> Any:
        return self.relu1(self.conv1(x))

    def second_block(self, h: Tensor) -> Any:
        return self.relu2(self.conv2(h))

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.second_block(self.first_block(x)).flatten(1))


@register_model()
def plain() -> nn.Module:
    return PlainCNN()


@register_model(twin="plain")
def sequential() -> nn.Module:
    p = PlainCNN()
    layers = OrderedDict(conv1=p.conv1, relu1=p.relu1, conv2=p.conv2, relu2=p.relu2, flat=nn.Flatten(), fc=p.fc)
    return nn.Sequential(layers).eval()
