"""Adversarial images as 8-bit files, CIFAR-10 ResNet-20: how many of an attack's successes fool once saved and loaded.

Three rows an attack: its images in floating point, the same rounded (the control), and `bits=8`. Success and distance
of files are those of the decoded PNG. The floor is what a file must cost where the model is linear: the cheapest whole
levels that keep the float image's margin. `python benchmarks/eight_bits.py 200` takes so many images.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import unboxed as ub
from harness import write
from models import cifar, resnet20
from unboxed.adversarial import Adversarial, apgd, carlini_wagner, deepfool, pgd

N = 200
TOP = 255
HALVINGS = 30
TURNS = 4  # of the search for the best that a grid allows
Row = dict[str, Any]


def main() -> None:
    torch.set_num_threads(1)
    n = int(sys.argv[1]) if len(sys.argv) > 1 else N
    box = ub.Box(*resnet20())
    x, y = cifar(n)
    report: Row = {"what": f"{n} CIFAR-10 images, ResNet-20", "images": n}
    minimal: dict[str, Callable[..., Adversarial]] = {"deepfool": deepfool, "carlini_wagner": carlini_wagner}
    for name, attack in minimal.items():
        report[name] = nearest(box, x, y, attack)
        print(name, report[name], flush=True)
    for levels in (0.5, 1.5):
        report[f"pgd_{levels}/255"] = bounded(box, x, y, levels)
        print(f"pgd {levels}/255", report[f"pgd_{levels}/255"], flush=True)
    write("eight_bits", report)


def nearest(box: ub.Box, x: Tensor, y: Tensor, attack: Callable[..., Adversarial]) -> Row:
    plain, ours = attack(box, x, y), attack(box, x, y, bits=8)
    found = plain.success & ~plain.initially_misclassified
    rounded, saved = decoded(plain.images.mul(TOP).round() / TOP), decoded(ours.images)
    if not torch.equal(saved, ours.images):
        raise SystemExit("an image differs from its file")
    fools, naive = (box.predict(z)[found] != y[found] for z in (saved, rounded))
    d = torch.stack([far(z, x)[found] for z in (plain.images, rounded, saved)])
    least = floor(box, x[found], y[found], plain.images[found])
    return {
        "float_success": mean(plain.success),
        "rounded_survive": mean(naive),
        "files_survive": mean(fools),
        "median_l2": {"float": middle(d[0]), "rounded": middle(d[1]), "files": middle(d[2]), "floor": middle(least)},
        "files_over_float": round(middle(d[2]) / middle(d[0]), 4),
        "floor_over_float": round(middle(least) / middle(d[0]), 4),
        "queries": {"float": mean(plain.queries[found]), "files": mean(ours.queries[found])},
    }


def bounded(box: ub.Box, x: Tensor, y: Tensor, levels: float) -> Row:
    """Originals are on the grid, so the ball's files are those of its whole levels: an attack on these, far longer."""
    eps = levels / TOP
    plain, ours = pgd(box, x, y, eps=eps), pgd(box, x, y, eps=eps, bits=8)
    rounded, saved = decoded(plain.images.mul(TOP).round() / TOP), decoded(ours.images)
    return {
        "float_success": mean(plain.success),
        "rounded_fool": mean(box.predict(rounded) != y),
        "rounded_inside": mean(inside(rounded, x, eps)),
        "rounded_fool_inside": mean((box.predict(rounded) != y) & inside(rounded, x, eps)),
        "files_fool": mean(box.predict(saved) != y),
        "files_inside": mean(inside(saved, x, eps)),
        "grid_best_known": mean(best(box, x, y, int(levels)) | (box.predict(saved) != y)),
        "queries": {"float": mean(plain.queries), "files": mean(ours.queries)},
    }


def best(box: ub.Box, x: Tensor, y: Tensor, levels: int) -> Tensor:
    """Which files some attack within so many whole levels finds: APGD and PGD, several times."""
    wrong = box.predict(x) != y
    for turn in range(TURNS if levels else 0):
        left = (~wrong).nonzero()[:, 0]
        if not len(left):
            break
        attack = apgd if turn % 2 else pgd
        wrong[left] = attack(box, x[left], y[left], eps=levels / TOP, steps=50, seed=turn, bits=8).success
    return wrong


def floor(box: ub.Box, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """The least L2 distance (n,) of round(x + t g), g the margin's gradient at z, with the margin that z has."""
    objective = ub.margin(y)
    z, x = z.double(), x.double()
    g = ub.attribution.gradient(box, z.float(), objective).double() / TOP
    off = (z - x) * TOP

    def gains(v: Tensor) -> Tensor:
        return (v * g).flatten(1).sum(1)

    def levels(t: Tensor) -> Tensor:
        return ((x * TOP + t.view(-1, 1, 1, 1) * g).round().clamp(0, TOP) - x * TOP).round()

    score = box.read(z.float(), "logits")["logits"].double()
    own = score.gather(1, y[:, None])[:, 0]
    need = gains(off) - (score.scatter(1, y[:, None], -torch.inf).amax(1) - own)
    low, high = torch.zeros_like(need), torch.full_like(need, 1e6)
    for _ in range(HALVINGS * 2):
        t = (low + high) / 2
        ok = gains(levels(t)) >= need
        low, high = torch.where(ok, low, t), torch.where(ok, t, high)
    return levels(high).flatten(1).norm(dim=1) / TOP


def decoded(images: Tensor) -> Tensor:
    """The images as PNG files, loaded: (n, 3, H, W) float32."""
    loaded = []
    for pixels in (images * TOP).round().to(torch.uint8).permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        loaded.append(np.array(Image.open(io.BytesIO(file.getvalue())), dtype=np.float32) / TOP)
    return torch.from_numpy(np.stack(loaded)).permute(0, 3, 1, 2).contiguous()


def inside(z: Tensor, x: Tensor, eps: float) -> Tensor:
    return (z - x).flatten(1).abs().amax(1) <= eps * (1 + 1e-6) + 1e-7


def far(z: Tensor, x: Tensor) -> Tensor:
    return (z - x).flatten(1).norm(dim=1)


def mean(h: Tensor) -> float:
    return round(h.double().mean().item(), 4)


def middle(h: Tensor) -> float:
    return round(h.double().median().item(), 5)


if __name__ == "__main__":
    main()
