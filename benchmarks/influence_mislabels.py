"""Wrong labels: how many are among the first 10 % and 20 % that one looks at?

    pip install cleanlab      (for this benchmark alone)
    python benchmarks/influence_mislabels.py PATH-TO-MNIST [--seeds 3]     results/influence_mislabels.json
    python benchmarks/influence_mislabels.py PATH-TO-MNIST --models "MLP, 20 epochs" --runs runs.jsonl     some of them

Runs are added to a file, and those in it are not done again; several processes may share it.

10 % of 20,000 MNIST labels are replaced by another class at random. Three models are trained on them: a linear one (5
epochs), an MLP 784-128-64-10 with GELU for 2 and for 20 epochs. Ours are beside the model's plain loss, the area under
the margin along its training, and confident learning with 5-fold cross-validation of the same model (cleanlab 2; the
best of its three rankings, with and without its own issues first). Who finds half by chance is at 0.5.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from torch import Tensor, nn

import unboxed as ub
from harness import RESULTS, versions
from unboxed.engine.read.neighbors import Neighbors
from unboxed.errors import LayerError
from unboxed.influence import mislabels

FLIPPED, FOLDS, LOOKED_AT = 0.1, 5, (0.1, 0.2)
CLEANLAB_RANKINGS = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), 5),
    "MLP, 2 epochs": (lambda: mlp(), 2),
    "MLP, 20 epochs": (lambda: mlp(), 20),
}


def mlp() -> nn.Module:
    layers = [nn.Linear(784, 128), nn.GELU(), nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


def with_wrong_labels(y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Labels of which a tenth is wrong, and which (N,)."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(y), generator=generator)[: round(FLIPPED * len(y))]
    y = y.clone()
    y[rows] = (y[rows] + torch.randint(1, 10, (len(rows),), generator=generator)) % 10
    return y, torch.zeros(len(y), dtype=torch.bool).index_fill(0, rows, True)


def checkpoints_and_box(training: ub.influence.ModelTraining, n: int = 10) -> tuple[list[ub.Box], ub.Box]:
    """Boxes at n points evenly along the training, and the model."""
    at = {round(training.n_steps * (i + 1) / n) - 1 for i in range(n)}
    boxes = [training.box(state) for t, state in enumerate(training.states()) if t in at]
    return boxes, boxes[-1]


def out_of_fold(training: ub.influence.ModelTraining, seed: int) -> np.ndarray[Any, Any]:
    """Probabilities (N, K) of each example by the same training without its fold."""
    n = training.n_examples
    fold = torch.randperm(n, generator=torch.Generator().manual_seed(seed)) % FOLDS
    states = training.run_many((fold[None] != torch.arange(FOLDS)[:, None]).float())
    probabilities = torch.zeros(n, 10)
    for k in range(FOLDS):
        box = training.box({name: h[k] for name, h in states.items()})
        probabilities[fold == k] = box.probs(training.x[fold == k])
    p = probabilities.double().numpy()
    return p / p.sum(1, keepdims=True)


def margins(box: ub.Box, x: Tensor, y: Tensor) -> Tensor:
    z = box(x)
    return z.gather(1, y[:, None])[:, 0] - z.scatter(1, y[:, None], -torch.inf).amax(1)


def cleanlab_scores(y: Tensor, p: np.ndarray[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    for ranking in CLEANLAB_RANKINGS:
        suspicion = -torch.tensor(get_label_quality_scores(y.numpy(), p, method=ranking))
        yield f"cleanlab {ranking}", suspicion
        issues = torch.tensor(find_label_issues(y.numpy(), p, n_jobs=1))
        yield f"cleanlab issues, {ranking}", suspicion + 10 * issues


def rankings(training: ub.influence.ModelTraining, seed: int, slow: bool) -> Iterator[tuple[str, Tensor]]:
    """(name, suspicion (N,)) of all ways."""
    boxes, box = checkpoints_and_box(training)
    x, y = training.x, training.y
    search = ub.influence.suspected_mislabels
    yield "loss", search(box, (x, y), method="loss").scores
    yield "neighbors x model", search(box, (x, y)).scores
    yield "neighbors x checkpoints", search(box, (x, y), checkpoints=boxes).scores
    yield (
        "neighbors alone",
        -mislabels._label_votes_of_neighbors(mislabels._nearest_other_examples(box, x, None, 20, "auto"), y, 10).log()[
            range(len(y)), y
        ],
    )
    yield "loss of checkpoints", search(box, (x, y), method="loss", checkpoints=boxes).scores
    yield "area under the margin", -torch.stack([margins(b, x, y) for b in boxes]).mean(0)
    yield from cleanlab_scores(y, out_of_fold(training, seed))
    if slow:
        yield "self-influence, squared norms", ub.influence.self_influence(box, (x, y), curvature="identity").scores
        with suppress(LayerError):  # the linear model's one layer has too many parameters
            yield "self-influence, last layer", ub.influence.self_influence(box, (x, y)).scores


def found(suspicion: Tensor, is_wrong: Tensor) -> list[float]:
    """Which part of the wrong labels is among the first of each size."""
    order = suspicion.argsort(descending=True, stable=True)
    return [float(is_wrong[order[: round(q * len(order))]].sum() / is_wrong.sum()) for q in LOOKED_AT]


def measured(name: str, x: Tensor, y: Tensor, seed: int, slow: bool) -> dict[str, list[float]]:
    y, is_wrong = with_wrong_labels(y, seed)
    make, epochs = MODELS[name]
    torch.manual_seed(seed)
    training = ub.influence.ModelTraining(
        make(), ub.Pixels((1, 28, 28)), (x, y), epochs=epochs, batch_size=128, lr=2e-3, seed=seed
    )
    return {way: found(suspicion, is_wrong) for way, suspicion in rankings(training, seed, slow)}


def summary(runs: list[dict[str, list[float]]]) -> dict[str, Any]:
    """{way: mean and values of all seeds at each part looked at}."""
    ways = dict.fromkeys(way for run in runs for way in run)
    return {
        way: {f"at {q:.0%}": {"mean": round(statistics.mean(at), 4), "seeds": [round(v, 4) for v in at]}
              for q, at in zip(LOOKED_AT, zip(*(r[way] for r in runs if way in r), strict=True), strict=True)}
        for way in ways
    }  # fmt: skip


def read_runs(path: Path) -> dict[tuple[str, int], dict[str, list[float]]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {(r["model"], r["seed"]): r["found"] for r in map(json.loads, lines)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mnist", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=[*MODELS])
    parser.add_argument("--runs", type=Path, default=RESULTS / "influence_mislabels_runs.jsonl")
    parser.add_argument("--neighbors", type=Path, help="a file for the neighbors, which are the same for all runs")
    parser.add_argument("--examples", type=int, default=20_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    x, y = ub.data.mnist("train", args.mnist).first(args.examples)
    mislabels._nearest_other_examples = remembered(mislabels._nearest_other_examples, args.neighbors)  # type: ignore[assignment]
    for name in args.models:
        for seed in args.seeds:
            if (name, seed) not in read_runs(args.runs):
                start = time.process_time()
                run = {"model": name, "seed": seed, "found": measured(name, x, y, seed, slow=seed == 0)}
                run["seconds"] = round(time.process_time() - start)
                with args.runs.open("a") as file:
                    file.write(json.dumps(run) + "\n")
    runs = read_runs(args.runs)
    result: dict[str, Any] = {"n": args.examples, "wrong": FLIPPED, "versions": versions(["torch", "cleanlab"])}
    result |= {
        name: summary(found) for name in MODELS if (found := [r for (m, _), r in sorted(runs.items()) if m == name])
    }
    (RESULTS / "influence_mislabels.json").write_text(json.dumps(result, indent=1) + "\n")


def remembered(nearest: Callable[..., Neighbors], path: Path | None) -> Callable[..., Neighbors]:
    """The neighbors among the inputs, which are the same for all models and seeds, found once."""
    kept = list[Neighbors]()

    def call(*args: Any) -> Neighbors:
        if not kept and path is not None and path.exists():
            kept.append(Neighbors(*torch.load(path)))
        elif not kept:
            kept.append(nearest(*args))
        return kept[0]

    return call


if __name__ == "__main__":
    main()
