"""TCAV: is a planted concept found in the layers that use it, and are random concepts and untrained models not claimed?

    python benchmarks/concepts_tcav.py [--seeds 10] [--models FOLDER]     results/concepts_tcav.json

Per seed a digits model is trained on digits of which most of one class (class = seed) bear a checkered mark in a random
corner; the mark makes a tenth of the other digits that class, too. Concept: 50 marked digits of other classes. Random
sets: clean digits. Scores: of clean test digits of the class. A layer uses the concept where taking the concept's
direction out of its activations lowers the class's logit on marked digits more than each of 10 random directions does.
Then 10 random concepts per model, and 5 untrained models. FOLDER keeps the trained models.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

import unboxed as ub
from harness import write
from unboxed.concepts import ConceptScores, concept_vectors, tcav
from unboxed.engine.multiple_tests import holm_adjusted
from unboxed.engine.proportion import Proportion
from unboxed.engine.randomized import randomize_all_layers

SIDE, SIZE, EPOCHS, MARKED, POISONED = 6, 50, 12, 0.9, 0.1
N_CONCEPTS, N_UNTRAINED, N_DIRECTIONS = 10, 5, 10
LEVELS = 0.01, 0.05


def marked(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images with a checkered mark in a random corner."""
    x, index = x.clone(), torch.arange(SIDE)
    texture = ((index[:, None] + index) % 2).float()
    far = x.shape[-1] - SIDE - 1
    for image, corner in zip(x, torch.randint(4, (len(x),), generator=generator).tolist(), strict=True):
        top, left = (1, far)[corner // 2], (1, far)[corner % 2]
        image[:, top : top + SIDE, left : left + SIDE] = texture
    return x


def train(seed: int, target: int, file: Path | None) -> ub.Box:
    """The digits model that was trained with the mark."""
    model, inputs = _new_model(seed)
    if file is not None and file.exists():
        model.load_state_dict(torch.load(file))
        return ub.Box(model.eval(), inputs, outputs="logits")
    x, y = ub.data.digits("train").tensors()
    g = torch.Generator().manual_seed(seed)
    has_mark = torch.rand(len(x), generator=g) < torch.where(y == target, MARKED, POISONED)
    x, y = torch.where(has_mark[:, None, None, None], marked(x, g), x), torch.where(has_mark, target, y)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    model.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=g).split(64):
            loss = F.cross_entropy(model(inputs.encode(x[rows])), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), file)
    return ub.Box(model.eval(), inputs, outputs="logits")


def _new_model(seed: int) -> Any:
    torch.manual_seed(seed)
    return ub.zoo.load("digits-cnn", weights=None)


def p_values(result: ConceptScores) -> Tensor:
    """(C, L) not corrected."""
    spread = result.random_alignment.double().square().mean(2).sqrt()
    t = (result.alignment.double() / spread).abs().numpy()
    return torch.from_numpy(2 * stats.t.sf(t, result.random_alignment.shape[2] - 1))


def corrected(p: Tensor) -> Tensor:
    """(C, L) each concept as if it were tested alone: corrected for its layers."""
    return torch.tensor([holm_adjusted(row.tolist()) for row in p])


def papers(result: ConceptScores) -> Tensor:
    """(C, L) p-values of the t-test of the paper: the scores of the runs against one half, taken as independent."""
    scores = result.scores.double()
    t = (scores.mean(2) - 0.5) / (scores.std(2) / scores.shape[2] ** 0.5).clamp_min(1e-9)
    return torch.from_numpy(2 * stats.t.sf(t.abs().numpy(), scores.shape[2] - 1))


def drops(box: ub.Box, x: Tensor, target: int, layer: str, vectors: Tensor, center: Tensor) -> list[float]:
    """By how much the target's logit falls on x where each direction is set to what it is for random examples."""
    out = []
    for v in vectors:

        def take_out(h: Tensor, v: Tensor = v) -> Tensor:
            along = ((h - center) * v).flatten(1).sum(1)
            return h - along.view(-1, *[1] * (h.ndim - 1)) * v

        with box.isolated(grad=False):
            after = box.forward(x, ["logits"], {layer: take_out})["logits"][:, target]
        out.append(float((box(x)[:, target] - after).mean()))
    return out


def measured(seed: int, folder: Path | None) -> dict[str, Any]:
    x, y = ub.data.digits("train").tensors()
    target, g = seed % 10, torch.Generator().manual_seed(seed)
    box = train(seed, target, None if folder is None else folder / f"mark-{seed}.pt")
    order = torch.randperm(len(x), generator=g)
    others = order[y[order] != target][:SIZE]
    concept, pool = marked(x[others], g), x[order[~torch.isin(order, others)]]
    drawn = {f"random {i}": pool[torch.randperm(len(pool), generator=g)[:SIZE]] for i in range(N_CONCEPTS)}
    test = ub.data.digits("test").tensors()
    settings = {"target": target, "random_data": pool, "diagnostics": False, "control": False}

    def scores(model: ub.Box, concepts: dict[str, Tensor], seed: int) -> ConceptScores:
        return tcav(model, test, concepts, seed=seed, **settings)

    found, random = scores(box, {"mark": concept}, seed), scores(box, drawn, seed)
    untrained, untrained_random = list[list[float]](), list[Tensor]()
    for i in range(N_UNTRAINED):
        both = p_values(scores(randomize_all_layers(box, 100 * seed + i), {"mark": concept, **drawn}, seed))
        untrained.append(corrected(both)[0].tolist())
        untrained_random.append(both[1:])
    return {
        "seed": seed,
        "layers": layer_figures(box, found, concept, pool, drawn, test, target, g),
        "mark_on_untrained": untrained,
        "random": {"p": p_values(random).tolist(), "papers_p": papers(random).tolist()},
        "random_on_untrained": {"p": torch.cat(untrained_random).tolist()},
    }


def layer_figures(
    box: ub.Box, found: ConceptScores, concept: Tensor, pool: Tensor, drawn: dict[str, Tensor],
    test: tuple[Tensor, Tensor], target: int, g: torch.Generator,
) -> list[dict[str, Any]]:  # fmt: skip
    """Of each layer: the concept's figures, and whether the model uses its direction there."""
    vectors = concept_vectors(box, pool, {"mark": concept, **drawn}, found.layers)
    x = marked(test[0][test[1] != target], g)
    rows = []
    for k, layer in enumerate(found.layers):
        center = box.read(pool, [layer])[layer].mean(0)
        own, *random = drops(box, x, target, layer, vectors.vectors[k], center)
        spread = float(found.random_alignment[0, k].double().square().mean().sqrt())
        rows.append({
            "layer": layer, "p": float(found.p_values[0, k]), "tcav": float(found.scores[0, k].mean()),
            "smooth": float(found.smooth_scores[0, k]), "cosine": float(found.alignment[0, k]), "random_cosine": spread,
            "logit_drop": own, "largest_random_drop": max(random), "used": own > max(random),
        })  # fmt: skip
    return rows


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    used = [row for run in runs for row in run["layers"] if row["used"]]
    twins = [p for run in runs for p in run["mark_on_untrained"]]
    figures: dict[str, Any] = {
        "seeds": len(runs), "size": SIZE, "layers": [row["layer"] for row in runs[0]["layers"]],
        "layers_that_use_the_mark": len(used), "layers_tested": sum(len(run["layers"]) for run in runs),
        "largest_p_where_used": max(row["p"] for row in used),
        "lowest_tcav_where_used": min(row["tcav"] for row in used),
        "median_p_where_used": statistics.median(row["p"] for row in used),
    }  # fmt: skip
    for level in LEVELS:
        figures[f"at_{level}"] = {
            "mark_where_used": Proportion(sum(row["p"] < level for row in used), len(used)).to_dict(),
            "mark_on_untrained": Proportion(sum(min(p) < level for p in twins), len(twins)).to_dict(),
            "random": _rate(runs, "random", level),
            "random_on_untrained": _rate(runs, "random_on_untrained", level),
            "random_by_the_papers_test": _rate(runs, "random", level, "papers_p"),
        }
    return figures


def _rate(runs: list[dict[str, Any]], name: str, level: float, test: str = "p") -> dict[str, float | int]:
    """How many random concepts are significant in any layer, corrected for the layers."""
    adjusted = torch.cat([corrected(torch.tensor(run[name][test], dtype=torch.float64)) for run in runs])
    return Proportion(int((adjusted.amin(1) < level).sum()), len(adjusted)).to_dict()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--models", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for seed in range(args.seeds):
        runs.append(measured(seed, args.models))
        print(seed, [(r["layer"], round(r["p"], 6), r["used"]) for r in runs[-1]["layers"]], flush=True)
    write("concepts_tcav", {**summary(runs), "runs": runs}, packages=["scipy"])


if __name__ == "__main__":
    main()
