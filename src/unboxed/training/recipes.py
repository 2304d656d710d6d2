"""Training a network of the zoo by its name: a recipe each, and a card of what came out."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from tqdm import tqdm

from .. import adversarial, loading, zoo
from .. import data as sets
from ..box import Box
from ..engine.optimize.transforms import random_affine
from ..engine.read.examples import labeled_batches, labeled_examples
from ..errors import DataError
from ..inputs.pixels import Pixels
from ..parameters import Norm
from ..validation import valid_seed
from .defense import PGD, Defense, resolve_defense
from .files import check_weights_writable, save_weights, versions
from .fit import History, TrainStepCallback, accuracy, fit

AFFINE_AUGMENTATION_SETTINGS = {"degrees": 10.0, "scale": 0.1, "jitter": 0.05}
EVALUATION_PGD_STEPS = 100  # of the attack that a robust accuracy is measured with
ATTACKED_BATCH_EXAMPLES = 500
TrainTestData = tuple[Dataset[Any], Dataset[Any]]

FIT_ARGUMENTS_BY_MODEL_NAME: dict[str, dict[str, Any]] = {
    "mnist-linear": {"epochs": 5, "batch_size": 128, "lr": 5e-3},
    "mnist-cnn": {"epochs": 6, "batch_size": 128, "lr": 2e-3, "weight_decay": 1e-2},
    "mnist-judge": {"epochs": 8, "batch_size": 128, "lr": 5e-3, "weight_decay": 1e-2, "defend": PGD(0.3)},
    "mnist-robust": {
        "epochs": 20,
        "batch_size": 128,
        "lr": 5e-3,
        "weight_decay": 1e-2,
        "augment": AFFINE_AUGMENTATION_SETTINGS,
        "defend": PGD(0.3, steps=10),
        "ema_decay": 0.999,
        "autocast": torch.bfloat16,
    },
    "digits-cnn": {
        "epochs": 20,
        "batch_size": 64,
        "lr": 5e-3,
        "weight_decay": 1e-2,
        "augment": AFFINE_AUGMENTATION_SETTINGS,
    },
    "digits-judge": {
        "epochs": 80,
        "batch_size": 64,
        "lr": 5e-3,
        "weight_decay": 1e-2,
        "augment": AFFINE_AUGMENTATION_SETTINGS,
        "defend": PGD(0.3),
    },
}


@dataclass(frozen=True)
class TrainedModel:
    """What `train` made: the weights' file, the model, and a card that says how (data, recipe, seed, accuracy,
    versions)."""

    path: Path
    model: nn.Module
    inputs: Pixels
    card: dict[str, Any]
    checkpoint: Path | None = None  # that an interrupted training goes on from

    def __str__(self) -> str:
        card = self.card
        robust_note = f", {card['robust']['accuracy']:.1%} under attack" if "robust" in card else ""
        resume_note = f"; the same command goes on from {self.checkpoint}" if self.checkpoint else ""
        interrupt_note = f" (interrupted{resume_note})" if card["interrupted"] else ""
        accuracy_note = f"{card['accuracy']:.2%} of {card['test_examples']} held-out images right"
        return f"{self.path}: {accuracy_note}{robust_note}{interrupt_note}"


def recipe(name: str) -> dict[str, Any]:
    """The arguments with which `fit` trains a model of the zoo.

    Args:
        name: One of `zoo.names()`.

    Returns:
        Keyword arguments of `fit`.

    Raises:
        ModelError: for an unknown name, with the nearest ones.

    Example:
        >>> import unboxed as ub
        >>> ub.training.recipe("mnist-cnn")["epochs"]
        6
    """
    zoo.entry(name)
    arguments = dict(FIT_ARGUMENTS_BY_MODEL_NAME[name])
    return arguments | {"augment": random_affine(**arguments["augment"])} if "augment" in arguments else arguments


def train(
    name: str,
    *,
    data: str | tuple[Any, Any] | None = None,
    root: str | Path | None = None,
    epochs: int | None = None,
    defend: str | Defense | None = None,
    eps: float | None = None,
    checkpoint: str | Path | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    quiet: bool = False,
    watch: TrainStepCallback | None = None,
) -> TrainedModel:
    """Train a model of the zoo by its recipe, measure it on held-out data, write its weights and a card.

    The Python side of `unboxed train`; for a model of your own use `fit`. Weights are rounded to half precision before
    they are measured, so that the figures are those of the file. Ctrl-C keeps what was learned.

    Args:
        name: One of `zoo.names()`.
        data: "digits", "mnist" or "fashion-mnist", a folder that holds train/ and test/, or labeled examples of
            both, each in any form. None takes the data that the model is meant for.
        root: Folder of the MNIST files. None takes the user's cache folder.
        epochs: Passes over the training data. None takes the recipe's.
        defend: A defense, or its name, a key of `training.DEFENSES`. None takes the recipe's.
        eps: Perturbation budget of the defense, L-inf, in pixel range. None takes the recipe's, or 0.3.
        checkpoint: File that is written after each epoch; the same call then goes on.
        out: File for the weights (.safetensors). None takes NAME.safetensors.
        seed: Seed of all random draws: same seed, same result.
        quiet: No progress bar.
        watch: `watch(model, z, y, step)` is called after each batch.

    Returns:
        The file, the model, its inputs and the card.

    Raises:
        ModelError: for an unknown name, and a checkpoint of another training.
        DataError: for data that cannot be trained on.
        InputError: for settings out of range.
        WriteError: where the files cannot be written.

    Example:
        >>> import unboxed as ub
        >>> made = ub.training.train("digits-cnn", out="digits.safetensors")  # doctest: +SKIP
    """
    seed = valid_seed(seed)
    model, inputs = zoo.load(name, weights=None, seed=seed)
    path = check_weights_writable(out or f"{name}.safetensors")
    data = zoo.entry(name).dataset_name if data is None else data
    train_data, test_data = (
        part if isinstance(part, Dataset) else TensorDataset(*labeled_examples(Box(model, inputs), part))
        for part in _load_train_test_data(data, root, inputs, quiet)
    )
    overrides = {
        "epochs": epochs,
        "defend": resolve_defense(defend, eps, FIT_ARGUMENTS_BY_MODEL_NAME[name].get("defend")),
    }
    given_overrides = {setting: value for setting, value in overrides.items() if value is not None}
    arguments = (
        recipe(name) | given_overrides | {"checkpoint": checkpoint, "seed": seed, "quiet": quiet, "watch": watch}
    )
    history = fit(model, inputs, train_data, test_data, **arguments)
    model.half().float()
    box = Box(model, inputs)
    card = _make_model_card(name, train_data, test_data, history, seed, given_overrides)
    card |= {"command": _train_command_text(name, epochs, defend, eps, seed), "accuracy": accuracy(box, test_data)}
    if (defense := arguments.get("defend")) and not history.interrupted:
        card |= _robust_accuracy_card_entry(defense, box, test_data, quiet)
    saved_checkpoint = Path(checkpoint) if checkpoint and Path(checkpoint).exists() else None
    return TrainedModel(save_weights(model.half(), path, card), model.float(), inputs, card, saved_checkpoint)


def robust_accuracy(box: Box, dataset: Any, eps: float, norm: Norm = "linf", *, quiet: bool = False) -> float:
    """The fraction of labeled examples that stays correct under PGD of 100 steps, of eps / 30 each.

    A quick figure after training; `robustness.evaluate` runs several attacks and checks for gradient masking.

    Args:
        box: The opened model.
        dataset: Labeled examples: (x, y), a Dataset of (image, class), or a DataLoader.
        eps: Largest distance from x, in pixel range.
        norm: "linf", "l2" or "l1".
        quiet: No progress bar.

    Returns:
        Robust accuracy in [0, 1].

    Raises:
        InputError: for a norm or an eps out of range.

    Example:
        >>> import unboxed as ub
        >>> x, y = ub.data.digits("test").first(8)
        >>> 0 <= ub.training.robust_accuracy(ub.load("zoo:digits-cnn"), (x, y), eps=0.01, quiet=True) <= 1
        True
    """
    n_fooled = n_seen = 0
    total = len(dataset) if isinstance(dataset, Dataset) and isinstance(dataset, Sized) else None
    with tqdm(total=total, desc="attacking", unit="image", disable=quiet) as bar:
        for x, y in labeled_batches(box, dataset, ATTACKED_BATCH_EXAMPLES):
            result = adversarial.pgd(
                box, x, y, eps=eps, norm=norm, steps=EVALUATION_PGD_STEPS, step=eps / 30, seed=n_seen
            )
            n_fooled, n_seen = n_fooled + int(result.success.sum()), n_seen + len(x)
            bar.update(len(x))
            if result.interrupted:
                raise KeyboardInterrupt
    return (n_seen - n_fooled) / n_seen


def _robust_accuracy_card_entry(defense: Defense, box: Box, test_data: Dataset[Any], quiet: bool) -> dict[str, Any]:
    """What the card says of attacks. Ctrl-C here must not cost what was learned."""
    eps, norm = defense.eps, defense.norm
    attack_settings = {"attack": f"PGD-{EVALUATION_PGD_STEPS}", "norm": norm, "eps": eps}
    try:
        return {"robust": attack_settings | {"accuracy": robust_accuracy(box, test_data, eps, norm, quiet=quiet)}}
    except KeyboardInterrupt:
        return {"interrupted": True}


def _load_train_test_data(
    data: str | tuple[Any, Any], root: str | Path | None, like: Pixels, quiet: bool
) -> TrainTestData:
    """What to learn from and what is held out."""
    if not isinstance(data, (str, Path)):
        return data
    if data in loading.sources.DATASET_NAMES:
        train, test = (loading.data(f"{data}:{part}", root=root, quiet=quiet) for part in ("train", "test"))
        return train, test
    folder = Path(data)
    if not (folder / "train").is_dir() or not (folder / "test").is_dir():
        wanted = f"{', '.join(loading.sources.DATASET_NAMES)}, or a folder that holds train/ and test/"
        raise DataError(f"{data!r} can't be trained on; give {wanted}")
    train_data = sets.folder(folder / "train", like=like)
    return train_data, sets.folder(folder / "test", like=like, classes=train_data.classes)


def _make_model_card(
    name: str,
    train_data: Dataset[Any],
    test_data: Dataset[Any],
    history: History,
    seed: int,
    overrides: dict[str, Any],
) -> dict[str, Any]:
    return {
        "name": name,
        "inputs": asdict(zoo.entry(name).inputs),
        "data": getattr(train_data, "name", type(train_data).__name__),
        "train_examples": len(train_data),  # type: ignore[arg-type]
        "test_examples": len(test_data),  # type: ignore[arg-type]
        "seed": seed,
        "recipe": {
            setting: _to_json_value(value) for setting, value in (FIT_ARGUMENTS_BY_MODEL_NAME[name] | overrides).items()
        },
        "test_accuracy_by_epoch": [round(epoch_accuracy, 4) for epoch_accuracy in history.accuracy],
        "seconds": round(history.seconds, 1),
        "cpu_seconds": round(history.cpu_seconds, 1),
        "interrupted": history.interrupted,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _to_json_value(value: Any) -> Any:
    """A setting as JSON can hold it."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"name": type(value).__name__} | asdict(value)
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value


def _train_command_text(
    name: str, epochs: int | None, defend: str | Defense | None, eps: float | None, seed: int
) -> str:
    options = {"epochs": epochs, "defend": defend if isinstance(defend, str) else None, "eps": eps, "seed": seed}
    return " ".join(
        [f"unboxed train {name}", *(f"--{option} {value}" for option, value in options.items() if value is not None)]
    )
