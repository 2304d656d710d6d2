"""Training a network of the zoo by its name: a recipe each, and a card of what came out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .. import adversarial, loading, zoo
from .. import data as sets
from ..box import Box
from ..engine.optimize.transforms import wobble
from ..errors import DataError
from ..inputs.pixels import Pixels
from ..validation import check_seed
from .defense import PGD, Defense, named
from .files import save, versions, writable
from .fit import History, Watch, accuracy, fit

WOBBLE = {"degrees": 10.0, "scale": 0.1, "jitter": 0.05}
ADVERSARIAL_STEPS = 100  # of the attack that a robust accuracy is measured with
Parts = tuple[Dataset[Any], Dataset[Any]]

RECIPES: dict[str, dict[str, Any]] = {
    "mnist-linear": {"epochs": 5, "batch_size": 128, "lr": 5e-3},
    "mnist-cnn": {"epochs": 6, "batch_size": 128, "lr": 2e-3, "weight_decay": 1e-2},
    "mnist-judge": {"epochs": 8, "batch_size": 128, "lr": 5e-3, "weight_decay": 1e-2, "defend": PGD(0.3)},
    "mnist-robust": {
        "epochs": 20, "batch_size": 128, "lr": 5e-3, "weight_decay": 1e-2, "augment": WOBBLE,
        "defend": PGD(0.3, steps=10), "average": 0.999, "autocast": torch.bfloat16,
    },
    "digits-cnn": {"epochs": 20, "batch_size": 64, "lr": 5e-3, "weight_decay": 1e-2, "augment": WOBBLE},
    "digits-judge": {
        "epochs": 80, "batch_size": 64, "lr": 5e-3, "weight_decay": 1e-2, "augment": WOBBLE, "defend": PGD(0.3),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """What `train` made. `card` says how: data, recipe, seed, accuracy, versions."""

    path: Path
    model: nn.Module
    inputs: Pixels
    card: dict[str, Any]
    checkpoint: Path | None = None  # that an interrupted training goes on from

    def __str__(self) -> str:
        card = self.card
        robust = f", {card['robust']['accuracy']:.1%} under attack" if "robust" in card else ""
        again = f"; the same command goes on from {self.checkpoint}" if self.checkpoint else ""
        stopped = f" (interrupted{again})" if card["interrupted"] else ""
        return f"{self.path}: {card['accuracy']:.2%} of {card['test_examples']} held-out images right{robust}{stopped}"


def recipe(name: str) -> dict[str, Any]:
    """The arguments with which `fit` trains that model of the zoo. Raises ModelError for an unknown name."""
    zoo.kind(name)
    chosen = dict(RECIPES[name])
    return chosen | {"augment": wobble(**chosen["augment"])} if "augment" in chosen else chosen


def train(
    name: str,
    *,
    data: str | Parts | None = None,
    root: str | Path | None = None,
    epochs: int | None = None,
    defend: str | Defense | None = None,
    eps: float | None = None,
    checkpoint: str | Path | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    quiet: bool = False,
    watch: Watch | None = None,
) -> Trained:
    """Train a model of the zoo by its recipe, look at held-out data, write `out` (NAME.safetensors) and a card beside
    it.

    `data` is digits, mnist or fashion-mnist, a folder that holds train/ and test/, or two data sets; by default what
    the model is meant for. `defend` is fast, pgd or trades, within `eps` (the recipe's, or 0.3), or a defense.
    `checkpoint` is a file from which an interrupted training goes on. The weights are rounded to half precision first,
    so that the figures are those of the file. On Ctrl-C what was learned is kept.
    Raises ModelError, DataError, InputError and WriteError.
    """
    seed = check_seed(seed)
    model, inputs = zoo.load(name, weights=None, seed=seed)
    path = writable(out or f"{name}.safetensors")
    learn, test = _parts(data or zoo.kind(name).data, root, inputs)
    asked = {"epochs": epochs, "defend": named(defend, eps, RECIPES[name].get("defend"))}
    changed = {setting: value for setting, value in asked.items() if value is not None}
    arguments = recipe(name) | changed | {"checkpoint": checkpoint, "seed": seed, "quiet": quiet, "watch": watch}
    history = fit(model, inputs, learn, test, **arguments)
    model.half().float()
    box = Box(model, inputs)
    card = _card(name, learn, test, history, seed, changed)
    card |= {"command": _command(name, epochs, defend, eps, seed), "accuracy": accuracy(box, test)}
    if (defense := arguments.get("defend")) and not history.interrupted:
        card |= _under(defense, box, test, quiet)
    kept = Path(checkpoint) if checkpoint and Path(checkpoint).exists() else None
    return Trained(save(model.half(), path, card), model.float(), inputs, card, kept)


def robust_accuracy(box: Box, dataset: Dataset[Any], eps: float, norm: str = "linf", *, quiet: bool = False) -> float:
    """The share of a Dataset of (image, class) that stays right under PGD of 100 steps, a thirtieth of eps each."""
    fooled = seen = 0
    with tqdm(total=len(dataset), desc="attacking", unit="image", disable=quiet) as bar:  # type: ignore[arg-type]
        for x, y in DataLoader(dataset, 500):
            found = adversarial.pgd(box, x, y, eps=eps, norm=norm, steps=ADVERSARIAL_STEPS, step=eps / 30, seed=seen)
            fooled, seen = fooled + int(found.success.sum()), seen + len(x)
            bar.update(len(x))
            if found.interrupted:
                raise KeyboardInterrupt
    return (seen - fooled) / seen


def _under(defense: Defense, box: Box, test: Dataset[Any], quiet: bool) -> dict[str, Any]:
    """What the card says of attacks. Ctrl-C here must not cost what was learned."""
    eps, norm = defense.eps, defense.norm
    said = {"attack": f"PGD-{ADVERSARIAL_STEPS}", "norm": norm, "eps": eps}
    try:
        return {"robust": said | {"accuracy": robust_accuracy(box, test, eps, norm, quiet=quiet)}}
    except KeyboardInterrupt:
        return {"interrupted": True}


def _parts(data: str | Parts, root: str | Path | None, like: Pixels) -> Parts:
    """What to learn from and what is held out."""
    if not isinstance(data, (str, Path)):
        return data
    if data in loading.sources.NAMES:
        return loading.data(f"{data}:train", root=root), loading.data(f"{data}:test", root=root)
    folder = Path(data)
    if not (folder / "train").is_dir() or not (folder / "test").is_dir():
        wanted = f"{', '.join(loading.sources.NAMES)}, or a folder that holds train/ and test/"
        raise DataError(f"{data!r} can't be trained on; give {wanted}")
    learn = sets.folder(folder / "train", like=like)
    return learn, sets.folder(folder / "test", like=like, classes=learn.classes)


def _card(
    name: str, learn: Dataset[Any], test: Dataset[Any], history: History, seed: int, changed: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name,
        "inputs": asdict(zoo.kind(name).inputs),
        "data": getattr(learn, "name", type(learn).__name__),
        "train_examples": len(learn),  # type: ignore[arg-type]
        "test_examples": len(test),  # type: ignore[arg-type]
        "seed": seed,
        "recipe": {setting: _plain(value) for setting, value in (RECIPES[name] | changed).items()},
        "test_accuracy_by_epoch": [round(a, 4) for a in history.accuracy],
        "seconds": round(history.seconds, 1),
        "cpu_seconds": round(history.cpu_seconds, 1),
        "interrupted": history.interrupted,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _plain(value: Any) -> Any:
    """A setting as JSON can hold it."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"name": type(value).__name__} | asdict(value)
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value


def _command(name: str, epochs: int | None, defend: str | Defense | None, eps: float | None, seed: int) -> str:
    options = {"epochs": epochs, "defend": defend if isinstance(defend, str) else None, "eps": eps, "seed": seed}
    return " ".join([f"unboxed train {name}", *(f"--{o} {v}" for o, v in options.items() if v is not None)])
