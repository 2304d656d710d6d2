"""Deep visualization: plain ascent kept natural by what is done to the image after each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.ascent import Ascent, ascend
from ..engine.optimize.colors import known
from ..engine.optimize.constraints import Constraint
from ..engine.optimize.optimizers import Normalized
from ..engine.optimize.parameterizations import Raw
from ..engine.read.sizes import images_only
from ..errors import InputError
from ..model.batching import BatchSize
from ..objectives import Objective, as_classes
from ..rng import normal
from ..validation import check_seed, check_float, check_int
from .drawn import Drawn

NOISE = 10 / 255  # standard deviation of the start around the mean, as in the paper's own code


@dataclass(frozen=True)
class Regularization:
    """The paper's r_theta, in its order; "zero" is the mean of the data."""

    decay: float = 0.0  # theta_decay: the share of the image lost each step
    blur_width: float = 0.0  # theta_b_width: of a Gaussian, in pixels
    blur_every: int = 0  # theta_b_every: steps between blurs
    small_norm: float = 0.0  # theta_n_pct: percent of the pixels zeroed, those of least norm
    small_contribution: float = 0.0  # theta_c_pct: percent of the pixels zeroed, those of least |x * gradient|

    def __post_init__(self) -> None:
        for name, below in (("decay", 1), ("blur_width", 1e3), ("small_norm", 100), ("small_contribution", 100)):
            check_float(name, getattr(self, name), minimum=0, below=below)
        check_int("blur_every", self.blur_every)

    def __call__(self, x: Tensor, grad: Tensor, step: int) -> Tensor:
        """r_theta of an image (N, C, H, W) whose zero is the mean; `grad` is that of the step before it."""
        x = x * (1 - self.decay)
        if self.blur_width and self.blur_every and step % self.blur_every == 0:
            x = blurred(x, self.blur_width)
        if self.small_norm:
            x = _without_smallest(x, torch.linalg.vector_norm(x, dim=1), self.small_norm)
        if self.small_contribution:
            x = _without_smallest(x, (x * grad).sum(1).abs(), self.small_contribution)
        return x


@dataclass(frozen=True)
class Recipe:
    theta: Regularization
    step: float  # root mean square of a step, in pixel range


RECIPES = {
    "sparse": Recipe(Regularization(0, 0.5, 4, 50, 0), 0.006),
    "decay": Recipe(Regularization(0.3, 0, 0, 20, 0), 0.06),
    "smooth": Recipe(Regularization(0.0001, 1.0, 4, 0, 0), 0.02),
    "focus": Recipe(Regularization(0, 0.5, 4, 0, 90), 0.02),
}
"""The four settings of the paper's table 1; the length of a step, which it does not give, was chosen by looking."""


@card(
    name="Deep visualization",
    source="Yosinski et al. 2015, arXiv:1506.06579, section 3, eq. 2 and table 1",
    shows="What a unit or class answers to most, among images kept smooth, faint or sparse.",
    does_not_show="Which of what is seen is the model's: smoothness, sparsity come from the recipe: compare all four.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, [0, 1, 0], steps=3),
)
def deep_visualization(
    box: Box,
    target: int | Sequence[int] | Tensor | Objective | None = None,
    *,
    recipe: str | Regularization = "smooth",
    steps: int = 200,
    step: float | None = None,
    every: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Drawn:
    """Repeat x <- r_theta(x + eta da/dx), from noise around the mean image, for classes (None: all) or an objective.

    Recipes, the four of the paper's table 1: "sparse" (small blurs, half of the pixels zeroed by their norm), "decay",
    "smooth" (wide blurs: most of the paper's pictures) and "focus" (small blurs, nine tenths of the pixels zeroed by
    their contribution), or a `Regularization`. `step` is the root mean square of eta da/dx, in pixel range, so one
    value serves models whose scores have other units. An objective that holds a row an example is drawn once for each.
    Raises InputError, LayerError, and OutputError where classes are asked of a model without.
    """
    inputs = images_only(box, "deep visualization")
    chosen, seed = _recipe(recipe), check_seed(seed)
    objective, n = _goal(box, target)
    start = torch.zeros(n, *inputs.shape, device=box.device, dtype=box.dtype)
    middle = inputs.decode(start[:1]) if known(inputs) else torch.full_like(start[:1], 0.5)  # the data's mean, or gray
    length = check_float("step", chosen.step if step is None else step, above=0) * math.sqrt(start[0].numel())

    def after(p: Tensor, grad: Tensor, step: int) -> Tensor:
        return chosen.theta(p - middle, grad, step) + middle

    plan = Ascent(
        steps=steps,
        optimizer=partial(Normalized, lr=length),
        constraint=Constraint(project=lambda x, centre: inputs.clip(x)),
        every=every,
        seed=seed,
        after=after,
    )
    canvas = Raw(inputs.clip(middle + NOISE * normal(start, seed)))
    return Drawn.of(ascend(box, objective, canvas, plan, batch_size=batch_size))


def _recipe(recipe: object) -> Recipe:
    if isinstance(recipe, Regularization):
        return Recipe(recipe, 0.02)
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise InputError(f"recipe is one of {', '.join(RECIPES)}, or a Regularization; got {recipe!r}")
    return RECIPES[recipe]


def _goal(box: Box, target: int | Sequence[int] | Tensor | Objective | None) -> tuple[Objective, int]:
    """What is climbed, and how many images are drawn."""
    if isinstance(target, Objective):
        n = target.n or 1
        return box.check_objective(target, n), n
    box.require_class_scores("deep visualization of a class")
    wanted = torch.arange(box.n_outputs) if target is None else as_classes(target)
    goal = box.class_labels(wanted, wanted.numel() if wanted.ndim else 1)
    if len(goal) == 0:
        raise InputError("no class to draw: target is empty")
    return box.objective(goal, len(goal)), len(goal)


def blurred(x: Tensor, width: float) -> Tensor:
    """Images (..., H, W) under a Gaussian of that standard deviation, cut at four of it, mirrored at the edges."""
    down, across = (_blur(s, width, x) for s in x.shape[-2:])
    return down @ x @ across.mT


def _blur(side: int, width: float, like: Tensor) -> Tensor:
    """The blur along one axis as a matrix (side, side)."""
    reach = int(4 * width + 0.5)
    offsets = torch.arange(-reach, reach + 1, device=like.device)
    weights = torch.exp(-0.5 * (offsets.to(like) / width) ** 2)
    at = (torch.arange(side, device=like.device)[:, None] + offsets) % (2 * side)  # an image and its mirror, repeated
    at = torch.where(at < side, at, 2 * side - 1 - at)
    return like.new_zeros(side, side).scatter_add_(1, at, (weights / weights.sum()).expand(side, -1))


def _without_smallest(x: Tensor, size: Tensor, percent: float) -> Tensor:
    """The image without the pixels (N, H, W) whose size lies below that percentile."""
    least = torch.quantile(size.flatten(1), percent / 100, dim=1)  # (N,)
    return x * (size >= least[:, None, None])[:, None]
