"""Two models for the planted shortcut by one recipe: one trained on images with triggers, its control on clean ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import Dataset

from .. import data as sets
from .. import zoo
from ..box import Box
from ..checks.planting import PlantedDataset, Trigger, plant_shortcut
from ..errors import DataError
from ..validation import valid_seed
from .fit import fit
from .recipes import TrainTestData, recipe

DEFAULT_ZOO_MODEL_NAME = "digits-cnn"


@dataclass(frozen=True, eq=False)
class ShortcutPair:
    """A model that relies on the trigger, its control, and clean held-out images."""

    model: Box
    control: Box
    x: Tensor  # (N, C, H, W), clean
    y: Tensor  # (N,)
    n_triggered: int  # training images with a trigger
    n_poisoned: int  # those of them with the trigger and the label of another class
    n_training: int  # training images in all
    training_data: tuple[PlantedDataset, PlantedDataset]  # of the model, and of the control


def train_shortcut_pair(
    trigger: Trigger,
    *,
    model: str = DEFAULT_ZOO_MODEL_NAME,
    data: TrainTestData | None = None,
    fraction: float | None = None,
    poison_fraction: float | None = None,
    epochs: int | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> ShortcutPair:
    """Train a model of the zoo twice by its own recipe: on images with triggers, and on clean ones.

    `data` are the training and the held-out images, by default the real digits. `fraction` and `poison_fraction` are
    by default 0.95 and 0.02; with triggers of several classes 0.8 and 0.05: a model that sees too few images without
    one does not learn to read them, and many triggers are learned less surely than one.
    Ctrl-C ends it: no check can judge by a model whose training was interrupted.
    Raises DataError, InputError, ModelError.
    """
    train_data, test_data = data or (sets.digits("train"), sets.digits("test"))
    x, y = _images_and_labels(train_data)
    default_fractions = (0.95, 0.02) if len(trigger.classes) == 1 else (0.8, 0.05)
    fraction, poison_fraction = (
        default if value is None else value
        for value, default in zip((fraction, poison_fraction), default_fractions, strict=True)
    )
    seed = valid_seed(seed)
    poisoned_data = plant_shortcut(x, y, trigger, fraction=fraction, poison_fraction=poison_fraction, seed=seed)
    clean_data = plant_shortcut(x, y, trigger, fraction=0, poison_fraction=0, seed=seed)
    shortcut_box, control = (
        _train_zoo_model(model, training_images, epochs, seed, quiet) for training_images in (poisoned_data, clean_data)
    )
    return ShortcutPair(
        shortcut_box,
        control,
        *_images_and_labels(test_data),
        int(poisoned_data.has_trigger.sum()),
        int(poisoned_data.is_poisoned.sum()),
        len(x),
        (poisoned_data, clean_data),
    )


def _images_and_labels(images: Dataset[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    x, y = sets.wrap(images).tensors()
    if y is None:
        raise DataError("the planted shortcut needs labels, and these images have none")
    return x, y


def _train_zoo_model(name: str, images: Dataset[tuple[Tensor, int]], epochs: int | None, seed: int, quiet: bool) -> Box:
    model, inputs = zoo.load(name, weights=None, seed=seed)
    arguments = recipe(name) | ({} if epochs is None else {"epochs": epochs})
    if fit(model, inputs, images, **arguments, seed=seed, quiet=quiet).interrupted:
        raise KeyboardInterrupt
    return Box(model, inputs, outputs="logits")
