"""Error slices: are planted groups with raised error recovered, and is none reported where there is none?

    python benchmarks/concepts_slices.py [--draws 3] [--null 100]     results/concepts_slices.json

All 1,797 digits and the zoo's digits CNN. Labels are the model's own answers, wrong for 3 % of the images and
for half of those of a planted slice, so that the truth is known: half of one class, or a tenth of all images, with an
attribute. Without a slice, wrong labels are spread at random. Precision and recall are of the most significant slice.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import unboxed as ub
from harness import RESULTS, versions
from unboxed.engine.proportion import Proportion

N, N_NULL, INSIDE, OUTSIDE = 1797, 600, 0.5, 0.03


def _stripe(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, 13:15] = 1
    return x


def _mark(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, 2:6, 2:6] = 1
    return x


ATTRIBUTES: dict[str, Callable[[Tensor], Tensor]] = {
    "inverted": lambda x: 1 - x,
    "dim": lambda x: 0.35 * x,
    "shifted": lambda x: torch.roll(x, 5, 3),
    "rotated": lambda x: torch.rot90(x, 1, (2, 3)),
    "noisy": lambda x: (x + 0.35 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1),
    "stripe": _stripe,
    "thick": lambda x: torch.nn.functional.max_pool2d(x, 3, 1, 1),
    "mark": _mark,
}
SCOPES = ("half of a class", "a tenth of all")


def draw(x: Tensor, y: Tensor, seed: int, n: int) -> tuple[Tensor, Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(x), generator=generator)[:n]
    return x[rows], y[rows], generator


def with_wrong_labels(box: ub.Box, x: Tensor, rate: Tensor, generator: torch.Generator) -> Tensor:
    """The model's answers, wrong at a rate per image (N,)."""
    predicted = box.predict(x)
    other = (predicted + torch.randint(1, 10, predicted.shape, generator=generator)) % 10
    return torch.where(torch.rand(len(x), generator=generator) < rate, other, predicted)


def planted(box: ub.Box, data: tuple[Tensor, Tensor], attribute: str, scope: str, seed: int) -> dict[str, Any]:
    x, y, generator = draw(*data, seed, N)
    chance = torch.rand(N, generator=generator)
    in_slice = chance < 0.1 if scope == SCOPES[1] else (y == seed % 10) & (chance < 0.5)
    x[in_slice] = ATTRIBUTES[attribute](x[in_slice])
    rate = torch.where(in_slice, INSIDE, OUTSIDE)
    result = ub.concepts.error_slices(box, (x, with_wrong_labels(box, x, rate, generator)), seed=seed)
    run: dict[str, Any] = {"attribute": attribute, "scope": scope, "seed": seed, "slices": len(result.slices)}
    if not result.slices:
        return run | {"precision": 0.0, "recall": 0.0}
    best = min(result.slices, key=lambda s: s.p_value)
    hits = int(in_slice[best.members].sum())
    figures = {"precision": hits / len(best.members), "recall": hits / int(in_slice.sum())}
    return run | {name: round(v, 3) for name, v in figures.items()} | {"layer": best.layer}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    both = [r["precision"] >= 0.8 and r["recall"] >= 0.8 for r in runs]
    return {
        "draws": len(runs),
        "precision": round(statistics.mean(r["precision"] for r in runs), 3),
        "recall": round(statistics.mean(r["recall"] for r in runs), 3),
        "both at least .8": sum(both),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--null", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    splits = [ub.data.digits(split).tensors() for split in ("train", "test")]
    data = torch.cat([x for x, _ in splits]), torch.cat([y for _, y in splits if y is not None])
    runs = []
    for seed in range(args.draws):
        for scope in SCOPES:
            for attribute in ATTRIBUTES:
                runs.append(planted(box, data, attribute, scope, seed))
                print(json.dumps(runs[-1]), flush=True)
    n_false = 0
    for seed in range(args.null):
        x, _, generator = draw(*data, 1000 + seed, N_NULL)
        y = with_wrong_labels(box, x, torch.full((len(x),), 0.08), generator)
        n_false += bool(ub.concepts.error_slices(box, (x, y), seed=seed).slices)
        print("without a slice:", seed + 1, "draws,", n_false, "false", flush=True)
    result = {
        "n": N, "error inside": INSIDE, "error outside": OUTSIDE,
        "scopes": {scope: summary([r for r in runs if r["scope"] == scope]) for scope in SCOPES},
        "attributes": {a: summary([r for r in runs if r["attribute"] == a]) for a in ATTRIBUTES},
        "all": summary(runs),
        "without a slice": {"n": N_NULL, "error": 0.08, **Proportion(n_false, args.null).to_dict()},
        "runs": runs,
        "versions": versions(["torch", "scipy"]),
    }  # fmt: skip
    (RESULTS / "concepts_slices.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
