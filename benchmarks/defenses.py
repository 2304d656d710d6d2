"""Defenses side by side: natural training, the cheap alternatives (dropout, weight decay), and adversarial training.

`python benchmarks/defenses.py [--mnist FOLDER] [--epochs 6] [--images 1000] [--only NAME ...]`: one small model, one
recipe but for the defense; clean accuracy on all test images, robust accuracy (L-inf .3) on the first `images`, what
it cost. Writes results/defenses.json, row by row: a run of some keeps the others.
"""

from __future__ import annotations

import argparse
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import unboxed as ub
from harness import RESULTS, write
from unboxed import adversarial, training
from unboxed.robustness.evaluate import AttackFn, evaluate
from unboxed.zoo.models import RobustCNN

REAL = Path(os.environ.get("UNBOXED_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
EPS = 0.3
ATTACKS: dict[str, AttackFn] = {
    "FGSM": adversarial.fgsm,
    "PGD-40": adversarial.pgd,
    "AutoAttack": adversarial.auto_attack,
}
NATURAL: dict[str, Any] = {"lr": 5e-3, "weight_decay": 1e-2, "batch_size": 128}
DEFENSES: dict[str, dict[str, Any]] = {
    "none": {},
    "dropout": {"dropout": 0.5},
    "weight decay": {"weight_decay": 1.0},
    "fast": {"defend": training.DEFENSES["fast"](EPS)},
    "PGD-7": {"defend": training.DEFENSES["pgd"](EPS)},
    "TRADES": {"defend": training.DEFENSES["trades"](EPS)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, default=REAL / "mnist", help="where the MNIST files lie")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--only", nargs="*", choices=DEFENSES, default=list(DEFENSES))
    asked, _ = parser.parse_known_args()
    torch.set_num_threads(1)
    path = RESULTS / "defenses.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    for name in asked.only:
        rows[name] = measured(asked.mnist, asked.epochs, asked.images, **DEFENSES[name])
        ordered = {k: rows[k] for k in DEFENSES if k in rows}
        write("defenses", {"eps": EPS, "norm": "linf", "images": asked.images, "epochs": asked.epochs, "rows": ordered})


def measured(root: Path, epochs: int, images: int, *, dropout: float = 0.0, **how: Any) -> dict[str, Any]:
    model, inputs = fresh(dropout)
    train, test = ub.data.mnist("train", root), ub.data.mnist("test", root)
    history = training.fit(model, inputs, train, test, epochs=epochs, **{**NATURAL, **how})
    box = ub.Box(model, inputs)
    found = evaluate(
        box, test, ATTACKS, eps=[EPS], max_examples=images, minimal_attack=partial(adversarial.deepfool, norm="linf")
    )
    return {
        "clean": history.accuracy[-1],
        "robust": {a: found.robust_accuracy(attack=a).to_dict() for a in found.attacks},
        "median": found.median_distance if found.median_distance < float("inf") else None,
        "alarms": [a.name for a in found.masking_findings],
        "seconds": round(history.seconds, 1),
        "cpu_seconds": round(history.cpu_seconds, 1),
    }


def fresh(dropout: float) -> tuple[nn.Module, ub.Pixels]:
    """The small strided model of the judges; with dropout before both of its linear layers."""
    torch.manual_seed(0)
    model = RobustCNN()
    if dropout:
        model.fc1 = nn.Sequential(nn.Dropout(dropout), model.fc1)
        model.fc2 = nn.Sequential(nn.Dropout(dropout), model.fc2)
    return model, ub.zoo.load("mnist-judge")[1]


if __name__ == "__main__":
    main()
