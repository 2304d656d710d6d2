"""Morph: change an input, step by step along the gradient, until the model says another class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.optim import SGD
from torch.utils._pytree import tree_map

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import L2, ball_constraint
from ..engine.optimize.loop import OptimizationConfig, optimize, retry_on_interrupt
from ..engine.optimize.parameterizations import RawCanvas
from ..model.batching import BatchSize
from ..objectives import Objective, logit, logprob
from ..validation import check_float


@dataclass(frozen=True, eq=False)
class Morph:
    input: Tensor  # (N, ...)
    target: Tensor  # (N,)
    frames: Tensor  # (T, N, ...): the input first, the result last; a row that is done stays as it is
    probs: Tensor  # (T, N, K) the model's probabilities for each frame
    initial_gradient: Tensor  # (N, ...) of the target's logit at the input
    confidence_reached: Tensor  # (N,) bool: the confidence was reached
    steps: Tensor  # (N,) taken
    before_clamp: Tensor  # (N,) bool: some gradient was taken before a final ReLU that clamps the logit at zero
    interrupted: bool

    @property
    def result(self) -> Tensor:  # (N, ...)
        last: Tensor = tree_map(lambda frames: frames[-1], self.frames)
        return last


@card(
    name="Morph",
    source="Simonyan et al. 2014, arXiv:1312.6034, section 2, from an image and by normalized steps",
    shows="Which changes, and how many, make the model say the other class.",
    does_not_show="What would convince a person: an easily fooled model morphs without looking like the other class.",
    example=lambda method, box, x, y: method(box, x, (y + 1) % len(box.classes), steps=3),
)
def morph(
    box: Box,
    x: Tensor,
    target: int | Tensor,
    *,
    confidence: float = 0.9,
    step: float | None = None,
    steps: int = 200,
    frame_every: int = 1,
    batch_size: BatchSize = "auto",
) -> Morph:
    """Repeat x <- clip(x + step * g / |g|), g = d logit[target] / d x, until the target's probability is `confidence`.

    `step` is a Euclidean length in pixel range (by default .01 of the diagonal of [0, 1]^D). Where the gradient is
    exactly zero nothing moves (0 / 0 is never taken). Raises InputError, and OutputError for a regression model.
    """
    box.require_class_scores("a morph")
    confidence = check_float("confidence", confidence, above=0, below=1)
    x = box.validate_inputs(x)
    target_classes = box.class_labels(target, len(x))
    step = 0.01 * math.sqrt(x[0].numel()) if step is None else check_float("step", step, above=0)
    config = OptimizationConfig(
        steps=steps,
        optimizer=partial(SGD, lr=step),
        constraint=ball_constraint(L2(math.inf), x, box.inputs.clip),
        stop_when=_confidence_margin(box, target_classes, confidence),
        frame_every=frame_every,
    )
    result = optimize(box, logit(target_classes), RawCanvas(x), config, batch_size=batch_size)
    frames = result.frames if result.frames is not None else x[None]
    probs, was_interrupted = retry_on_interrupt(lambda: box.probs(frames.flatten(0, 1), batch_size=batch_size))
    probs = probs.view(*frames.shape[:2], -1)
    interrupted = result.interrupted or was_interrupted
    structured = (
        box.restore_structure(x),
        target_classes,
        box.restore_structure(frames),
        probs,
        box.restore_structure(result.initial_grad),
    )
    return Morph(*structured, result.finished, result.steps, result.before_clamp, interrupted)


def _confidence_margin(box: Box, target_classes: Tensor, confidence: float) -> Objective:
    """Above zero once the target's probability exceeds the confidence."""
    if box.outputs == "multilabel":
        return logit(target_classes) - math.log(confidence / (1 - confidence))
    return logprob(target_classes) - math.log(confidence)
