"""What unrolled differentiation costs: in trainings, and in memory, on MNIST-5000 with a small MLP.

Time is CPU time against one run of the same training by torch's own optimizer; memory is the peak of a process of its
own above what it uses before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import unboxed as ub
from harness import seconds, write
from models import ROOT
from unboxed.engine.unroll.reverse import Trajectory, example_weight_gradients
from unboxed.engine.unroll.smoothness import measure_smoothness
from unboxed.influence import ModelTraining

N_TRAIN, N_QUERIES, EPOCHS, BATCH, LR = 5000, 20, 5, 128, 2e-3
MNIST = Path(os.environ.get("UNBOXED_MNIST", ROOT / "mnist"))


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.GELU(), nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 10))


def make_training(n: int = N_TRAIN) -> ModelTraining:
    data = ub.data.mnist("train", MNIST).first(n)
    return ModelTraining(mlp(), ub.Pixels((1, 28, 28)), data, epochs=EPOCHS, batch_size=BATCH, lr=LR)


def train_by_torch(training: ModelTraining, *, fused: bool = False) -> nn.Module:
    """The same batches by torch's own AdamW and schedule."""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=0, fused=fused)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=training.n_steps)
    for batch in training.batches:
        optimizer.zero_grad()
        F.cross_entropy(model(training.x[batch]), training.y[batch]).backward()
        optimizer.step()
        schedule.step()
    return model


def measure_times(repeats: int) -> dict[str, Any]:
    training = make_training()
    x, y = ub.data.mnist("test", MNIST).first(N_QUERIES)
    state, plain = training.run(), train_by_torch(training).state_dict()
    difference = max(float((state[f"parameter.{n}"] - p).abs().max()) for n, p in plain.items())
    if difference > 1e-4:
        raise SystemExit(f"the training differs from torch's by {difference}")

    def unroll(n: int, segment: int) -> None:
        example_weight_gradients(training, Trajectory(training, segment), x[:n], y[:n])

    works = {
        "training_by_torch": lambda: train_by_torch(training),
        "training_by_fused_torch": lambda: train_by_torch(training, fused=True),
        "training": lambda: training.run(),
        "20_queries_stored": lambda: unroll(N_QUERIES, training.n_steps),
        "20_queries_recomputed": lambda: unroll(N_QUERIES, 15),
        "1_query": lambda: unroll(1, training.n_steps),
        "smoothness": lambda: measure_smoothness(training, x, y),
        "50_retrainings": lambda: training.run_many(training.unit_example_weights(50)),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(seconds(work))
    medians = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    base = medians["training_by_torch"]
    return {
        "steps": training.n_steps,
        "training_s": base,
        "in_trainings": {name: round(value / base, 2) for name, value in medians.items()},
    }


def peak_mebibytes(what: str) -> float:
    """The peak memory of a process that does this."""
    command = [sys.executable, __file__, "--memory", what]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def use_memory(what: str) -> None:
    """Print by how much memory peaks above what is in use before."""
    training = make_training()
    x, y = ub.data.mnist("test", MNIST).first(N_QUERIES)
    torch.func.vmap(torch.neg)(torch.zeros(1, 1))  # imports what vmap needs
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    example_weight_gradients(training, Trajectory(training, training.n_steps if what == "stored" else 15), x, y)
    print(_status("VmHWM") - before)


def _status(name: str) -> float:
    """A line of /proc/self/status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="once, to see that it runs")
    parser.add_argument("--memory", choices=["stored", "recomputed"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory:
        use_memory(args.memory)
        return
    figures = measure_times(1 if args.fast else 3)
    peaks = {what: peak_mebibytes(what) for what in ("stored", "recomputed")}
    figures["peak_mib"] = {k: round(v) for k, v in peaks.items()}
    figures["recomputed_of_stored"] = round(peaks["recomputed"] / peaks["stored"], 2)
    if not args.fast:
        write("influence_unrolled", {"what": __doc__.partition("\n")[0], **figures})
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
