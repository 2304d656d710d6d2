"""Shortcuts without labels: is a planted mark found and proved, and is nothing claimed of a model without it?

    python benchmarks/concepts_shortcuts.py [--seeds 10] [--models FOLDER]     results/concepts_shortcuts.json

Per seed the digits model is trained twice: on digits of which most of one class (class = seed) bear a mark, and on
clean ones. `ub.concepts.shortcuts` gets each model's training images and no labels. The control also gets the images
with the mark, which it has not learned to go by. FOLDER keeps the trained models.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import unboxed as ub
from harness import RESULTS, versions
from unboxed.checks import Trigger
from unboxed.checks.planting import PlantedDataset, plant_shortcut
from unboxed.concepts.shortcuts import ExplanationCluster, Shortcuts
from unboxed.training.shortcut import train_shortcut_pair

SHAPE, N_CLASSES, FRACTION, POISONED = (1, 28, 28), 10, 0.95, 0.02


def boxes(trigger: Trigger, seed: int, folder: Path | None) -> tuple[ub.Box, ub.Box]:
    """The model that was trained with the mark, and its control."""
    file = None if folder is None else folder / f"shortcut-{seed}.pt"
    if file is not None and file.exists():
        return _opened(torch.load(file))
    pair = train_shortcut_pair(trigger, fraction=FRACTION, poison_fraction=POISONED, seed=seed, quiet=True)
    states = [box.model.state_dict() for box in (pair.model, pair.control)]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(states, file)
    return _opened(states)


def _opened(states: list[dict[str, Any]]) -> tuple[ub.Box, ub.Box]:
    opened = []
    for state in states:
        model, inputs = ub.zoo.load("digits-cnn", weights=None)
        model.load_state_dict(state)
        opened.append(ub.Box(model, inputs, outputs="logits"))
    return opened[0], opened[1]


def measured(seed: int, folder: Path | None) -> dict[str, Any]:
    x, y = ub.data.digits("train").tensors()
    target = seed % N_CLASSES
    trigger = Trigger(SHAPE, (target,))
    planted = plant_shortcut(x, y, trigger, fraction=FRACTION, poison_fraction=POISONED, seed=seed)
    model, control = boxes(trigger, seed, folder)
    return {
        "seed": seed,
        "model": planted_figures(ub.concepts.shortcuts(model, planted.images, seed=seed), planted, trigger, target),
        "control on clean images": claims(ub.concepts.shortcuts(control, x, seed=seed)),
        "control on marked images": claims(ub.concepts.shortcuts(control, planted.images, seed=seed)),
    }


def planted_figures(found: Shortcuts, planted: PlantedDataset, trigger: Trigger, target: int) -> dict[str, Any]:
    """How well the claimed clusters of the class are those with the mark, and what pasting their patch does."""
    of_class = [c for c in found.shortcuts if c.target == target]
    members = torch.cat([c.members for c in of_class]) if of_class else torch.zeros(0, dtype=torch.long)
    of_all = torch.cat([c.members for c in found.clusters if c.target == target])
    with_mark = planted.has_trigger[members].double()
    tests = [c.test for c in of_class if c.test is not None]
    return {
        **claims(found),
        "claims of other classes": len(found.shortcuts) - len(of_class),
        "members with the mark": round(float(with_mark.mean()), 4) if len(members) else 0.0,
        "marked that are members": round(float(with_mark.sum() / planted.has_trigger[of_all].sum()), 4),
        "patch overlaps the mark (IoU)": [round(_iou(c, trigger, target), 3) for c in of_class],
        "pasted": [round(t.with_patch.value, 4) for t in tests],
        "random": [round(t.with_random.value, 4) for t in tests],
    }


def _iou(cluster: ExplanationCluster, trigger: Trigger, target: int) -> float:
    mark, patch = trigger.mask(target), torch.zeros(SHAPE[1:], dtype=torch.bool)
    patch[cluster.patch.rows, cluster.patch.columns] = True
    return float((mark & patch).sum() / (mark | patch).sum())


def claims(found: Shortcuts) -> dict[str, Any]:
    tests = [c.test for c in found.clusters if c.test is not None]
    return {
        "claims": len(found.shortcuts),
        "clusters": len(found.clusters),
        "largest share that follows": max(round(t.with_patch.value, 4) for t in tests),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--models", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for seed in range(args.seeds):
        runs.append(measured(seed, args.models))
        print(json.dumps(runs[-1]), flush=True)
    found = [r["model"] for r in runs]
    controls = [r[name] for r in runs for name in ("control on clean images", "control on marked images")]
    result = {
        "seeds": args.seeds,
        "found": sum(f["claims"] > f["claims of other classes"] for f in found),
        "claims of other classes": sum(f["claims of other classes"] for f in found),
        "lowest pasted": min((v for f in found for v in f["pasted"]), default=0.0),
        "highest random": max((v for f in found for v in f["random"]), default=0.0),
        "lowest IoU": min((v for f in found for v in f["patch overlaps the mark (IoU)"]), default=0.0),
        "lowest share of members with the mark": min(f["members with the mark"] for f in found),
        "lowest share of marked that are members": min(f["marked that are members"] for f in found),
        "control models": len(controls),
        "false claims": sum(c["claims"] for c in controls),
        "largest share that follows on a control": max(c["largest share that follows"] for c in controls),
        "runs": runs,
        "versions": versions(["torch", "scikit-learn"]),
    }
    (RESULTS / "concepts_shortcuts.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
