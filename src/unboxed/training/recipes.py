"""Training a network of the zoo by its name: a recipe each, and a card of what came out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .. import adversarial, loading, zoo
from .. import data as sets
from ..box import Box
from ..engine.transforms import wobble
from ..errors import DataError
from ..inputs import Pixels
from .files import save, versions, writable
from .fit import Attack, History, Watch, accuracy, fit

WOBBLE = {"degrees": 10.0, "scale": 0.1, "jitter": 0.05}
ADVERSARIAL_STEPS = 100  # of the attack that a robust accuracy is measured with
Parts = tuple[Dataset[Any], Dataset[Any]]

RECIPES: dict[str, dict[str, Any]] = {
    "mnist-linear": {"epochs": 5, "batch_size": 128, "lr": 5e-3},
    "mnist-cnn": {"epochs": 6, "batch_size": 128, "lr": 2e-3, "weight_decay": 1e-2},
    "mnist-judge": {"epochs": 8, "batch_size": 128, "lr": 5e-3, "weight_decay": 1e-2, "attack": Attack(0.3)},
    "digits-cnn": {"epochs": 20, "batch_size": 64, "lr": 5e-3, "weight_decay": 1e-2, "augment": WOBBLE},
    "digits-judge": {
        "epochs": 80, "batch_size": 64, "lr": 5e-3, "weight_decay": 1e-2, "augment": WOBBLE, "attack": Attack(0.3),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """What `train` made. `card` says how: data, recipe, seed, accuracy, versions."""

    path: Path
    net: nn.Module
    inputs: Pixels
    card: dict[str, Any]

    def __str__(self) -> str:
        card = self.card
        robust = f", {card['robust']['accuracy']:.1%} under attack" if "robust" in card else ""
        stopped = " (interrupted)" if card["interrupted"] else ""
        return f"{self.path}: {card['accuracy']:.2%} of {card['test_examples']} held-out images right{robust}{stopped}"


def recipe(name: str) -> dict[str, Any]:
    """The arguments with which `fit` trains that net of the zoo. Raises ModelError for an unknown name."""
    zoo.kind(name)
    chosen = dict(RECIPES[name])
    return chosen | {"augment": wobble(**chosen["augment"])} if "augment" in chosen else chosen


def train(
    name: str,
    *,
    data: str | Parts | None = None,
    root: str | Path | None = None,
    epochs: int | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    quiet: bool = False,
    watch: Watch | None = None,
) -> Trained:
    """Train a net of the zoo by its recipe, look at held-out data, write `out` (NAME.safetensors) and a card beside it.

    `data` is digits, mnist or fashion-mnist, a folder that holds train/ and test/, or two data sets; by default what
    the net is meant for. The weights are rounded to half precision first, so that the figures are those of the file.
    On Ctrl-C what was learned is kept. Raises ModelError, DataError, InputError and WriteError.
    """
    net, inputs = zoo.load(name, weights=None, seed=seed)
    path = writable(out or f"{name}.safetensors")
    learn, test = _parts(data or zoo.kind(name).data, root, inputs)
    arguments = recipe(name) | ({} if epochs is None else {"epochs": epochs})
    history = fit(net, inputs, learn, test, **arguments, seed=seed, quiet=quiet, watch=watch)
    net.half().float()
    box = Box(net, inputs)
    card = _card(name, learn, test, history, seed, epochs) | {"accuracy": accuracy(box, test)}
    if (attack := arguments.get("attack")) and not history.interrupted:
        card |= _under(attack, box, test, quiet)
    return Trained(save(net.half(), path, card), net.float(), inputs, card)


def robust_accuracy(box: Box, dataset: Dataset[Any], attack: Attack, *, quiet: bool = False) -> float:
    """The share of a Dataset of (image, class) that stays right under PGD of 100 steps, a thirtieth of eps each."""
    fooled = seen = 0
    with tqdm(total=len(dataset), desc="attacking", unit="image", disable=quiet) as bar:  # type: ignore[arg-type]
        for x, y in DataLoader(dataset, 500):
            found = adversarial.pgd(
                box, x, y, eps=attack.eps, norm=attack.norm, steps=ADVERSARIAL_STEPS, step=attack.eps / 30, seed=seen
            )
            fooled, seen = fooled + int(found.success.sum()), seen + len(x)
            bar.update(len(x))
            if found.interrupted:
                raise KeyboardInterrupt
    return (seen - fooled) / seen


def _under(attack: Attack, box: Box, test: Dataset[Any], quiet: bool) -> dict[str, Any]:
    """What the card says of attacks. Ctrl-C here must not cost what was learned."""
    said = {"attack": f"PGD-{ADVERSARIAL_STEPS}", "norm": attack.norm, "eps": attack.eps}
    try:
        return {"robust": said | {"accuracy": robust_accuracy(box, test, attack, quiet=quiet)}}
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
    name: str, learn: Dataset[Any], test: Dataset[Any], history: History, seed: int, epochs: int | None
) -> dict[str, Any]:
    made = dict(RECIPES[name])
    if "attack" in made:
        made["attack"] = asdict(made["attack"])
    return {
        "name": name,
        "inputs": asdict(zoo.kind(name).inputs),
        "data": getattr(learn, "name", type(learn).__name__),
        "train_examples": len(learn),  # type: ignore[arg-type]
        "test_examples": len(test),  # type: ignore[arg-type]
        "seed": seed,
        "recipe": made | ({} if epochs is None else {"epochs": epochs}),
        "test_accuracy_by_epoch": [round(a, 4) for a in history.accuracy],
        "seconds": round(history.seconds, 1),
        "interrupted": history.interrupted,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "command": f"unboxed train {name}" + (f" --epochs {epochs}" if epochs else "") + f" --seed {seed}",
    }
