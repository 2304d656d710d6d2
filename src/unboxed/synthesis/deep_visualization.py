"""Deep visualization: gradient ascent regularized by what is done to the image after each step.

Yosinski et al. 2015, "Understanding Neural Networks Through Deep Visualization", arXiv:1506.06579.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.colors import is_data_mean_and_std_known
from ..engine.optimize.constraints import Constraint
from ..engine.optimize.loop import OptimizationConfig, optimize
from ..engine.optimize.optimizers import NormalizedGradient
from ..engine.optimize.parameterizations import RawCanvas
from ..engine.read.class_labels import requested_classes
from ..engine.read.sizes import require_images
from ..errors import InputError
from ..inputs.labels import ClassLabels
from ..objectives import Objective
from ..parameters import BatchSize, FrameInterval, Seed, Steps, StepSize
from ..rng import normal
from ..settings import ValueRole, check_settings
from ..validation import check_float, check_int, valid_seed
from .generated import GeneratedImages, image_names_from_objective, single_layer_of_objective

START_NOISE_PIXEL_STD = 10 / 255  # standard deviation of the start around the mean, as in the paper's own code


@dataclass(frozen=True)
class Regularization:
    """What is done to the image after each step, the paper's r_theta, in its order; "zero" is the mean of the data.

    Args:
        decay: Fraction of the image that is lost in each step (theta_decay).
        blur_width: Standard deviation of a Gaussian blur, in pixels (theta_b_width).
        blur_every: Steps between blurs (theta_b_every); 0 never blurs.
        small_norm: Percent of the pixels that are zeroed, those of least norm (theta_n_pct).
        small_contribution: Percent of the pixels that are zeroed, those of least |x * gradient| (theta_c_pct).

    Raises:
        InputError: for values out of their range.

    Example:
        >>> import unboxed as ub
        >>> ub.synthesis.Regularization(decay=0.1, blur_width=1.0, blur_every=4)
        Regularization(decay=0.1, blur_width=1.0, blur_every=4, small_norm=0.0, small_contribution=0.0)
    """

    decay: float = 0.0
    blur_width: float = 0.0
    blur_every: int = 0
    small_norm: float = 0.0
    small_contribution: float = 0.0

    def __post_init__(self) -> None:
        for name, below in (("decay", 1), ("blur_width", 1e3), ("small_norm", 100), ("small_contribution", 100)):
            check_float(name, getattr(self, name), minimum=0, below=below)
        check_int("blur_every", self.blur_every)

    def __call__(self, x: Tensor, score_grad: Tensor, step: int) -> Tensor:
        """r_theta of images (N, C, H, W) whose zero is the mean; `score_grad` (N, C, H, W) is that of the last step."""
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


DEEP_VISUALIZATION_RECIPE_BY_NAME = {
    "sparse": DeepVisualizationRecipe(Regularization(0, 0.5, 4, 50, 0), 0.006),
    "decay": DeepVisualizationRecipe(Regularization(0.3, 0, 0, 20, 0), 0.06),
    "smooth": DeepVisualizationRecipe(Regularization(0.0001, 1.0, 4, 0, 0), 0.02),
    "focus": DeepVisualizationRecipe(Regularization(0, 0.5, 4, 0, 90), 0.02),
}
"""The four settings of the paper's table 1, and lengths of a step, which it does not give."""
CUSTOM_REGULARIZATION_STEP_PIXEL_RMS = 0.02  # pixel range: the length of a step for a `Regularization` of the caller's


@card(
    name="Deep visualization",
    source="Yosinski et al. 2015, arXiv:1506.06579, section 3, eq. 2 and table 1",
    shows="What excites a unit or class most, among images kept smooth, faint or sparse.",
    does_not_show="What comes from the model: smoothness and sparsity come from the recipe. Compare all four.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, [0, 1, 0], steps=3),
    runs=lambda s: s["steps"] + 1,
    order=4,
)
def deep_visualization(
    box: Box,
    target: Annotated[
        int | Sequence[int] | Tensor | Objective | None,
        ValueRole("target"),
        "Classes (K,) to make an image for, or an objective.",
    ] = None,
    *,
    recipe: Annotated[
        Literal["sparse", "decay", "smooth", "focus"] | Regularization, ValueRole("object"), "Named set of settings."
    ] = "smooth",
    steps: Steps = 200,
    step: StepSize = None,
    frame_every: FrameInterval = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> GeneratedImages:
    """Images of classes or of an objective by gradient ascent, each step followed by decay, blur or sparsification.

    The classic of 2015, with four looks of the same target. `class_image` and `feature` give clearer images; compare
    the recipes here to see what a regularization contributes.

    Args:
        box: The opened model; its inputs must be images.
        target: Classes (K,) to make an image for, or an objective. None: every class. An objective that holds a value
            per example gets an image for each.
        recipe: Named set of settings. The four of the paper's table 1: "sparse" (small blurs, half of the pixels zeroed
            by their norm), "decay", "smooth" (wide blurs: most of the paper's figures), "focus" (small blurs, nine
            tenths of the pixels zeroed by their contribution); or a `Regularization`.
        steps: Number of iterations.
        step: Length of a step, in the norm. The norm is the root mean square over pixels, so that one value serves
            models whose scores have other units. None: the recipe's, 0.006 to 0.06.
        frame_every: Keep every k-th step's images as frames. None keeps none.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `GeneratedImages`: `images` (N, C, H, W), `scores` (N,), `history` (T, N), `frames`.

    Raises:
        InputError: for a model whose inputs are not images, a class that it does not have, settings out of their range.
        LayerError: for an unknown layer of the objective.
        NaNError: where the score of an image that it makes is NaN.
        OutputError: for classes of a model without.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> result = ub.synthesis.deep_visualization(box, [3, 5], steps=2)
        >>> result.names, tuple(result.images.shape)
        (('3', '5'), (2, 1, 28, 28))

    Source:
        Yosinski et al. 2015, arXiv:1506.06579, section 3, equation 2 and table 1: x <- r_theta(x + eta da/dx), from
        noise around the mean image. Deviation: eta is chosen such that each step has the same length.
    """
    check_settings(deep_visualization, locals())
    inputs = require_images(box, "deep visualization")
    settings, seed = _resolve_deep_visualization_recipe(recipe), valid_seed(seed)
    objective, names = _objective_and_image_names(box, target)
    start = torch.zeros(len(names), *inputs.shape, device=box.device, dtype=box.dtype)
    is_mean_known = is_data_mean_and_std_known(inputs)
    mean_image = inputs.decode(start[:1]) if is_mean_known else torch.full_like(start[:1], 0.5)  # else gray
    step_length = (settings.step_rms if step is None else step) * math.sqrt(start[0].numel())

    def regularize_around_mean_image(param: Tensor, grad: Tensor, step: int) -> Tensor:
        return settings.regularization(param - mean_image, grad, step) + mean_image

    config = OptimizationConfig(
        steps=steps,
        optimizer=partial(NormalizedGradient, lr=step_length),
        constraint=Constraint(project=lambda x, center: inputs.clip(x)),
        frame_every=frame_every,
        seed=seed,
        post_step=regularize_around_mean_image,
    )
    canvas = RawCanvas(inputs.clip(mean_image + START_NOISE_PIXEL_STD * normal(start, seed)))
    result = optimize(box, objective, canvas, config, batch_size=batch_size)
    return GeneratedImages.from_result(
        result, box, method="Deep visualization", names=names, layer=single_layer_of_objective(objective)
    )


def _resolve_deep_visualization_recipe(recipe: object) -> DeepVisualizationRecipe:
    if isinstance(recipe, Regularization):
        return DeepVisualizationRecipe(recipe, CUSTOM_REGULARIZATION_STEP_PIXEL_RMS)
    if not isinstance(recipe, str) or recipe not in DEEP_VISUALIZATION_RECIPE_BY_NAME:
        names = ", ".join(f'"{name}"' for name in DEEP_VISUALIZATION_RECIPE_BY_NAME)
        raise InputError(f"recipe must be {names} or a Regularization; got {recipe!r}")
    return DEEP_VISUALIZATION_RECIPE_BY_NAME[recipe]


def _objective_and_image_names(box: Box, target: ClassLabels | Objective | None) -> tuple[Objective, tuple[str, ...]]:
    """What is maximized, and the names of its images."""
    if isinstance(target, Objective):
        n = target.n or 1
        return box.check_objective(target, n), image_names_from_objective(target, n)
    box.require_class_scores("deep visualization of a class", objective_call="give an objective, such as {score}")
    classes = requested_classes(box, target)
    return box.objective(classes, len(classes)), tuple(box.classes[k] for k in classes.tolist())


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of images (..., H, W), cut at four standard deviations, mirrored at the edges."""
    down, across = (_blur_matrix(s, sigma, x) for s in x.shape[-2:])
    return down @ x @ across.mT


def _blur_matrix(side: int, sigma: float, like: Tensor) -> Tensor:
    """The blur along one axis as a matrix (side, side)."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, device=like.device)
    weights = torch.exp(-0.5 * (offsets.to(like) / sigma) ** 2)
    index = torch.arange(side, device=like.device)[:, None] + offsets
    index = index % (2 * side)  # the image and its mirror image, repeated
    index = torch.where(index < side, index, 2 * side - 1 - index)
    return like.new_zeros(side, side).scatter_add_(1, index, (weights / weights.sum()).expand(side, -1))


def _zero_smallest_pixels(x: Tensor, magnitude: Tensor, percent: float) -> Tensor:
    """The image with the pixels set to zero whose magnitude (N, H, W) is below that percentile."""
    threshold = torch.quantile(magnitude.flatten(1), percent / 100, dim=1)  # (N,)
    return x * (magnitude >= threshold[:, None, None])[:, None]
