"""Remove these and it flips: how often is a set of at most 1 % of the training data found and proved by retraining?

    python benchmarks/influence_removal.py PATH-TO-MNIST [--smoke]     results/influence_removal.json

5,000 MNIST digits, MLP 784-128-64-10, 5 epochs, batch 128, AdamW 2e-3 one-cycle, with GELU and with ReLU. Queries are
test digits that are answered rightly with a margin near .6 and near 1.4. The control removes as many random examples.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import unboxed as ub
from harness import RESULTS, versions

MARGINS, MAX_FRACTION = (0.6, 1.4), 0.01
ACTIVATIONS = {"GELU": nn.GELU, "ReLU": nn.ReLU}


def trained(activation: str, train: Any, epochs: int, seed: int = 0) -> ub.influence.ModelTraining:
    torch.manual_seed(seed)
    act = ACTIVATIONS[activation]
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), act(), nn.Linear(128, 64), act(), nn.Linear(64, 10)
    )  # fmt: skip
    pixels = ub.Pixels((1, 28, 28))
    return ub.influence.ModelTraining(model, pixels, train, epochs=epochs, batch_size=128, lr=2e-3, seed=seed)


def near(box: ub.Box, x: Tensor, y: Tensor, margin: float, n: int) -> Tensor:
    """The n right answers whose margins are nearest to this one."""
    z = box.read(x, "logits")["logits"]
    other = z.scatter(1, y[:, None], -torch.inf).amax(1)
    margins = z.gather(1, y[:, None])[:, 0] - other
    return (margins - margin).abs().argsort()[:n]


def measured(activation: str, train: Any, test: Any, n: int, epochs: int) -> dict[str, Any]:
    training = trained(activation, train, epochs)
    box = training.box(training.run())
    x, y = test
    found: dict[str, Any] = {"accuracy": float((box.predict(x) == y).float().mean())}
    for margin in MARGINS:
        rows, start = near(box, x, y, margin, n), time.process_time()
        r = ub.influence.removal(box, x[rows], y[rows], training, max_fraction=MAX_FRACTION, n_controls=1)
        found[f"margin {margin}"] = {
            "n": len(rows), "flipped": int(r.flipped.sum()), "controls_flipped": int(r.control_flipped.sum()),
            "max_size": r.max_size, "sizes": r.size.tolist(), "margins": rounded(r.margin),
            "predicted_margins": rounded(r.predicted_margin), "real_margins": rounded(r.real_margin),
            "control_margins": rounded(r.control_margin[:, 0]), "seconds": round(time.process_time() - start, 1),
        }  # fmt: skip
        print(activation, margin, found[f"margin {margin}"], flush=True)
    return found


def rounded(values: Tensor) -> list[float]:
    return [round(v, 3) for v in values.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mnist", type=Path)
    parser.add_argument("--smoke", action="store_true", help="few examples, nothing is written")
    args = parser.parse_args()
    torch.set_num_threads(1)
    n_train, n, epochs = (300, 2, 1) if args.smoke else (5000, 10, 5)
    train = ub.data.mnist("train", args.mnist).first(n_train)
    test = ub.data.mnist("test", args.mnist).first(n_train)
    result = {a: measured(a, train, test, n, epochs) for a in ACTIVATIONS}
    result |= {"n_train": n_train, "max_fraction": MAX_FRACTION, "versions": versions(["torch"])}
    if not args.smoke:
        (RESULTS / "influence_removal.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
