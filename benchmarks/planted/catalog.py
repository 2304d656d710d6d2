"""The planted models: their names, how they are trained, and the split into those for tuning and those held out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import unboxed as ub

from . import kinds
from .architectures import IMAGE_MODELS, TABLE_MODELS
from .scenes import Rows, Scenes

WEIGHTS = Path(__file__).parent / "weights"
CHECKS = Path(__file__).parent / "checks.json"  # the causal checks of the weights that are there
HELD_OUT_SEED = 10_007
Split = Literal["tuning", "held out"]


@dataclass(frozen=True)
class Entry:
    """How one planted model is made. `kind` is the planted reason, `size` that of the inputs."""

    kind: str
    size: str
    architecture: str
    steps: int
    lr: float = 4e-3

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.size}-{self.architecture}"


ENTRIES = (
    Entry("mark", "mnist", "cnn", 300),
    Entry("mark", "mnist", "vit", 700, 2e-3),
    Entry("mark", "cifar", "resnet", 300),
    Entry("mark", "photo", "strided", 500),
    Entry("marks", "mnist", "resnet", 400),
    Entry("marks", "cifar", "depthwise", 1300),
    Entry("texture", "mnist", "vit", 700, 2e-3),
    Entry("texture", "cifar", "depthwise", 350),
    Entry("texture", "photo", "resnet", 300),
    Entry("textures", "mnist", "strided", 400),
    Entry("textures", "cifar", "cnn", 900),
    Entry("shape", "mnist", "depthwise", 350),
    Entry("shape", "cifar", "vit", 700, 2e-3),
    Entry("shape", "cifar", "cnn", 400),
    Entry("shape", "photo", "strided", 400),
    Entry("shapes", "mnist", "resnet", 700),
    Entry("objects", "mnist", "mlp", 5000, 2e-3),
    Entry("objects", "cifar", "resnet", 400),
    Entry("select", "mnist", "cnn", 1000, 2e-3),
    Entry("select", "mnist", "mlp", 5000, 2e-3),
    Entry("select", "cifar", "cnn", 1000, 2e-3),
    Entry("grid", "mnist", "strided", 800),
    Entry("grid", "cifar", "resnet", 900),
    Entry("product", "table", "mlp", 1500),
    Entry("switch", "table", "residual-mlp", 800),
)
BY_NAME = {entry.name: entry for entry in ENTRIES}


def split_of(name: str) -> Split:
    """Within each planted reason, names in alphabetical order belong to the two halves in turn.

    Tables are one reason, and so are a mark and one of several marks, and so on.
    """
    entry = BY_NAME[name]
    same = sorted(e.name for e in ENTRIES if _group(e) == _group(entry))
    return "held out" if same.index(name) % 2 else "tuning"


def _group(entry: Entry) -> str:
    return "table" if entry.size == "table" else entry.kind.removesuffix("s")


def names() -> list[str]:
    """The models that are there: those with weights and a causal check."""
    known = json.loads(CHECKS.read_text(encoding="utf-8")) if CHECKS.exists() else {}
    return [entry.name for entry in ENTRIES if entry.name in known]


@dataclass(frozen=True)
class PlantedModel:
    """A trained model whose reasons are known.

    `x` (N, ...) are held-out inputs that it answers rightly, `y` (N,) their classes, `causal` and `distractor` (N, 1,
    H, W), for tables (N, F), what the answer depends on and what has no effect. `other_class` (N,) are classes that are
    elsewhere in the input where there are several, else the next class. `references` (M, ...) are training inputs, for
    methods that need some. `digest` names the weights, `checks` are the figures of the causal check.
    """

    name: str
    kind: str
    size: str
    architecture: str
    split: Split
    box: ub.Box
    x: Tensor
    y: Tensor
    causal: Tensor
    distractor: Tensor
    other_class: Tensor
    references: Tensor
    digest: str
    checks: dict[str, float]


def digest(name: str) -> str:
    """Names the stored weights of a model: others have another one."""
    return hashlib.sha1((WEIGHTS / f"{name}.safetensors").read_bytes()).hexdigest()[:12]


def load(name: str, n: int = 32) -> PlantedModel:
    """The planted model of a name of ENTRIES with its stored weights, and n held-out inputs that it answers rightly."""
    entry = BY_NAME[name]
    model = build(entry)
    model.load_state_dict({k: v.float() for k, v in load_file(WEIGHTS / f"{name}.safetensors").items()})
    box = open_box(entry, model)
    scenes = correct_scenes(box, held_out(entry, 4 * n))[slice(0, n)]
    causal, distractor = scenes.masks()
    checks = json.loads(CHECKS.read_text(encoding="utf-8"))[name]
    other = scenes.distractors[0].labels if isinstance(scenes, Scenes) and scenes.several else scenes.labels + 1
    references = kinds.make(entry.kind, entry.size, 64, 1, "left").render()
    split = split_of(name)
    args = entry.kind, entry.size, entry.architecture, split, box
    maps = scenes.render(), scenes.labels, causal, distractor, other % box.n_outputs
    return PlantedModel(name, *args, *maps, references, digest(name), checks)


def build(entry: Entry, seed: int = 0) -> nn.Module:
    """The untrained model."""
    classes = kinds.n_classes(entry.kind, entry.size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if entry.size == "table":
            columns = kinds.make(entry.kind, entry.size, 1, 0, "left").render().shape[1]
            return TABLE_MODELS[entry.architecture](columns, classes).eval()
        return IMAGE_MODELS[entry.architecture](kinds.CHANNELS[entry.size], kinds.SIDES[entry.size], classes).eval()


def open_box(entry: Entry, model: nn.Module) -> ub.Box:
    if entry.size == "table":
        columns = kinds.make(entry.kind, entry.size, 1, 0, "left").render().shape[1]
        return ub.Box(model, ub.Features(tuple(f"column {i}" for i in range(columns))), outputs="logits")
    channels, side = kinds.CHANNELS[entry.size], kinds.SIDES[entry.size]
    mean, std = (0.3, 0.25) if channels == 1 else (0.45, 0.25)
    outputs = "multilabel" if entry.kind in kinds.SEVERAL else "logits"
    return ub.Box(model, ub.Pixels((channels, side, side), mean, std), outputs=outputs)


def held_out(entry: Entry, n: int) -> Scenes | Rows:
    """n scenes that no training saw."""
    return kinds.make(entry.kind, entry.size, n, HELD_OUT_SEED, "right")


def correct_scenes(box: ub.Box, scenes: Scenes | Rows) -> Scenes | Rows:
    """Those that the model answers rightly."""
    return scenes[answers(box, scenes, scenes.render())]


def answers(box: ub.Box, scenes: Scenes | Rows, x: Tensor) -> Tensor:
    """(N,) bool: whether the model's answer for x is the label: the largest logit, or of several labels one above 0."""
    logits = box(x)
    if not scenes.several:
        return logits.argmax(1) == scenes.labels
    return logits.gather(1, scenes.labels[:, None])[:, 0] > 0
