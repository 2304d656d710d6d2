"""What a climb costs: a shallow channel against a logit, and a layer's channels in one run against a run each.

Wanted: a step on a channel of the 4th of VGG-16's 16 weight layers <= .33 of a step on a logit (its share of the FLOPs
is .30), and 16 channels of the MNIST CNN's conv2 in one run <= .3 of 16 runs.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import Tensor
from torch.optim import Adam

import unboxed as ub
from harness import compare, write
from models import vgg16
from unboxed.engine.optimize.loop import OptimizationConfig, optimize
from unboxed.engine.optimize.parameterizations import FourierCanvas, RawCanvas
from unboxed.engine.optimize.transforms import random_affine
from unboxed.objectives import Objective, total_variation

AT, CHANNELS = 4, 16  # the weight layer that is climbed, and how many channels in one run


def plan(steps: int) -> OptimizationConfig:
    """As feature visualization climbs: through transforms, beside a prior, with annealed steps."""
    turned = random_affine(noise=0.1)
    return OptimizationConfig(
        steps,
        partial(Adam, lr=0.05),
        transform=turned,
        prior=-total_variation(kind="anisotropic"),
        anneal_lr=True,
        relu_bypass="all",
    )


def draw(box: ub.Box, goal: Objective, rows: int, steps: int, bare: bool = False) -> Tensor:
    """`bare`: plain ascent on pixels, so that a step is the model's work and the loop's alone."""
    blank = torch.zeros(rows, *box.inputs.shape)
    if bare:
        return optimize(box, goal, RawCanvas(blank + 0.5), OptimizationConfig(steps, partial(Adam, lr=0.05))).input
    return optimize(box, goal, FourierCanvas.noise(blank, 0), plan(steps)).input


def depth(pairs: int, steps: int, channels_last: bool, bare: bool) -> dict[str, object]:
    box = ub.Box(*vgg16(), channels_last=channels_last)
    weighted = [row.path for row in box.layers if row.is_leaf and row.n_parameters]
    shallow = ub.channel(weighted[AT - 1], 0)
    leaves = [row for row in box.layers if row.is_leaf]
    share = sum(row.flops_share for row in leaves[: 1 + [row.path for row in leaves].index(weighted[AT - 1])])

    def check() -> None:
        if len(weighted) != 16:
            raise SystemExit(f"VGG-16 has 16 weight layers; these are {len(weighted)}")

    found = compare(
        lambda: draw(box, shallow, 1, steps, bare),
        lambda: draw(box, ub.logit(0), 1, steps, bare),
        pairs=pairs,
        check=check,
    )
    what = f"{steps} steps on a channel of {weighted[AT - 1]}, weight layer {AT} of 16, against a logit: VGG-16 at 224"
    return {
        "what": what,
        "wanted": 0.33,
        "share_of_flops": share,
        "channels_last": channels_last,
        "bare": bare,
        **found,
    }


def width(pairs: int, steps: int) -> dict[str, object]:
    box = ub.Box(*ub.zoo.load("mnist-cnn"))
    numbers = torch.arange(CHANNELS)

    def together() -> Tensor:
        return draw(box, ub.channel("conv2", numbers), CHANNELS, steps)

    def apart() -> None:
        for k in range(CHANNELS):
            draw(box, ub.channel("conv2", k), 1, steps)

    def check() -> None:
        alone = draw(box, ub.channel("conv2", 0), 1, steps)
        if not torch.allclose(together()[:1], alone, atol=0.05):
            raise SystemExit("a channel drawn among others is not what it is alone")

    found = compare(together, apart, pairs=pairs, check=check)
    what = f"{CHANNELS} channels of the MNIST CNN's conv2 in one run against as many runs, {steps} steps"
    return {"what": what, "wanted": 0.3, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="of VGG-16; the MNIST CNN's climb takes eight times that")
    given = parser.parse_args()
    torch.set_num_threads(1)
    depths = {
        f"{'loop' if bare else 'recipe'}{'_channels_last' * last}": depth(given.confused_pairs, given.steps, last, bare)
        for bare in (True, False)
        for last in (False, True)
    }
    write("depth", {**depths, "width": width(given.confused_pairs, 8 * given.steps)})


if __name__ == "__main__":
    main()
