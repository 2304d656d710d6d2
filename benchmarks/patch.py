"""How often does a patch work on images it was not made from, at places that it was not told?

One patch for each of the ten targets; a random patch of the same size is the control. MNIST: natural CNN, a curve over
the share of the image that is covered (wanted at 33 %: a mean of .60 or more). CIFAR-10: ResNet-20 at 10 % (wanted for
the better half of the targets: .80 or more). "place": anywhere in the image, on whole pixels; "turned": also turned by
up to 22.5 degrees and scaled by 10 % either way. An image counts where its label is not the target.

What is in results/patch.json is not made again: a run that was stopped goes on (--fresh begins anew).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import unboxed as ub
from harness import RESULTS, write
from models import cifar, resnet20
from unboxed.adversarial import patch

MNIST = os.environ.get("UNBOXED_MNIST")  # the folder of the IDX files; None: the user's cache
AREAS = (0.1, 0.18, 0.25, 0.33)
RULES = {"place": {"rotation": 0.0, "scale": 0.0}, "turned": {"rotation": 22.5, "scale": 0.1}}
PLANS = {  # per model: (area, rules), the most asked for first
    "mnist": [(0.33, "turned"), (0.33, "place"), *[(area, "turned") for area in AREAS[:3]]],
    "cifar": [(0.1, "place"), (0.1, "turned")],
}
WORK = {"mnist": {"steps": 100, "sample": 64}, "cifar": {"steps": 150, "sample": 32}}
WANTED = {"mnist": ("0.33", "mean", 0.60), "cifar": ("0.1", "better_half", 0.80)}
Split = tuple[ub.Box, Tensor, Tensor, Tensor, Tensor]  # box, images and labels to make patches from, and held-out ones


def mnist() -> Split:
    folder = Path(MNIST) if MNIST else None
    train, test = (ub.data.mnist("train" if t else "test", folder).first(n) for t, n in ((True, 2000), (False, 1000)))
    return ub.Box(*ub.zoo.load("mnist-cnn")), train.x, train.y, test.x, test.y  # type: ignore[return-value]


def cifar10() -> Split:
    """The model was trained on all of these, but no patch on the last thousand."""
    x, y = cifar()
    return ub.Box(*resnet20()), x[:3000], y[:3000], x[3000:], y[3000:]


SPLITS = {"mnist": mnist, "cifar": cifar10}


def measured(split: Split, target: int, area: float, rules: str, work: dict[str, int]) -> dict[str, float]:
    """The share of held-out images fooled by the patch, by random values in its place, and by the end on its own."""
    box, x, y, held, labels = split
    how = {"target": target, "area": area, **RULES[rules]}
    made, control = patch(box, x, y, **how, **work), patch(box, x[:64], y[:64], **how, steps=0)
    found = {
        "patch": made.fooling_rate(box, held, labels, seed=1),
        "random": control.fooling_rate(box, held, labels, seed=1),
    }
    found["own"] = float(made.fooling_rates[-10:].mean())
    return {name: round(value, 3) for name, value in found.items()}


def summary(rows: dict[str, dict[str, float]]) -> dict[str, float]:
    patches = sorted((row["patch"] for row in rows.values()), reverse=True)
    random = [row["random"] for row in rows.values()]
    half = patches[: (len(patches) + 1) // 2]
    found = {"mean": patches, "better_half": half, "worst_of_better_half": half[-1:], "random": random}
    return {name: round(sum(values) / len(values), 3) for name, values in found.items()}


def run(name: str, figures: dict[str, Any], targets: int) -> Iterator[dict[str, Any]]:
    """The figures after each patch."""
    split = SPLITS[name]()
    part = figures.setdefault(name, {})
    for area, rules in PLANS[name]:
        at = part.setdefault(f"{area:g} {rules}", {"targets": {}})
        for target in range(targets):
            if str(target) not in at["targets"]:
                at["targets"][str(target)] = measured(split, target, area, rules, WORK[name])
                at["summary"] = summary(at["targets"])
                print(name, area, rules, target, at["targets"][str(target)], flush=True)
                yield figures


def judged(figures: dict[str, Any]) -> dict[str, Any]:
    """With what was wanted, and whether it was reached, where all ten targets are measured."""
    said = {}
    for name, (area, what, least) in WANTED.items():
        for rules in RULES:
            at = figures.get(name, {}).get(f"{area} {rules}", {"targets": {}})
            if len(at["targets"]) == 10:
                got = at["summary"][what]
                said[f"{name} {area} {rules}"] = {"what": what, "wanted": least, "got": got, "reached": got >= least}
    return {**figures, "wanted": said, "work": WORK}


def before() -> dict[str, Any]:
    path = RESULTS / "patch.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: kept[name] for name in SPLITS if name in kept and kept.get("work") == WORK}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--net", choices=(*SPLITS, "all"), default="all")
    options.add_argument("--targets", type=int, default=10)
    options.add_argument("--fresh", action="store_true")
    chosen = options.parse_args()
    figures = {} if chosen.fresh else before()
    for name in SPLITS if chosen.model == "all" else (chosen.model,):
        for _ in run(name, figures, chosen.targets):
            with redirect_stdout(StringIO()):
                write("patch", judged(figures))
    write("patch", judged(figures))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
