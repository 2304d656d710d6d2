"""How much of a picture survives at each depth? 20 images inverted from several layers, 200 steps, from three seeds.

Wanted on the MNIST CNN: feature error <= .001 at conv1, .002 at conv2, .01 at fc1, and SSIM >= .98, .70, .50.
A robust model of another architecture says what the inversions show (`same_class`): the model's own answer is the same
by construction. The images are not those on which the method was tuned, and the judge took no part in that.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch
from skimage.metrics import structural_similarity
from torch import Tensor

import unboxed as ub
from harness import write
from models import cifar, resnet20

IMAGES, SEEDS = 20, 3
WANTED = {"conv1": (0.001, 0.98), "conv2": (0.002, 0.70), "fc1": (0.01, 0.50)}  # error at most, SSIM at least
MNIST = os.environ.get("UNBOXED_MNIST")  # the folder of the IDX files; None: the user's cache
Say = Callable[[Tensor], Tensor]


def ssim(x: Tensor, z: Tensor) -> float:
    pairs = zip(x.double().numpy(), z.double().numpy(), strict=True)
    found = [structural_similarity(a, b, data_range=1, channel_axis=0) for a, b in pairs]
    return float(sum(found) / len(found))


def inverted(box: ub.Box, x: Tensor, layer: str, steps: int, seeds: int, says: Say | None) -> dict[str, object]:
    """Per seed: the mean feature error, the mean SSIM, and the share that the judge gives the original's class."""
    made = [ub.synthesis.inversion(box, x, layer, steps=steps, seed=seed) for seed in range(seeds)]
    rows: dict[str, object] = {
        "error": [round(float(m.errors.mean()), 6) for m in made],
        "ssim": [round(ssim(x, m.images), 3) for m in made],
    }
    if says is not None:
        rows["same_class"] = [round(float((says(m.images) == says(x)).double().mean()), 2) for m in made]
    return rows


def checked(layer: str, rows: dict[str, object]) -> dict[str, object]:
    """With whether the figure wanted was reached, from every seed."""
    if layer not in WANTED:
        return rows
    error, least = WANTED[layer]
    reached = max(rows["error"]) <= error and min(rows["ssim"]) >= least  # type: ignore[call-overload]
    return {**rows, "wanted": {"error": error, "ssim": least}, "reached": reached}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--images", type=int, default=IMAGES)
    options.add_argument("--seeds", type=int, default=SEEDS)
    options.add_argument("--steps", type=int, default=200)
    chosen = options.parse_args()
    n, rest = chosen.images, (chosen.steps, chosen.seeds)
    digits, judge = ub.Box(*ub.zoo.load("mnist-cnn")), ub.Box(*ub.zoo.load("mnist-judge"))
    x = ub.data.mnist("test", Path(MNIST) if MNIST else None).first(n).x
    layers = ("conv1", "relu1", "conv2", "relu2", "pool", "fc1", "relu3", "logits")
    mnist = {a: checked(a, inverted(digits, x, a, *rest, judge.predict)) for a in layers}
    photos = ub.Box(*resnet20())
    x = cifar(1000 + n)[0][1000:]
    colored = {a: inverted(photos, x, a, *rest, None) for a in ("layer1", "layer2", "layer3", "logits")}
    write("inversion", {"images": n, "steps": chosen.steps, "mnist_cnn": mnist, "cifar_resnet20": colored},
          packages=("scikit-image",))  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
