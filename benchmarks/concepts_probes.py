"""Probes: the literal reference, random features, and attributes that are planted as used or as not used.

    python benchmarks/concepts_probes.py        results/concepts_probes.json

- Accuracy on layers of the digits model against scikit-learn's pipeline with the same folds.
- Selectivity on random features, in 100 draws: how often its interval of 90 % covers 0.
- Planted: a model of tables whose hidden layer carries two attributes, of which its head reads one, in 10 draws; and
  one trained on one of two shapes in an image, in 10 draws, where nothing says that the other is not used but that it
  was drawn at random and takes no part in the labels.
"""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import unboxed as ub
from harness import write
from unboxed.engine.linear.probing import probe_features
from unboxed.engine.read.features import read_features

sys.path.append(str(Path(__file__).parents[1] / "tests" / "references"))
from test_probes import literal_accuracy

N_RANDOM = 100
PLANTED_SEEDS = range(100, 110)
N_EXAMPLES, N_FEATURES, N_HIDDEN = 400, 20, 32


def against_the_reference() -> dict[str, Any]:
    """Accuracy by layer, ours and the literal one."""
    box, (x, y) = ub.Box(*ub.zoo.load("digits-cnn")), ub.data.digits("test").first(300)
    rows = {}
    for layer in ("input", "conv2:input", "fc1:input", "fc2:input"):
        h = read_features(box, box.validate_inputs(x), [layer])[layer]
        ours = probe_features(h, y, n_controls=1, description_length=False).accuracy.mean
        rows[layer] = {"ours": round(ours, 4), "literal": round(literal_accuracy(h, y, 10), 4)}
    largest = max(abs(r["ours"] - r["literal"]) for r in rows.values())
    return {"n": len(y), "layers": rows, "largest_difference": round(largest, 4)}


def on_random_features() -> dict[str, Any]:
    """Of draws of features that know nothing: selectivity covers 0, the attribute is not decodable."""
    covers, above, decodable, means = 0, 0, 0, []
    for draw in range(N_RANDOM):
        generator = torch.Generator().manual_seed(draw)
        k = (2, 5)[draw % 2]
        h, y = torch.randn(200, 30, generator=generator), torch.randint(k, (200,), generator=generator)
        found = probe_features(h, y, description_length=False, seed=draw)
        covers += found.selectivity.low <= 0 <= found.selectivity.high
        above += found.selectivity.low > 0
        decodable += found.is_decodable
        means.append(found.selectivity.mean)
    mean = sum(means) / N_RANDOM
    return {"draws": N_RANDOM, "covers_0": covers, "above_0": above, "decodable": decodable, "mean": round(mean, 4)}


def planted_table(seed: int) -> tuple[ub.Box, Tensor, Tensor, Tensor]:
    """A model whose hidden layer has two attributes of a table, of which the head reads the first; x, and both.

    The hidden layer mixes the columns at random, so that both are spread over all units. The head reads the first along
    the direction that is orthogonal to what the second adds to the units.
    """
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(2, (N_EXAMPLES,), generator=generator) for _ in range(2))
    x = torch.randn(N_EXAMPLES, N_FEATURES, generator=generator)
    x[:, 0] += 4 * a - 2
    x[:, 1] += 6 * b - 3
    mix = torch.randn(N_HIDDEN, N_FEATURES, generator=generator) / N_FEATURES**0.5
    carried_a, carried_b = mix[:, 0], mix[:, 1]
    read = carried_a - (carried_a @ carried_b) / (carried_b @ carried_b) * carried_b
    model = nn.Sequential(nn.Linear(N_FEATURES, N_HIDDEN), nn.Identity(), nn.Linear(N_HIDDEN, 2))
    with torch.no_grad():
        model[0].weight.copy_(mix)
        model[0].bias.zero_()
        model[2].weight.copy_(torch.stack([-read, read]))
        model[2].bias.zero_()
    return ub.Box(model, ub.Features(tuple(f"x{i}" for i in range(N_FEATURES)))), x, a, b


def planted_images(seed: int, n: int = 400) -> tuple[ub.Box, Tensor, Tensor, Tensor]:
    """A small CNN trained on the direction of a bar on the left; the bar on the right has a direction of its own."""
    generator = torch.Generator().manual_seed(1000 + seed)
    a, b = (torch.randint(2, (2 * n,), generator=generator) for _ in range(2))
    x = 0.2 * torch.rand(2 * n, 1, 12, 24, generator=generator)
    for i in range(2 * n):
        for left, attribute in ((0, a), (12, b)):
            at = int(torch.randint(2, 10, (1,), generator=generator))
            rows, columns = (at, slice(left + 2, left + 10)) if attribute[i] else (slice(2, 10), left + at)
            x[i, 0, rows, columns] += 0.7
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 2 * 8, 32), nn.ReLU(), nn.Linear(32, 2),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[n:]), a[n:]).backward()
        optimizer.step()
    return ub.Box(model.eval(), ub.Pixels((1, 12, 24))), x[:n], a[:n], b[:n]


def verdicts(box: ub.Box, x: Tensor, a: Tensor, b: Tensor, layer: str, seed: int) -> tuple[Any, Any]:
    return tuple(
        ub.concepts.probe(box, x, attribute, layer, description_length=False, n_controls=1, seed=seed).layers[0]
        for attribute in (a, b)
    )  # type: ignore[return-value]


def facts(draws: list[Any]) -> dict[str, Any]:
    """The verdicts, and means over the draws."""
    erased = [d.erasure for d in draws if d.erasure is not None]
    return {
        "verdicts": dict(Counter(d.verdict for d in draws)),
        "accuracy": round(statistics.mean(d.probe.accuracy.mean for d in draws), 4),
        "change": float(f"{statistics.mean(float(e.change.mean()) for e in erased):.2g}"),
        "random_change": float(f"{statistics.mean(float(e.random_change.mean()) for e in erased):.2g}"),
        "own_change": float(f"{statistics.mean(float(e.own_change.mean()) for e in erased):.2g}"),
    }


def on_plants() -> dict[str, Any]:
    kinds = {"table": (planted_table, ("1",)), "images": (planted_images, ("4", "6"))}
    result: dict[str, Any] = {}
    for name, (make, layers) in kinds.items():
        for layer in layers:
            draws = [verdicts(*make(seed), layer, seed) for seed in PLANTED_SEEDS]
            result[f"{name}, layer {layer}"] = {
                "read by the head": facts([used for used, _ in draws]),
                "not read": facts([other for _, other in draws]),
            }
            print(name, layer, result[f"{name}, layer {layer}"], flush=True)
            for used, other in draws:
                print("   ", used.reason, "|", other.reason, flush=True)
    return result


def main() -> None:
    torch.set_num_threads(1)
    planted = on_plants()
    reference = against_the_reference()
    write("concepts_probes", {"reference": reference, "random_features": on_random_features(), "planted": planted},
          packages=("scikit-learn",))  # fmt: skip


if __name__ == "__main__":
    main()
