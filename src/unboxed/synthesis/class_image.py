"""Class images: the image of which the model is most confident that it shows a class, optimized from noise or black.

Simonyan et al. 2014, "Deep Inside Convolutional Networks", arXiv:1312.6034, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.optim import SGD, Adam

from ..box import Box
from ..cards import card
from ..engine.optimize.colors import Palette, is_data_mean_and_std_known, pixel_mean_and_std
from ..engine.optimize.constraints import Constraint
from ..engine.optimize.loop import OptimizationConfig, OptimizationResult, optimize, retry_on_interrupt
from ..engine.optimize.parameterizations import FourierCanvas, RawCanvas
from ..engine.optimize.transforms import random_affine
from ..engine.read.class_labels import requested_classes
from ..engine.read.sizes import require_images
from ..errors import warn
from ..model.output_advice import FEATURE_CALL_TEMPLATE
from ..objectives import Objective, color_distance, layer_objective, logprob, total_variation
from ..parameters import BatchSize, FrameInterval, OptionalSteps, Seed, TargetClasses
from ..rng import uniform
from ..settings import check_settings
from ..validation import valid_seed
from .generated import GeneratedImages

RecipeName = Literal["robust", "faithful", "noise"]
ROBUST_TOTAL_VARIATION_WEIGHT, ROBUST_MEAN_COLOR_WEIGHT = (
    13.0,
    640.0,
)  # of the recipe "robust", in units of the logits' spread


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ClassImages(GeneratedImages):
    """Images of classes. `names` are the classes' names."""

    targets: Tensor  # (N,) the class of each image
    probs: Tensor  # (N, K) the model's own probabilities: near 1 by construction, so that they prove nothing

    @property
    def is_predicted(self) -> Tensor:
        """(N,) whether the model itself predicts the class of each image: else the optimization did not get there."""
        return self.probs.argmax(1) == self.targets.to(self.probs.device)


@card(
    name="Class image",
    source="Simonyan et al. 2014, arXiv:1312.6034, section 2; canvas and transforms of Olah et al. 2017",
    shows="What the model looks for when it predicts this class.",
    does_not_show="That nothing else would do: other starts give other images, and some need not look like the class.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, 0, steps=3),
    runs=lambda s: 1 + (CLASS_IMAGE_RECIPE_BY_NAME[s["recipe"]].steps if s["steps"] is None else s["steps"]),
    order=1,
)
def class_image(
    box: Box,
    target: TargetClasses = None,
    *,
    recipe: Annotated[RecipeName, "Named set of settings."] = "robust",
    steps: OptionalSteps = None,
    frame_every: FrameInterval = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> ClassImages:
    """An image for each target class, of which the model is confident that it shows the class.

    The first look at what a model has learned. For a single unit or any other objective use `feature`, for all channels
    of a layer `channels`; to see what changes an existing image into a class, `morph`.

    Args:
        box: The opened model; its inputs must be images, its outputs class scores.
        target: Classes (K,) to make an image for. None: every class. A class that is named twice gets two images.
        recipe: Named set of settings. "robust": Fourier coefficients, random rotation, scale and shift in each step, a
            penalty on total variation; "faithful": the published 50 rounds of signed steps from black, in 8 bits;
            "noise": plain gradient ascent on pixels from noise, the control that should not look like the class.
        steps: Number of iterations. None: 128 for "robust", 50 for "faithful", 256 for "noise".
        frame_every: Keep every k-th step's images as frames. None keeps none.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `ClassImages`: `images` (K, C, H, W), `targets` (K,), `probs` (K, classes), `scores` (K,), `history` (T, K).

    Raises:
        InputError: for a model whose inputs are not images, a class that it does not have, settings out of their range.
        NaNError: where the score of an image that it makes is NaN.
        OutputError: for a regression model.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> result = ub.synthesis.class_image(box, [3, 5], steps=2)
        >>> result.names, tuple(result.images.shape), tuple(result.probs.shape)
        (('3', '5'), (2, 1, 28, 28), (2, 10))

    Source:
        Simonyan et al. 2014, arXiv:1312.6034, equation 1: the score of a class less a penalty, maximized in the input.
        "robust" deviates: its score is the class's logit less half of the log-sum-exp of the others; the penalties are
        total variation and the distance from the data's mean color; coefficients and transforms are those of Olah et
        al. 2017.
    """
    check_settings(class_image, locals())
    require_images(box, "a class image")
    box.require_class_scores("a class image", objective_call=FEATURE_CALL_TEMPLATE)
    seed = valid_seed(seed)
    with torch.inference_mode(False):  # what is made here takes part in gradients
        targets = requested_classes(box, target)
        n_steps = CLASS_IMAGE_RECIPE_BY_NAME[recipe].steps if steps is None else steps
        result = CLASS_IMAGE_RECIPE_BY_NAME[recipe].run(box, targets, n_steps, frame_every, seed, batch_size)
    probs, was_interrupted = retry_on_interrupt(lambda: box.probs(result.input, batch_size=batch_size))
    _warn_gradient_before_relu(result.before_clamp)
    images = ClassImages.from_result(
        result,
        box,
        targets=targets,
        probs=probs,
        interrupted=result.interrupted or was_interrupted,
        method="Class image",
        names=tuple(box.classes[k] for k in targets.tolist()),
    )
    if not images.interrupted and n_steps >= CLASS_IMAGE_RECIPE_BY_NAME[recipe].steps and box.outputs != "multilabel":
        _warn_not_predicted(images, n_steps)
    return images


def _warn_gradient_before_relu(before_clamp: Tensor) -> None:
    if n := int(before_clamp.sum()):
        warn(
            f"the gradient was exactly zero in some steps for {n} of {len(before_clamp)} images: "
            "it was taken before the ReLU there"
        )


def _warn_not_predicted(images: ClassImages, n_steps: int) -> None:
    if wrong := (~images.is_predicted).nonzero()[:, 0].tolist():
        k = wrong[0]
        p = float(images.probs[k, images.targets[k]])
        warn(
            f"{len(wrong)} of {len(images.targets)} images are not predicted as their class, such as {images.names[k]} "
            f"(p {p:.2g}): the optimization did not get there; more steps may (steps={4 * n_steps})"
        )


def _black_unnormalized_images(box: Box, targets: Tensor) -> Tensor:
    """Black images (N, C, H, W)."""
    return torch.zeros(len(targets), *box.inputs.shape, device=box.device, dtype=box.dtype)


def _run_robust_recipe(
    box: Box, targets: Tensor, steps: int, frame_every: int | None, seed: int, batch_size: BatchSize
) -> OptimizationResult:
    """Noise with the standard deviation of the data drowns patterns that only this model responds to.

    The score is in units of the spread of the logits on noise, so that one weight per penalty serves every model.
    """
    color, pixel_std = pixel_mean_and_std(box.inputs)  # type: ignore[arg-type]
    logit_scale, was_interrupted = retry_on_interrupt(lambda: _std_of_logits_over_classes_on_noise(box, batch_size))
    objective = _class_contrast_objective(targets, logit_scale) - ROBUST_TOTAL_VARIATION_WEIGHT * total_variation(
        kind="anisotropic"
    )
    if is_data_mean_and_std_known(box.inputs):  # type: ignore[arg-type]
        objective -= ROBUST_MEAN_COLOR_WEIGHT * color_distance(color)
    config = OptimizationConfig(
        steps=0 if was_interrupted else steps,
        optimizer=partial(Adam, lr=0.05),
        transform=random_affine(noise=pixel_std),
        anneal_lr=True,
        relu_bypass="all",
        frame_every=frame_every,
        seed=seed,
    )
    canvas = FourierCanvas.noise(
        _black_unnormalized_images(box, targets), seed, Palette(color), sd=0.1, frequency_power=1.5
    )
    result = optimize(box, objective, canvas, config, batch_size=batch_size)
    return replace(result, interrupted=result.interrupted or was_interrupted)


def _class_contrast_objective(targets: Tensor, logit_scale: float) -> Objective:
    """The class's logit less half of the log-sum-exp of the others, all in units of `logit_scale`."""

    def score(z: Tensor) -> Tensor:  # (N, K)
        z = z / logit_scale
        class_logit = z.gather(1, targets[:, None])[:, 0]
        if z.shape[1] == 1:
            return class_logit
        return class_logit - 0.5 * z.scatter(1, targets[:, None], -math.inf).logsumexp(1)

    return layer_objective(
        "logits", score, "class contrast", lambda i: _class_contrast_objective(targets[i], logit_scale), len(targets)
    )


def _std_of_logits_over_classes_on_noise(box: Box, batch_size: BatchSize) -> float:
    """The standard deviation of the logits over the classes on noise."""
    noise = box.inputs.random_inputs(16, torch.Generator(box.device).manual_seed(0))
    z = box(noise.to(box.dtype), batch_size=batch_size)  # (16, K)
    return max(float(z.std(1 if z.shape[1] > 1 else 0).mean()), 1e-6)


def _run_faithful_recipe(
    box: Box, targets: Tensor, steps: int, frame_every: int | None, seed: int, batch_size: BatchSize
) -> OptimizationResult:
    """Published: minimize -10 out[c] + sum(out) by the first step of a new Adam, each round, on normalized pixels.

    Such a step is lr * g / (|g| + 1e-8), so every pixel moves by 0.5 in normalized units; then 8 bits again.
    """
    black = _black_unnormalized_images(box, targets)
    std = torch.as_tensor(box.inputs.std).to(black).view(-1, 1, 1)  # type: ignore[attr-defined]

    def adam_step_direction(grad: Tensor) -> Tensor:
        normalized = grad * std
        return std * normalized / (normalized.abs() + 1e-8)

    constraint = Constraint(adam_step_direction, lambda x, center: (x.clamp(0, 1) * 255).round() / 255)
    config = OptimizationConfig(
        steps, partial(SGD, lr=0.5), constraint, relu_bypass="all", frame_every=frame_every, seed=seed
    )
    objective = 10 * logprob(targets) - _all_classes_logprob_objective()
    return optimize(box, objective, RawCanvas(black), config, batch_size=batch_size)


def _all_classes_logprob_objective() -> Objective:
    return layer_objective("logits", lambda z: z.log_softmax(1).sum(1), "sum of logprobs")


def _run_noise_recipe(
    box: Box, targets: Tensor, steps: int, frame_every: int | None, seed: int, batch_size: BatchSize
) -> OptimizationResult:
    constraint = Constraint(project=lambda x, center: x.clamp(0, 1))
    config = OptimizationConfig(
        steps, partial(Adam, lr=0.05), constraint, relu_bypass="all", frame_every=frame_every, seed=seed
    )
    start = uniform(_black_unnormalized_images(box, targets), seed)
    return optimize(box, logprob(targets), RawCanvas(start), config, batch_size=batch_size)


@dataclass(frozen=True)
class ClassImageRecipe:
    """A named set of settings of `class_image`."""

    run: Callable[..., OptimizationResult]
    steps: int  # by default
    title: str
    description: str


CLASS_IMAGE_RECIPE_BY_NAME: Mapping[RecipeName, ClassImageRecipe] = {
    "robust": ClassImageRecipe(
        _run_robust_recipe, 128, "Class images", "From smooth noise, rotated and shifted a little at each step."
    ),
    "faithful": ClassImageRecipe(
        _run_faithful_recipe, 50, "The published recipe",
        "Fifty steps from black, each pixel moved by the sign of its gradient.",
    ),
    "noise": ClassImageRecipe(
        _run_noise_recipe, 256, "Control: plain ascent from noise",
        "No regularization: these images should not be recognized.",
    ),
}  # fmt: skip
