"""How well and how fast the zoo's networks train: `python benchmarks/train.py [--mnist FOLDER] [--only NAME ...]`.

Writes results/train.json; exits with 1 if a figure that the project promises is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from unboxed import training, zoo
from unboxed.errors import DataError
from unboxed.plots.files import write_bytes

RESULTS = Path(__file__).parent / "results" / "train.json"
REAL = Path(os.environ.get("UNBOXED_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
SEEDS = {"digits-cnn": (0, 1, 2)}
THREADS = 2
PROMISED: dict[str, dict[str, float]] = {  # accuracies at least, seconds and epochs at most
    "mnist-linear": {},
    "mnist-cnn": {"accuracy": 0.99, "epochs": 10},
    "mnist-judge": {"accuracy": 0.977, "robust": 0.86},
    "mnist-robust": {"accuracy": 0.985, "robust": 0.885},
    "digits-cnn": {"accuracy": 0.98, "seconds": 20},
    "digits-judge": {"accuracy": 0.97, "robust": 0.80},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, default=REAL / "mnist", help="where the MNIST files lie")
    parser.add_argument("--only", nargs="*", choices=zoo.names(), default=zoo.names())
    asked, _ = parser.parse_known_args()
    torch.set_num_threads(THREADS)
    rows = [row for name in asked.only for seed in SEEDS.get(name, (0,)) for row in measured(name, seed, asked.mnist)]
    write_bytes(RESULTS, (json.dumps(report(rows), indent=2) + "\n").encode())
    print(table(rows))
    return 0 if all(row["reached"] for row in rows) else 1


def measured(name: str, seed: int, root: Path) -> list[dict[str, Any]]:
    """One training, or nothing where its data are absent."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            root_or_cache = root if root.is_dir() else None
            made = training.train(name, root=root_or_cache, seed=seed, out=Path(folder) / "model.safetensors")
        except DataError as error:
            print(f"{name} skipped: {error}", file=sys.stderr)
            return []
    card = made.card
    row = {key: card[key] for key in ("name", "seed", "seconds", "accuracy", "command")}
    row |= {"epochs": card["recipe"]["epochs"], "robust": card.get("robust")}
    return [row | {"promised": PROMISED[name], "reached": reached(row, PROMISED[name])}]


def reached(row: dict[str, Any], promised: dict[str, float]) -> bool:
    robust = row["robust"]["accuracy"] if row["robust"] else 0.0
    return (
        row["accuracy"] >= promised.get("accuracy", 0.0)
        and robust >= promised.get("robust", 0.0)
        and row["seconds"] <= promised.get("seconds", float("inf"))
        and row["epochs"] <= promised.get("epochs", float("inf"))
    )


def report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What lies in the JSON. A run of some networks keeps the others' figures."""
    before = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    names = {row["name"] for row in rows}
    kept = [row for row in before if row["name"] not in names]
    order = list(zoo.names())
    rows = sorted(kept + rows, key=lambda row: (order.index(row["name"]), row["seed"]))
    return {"threads": THREADS, "cores": os.cpu_count(), "versions": training.versions(), "rows": rows}


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["network        seed  epochs  seconds  accuracy  under attack  as promised"]
    for row in rows:
        robust = f"{row['robust']['accuracy']:.2%} (eps {row['robust']['eps']})" if row["robust"] else "-"
        lines.append(
            f"{row['name']:<14} {row['seed']:>4}  {row['epochs']:>6}  {row['seconds']:>7.1f}  {row['accuracy']:>8.2%}"
            f"  {robust:>12}  {'yes' if row['reached'] else 'NO'}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
