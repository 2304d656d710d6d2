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
from ..engine.optimize.colors import has_statistics
from ..engine.optimize.constraints import Constraint
from ..engine.optimize.loop import OptimizationConfig, optimize
from ..engine.optimize.optimizers import NormalizedGradient
from ..engine.optimize.parameterizations import RawCanvas
from ..engine.read.sizes import require_images
from ..errors import InputError
from ..model.batching import BatchSize
from ..objectives import Objective, as_classes
from ..rng import normal
from ..validation import check_float, check_int, check_seed
from .generated import GeneratedImages

START_NOISE_STD = 10 / 255  # standard deviation of the start around the mean, as in the paper's own code


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

    def __call__(self, x: Tensor, score_grad: Tensor, step: int) -> Tensor:
        """r_theta of an image (N, C, H, W) whose zero is the mean; `grad` is that of the step before it."""
        x = x * (1 - self.decay)
        if self.blur_width and self.blur_every and step % self.blur_every == 0:
            x = gaussian_blur(x, self.blur_width)
        if self.small_norm:
            x = _zero_smallest_pixels(x, torch.linalg.vector_norm(x, dim=1), self.small_norm)
        if self.small_contribution:
            x = _zero_smallest_pixels(x, (x * score_grad).sum(1).abs(), self.small_contribution)
        return x


@dataclass(frozen=True)
class DeepVisualizationRecipe:
    regularization: Regularization
    step_rms: float  # root mean square of a step, in pixel range


RECIPE_BY_NAME = {
    "sparse": DeepVisualizationRecipe(Regularization(0, 0.5, 4, 50, 0), 0.006),
    "decay": DeepVisualizationRecipe(Regularization(0.3, 0, 0, 20, 0), 0.06),
    "smooth": DeepVisualizationRecipe(Regularization(0.0001, 1.0, 4, 0, 0), 0.02),
    "focus": DeepVisualizationRecipe(Regularization(0, 0.5, 4, 0, 90), 0.02),
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
    frame_every: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> GeneratedImages:
    """Repeat x <- r_theta(x + eta da/dx), from noise around the mean image, for classes (None: all) or an objective.

    Recipes, the four of the paper's table 1: "sparse" (small blurs, half of the pixels zeroed by their norm), "decay",
    "smooth" (wide blurs: most of the paper's pictures) and "focus" (small blurs, nine tenths of the pixels zeroed by
    their contribution), or a `Regularization`. `step` is the root mean square of eta da/dx, in pixel range, so one
    value serves models whose scores have other units. An objective that holds a row an example is drawn once for each.
    Raises InputError, LayerError, and OutputError where classes are asked of a model without.
    """
    inputs = require_images(box, "deep visualization")
    settings, seed = _resolve_recipe(recipe), check_seed(seed)
    objective, n = _resolve_objective(box, target)
    start = torch.zeros(n, *inputs.shape, device=box.device, dtype=box.dtype)
    mean_image = (
        inputs.decode(start[:1]) if has_statistics(inputs) else torch.full_like(start[:1], 0.5)
    )  # the data's mean, or gray
    step_length = check_float("step", settings.step_rms if step is None else step, above=0) * math.sqrt(
        start[0].numel()
    )

    def post_step(param: Tensor, grad: Tensor, step: int) -> Tensor:
        return settings.regularization(param - mean_image, grad, step) + mean_image

    config = OptimizationConfig(
        steps=steps,
        optimizer=partial(NormalizedGradient, lr=step_length),
        constraint=Constraint(project=lambda x, center: inputs.clip(x)),
        frame_every=frame_every,
        seed=seed,
        post_step=post_step,
    )
    canvas = RawCanvas(inputs.clip(mean_image + START_NOISE_STD * normal(start, seed)))
    return GeneratedImages.from_result(optimize(box, objective, canvas, config, batch_size=batch_size))


def _resolve_recipe(recipe: object) -> DeepVisualizationRecipe:
    if isinstance(recipe, Regularization):
        return DeepVisualizationRecipe(recipe, 0.02)
    if not isinstance(recipe, str) or recipe not in RECIPE_BY_NAME:
        raise InputError(f"recipe is one of {', '.join(RECIPE_BY_NAME)}, or a Regularization; got {recipe!r}")
    return RECIPE_BY_NAME[recipe]


def _resolve_objective(box: Box, target: int | Sequence[int] | Tensor | Objective | None) -> tuple[Objective, int]:
    """What is climbed, and how many images are drawn."""
    if isinstance(target, Objective):
        n = target.n or 1
        return box.check_objective(target, n), n
    box.require_class_scores("deep visualization of a class")
    requested = torch.arange(box.n_outputs) if target is None else as_classes(target)
    target_classes = box.class_labels(requested, requested.numel() if requested.ndim else 1)
    if len(target_classes) == 0:
        raise InputError("no class to draw: target is empty")
    return box.objective(target_classes, len(target_classes)), len(target_classes)


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Images (..., H, W) under a Gaussian of that standard deviation, cut at four of it, mirrored at the edges."""
    down, across = (_blur_matrix(s, sigma, x) for s in x.shape[-2:])
    return down @ x @ across.mT


def _blur_matrix(side: int, sigma: float, like: Tensor) -> Tensor:
    """The blur along one axis as a matrix (side, side)."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, device=like.device)
    weights = torch.exp(-0.5 * (offsets.to(like) / sigma) ** 2)
    index = (torch.arange(side, device=like.device)[:, None] + offsets) % (
        2 * side
    )  # an image and its mirror, repeated
    index = torch.where(index < side, index, 2 * side - 1 - index)
    return like.new_zeros(side, side).scatter_add_(1, index, (weights / weights.sum()).expand(side, -1))


def _zero_smallest_pixels(x: Tensor, magnitude: Tensor, percent: float) -> Tensor:
    """The image without the pixels (N, H, W) whose size lies below that percentile."""
    threshold = torch.quantile(magnitude.flatten(1), percent / 100, dim=1)  # (N,)
    return x * (magnitude >= threshold[:, None, None])[:, None]
