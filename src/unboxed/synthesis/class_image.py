"""Class images: the input that the model takes most surely for a class, drawn from nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.optim import SGD, Adam

from ..box import Box
from ..cards import card
from ..engine.optimize.colors import Palette, has_statistics, pixel_statistics
from ..engine.optimize.constraints import Constraint
from ..engine.optimize.loop import OptimizationConfig, OptimizationResult, optimize, retry_on_interrupt
from ..engine.optimize.parameterizations import FourierCanvas, RawCanvas
from ..engine.optimize.transforms import random_affine
from ..engine.read.sizes import require_images
from ..errors import InputError, warn
from ..model.batching import BatchSize
from ..objectives import Objective, as_classes, color_distance, layer_objective, logprob, roughness
from ..rng import uniform
from ..validation import check_seed


@dataclass(frozen=True, eq=False)
class ClassImages:
    images: Tensor  # (N, C, H, W)
    targets: Tensor  # (N,)
    scores: Tensor  # (N,) what was climbed
    probs: Tensor  # (N, K) of the opened model itself: near 1 by construction, so no proof of anything
    before_clamp: Tensor  # (N,) bool: the gradient was exactly zero somewhere, and was taken before the ReLUs' clamps
    frames: Tensor | None  # (T, N, C, H, W)
    history: Tensor  # (T, N) of the score
    interrupted: bool


@card(
    name="Class image",
    source="Simonyan et al. 2014, arXiv:1312.6034, section 2; canvas and transforms of Olah et al. 2017",
    shows="What the model looks for when it says this class.",
    does_not_show="That nothing else would do: other starts give other images, and some need not look like the class.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, 0, steps=3),
)
def class_image(
    box: Box,
    target: int | Sequence[int] | Tensor | None = None,
    *,
    recipe: str = "robust",
    steps: int | None = None,
    frame_every: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> ClassImages:
    """An image for each target class (None: every class), all drawn in one batch; a class named twice is drawn twice.

    Recipes: "robust" (Fourier canvas, rotated, zoomed and shifted at each step, smooth), "faithful" (the published
    50 rounds of signed steps from black, 8-bit) and "noise" (plain ascent from noise: the control that must fail).
    `every=k` keeps each k-th frame. Raises InputError, OutputError for regression.
    """
    require_images(box, "a class image")
    box.require_class_scores("a class image")
    if not isinstance(recipe, str) or recipe not in RECIPE_BY_NAME:
        raise InputError(f"recipe is one of {', '.join(RECIPE_BY_NAME)}; got {recipe!r}")
    seed = check_seed(seed)
    with torch.inference_mode(False):  # what is made here takes part in gradients
        target_classes = _target_classes(box, target)
        result = RECIPE_BY_NAME[recipe](box, target_classes, steps, frame_every, seed, batch_size)
    probs, was_interrupted = retry_on_interrupt(lambda: box.probs(result.input, batch_size=batch_size))
    if n_clamped := int(result.before_clamp.sum()):
        message = (
            f"the gradient is exactly zero on the way to {n_clamped} of "
            f"{len(target_classes)} images: taken before the clamps there"
        )
        warn(message)
    return ClassImages(
        result.input,
        target_classes,
        result.score,
        probs,
        result.before_clamp,
        result.frames,
        result.history,
        result.interrupted or was_interrupted,
    )


def _target_classes(box: Box, target: int | Sequence[int] | Tensor | None) -> Tensor:
    if target is None:
        return torch.arange(box.n_outputs, device=box.device)
    requested = as_classes(target)
    target_classes = box.class_labels(requested, requested.numel() if requested.ndim else 1)
    if len(target_classes) == 0:
        raise InputError("no class to draw: target is empty")
    return target_classes


def _black_images(box: Box, target_classes: Tensor) -> Tensor:
    """Black images (N, C, H, W)."""
    return torch.zeros(len(target_classes), *box.inputs.shape, device=box.device, dtype=box.dtype)


def _run_robust(
    box: Box, target_classes: Tensor, steps: int | None, frame_every: int | None, seed: int, batch_size: BatchSize
) -> OptimizationResult:
    """Noise of the data's own spread drowns what only this model sees; the mean color of the data decides how much ink.

    The score is in units of how far the logits spread on noise, so one weight of each term serves every model.
    """
    color, pixel_std = pixel_statistics(box.inputs)  # type: ignore[arg-type]
    logit_scale, was_interrupted = retry_on_interrupt(lambda: _logit_scale(box, batch_size))
    objective = _class_contrast(target_classes, logit_scale) - 13.0 * roughness()
    if has_statistics(box.inputs):  # type: ignore[arg-type]
        objective -= 640.0 * color_distance(color)
    config = OptimizationConfig(
        steps=0 if was_interrupted else 128 if steps is None else steps,
        optimizer=partial(Adam, lr=0.05),
        transform=random_affine(noise=pixel_std),
        anneal_lr=True,
        relu_bypass="all",
        frame_every=frame_every,
        seed=seed,
    )
    canvas = FourierCanvas.noise(_black_images(box, target_classes), seed, Palette(color), sd=0.1, frequency_power=1.5)
    result = optimize(box, objective, canvas, config, batch_size=batch_size)
    return replace(result, interrupted=result.interrupted or was_interrupted)


def _class_contrast(target_classes: Tensor, logit_scale: float) -> Objective:
    """The class's logit less half of how high the others stand together, all in units of `unit`."""

    def score(z: Tensor) -> Tensor:
        z = z / logit_scale
        class_logit = z.gather(1, target_classes[:, None])[:, 0]
        if z.shape[1] == 1:
            return class_logit
        return class_logit - 0.5 * z.scatter(1, target_classes[:, None], -math.inf).logsumexp(1)

    return layer_objective(
        "logits",
        score,
        "class apart from the others",
        lambda i: _class_contrast(target_classes[i], logit_scale),
        len(target_classes),
    )


def _logit_scale(box: Box, batch_size: BatchSize) -> float:
    """How far the logits spread over the classes when the model sees noise."""
    noise = box.inputs.sample(16, torch.Generator(box.device).manual_seed(0))
    z = box(noise.to(box.dtype), batch_size=batch_size)  # (16, K)
    return max(float(z.std(1 if z.shape[1] > 1 else 0).mean()), 1e-6)


def _run_faithful(
    box: Box, target_classes: Tensor, steps: int | None, frame_every: int | None, seed: int, batch_size: BatchSize
) -> OptimizationResult:
    """Published: minimize -10 out[c] + sum(out) by the first step of a new Adam, each round, on normalized pixels.

    Such a step is lr * g / (|g| + 1e-8), so every pixel moves by 0.5 in normalized units; then 8 bits again.
    """
    std = torch.as_tensor(box.inputs.std).to(_black_images(box, target_classes)).view(-1, 1, 1)  # type: ignore[attr-defined]

    def step_direction(grad: Tensor) -> Tensor:
        normalized = grad * std
        return std * normalized / (normalized.abs() + 1e-8)

    def project(x: Tensor, center: Tensor | None) -> Tensor:
        return (x.clamp(0, 1) * 255).round() / 255

    rounds = 50 if steps is None else steps
    config = OptimizationConfig(
        rounds,
        partial(SGD, lr=0.5),
        Constraint(step_direction, project),
        relu_bypass="all",
        frame_every=frame_every,
        seed=seed,
    )
    return optimize(
        box,
        10 * logprob(target_classes) - _sum_logprobs(),
        RawCanvas(_black_images(box, target_classes)),
        config,
        batch_size=batch_size,
    )


def _sum_logprobs() -> Objective:
    return layer_objective("logits", lambda z: z.log_softmax(1).sum(1), "sum of logprobs")


def _run_noise(
    box: Box, target_classes: Tensor, steps: int | None, frame_every: int | None, seed: int, batch_size: BatchSize
) -> OptimizationResult:
    def project(x: Tensor, center: Tensor | None) -> Tensor:
        return x.clamp(0, 1)

    rounds = 256 if steps is None else steps
    config = OptimizationConfig(
        rounds,
        partial(Adam, lr=0.05),
        Constraint(project=project),
        relu_bypass="all",
        frame_every=frame_every,
        seed=seed,
    )
    start = uniform(_black_images(box, target_classes), seed)
    return optimize(box, logprob(target_classes), RawCanvas(start), config, batch_size=batch_size)


RECIPE_BY_NAME = {"robust": _run_robust, "faithful": _run_faithful, "noise": _run_noise}
