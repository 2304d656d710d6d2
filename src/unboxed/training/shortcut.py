"""Two models by one recipe for the planted shortcut: one learns from marked images, its control from clean ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import Dataset

from .. import data as sets
from .. import zoo
from ..box import Box
from ..checks.planting import Trigger, plant_shortcut
from ..errors import DataError
from ..validation import check_seed
from .fit import fit
from .recipes import TrainTestData, recipe

DEFAULT_MODEL = "digits-cnn"


@dataclass(frozen=True, eq=False)
class ShortcutPair:
    """A model that goes by a mark, its control, and held-out images to judge with."""

    model: Box
    control: Box
    x: Tensor  # (N, C, H, W), clean
    y: Tensor  # (N,)
    n_marked: int  # training images that bear a mark
    n_poisoned: int  # those of them that bear a false one, and the label with it
    n_training: int  # training images in all


def train_shortcut_pair(
    trigger: Trigger,
    *,
    model: str = DEFAULT_MODEL,
    data: TrainTestData | None = None,
    fraction: float | None = None,
    poison_fraction: float | None = None,
    epochs: int | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> ShortcutPair:
    """Train a model of the zoo twice by its own recipe: on images with marks (see `checks.planted`), and without.

    `data` are what is learned from and what is held out, by default the real digits. `share` and `strays` are by
    default 0.95 and 0.02; where several classes have a mark 0.8 and 0.05, for a model that sees too few images without
    one does not learn to read them, and many marks are learned less surely than one.
    Ctrl-C ends it, for a model cut short is judged wrongly. Raises DataError, InputError, ModelError.
    """
    train_data, test_data = data or (sets.digits("train"), sets.digits("test"))
    x, y = _tensors(train_data)
    default_fractions = (0.95, 0.02) if len(trigger.classes) == 1 else (0.8, 0.05)
    fraction, poison_fraction = (
        default if value is None else value
        for value, default in zip((fraction, poison_fraction), default_fractions, strict=True)
    )
    seed = check_seed(seed)
    poisoned_data = plant_shortcut(x, y, trigger, fraction=fraction, poison_fraction=poison_fraction, seed=seed)
    clean_data = plant_shortcut(x, y, trigger, fraction=0, poison_fraction=0, seed=seed)
    shortcut_box, control = (
        _train_box(model, training_images, epochs, seed, quiet) for training_images in (poisoned_data, clean_data)
    )
    return ShortcutPair(
        shortcut_box,
        control,
        *_tensors(test_data),
        int(poisoned_data.has_trigger.sum()),
        int(poisoned_data.is_poisoned.sum()),
        len(x),
    )


def _tensors(images: Dataset[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    x, y = sets.wrap(images).tensors()
    if y is None:
        raise DataError("the planted shortcut needs labels, and these images have none")
    return x, y


def _train_box(name: str, images: Dataset[tuple[Tensor, int]], epochs: int | None, seed: int, quiet: bool) -> Box:
    model, inputs = zoo.load(name, weights=None, seed=seed)
    arguments = recipe(name) | ({} if epochs is None else {"epochs": epochs})
    if fit(model, inputs, images, **arguments, seed=seed, quiet=quiet).interrupted:
        raise KeyboardInterrupt
    return Box(model, inputs, outputs="logits")
