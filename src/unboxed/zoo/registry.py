"""The models of the zoo: names, inputs, weights and cards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import nn

from ..data.uci import DIGITS_INPUTS
from ..errors import ModelError
from ..inputs.features import Features
from ..inputs.pixels import Pixels
from ..model import state
from ..validation import suggestion_text, valid_seed
from .generators import LATENT_SIZE, DigitGenerator
from .models import DigitsCNN, LinearReLU, MnistCNN, RobustCNN

MNIST_INPUTS = Pixels((1, 28, 28), mean=0.1307, std=0.3081)
ZOO_WEIGHTS_FOLDER = files(__package__) / "weights"


@dataclass(frozen=True)
class ZooEntry:
    """A model of the zoo: what builds it, its inputs, and the name of the data set that it is for."""

    factory: Callable[[], nn.Module]
    inputs: Pixels
    dataset_name: Literal["mnist", "digits"]


ZOO_ENTRY_BY_NAME = {
    "mnist-linear": ZooEntry(LinearReLU, MNIST_INPUTS, "mnist"),
    "mnist-cnn": ZooEntry(MnistCNN, MNIST_INPUTS, "mnist"),
    "mnist-judge": ZooEntry(RobustCNN, MNIST_INPUTS, "mnist"),
    "mnist-robust": ZooEntry(RobustCNN, MNIST_INPUTS, "mnist"),
    "digits-cnn": ZooEntry(DigitsCNN, DIGITS_INPUTS, "digits"),
    "digits-judge": ZooEntry(RobustCNN, DIGITS_INPUTS, "digits"),
}


GENERATOR_WIDTHS_BY_NAME = {"digits-gan": (64, 48, 24), "mnist-gan": (64, 48, 24)}
LATENTS = Features(tuple(f"z{i}" for i in range(LATENT_SIZE)))


def names() -> tuple[str, ...]:
    """The models of the zoo.

    Returns:
        Their names, as `load` takes them.

    Example:
        >>> import unboxed as ub
        >>> "digits-cnn" in ub.zoo.names()
        True
    """
    return tuple(ZOO_ENTRY_BY_NAME)


def entry(name: str) -> ZooEntry:
    """What the zoo knows about a model, without building it; `load` builds it.

    Args:
        name: One of `zoo.names()`.

    Returns:
        Its factory, its inputs and the name of its data set.

    Raises:
        ModelError: for an unknown name, with the nearest ones.

    Example:
        >>> import unboxed as ub
        >>> ub.zoo.entry("digits-cnn").dataset_name
        'digits'
    """
    if name not in ZOO_ENTRY_BY_NAME:
        raise ModelError(f"the zoo has no {name!r}; {suggestion_text(str(name), ZOO_ENTRY_BY_NAME)}")
    return ZOO_ENTRY_BY_NAME[name]


def load(name: str, *, weights: Literal["trained"] | None = "trained", seed: int = 0) -> tuple[nn.Module, Pixels]:
    """A small model in eval mode, and what its inputs are.

    For examples, tests and as a robust judge; for a model of your own use `ub.load` or `ub.Box`.

    Args:
        name: One of `zoo.names()`.
        weights: "trained", or None for newly initialized weights.
        seed: Seed of newly initialized weights.

    Returns:
        (model, inputs), as `ub.Box(*ub.zoo.load(name))` takes them.

    Raises:
        ModelError: for an unknown name, with the nearest ones.

    Example:
        >>> import unboxed as ub
        >>> model, inputs = ub.zoo.load("digits-cnn")
        >>> inputs.shape
        (1, 28, 28)
    """
    zoo_entry = entry(name)
    return _build_seeded_model(name, zoo_entry.factory, weights, seed), zoo_entry.inputs


def _build_seeded_model(name: str, factory: Callable[[], nn.Module], weights: str | None, seed: int) -> nn.Module:
    if weights not in ("trained", None):
        raise ModelError(f'weights is "trained" or None; got {weights!r}. unboxed.load takes a file of weights')
    with state.forking_rngs_with_lock(valid_seed(seed), torch.get_default_device()):
        model = factory()
    if weights == "trained":
        with _extracting_zoo_file(name, "safetensors") as path:
            model.load_state_dict(safetensors.torch.load_file(path))
    return model.eval()


def generator_names() -> tuple[str, ...]:
    """The generators of the zoo.

    Returns:
        Their names, as `load_generator` takes them.

    Example:
        >>> import unboxed as ub
        >>> ub.zoo.generator_names()
        ('digits-gan', 'mnist-gan')
    """
    return tuple(GENERATOR_WIDTHS_BY_NAME)


def load_generator(
    name: str, *, weights: Literal["trained"] | None = "trained", seed: int = 0
) -> tuple[nn.Module, Features]:
    """A small generator of digits in eval mode, and what its inputs are: 64 latents.

    For GAN dissection, and wherever images from codes are wanted. Latents are standard normal; the largest of the first
    ten chooses the digit. `ub.load("zoo:digits-gan")` opens it as a box.

    Args:
        name: One of `zoo.generator_names()`.
        weights: "trained", or None for newly initialized weights.
        seed: Seed of newly initialized weights.

    Returns:
        (model, inputs), for `ub.Box(model, inputs, outputs="regression")`; it gives images (N, 1, 28, 28) in [0, 1].

    Raises:
        ModelError: for an unknown name, with the nearest ones.

    Example:
        >>> import torch, unboxed as ub
        >>> model, inputs = ub.zoo.load_generator("digits-gan")
        >>> model(torch.randn(2, 64)).shape
        torch.Size([2, 1, 28, 28])
    """
    if name not in GENERATOR_WIDTHS_BY_NAME:
        raise ModelError(f"the zoo has no generator {name!r}; {suggestion_text(str(name), GENERATOR_WIDTHS_BY_NAME)}")
    return _build_seeded_model(name, lambda: DigitGenerator(GENERATOR_WIDTHS_BY_NAME[name]), weights, seed), LATENTS


def card(name: str) -> dict[str, Any]:
    """How the trained weights of a model were made, and its figures.

    Args:
        name: One of `zoo.names()` or `zoo.generator_names()`.

    Returns:
        The data, the recipe, accuracies, versions and the command, as a dict.

    Raises:
        ModelError: for an unknown name, with the nearest ones.

    Example:
        >>> import unboxed as ub
        >>> ub.zoo.card("digits-cnn")["accuracy"] > 0.9
        True
    """
    if name not in GENERATOR_WIDTHS_BY_NAME:
        entry(name)
    with _extracting_zoo_file(name, "json") as path:
        return dict(json.loads(path.read_text(encoding="utf-8")))


@contextmanager
def _extracting_zoo_file(name: str, suffix: str) -> Iterator[Path]:
    with as_file(ZOO_WEIGHTS_FOLDER / f"{name}.{suffix}") as path:
        if not path.is_file():
            raise ModelError(f"this installation lacks {path.name}; reinstall unboxed, or train: unboxed train {name}")
        yield path
