"""The planted shortcut, three seeds and two variants: which methods show the trigger, as JSON."""

from __future__ import annotations

import time
from statistics import mean
from typing import Any

import torch

from harness import write
from unboxed.checks import ShortcutReport, Trigger, shortcut
from unboxed.data.uci import DIGITS_INPUTS
from unboxed.training.shortcut import train_shortcut_pair

SEEDS = (0, 1, 2)
VARIANTS = {"one class": (3,), "all classes": tuple(range(10))}


def judged(classes: tuple[int, ...], seed: int) -> ShortcutReport:
    mark = Trigger(DIGITS_INPUTS.shape, classes)
    trained = train_shortcut_pair(mark, seed=seed, quiet=True)
    return shortcut(trained.model, trained.control, trained.x, trained.y, mark, seed=seed)


def figures(classes: tuple[int, ...]) -> dict[str, Any]:
    """The means over seeds; a grade for each."""
    started = time.perf_counter()
    found = [judged(classes, seed) for seed in SEEDS]
    rows = {}
    for findings in zip(*(f.findings for f in found), strict=True):
        shares = {
            name: round(mean(getattr(f, name) for f in findings), 3)
            for name in ("score", "control_score")
            if all(getattr(f, name) is not None for f in findings)
        }
        more = {
            name: round(mean(f.figures[name] for f in findings), 3)
            for name in findings[0].figures
            if all(name in f.figures for f in findings)
        }
        first = findings[0]
        rows[first.method] = {
            "family": first.family, "name": first.name, "what": first.quantity, **shares, **more,
            "grades": [f.grade for f in findings],
        }  # fmt: skip
    answers = {
        name: {k: round(mean(vars(getattr(f, name))[k] for f in found), 4) for k in vars(found[0].model_accuracy)}
        for name in ("model_accuracy", "control_accuracy")
    }
    seconds = round((time.perf_counter() - started) / len(SEEDS), 1)
    return {"models": answers, "methods": rows, "seconds_a_seed": seconds}


def main() -> None:
    torch.set_num_threads(1)
    found = {name: figures(classes) for name, classes in VARIANTS.items()}
    write("shortcut", {"what": "methods that show a planted trigger, digits-cnn", "seeds": list(SEEDS), **found})


if __name__ == "__main__":
    main()
