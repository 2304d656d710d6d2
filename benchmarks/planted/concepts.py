"""Verdicts on concepts where it is known whether there is something: what each benchmark of concepts plants, once more.

A draw is right where the concept, the feature or the mark is there and used by construction, and wrong where it is not:
random weights, noise, an attribute that the head does not read, a control model. Draws with an even seed are for
tuning, those with an odd one are held out. Those of shortcuts, slices and marks that TCAV is to find are read from the
results of their own benchmarks, as their models take minutes to train.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

import concepts_dictionary
import concepts_dissect
import concepts_probes
import unboxed as ub
from planted.statistics import summary
from unboxed.engine.multiple_tests import holm_adjusted
from unboxed.engine.randomized import randomize_all_layers

Record = dict[str, Any]
GRADES = {"used": "pass", "not used": "fail", "not decodable": "fail", True: "pass", False: "fail"}
RIGHT, WRONG = "right", "wrong"


def record(method: str, model: str, seed: int, truth: str, grade: Any, figure: float | None) -> Record:
    split = "held out" if seed % 2 else "tuning"
    return {
        "method": method, "model": f"{model} {seed}", "seed": seed, "split": split, "truth": truth,
        "grade": GRADES.get(grade, grade), "figure": None if figure is None else round(figure, 4), "nonsense": False,
    }  # fmt: skip


def probes(seed: int) -> Iterator[Record]:
    """Two attributes of a table, both decodable, of which the head reads one; of random features neither."""
    box, x, used, unused = concepts_probes.planted_table(seed)
    for truth, layer in zip((RIGHT, WRONG), concepts_probes.verdicts(box, x, used, unused, "1", seed), strict=True):
        share = float(layer.erasure.change.mean() / layer.erasure.own_change.mean())
        yield record("probe", "table", seed, truth, layer.verdict, share)


def bars(seed: int) -> Iterator[Record]:
    """A small CNN trained on the direction of the left of two bars, and the same with random weights."""
    box, x, used, unused = concepts_probes.planted_images(seed)
    half = len(x) // 2
    for truth, attribute in ((RIGHT, used), (WRONG, unused)):
        examples = x[:half][attribute[:half] == 1][:50]
        r = ub.concepts.tcav(
            box, (x[half:], used[half:]), {"bar": examples}, 1, ["4", "6"], random_data=x[:half], diagnostics=False,
            seed=seed,
        )  # fmt: skip
        yield record("tcav", "bars", seed, truth, r.verdict, -float(r.p_values.clamp_min(1e-12).log10().min()))
    for truth, model in ((RIGHT, box), (WRONG, randomize_all_layers(box, 1000 + seed))):
        found = ub.concepts.discover(model, (x, used), "6", n_concepts=2, n_masks=2, crop_size=1, seed=seed)
        yield record("discover", "bars", seed, truth, found.verdict, found.faithfulness.advantage.low)


def features(seed: int) -> Iterator[Record]:
    """Sums of two of 128 directions, and Gaussian noise with as few rows as learn it by heart."""
    inputs = ub.Features(tuple(f"x{i}" for i in range(64)))
    box = ub.Box(nn.Sequential(nn.Identity(), nn.Linear(64, 3)), inputs, outputs="logits")
    noise = torch.randn(150, 64, generator=torch.Generator().manual_seed(seed))
    settings: dict[str, Any] = {"n_steps": 200, "n_seeds": 2, "seed": seed}
    for truth, x, size in ((RIGHT, concepts_dictionary.toy(2, 1000, seed)[1], (128, 2)), (WRONG, noise, (64, 4))):
        r = ub.concepts.dictionary(box, x, "0", n_features=size[0], k=size[1], **settings)
        yield record("dictionary", "features", seed, truth, r.verdict, r.gap.low)


def detectors(seed: int) -> Iterator[Record]:
    """Units that are the concepts of digits, with errors, and random mixtures of such units."""
    x, _ = ub.data.digits("all", seed=seed).first(100)
    box = ub.Box(concepts_dissect.Planted("errors", seed), ub.Pixels((1, 28, 28)), outputs="logits")
    for truth, model in ((RIGHT, box), (WRONG, randomize_all_layers(box, 1000 + seed))):
        layer = ub.concepts.dissect(model, x, layers="units", seed=seed).layers[0]
        yield record("dissect", "detectors", seed, truth, layer.verdict, len(layer.beyond_chance) / len(layer.iou))


DRAWS: dict[str, Callable[[int], Iterator[Record]]] = {
    "table": probes, "bars": bars, "features": features, "detectors": detectors
}  # fmt: skip


# -- from results of other benchmarks ----------------------------------------------------------------------------------


def known(results: Path, alpha: float = 0.05) -> list[Record]:
    """Draws of TCAV on marks, of shortcuts and of slices, as their benchmarks wrote them."""
    read = {
        name: json.loads((results / f"concepts_{name}.json").read_text()) for name in ("tcav", "shortcuts", "slices")
    }
    return [
        *(r for run in read["tcav"]["runs"] for r in _marks(run, alpha)),
        *(r for run in read["shortcuts"]["runs"] for r in _shortcuts(run)),
        *_slices(read["slices"]),
    ]


def _marks(run: dict[str, Any], alpha: float) -> Iterator[Record]:
    """The mark on the model that uses it; on untrained ones; and random concepts. Corrected for a concept's layers."""

    def one(truth: str, p: float, model: str) -> Record:
        return record("tcav", model, run["seed"], truth, p < alpha, -torch.tensor(max(p, 1e-12)).log10().item())

    if any(layer["used"] for layer in run["layers"]):
        yield one(RIGHT, min(layer["p"] for layer in run["layers"]), "mark")
    for p in run["mark_on_untrained"]:
        yield one(WRONG, min(p), "mark, untrained")
    for p in run["random"]["p"]:
        yield one(WRONG, min(holm_adjusted(p)), "random concept")


def _shortcuts(run: dict[str, Any]) -> Iterator[Record]:
    for name, found in run.items():
        if name != "seed":
            truth = RIGHT if name == "model" else WRONG
            share = found["largest share that follows"]
            yield record("shortcuts", f"mark, {name}", run["seed"], truth, found["claims"] > 0, share)


def _slices(found: dict[str, Any]) -> Iterator[Record]:
    for i, run in enumerate(found["runs"]):  # claimed is a slice that holds mostly those that were planted
        claimed = run["slices"] > 0 and run["precision"] > 0.5
        yield record("error_slices", f"slice, {run['attribute']}, {run['scope']}", i, RIGHT, claimed, None)
    null = found["without a slice"]
    for i in range(null["n"]):
        yield record("error_slices", "no slice", i, WRONG, i < null["count"], None)


# -- how often they are right ------------------------------------------------------------------------------------------


def concept_summary(draws: list[Record]) -> dict[str, Any]:
    """Sensitivity and specificity of each method and of all, by half; and with bounds that the tuning half chooses."""
    by_method = {m: [r for r in draws if r["method"] == m] for m in sorted({r["method"] for r in draws})}
    chosen = {m: best_bound([r for r in rows if r["split"] == "tuning"]) for m, rows in by_method.items()}
    moved = [r | {"grade": "pass" if r["figure"] > chosen[r["method"]] else "fail"} for r in draws
             if r["figure"] is not None]  # fmt: skip
    held_out = [r for r in moved if r["split"] == "held out"]
    return {
        "all": summary(draws),
        "methods": {m: summary(rows) for m, rows in by_method.items()},
        "bounds of the tuning half": {m: bound for m, bound in chosen.items() if bound is not None},
        "with these bounds": summary(held_out)["all"],
    }


def best_bound(draws: list[Record]) -> float | None:
    """The middle of the widest gap between figures, of those that make as many right decisions as any."""
    known = sorted((r["figure"], r["truth"] == RIGHT) for r in draws if r["figure"] is not None)
    if not known:
        return None
    right = [sum((figure > low) == truth for figure, truth in known) for low, _ in known[:-1]]
    gaps = [b[0] - a[0] for a, b in pairwise(known)]
    best = max(range(len(gaps)), key=lambda i: (right[i], gaps[i]))
    return round((known[best][0] + known[best + 1][0]) / 2, 4)
