"""`attribution.integrated_gradients` against captum's: rows that the model runs until 100 images are complete.

captum takes the same number of steps for all images, so it needs what the worst of them needs; which rule and number is
the best for it is found by trying them all, and the search is not counted. Counted are rows through the model, forward
alone or forward and backward, each as one: for ours the two scores at the ends too; for captum, which is not asked to
measure the error that its user must measure (two rows more an image), the gradients only. Both are given the targets.

Completeness says little of single pixels, so each map's distance from the limit (many steps) is given as well: ours
stops as soon as the sum is right, and its maps are as far from the limit as so few steps leave them. captum is given
batches of 80 to 100 rows, with which it is fastest on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

import models
import unboxed as ub
from harness import compare, write

IMAGES = 100
LIMIT = 500
RULES = ("gausslegendre", "riemann_middle", "riemann_trapezoid")


class Normalized(nn.Module):
    """What captum needs around a model whose inputs are pixels."""

    def __init__(self, box: ub.Box) -> None:
        super().__init__()
        self.model, self.inputs = box.model, box.inputs

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.inputs.encode(x))


def counted(model: nn.Module, work: Callable[[], Any]) -> tuple[Any, int]:
    """What the work gives, and how many rows the model ran for it."""
    rows = 0

    def count(module: nn.Module, args: Any) -> None:
        nonlocal rows
        rows += len(args[0])

    handle = model.register_forward_pre_hook(count)
    try:
        return work(), rows
    finally:
        handle.remove()


class Search:
    """The rule and the number of steps by which captum brings every image under an error, the fewest there are."""

    def __init__(self, errors: Callable[[str, int, Tensor], Tensor], n: int) -> None:
        self.errors, self.parts, self.steps = errors, list(torch.arange(n).split(10)), 2

    def smallest(self, tol: float) -> tuple[str, int]:
        """For ever smaller errors: what was too few for the last one is too few for this."""
        for steps in range(self.steps, LIMIT):
            for rule in RULES:
                if self.enough(rule, steps, tol):
                    self.steps = steps
                    return rule, steps
        raise SystemExit(f"captum does not reach {tol} with {LIMIT} steps")

    def enough(self, rule: str, steps: int, tol: float) -> bool:
        """Some images at a time; those that failed last are tried first."""
        for i, rows in enumerate(self.parts):
            if bool((self.errors(rule, steps, rows) > tol).any()):
                self.parts.insert(0, self.parts.pop(i))
                return False
        return True


def figures(box: ub.Box, x: Tensor, y: Tensor, tols: tuple[float, ...], most: int) -> dict[str, Any]:
    model = Normalized(box).eval()
    peer = IntegratedGradients(model)
    rows = torch.arange(len(x))
    difference = (box(x) - box(torch.zeros_like(x)))[rows, y]
    limit = ub.attribution.integrated_gradients(box, x, y, n_steps=LIMIT).map

    def captum(rule: str, steps: int, rows: Tensor = rows) -> Tensor:
        return peer.attribute(x[rows], target=y[rows], n_steps=steps, method=rule, internal_batch_size=most)

    def errors(rule: str, steps: int, rows: Tensor) -> Tensor:
        return (captum(rule, steps, rows).flatten(1).sum(1) - difference[rows]).abs() / difference[rows].abs()

    def off(found: Tensor) -> dict[str, float]:
        share = (found - limit).abs().flatten(1).sum(1) / limit.abs().flatten(1).sum(1)
        return {"mean": float(share.mean()), "max": float(share.max())}

    found: dict[str, Any] = {"images": len(x)}
    search = Search(errors, len(x))
    for tol in tols:
        rule, steps = search.smallest(tol)
        mine, ran = counted(box.model, lambda tol=tol: ub.attribution.integrated_gradients(box, x, y, tol=tol))
        own = (mine.map.flatten(1).sum(1) - difference).abs() / difference.abs()
        if float(own.max()) > tol * 1.001:
            raise SystemExit(f"ours is off by {float(own.max())} of the difference")
        theirs, peer_ran = counted(box.model, lambda rule=rule, steps=steps: captum(rule, steps))
        time = compare(
            lambda tol=tol: ub.attribution.integrated_gradients(box, x, y, tol=tol),
            lambda rule=rule, steps=steps: captum(rule, steps),
            pairs=5,
        )  # fmt: skip
        found[f"tol_{tol:g}"] = {
            "calls_ratio": ran / peer_ran,
            "ours_rows_each": ran / len(x),
            "ours_most_steps": int(mine.steps.max()),
            "captum_rows_each": peer_ran / len(x),
            "captum_rule": rule,
            "captum_steps": steps,
            "time": time,
            "ours_map_off": off(mine.map),
            "captum_map_off": off(theirs),
        }
    return found


def mnist() -> tuple[ub.Box, Tensor, Tensor]:
    box = ub.Box(*ub.zoo.load("mnist-cnn"))
    x, _ = ub.data.digits("test").first(IMAGES)
    return box, x, box.predict(x)


def cifar() -> tuple[ub.Box, Tensor, Tensor]:
    """Images whose score differs from black's by at least 1: where it does not, no share of it is a fair tolerance."""
    box = ub.Box(*models.resnet20())
    x, _ = models.cifar(40)
    y = box.predict(x)
    far = (box(x) - box(torch.zeros_like(x)))[torch.arange(len(x)), y].abs() >= 1
    return box, x[far], y[far]


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {"mnist-cnn": figures(*mnist(), (0.05, 0.01, 0.005), 100)}
    if (models.ROOT / "cifar10").is_dir():
        found["resnet20"] = figures(*cifar(), (0.05,), 80)
    what = "integrated gradients against captum's: rows run for the same completeness error of every image"
    write("integrated_gradients", {"what": what, **found}, packages=["captum"])


if __name__ == "__main__":
    main()
