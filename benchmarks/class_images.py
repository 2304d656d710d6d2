"""Are the class images digits? A robust model of another architecture says, which took no part in drawing or tuning.

Rows: the default recipe over several seeds, the published one, and plain ascent from noise, which must fail.
Wanted of the default, on MNIST and on digits: named 10/10 with mean p >= .85, total variation <= 1.5x that of real
digits, ink inside the real digits' 1-99 % range, nothing blank.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

import unboxed as ub
from harness import write

SEEDS = 5
MNIST = os.environ.get("UNBOXED_MNIST")  # the folder of the IDX files; None: the user's cache


def variation(x: Tensor) -> Tensor:
    return x.diff(dim=-1).abs().flatten(1).sum(1) + x.diff(dim=-2).abs().flatten(1).sum(1)


def judged(box: ub.Box, judge: ub.Box, real: Tensor, recipe: str, seed: int) -> dict[str, float | int | bool]:
    drawn = ub.synthesis.class_image(box, recipe=recipe, seed=seed)
    p = judge.probs(drawn.images)
    ink, real_ink = drawn.images.flatten(1).mean(1), real.flatten(1).mean(1)
    low, high = real_ink.quantile(0.01), real_ink.quantile(0.99)
    return {
        "named": int((p.argmax(1) == drawn.targets).sum()),
        "p": round(float(p.gather(1, drawn.targets[:, None]).mean()), 3),
        "variation": round(float(variation(drawn.images).mean() / variation(real).mean()), 2),
        "ink_in_range": bool(((ink >= low) & (ink <= high)).all()),
        "blank": bool((drawn.images.flatten(1).std(1) < 0.02).any()),
    }


def table(name: str, real: Tensor) -> dict[str, list[dict[str, float | int | bool]]]:
    box, judge = ub.Box(*ub.zoo.load(f"{name}-cnn")), ub.Box(*ub.zoo.load(f"{name}-judge"))
    rows = {r: [judged(box, judge, real, r, s) for s in range(SEEDS)] for r in ("robust", "noise")}
    return {**rows, "faithful": [judged(box, judge, real, "faithful", 0)]}


def main() -> None:
    real = {"digits": ub.data.digits().tensors()[0]}
    folder = Path(MNIST) if MNIST else None
    real["mnist"] = ub.data.mnist("test", folder).tensors()[0]
    write("class_images", {name: table(name, x) for name, x in real.items()})


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
