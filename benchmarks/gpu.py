"""How fast a climb runs on a GPU: steps a second, and the share of the device's peak, in each precision and format.

python benchmarks/gpu.py --peak 989 --peak-narrow 989   (TFLOP/s of float32 or TF32, and of bfloat16, as published)
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.optim import Adam

import unboxed as ub
from harness import seconds, write
from models import resnet20, vgg16
from unboxed.engine.optimize.loop import SYNC_INTERVAL_STEPS, OptimizationConfig, optimize
from unboxed.engine.optimize.parameterizations import FourierCanvas
from unboxed.engine.optimize.transforms import random_affine
from unboxed.model.layers import FlopCounter
from unboxed.objectives import total_variation

NETS: dict[str, Callable[[], tuple[nn.Module, ub.Pixels]]] = {
    "vgg16": vgg16,
    "resnet20": partial(resnet20, trained=False),
}


def climb(box: ub.Box, rows: int, steps: int) -> None:
    """One logit for each row, as feature visualization climbs."""
    blank = torch.zeros(rows, *box.inputs.shape, device=box.device)
    goal = ub.logit(torch.arange(rows, device=box.device) % box.n_outputs)
    turned = random_affine(noise=0.1)
    plan = OptimizationConfig(
        steps, partial(Adam, lr=0.05), transform=turned, prior=-total_variation(kind="anisotropic"), anneal_lr=True
    )
    optimize(box, goal, FourierCanvas.noise(blank, 0), plan, batch_size=rows)


def flops(box: ub.Box, rows: int) -> int:
    """Of one step: what forward and backward pass of the model take."""
    x = torch.rand(rows, *box.inputs.shape, device=box.device, requires_grad=True)
    with FlopCounter() as counter, box.isolated():  # type: ignore[no-untyped-call]
        z = box.forward(x, ["logits"])["logits"]
        torch.autograd.grad(z.float().sum(), x)
    return counter.total


def bare(box: ub.Box, rows: int, steps: int) -> None:
    """The model alone, forward and backward, as often."""
    x = torch.rand(rows, *box.inputs.shape, device=box.device, requires_grad=True)
    for _ in range(steps):
        with box.isolated():
            torch.autograd.grad(box.forward(x, ["logits"])["logits"].float().sum(), x)


def measured(name: str, device: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    model, inputs = NETS[name]()
    model.to(device)
    found = []
    for autocast, channels_last in product((None, torch.bfloat16), (False, True)):
        box = ub.Box(model, inputs, autocast=autocast, channels_last=channels_last)
        climb(box, given.rows, given.steps), bare(box, given.rows, SYNC_INTERVAL_STEPS)
        took = statistics.median(
            seconds(lambda box=box: climb(box, given.rows, given.steps)) for _ in range(given.runs)
        )
        alone = statistics.median(
            seconds(lambda box=box: bare(box, given.rows, given.steps)) for _ in range(given.runs)
        )
        peak = given.peak if autocast is None else given.peak_narrow
        rate = given.steps / took
        found.append({
            "model": name, "rows": given.rows, "autocast": str(autocast), "channels_last": channels_last,
            "steps_a_second": rate, "share_of_peak": rate * flops(box, given.rows) / (1e12 * peak),
            "time_beside_the_bare_net": took / alone,
        })  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak", type=float, required=True, help="TFLOP/s of the device in float32 (or TF32)")
    parser.add_argument("--peak-narrow", type=float, required=True, help="TFLOP/s in bfloat16")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: no CUDA device")
        return
    write("gpu", {"figures": [row for name in NETS for row in measured(name, "cuda", given)]})


if __name__ == "__main__":
    main()
