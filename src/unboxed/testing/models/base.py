"""The registry of awkward models, and the plain model that most of them spell another way."""

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

CLASSES = 4


@dataclass(frozen=True)
class Awkward:
    """A model with what a box needs to know of it; `twin` names the entry that computes the same function plainly."""

    model: nn.Module
    inputs: Pixels
    box: dict[str, Any] = field(default_factory=dict)
    twin: str | None = None

    def images(self, n: int = 3, seed: int = 0) -> Tensor:
        """Images (n, C, H, W) in [0, 1], float32."""
        return torch.rand(n, *self.inputs.shape, generator=torch.Generator().manual_seed(seed))


NETS: dict[str, Callable[[], Awkward]] = {}
_KINDS: dict[str, str] = {}
_TWINS: dict[str, str | None] = {}


def kind(name: str) -> str:
    """What is odd about a model of the zoo: the name of the file that it stands in."""
    return _KINDS[name]


def twin(name: str) -> str | None:
    """The plain spelling of a model of the zoo, if there is one, without building the model."""
    return _TWINS[name]


def awkward(twin: str | None = None, **box: Any) -> Callable[[Callable[[], Any]], Callable[[], Awkward]]:
    """Enter the zoo: the function gives a model, or a model and its inputs; its weights come from seed 0."""

    def enter(build: Callable[[], Any]) -> Callable[[], Awkward]:
        def seeded() -> Awkward:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # building may use what torch deprecates; running it may not warn
                torch.default_generator.manual_seed(0)
                made = build()
            model, inputs = made if isinstance(made, tuple) else (made, GRAY)
            return Awkward(model, inputs, box, twin)

        NETS[build.__name__] = seeded
        _TWINS[build.__name__] = twin
        _KINDS[build.__name__] = build.__module__.rpartition(".")[2]
        return seeded

    return enter


def get(name: str, dtype: torch.dtype | None = None) -> Awkward:
    """A fresh copy of the model `name` of the zoo, moved to `dtype` if given."""
    if name not in NETS:
        raise InputError(f"the zoo has no model {name!r}; it has {', '.join(NETS)}")
    entry = NETS[name]()
    return entry if dtype is None else replace(entry, model=entry.model.to(dtype))


GRAY = Pixels((1, 8, 8), mean=0.4, std=0.5)
COLOR = Pixels((3, 8, 8), mean=(0.4, 0.5, 0.6), std=(0.5, 0.4, 0.5))


class Plain(nn.Module):
    """Two convolutions, two ReLUs and a linear layer, each a module called once: nothing awkward."""

    def __init__(self, channels: int = 1, height: int = 8, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.fc = nn.Linear(4 * ((height + 1) // 2) * ((width + 1) // 2), CLASSES)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self._decide((torch.rand(32, channels, height, width) - 0.4) / 0.5)
        self.eval()

    @torch.no_grad()
    def _decide(self, x: Tensor) -> None:
        """Answers that differ from image to image, as a trained model's do."""
        h = self.conv2(self.conv1(x).relu()).relu().flatten(1)
        self.fc.weight.mul_(2 / self.fc(h).std(0).mean())
        self.fc.bias.sub_(self.fc(h).mean(0))

    def first(self, x: Tensor) -> Any:
        return self.relu1(self.conv1(x))

    def second(self, h: Tensor) -> Any:
        return self.relu2(self.conv2(h))

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.second(self.first(x)).flatten(1))


@awkward()
def plain() -> nn.Module:
    return Plain()


@awkward(twin="plain")
def sequential() -> nn.Module:
    p = Plain()
    layers = OrderedDict(conv1=p.conv1, relu1=p.relu1, conv2=p.conv2, relu2=p.relu2, flat=nn.Flatten(), fc=p.fc)
    return nn.Sequential(layers).eval()
