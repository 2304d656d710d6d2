"""Small networks, trained and untrained: `zoo.load("digits-cnn")` gives the model and what its inputs are.

Beside each weights file lies a card, `zoo.card(name)`: on which data, how and how well the model was trained.

A model moves in here with a recipe in `training.recipes` that makes its weights again.
"""

from __future__ import annotations

import difflib
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

from ..data.uci import INPUTS as DIGITS
from ..errors import ModelError
from ..inputs.pixels import Pixels
from ..model import state
from ..validation import check_seed
from .models import DigitsCNN, Judge, LinearReLU, MnistCNN

MNIST = Pixels((1, 28, 28), mean=0.1307, std=0.3081)
WEIGHTS = files(__name__) / "weights"


@dataclass(frozen=True)
class Kind:
    """One of the zoo: what builds it, its inputs, and the name of the data that it is for."""

    build: Callable[[], nn.Module]
    inputs: Pixels
    data: Literal["mnist", "digits"]


KINDS = {
    "mnist-linear": Kind(LinearReLU, MNIST, "mnist"),
    "mnist-cnn": Kind(MnistCNN, MNIST, "mnist"),
    "mnist-judge": Kind(Judge, MNIST, "mnist"),
    "mnist-robust": Kind(Judge, MNIST, "mnist"),
    "digits-cnn": Kind(DigitsCNN, DIGITS, "digits"),
    "digits-judge": Kind(Judge, DIGITS, "digits"),
}


def names() -> tuple[str, ...]:
    return tuple(KINDS)


def kind(name: str) -> Kind:
    """Raises ModelError, with the nearest names, for a model that the zoo doesn't hold."""
    if name not in KINDS:
        near = difflib.get_close_matches(str(name), KINDS, n=3, cutoff=0.4) or names()
        raise ModelError(f"the zoo holds no {name!r}; did you mean {' or '.join(near)}?")
    return KINDS[name]


def load(name: str, *, weights: Literal["trained"] | None = "trained", seed: int = 0) -> tuple[nn.Module, Pixels]:
    """A model in eval mode and what its inputs are. `weights=None` draws fresh weights from `seed`.

    Raises ModelError for an unknown name.
    """
    found = kind(name)
    if weights not in ("trained", None):
        raise ModelError(f'weights is "trained" or None; got {weights!r}. unboxed.load takes a file of weights')
    with state.seeded(check_seed(seed), torch.get_default_device()):
        model = found.build()
    if weights == "trained":
        with _file(name, "safetensors") as path:
            model.load_state_dict(safetensors.torch.load_file(path))
    return model.eval(), found.inputs


def card(name: str) -> dict[str, Any]:
    """How the trained weights were made, and their figures. Raises ModelError for an unknown name."""
    kind(name)
    with _file(name, "json") as path:
        return dict(json.loads(path.read_text(encoding="utf-8")))


@contextmanager
def _file(name: str, ending: str) -> Iterator[Path]:
    with as_file(WEIGHTS / f"{name}.{ending}") as path:
        if not path.is_file():
            raise ModelError(
                f"this installation lacks {path.name}; install unboxed anew, or train: unboxed train {name}"
            )
        yield path
