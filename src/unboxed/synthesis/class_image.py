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
from ..engine.optimize.ascent import Ascent, Climb, ascend, finished
from ..engine.optimize.colors import Palette, known, statistics
from ..engine.optimize.constraints import Constraint
from ..engine.optimize.parameterizations import Fourier, Raw
from ..engine.optimize.transforms import wobble
from ..engine.read.sizes import images_only
from ..errors import InputError, warn
from ..model.batching import BatchSize
from ..objectives import Objective, as_classes, color_distance, logprob, layer_objective, roughness
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
    every: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> ClassImages:
    """An image for each target class (None: every class), all drawn in one batch; a class named twice is drawn twice.

    Recipes: "robust" (Fourier canvas, rotated, zoomed and shifted at each step, smooth), "faithful" (the published
    50 rounds of signed steps from black, 8-bit) and "noise" (plain ascent from noise: the control that must fail).
    `every=k` keeps each k-th frame. Raises InputError, OutputError for regression.
    """
    images_only(box, "a class image")
    box.require_class_scores("a class image")
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise InputError(f"recipe is one of {', '.join(RECIPES)}; got {recipe!r}")
    seed = check_seed(seed)
    with torch.inference_mode(False):  # what is made here takes part in gradients
        goal = _goal(box, target)
        climb = RECIPES[recipe](box, goal, steps, every, seed, batch_size)
    probs, stopped = finished(lambda: box.probs(climb.input, batch_size=batch_size))
    if stuck := int(climb.before_clamp.sum()):
        said = (
            f"the gradient is exactly zero on the way to {stuck} of {len(goal)} images: taken before the clamps there"
        )
        warn(said)
    return ClassImages(
        climb.input,
        goal,
        climb.score,
        probs,
        climb.before_clamp,
        climb.frames,
        climb.history,
        climb.interrupted or stopped,
    )


def _goal(box: Box, target: int | Sequence[int] | Tensor | None) -> Tensor:
    if target is None:
        return torch.arange(box.n_outputs, device=box.device)
    wanted = as_classes(target)
    goal = box.class_labels(wanted, wanted.numel() if wanted.ndim else 1)
    if len(goal) == 0:
        raise InputError("no class to draw: target is empty")
    return goal


def _blank(box: Box, goal: Tensor) -> Tensor:
    """Black images (N, C, H, W)."""
    return torch.zeros(len(goal), *box.inputs.shape, device=box.device, dtype=box.dtype)


def _robust(box: Box, goal: Tensor, steps: int | None, every: int | None, seed: int, batch_size: BatchSize) -> Climb:
    """Noise of the data's own spread drowns what only this model sees; the mean color of the data decides how much ink.

    The score is in units of how far the logits spread on noise, so one weight of each term serves every model.
    """
    color, spread = statistics(box.inputs)  # type: ignore[arg-type]
    unit, stopped = finished(lambda: _unit(box, batch_size))
    objective = _apart(goal, unit) - 13.0 * roughness()
    if known(box.inputs):  # type: ignore[arg-type]
        objective -= 640.0 * color_distance(color)
    plan = Ascent(
        steps=0 if stopped else 128 if steps is None else steps,
        optimizer=partial(Adam, lr=0.05),
        transform=wobble(noise=spread),
        anneal=True,
        unclamp="all",
        every=every,
        seed=seed,
    )
    canvas = Fourier.noise(_blank(box, goal), seed, Palette(color), sd=0.1, power=1.5)
    climb = ascend(box, objective, canvas, plan, batch_size=batch_size)
    return replace(climb, interrupted=climb.interrupted or stopped)


def _apart(goal: Tensor, unit: float) -> Objective:
    """The class's logit less half of how high the others stand together, all in units of `unit`."""

    def score(z: Tensor) -> Tensor:
        z = z / unit
        own = z.gather(1, goal[:, None])[:, 0]
        if z.shape[1] == 1:
            return own
        return own - 0.5 * z.scatter(1, goal[:, None], -math.inf).logsumexp(1)

    return layer_objective("logits", score, "class apart from the others", lambda i: _apart(goal[i], unit), len(goal))


def _unit(box: Box, batch_size: BatchSize) -> float:
    """How far the logits spread over the classes when the model sees noise."""
    noise = box.inputs.sample(16, torch.Generator(box.device).manual_seed(0))
    z = box(noise.to(box.dtype), batch_size=batch_size)  # (16, K)
    return max(float(z.std(1 if z.shape[1] > 1 else 0).mean()), 1e-6)


def _faithful(box: Box, goal: Tensor, steps: int | None, every: int | None, seed: int, batch_size: BatchSize) -> Climb:
    """Published: minimize -10 out[c] + sum(out) by the first step of a new Adam, each round, on normalized pixels.

    Such a step is lr * g / (|g| + 1e-8), so every pixel moves by 0.5 in normalized units; then 8 bits again.
    """
    std = torch.as_tensor(box.inputs.std).to(_blank(box, goal)).view(-1, 1, 1)  # type: ignore[attr-defined]

    def steer(grad: Tensor) -> Tensor:
        normalized = grad * std
        return std * normalized / (normalized.abs() + 1e-8)

    def project(x: Tensor, centre: Tensor | None) -> Tensor:
        return (x.clamp(0, 1) * 255).round() / 255

    rounds = 50 if steps is None else steps
    plan = Ascent(rounds, partial(SGD, lr=0.5), Constraint(steer, project), unclamp="all", every=every, seed=seed)
    return ascend(box, 10 * logprob(goal) - _all_logprobs(), Raw(_blank(box, goal)), plan, batch_size=batch_size)


def _all_logprobs() -> Objective:
    return layer_objective("logits", lambda z: z.log_softmax(1).sum(1), "sum of logprobs")


def _noise(box: Box, goal: Tensor, steps: int | None, every: int | None, seed: int, batch_size: BatchSize) -> Climb:
    def project(x: Tensor, centre: Tensor | None) -> Tensor:
        return x.clamp(0, 1)

    rounds = 256 if steps is None else steps
    plan = Ascent(rounds, partial(Adam, lr=0.05), Constraint(project=project), unclamp="all", every=every, seed=seed)
    start = uniform(_blank(box, goal), seed)
    return ascend(box, logprob(goal), Raw(start), plan, batch_size=batch_size)


RECIPES = {"robust": _robust, "faithful": _faithful, "noise": _noise}
