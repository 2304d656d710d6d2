"""Is what is drawn for a channel what the channel looks for? Checked by what took no part in drawing.

Figure 1, for every live channel (one that some real image excites). Excitement is the channel's mean over positions.
- held out: the drawing, under jitter, rotation and scale by other code and other draws than those used for drawing, has
  a larger mean excitement than the best of all real images has as it is ("above_best_real"), and than the best of the
  channel's nine top images has under the same transforms ("above_best_moved"); wanted for 100 %;
- variation: the drawings' total variation is at most 2x the real images' mean;
- nearer: in an independent model (its last convolution, means over positions, standardized on real images) the
  drawing's cosine with the mean of the channel's own nine top images is above that with another channel's: share of all
  pairs of channels, and of channels for which most pairs are so; wanted >= 80 %.
The control row is raw ascent on pixels from noise, without transforms and priors.
Figure 2: four drawings of a channel, with and without the diversity term: cosine of their Gram vectors in the channel's
layer at least 25 % lower, at >= 80 % of the activation.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam

import unboxed as ub
from harness import write
from models import ROOT, cifar, resnet20, squeezenet1_0
from unboxed.engine.optimize.constraints import Constraint
from unboxed.engine.optimize.loop import OptimizationConfig, optimize
from unboxed.engine.optimize.parameterizations import RawCanvas
from unboxed.objectives import gram_matrix
from unboxed.rng import uniform

DRAWS, DEGREES, SCALE, JITTER = 32, 10.0, 0.1, 2  # of the held-out transforms
TOP, EACH, BATCH = 9, 4, 256
SIDE = 96  # at which SqueezeNet sees CIFAR's images


@dataclass(frozen=True)
class Subject:
    box: ub.Box
    real: Tensor
    data: Tensor  # from which colors and total variation of the images are estimated
    layers: tuple[str, ...]
    diverse: str
    features: Callable[[Tensor], Tensor]  # of an independent model, (N, F)


def parts(work: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.cat([work(x[i : i + BATCH]) for i in range(0, len(x), BATCH)])


def pooled(box: ub.Box, layer: str, x: Tensor) -> Tensor:
    """Means over positions (N, C)."""

    def read(x: Tensor) -> Tensor:
        h = box.read(x, [layer])[layer]
        return h.flatten(2).mean(2) if h.ndim > 2 else h

    return parts(read, x)


def variation(x: Tensor) -> Tensor:
    return x.diff(dim=-1).abs().flatten(1).sum(1) + x.diff(dim=-2).abs().flatten(1).sum(1)


def moved(x: Tensor, seed: int = 12345) -> Tensor:
    """x (N, ...) under DRAWS held-out transforms, (DRAWS, N, ...): whole-pixel jitter, then rotation and scale."""
    generator, (h, w) = torch.Generator().manual_seed(seed), x.shape[-2:]
    found = []
    for _ in range(DRAWS):
        top, left = (torch.randint(0, 2 * JITTER + 1, (2,), generator=generator)).tolist()
        padded = F.pad(x, (JITTER,) * 4, mode="replicate")[..., top : top + h, left : left + w]
        u = (2 * torch.rand(2, generator=generator) - 1).tolist()
        angle, zoom = math.radians(DEGREES) * u[0], 1 + SCALE * u[1]
        turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]]) / zoom
        grid = F.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
        found.append(F.grid_sample(padded, grid, padding_mode="border", align_corners=False).clamp(0, 1))
    return torch.stack(found)


def raw(box: ub.Box, layer: str, units: Tensor) -> Tensor:
    """The control: Adam on pixels from noise, kept in [0, 1]."""
    plan = OptimizationConfig(
        256, partial(Adam, lr=0.05), Constraint(project=lambda x, _: x.clamp(0, 1)), relu_bypass="all"
    )
    start = uniform(torch.zeros(len(units), *box.inputs.shape), 0)
    return optimize(box, ub.channel(layer, units), RawCanvas(start), plan).input


def nearer(subject: Subject, drawn: Tensor, top: Tensor) -> tuple[float, float]:
    """top (K, TOP) are places of real images. The share of pairs, and of channels that most pairs speak for."""
    base = subject.features(subject.real[:1000])
    own = subject.features(subject.real[top.flatten()])
    mean, sd = base.mean(0), base.std(0).clamp_min(1e-6)
    tops = F.normalize(((own - mean) / sd).view(*top.shape, -1).mean(1), dim=1)  # (K, F)
    cosines = F.normalize((subject.features(drawn) - mean) / sd, dim=1) @ tops.T  # (K, K)
    wins = (cosines.diag()[:, None] > cosines).float().sum(1) / (len(top) - 1)
    return round(float(wins.mean()), 3), round(float((wins > 0.5).float().mean()), 3)


def judged(subject: Subject, layer: str, drawn: Tensor, units: Tensor, excited: Tensor) -> dict[str, float | int]:
    """Figure 1 of drawings of the live channels `units`; `excited` (M, C) is what real images do."""
    best = excited.amax(0)[units]
    held = moved(drawn)
    scores = pooled(subject.box, layer, held.flatten(0, 1)).view(DRAWS, len(drawn), -1)
    ratio = scores[:, torch.arange(len(units)), units].mean(0) / best
    top = excited.topk(TOP, 0).indices.T[units]  # (K, TOP)
    others = _best_moved(subject, layer, top, units)
    still = pooled(subject.box, layer, drawn)[torch.arange(len(units)), units] / best
    rough = variation(drawn) / variation(subject.real).mean()
    pairs, most = nearer(subject, drawn, top)
    return {
        "live": len(units),
        "above_best_real": round(float((ratio > 1).float().mean()), 3),
        "above_best_moved": round(float((ratio * best > others).float().mean()), 3),
        "least_ratio": round(float(ratio.min()), 2),
        "median_ratio": round(float(ratio.median()), 2),
        "median_ratio_unmoved": round(float(still.median()), 2),
        "variation": round(float(rough.mean()), 2),
        "most_variation": round(float(rough.max()), 2),
        "nearer_pairs": pairs,
        "nearer_channels": most,
    }


def _best_moved(subject: Subject, layer: str, top: Tensor, units: Tensor) -> Tensor:
    """The best (K,) of each channel's top images (K, TOP) under the held-out transforms."""
    found = []
    for k, row in zip(units.tolist(), top, strict=True):
        held = moved(subject.real[row])
        found.append(pooled(subject.box, layer, held.flatten(0, 1))[:, k].view(DRAWS, TOP).mean(0).amax())
    return torch.stack(found)


def first(subject: Subject, layer: str) -> dict[str, dict[str, float | int]]:
    excited = pooled(subject.box, layer, subject.real)
    units = (excited.amax(0) > 0).nonzero().flatten()
    drawn = ub.synthesis.channels(subject.box, layer, units, data=subject.data).images
    pixels = raw(subject.box, layer, units)
    return {
        "drawn": judged(subject, layer, drawn, units, excited),
        "control": judged(subject, layer, pixels, units, excited),
    }


def second(subject: Subject, most: int = 16) -> dict[str, float | int]:
    """Figure 2, over channels evenly spread in the layer."""
    box, layer = subject.box, subject.diverse
    count = box.layers[layer].shape[0]
    units = list(range(0, count, max(1, count // most)))[:most]
    alike, high = [], []
    for weight in (0.9, 0.0):
        made = ub.synthesis.channels(box, layer, units, images_per_channel=EACH, diversity=weight, data=subject.data)
        flat = F.normalize(gram_matrix(box.read(made.images, [layer])[layer]).flatten(1), dim=1).view(
            len(units), EACH, -1
        )
        pairs = (flat @ flat.mT)[:, ~torch.eye(EACH, dtype=torch.bool)]
        alike.append(pairs.mean(1))
        high.append(made.scores.view(len(units), EACH).mean(1))
    return {
        "channels": len(units),
        "cosine_with": round(float(alike[0].mean()), 3),
        "cosine_without": round(float(alike[1].mean()), 3),
        "lower_by": round(1 - float(alike[0].mean() / alike[1].mean()), 3),
        "activation": round(float((high[0] / high[1]).mean()), 3),
        "least_activation": round(float((high[0] / high[1]).min()), 3),
    }


def mnist() -> Subject:
    box, judge = ub.Box(*ub.zoo.load("mnist-cnn")), ub.Box(*ub.zoo.load("mnist-judge"))
    folder = Path(os.environ.get("UNBOXED_MNIST", ROOT / "mnist"))
    real = ub.data.mnist("test", folder).tensors()[0]
    seen = ub.data.mnist("train", folder).first(1024)[0]  # of the training images
    return Subject(box, real, seen, ("relu1", "relu2", "relu3"), "relu2", lambda x: pooled(judge, "relu2", x))


def residual() -> Subject:
    model, inputs = squeezenet1_0()
    other = ub.Box(model, ub.Pixels((3, SIDE, SIDE), inputs.mean, inputs.std))

    def features(x: Tensor) -> Tensor:
        wide = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        return pooled(other, "features.12", wide.clamp(0, 1))

    real = cifar()[0]
    return Subject(ub.Box(*resnet20()), real, real[:1024], ("layer2.1", "layer3.1"), "layer2.1", features)


def main() -> None:
    found: dict[str, object] = {}
    for name, subject in (("mnist-cnn", mnist()), ("cifar-resnet20", residual())):
        for layer in subject.layers:
            found[f"{name} {layer}"] = first(subject, layer)
            print(name, layer, found[f"{name} {layer}"], file=sys.stderr, flush=True)
        found[f"{name} diversity"] = second(subject)
    write("channels", found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
