"""Morph: change an input by gradient steps until the model predicts another class."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal

from torch import Tensor
from torch.optim import SGD

from ..box import Box
from ..cards import card
from ..engine.column_units import (
    categorical_mask,
    gradient_to_original_units,
    inputs_to_original_units,
    table_inputs,
    to_scaled_box_and_inputs,
)
from ..engine.optimize.constraints import L2, Constraint, ball_constraint
from ..engine.optimize.loop import OptimizationConfig, optimize, retry_on_interrupt
from ..engine.optimize.parameterizations import RawCanvas
from ..inputs.base import Inputs
from ..inputs.labels import ClassLabels
from ..model.output_advice import MINIMAL_ATTACK_CALL_TEMPLATE
from ..objectives import Objective, log_odds, logit, logprob
from ..parameters import BatchSize, InputBatch, Steps, StepSize, StopProbability
from ..settings import AtLeast, Unit, ValueRole, check_settings
from .generated import GeneratedImages

DEFAULT_STEP_FRACTION_OF_DIAGONAL = 0.01  # of the diagonal of [0, 1]^D: the default length of a step


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Morph(GeneratedImages):
    """Inputs that were changed until the model predicts another class. `names` are the names of the target classes.

    `frames` begin with the input and end with the result; an example that is done stays as it is.
    """

    images: Any  # (N, ...) the changed inputs; of several inputs a dict or tuple, as x was given
    frames: Any  # (T, N, ...)
    input: Any  # (N, ...)
    targets: Tensor  # (N,) classes
    probs: Tensor  # (T, N, K) the model's probabilities of each frame
    initial_gradient: Any  # (N, ...) of the target's score at the input
    confidence_reached: Tensor  # (N,) bool
    steps: Tensor  # (N,) steps taken
    classes: tuple[str, ...]  # the names of the model's classes
    input_spec: Inputs | None = field(default=None, repr=False, metadata={"in_summary": False})  # of inputs with tables


@card(
    name="Morph",
    aliases=("counterfactual",),
    source="Simonyan et al. 2014, arXiv:1312.6034, section 2, from an image and by normalized steps",
    shows="Which changes, and how many, make the model predict the other class.",
    does_not_show="What would convince a person: an easily fooled model morphs without looking like the other class.",
    example=lambda method, box, x, y: method(box, x, (y + 1) % len(box.classes), steps=3),
    runs=lambda s: 2 * (s["steps"] + 1),
    order=10,
)
def morph(
    box: Box,
    x: InputBatch,
    target: Annotated[ClassLabels, ValueRole("labels"), "Class to become (N,), or one for all."],
    *,
    score: Annotated[Literal["logit", "log-odds"], "What steps raise: the target's logit, or its log-odds."] = "logit",
    confidence: StopProbability = 0.9,
    step: StepSize = None,
    steps: Steps = 200,
    frame_every: Annotated[int, AtLeast(1), Unit("steps"), "Keep every k-th step's images as frames."] = 1,
    batch_size: BatchSize = "auto",
) -> Morph:
    """Inputs changed step by step along the gradient, until the model predicts the target with the given confidence.

    A film of what separates two classes; of a row of a table, which columns would have to differ, and how far, within
    their bounds and with their categories as they are (`ub.plots.figures` shows them). An adversarial attack
    (`ub.adversarial.deepfool`, `fab`) finds a smaller change; `class_image` starts from nothing.

    Args:
        box: The opened model; its outputs must be class scores.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: Class to become (N,), or one for all.
        score: What steps raise: the target's logit, or its log-odds. The logit of another class may rise along with the
            target's, and remain above it; log-odds are those against all other classes.
        confidence: Probability of the target at which an image is done.
        step: Length of a step, in the norm. The norm is Euclidean; of a table, of changes in standard deviations of its
            columns (see `Features`). None: 0.01 of the diagonal of [0, 1]^D, of D values.
        steps: Number of iterations. At most: an example stops where the confidence is reached.
        frame_every: Keep every k-th step's images as frames. The first and the last are always kept.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `Morph`: `images` (N, ...), `frames` (T, N, ...), `probs` (T, N, K), `confidence_reached` (N,), `steps` (N,).

    Raises:
        InputError: for a class that the model does not have, inputs or settings out of their range.
        NaNError: where the score of an image that it makes is NaN.
        OutputError: for a regression model.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(1)
        >>> result = ub.synthesis.morph(box, x, 3, steps=40)
        >>> result.confidence_reached.tolist(), box.predict(result.images).tolist()
        ([True], [3])

    Source:
        Simonyan et al. 2014, arXiv:1312.6034, section 2, from an image instead of zero, without a penalty, and by steps
        of one length: x <- clip(x + step * g / |g|), g = d logit[target] / d x. Where g is exactly zero x stays.
        The log-odds are not theirs.
    """
    check_settings(morph, locals())
    box.require_class_scores("a morph", objective_call=MINIMAL_ATTACK_CALL_TEMPLATE)
    own_box, own_x = box, box.validate_inputs(x)
    targets = box.class_labels(target, len(own_x))
    box, x = to_scaled_box_and_inputs(own_box, own_x)  # the steps of a table are in standard deviations of its columns
    step = DEFAULT_STEP_FRACTION_OF_DIAGONAL * math.sqrt(x[0].numel()) if step is None else step
    config = OptimizationConfig(
        steps=steps,
        optimizer=partial(SGD, lr=step),
        constraint=_constraint_that_keeps_categories(ball_constraint(L2(math.inf), x, box.inputs.clip), own_box),
        stop_when=_confidence_margin_objective(box, targets, confidence),
        frame_every=frame_every,
    )

    def restore_in_original_units(u: Tensor) -> Any:
        return own_box.restore_structure(inputs_to_original_units(box, u, own_x))

    ascend = log_odds if score == "log-odds" and box.outputs != "multilabel" else logit  # those of labels are logits
    result = optimize(box, ascend(targets), RawCanvas(x), config, batch_size=batch_size)
    frames = x[None] if result.frames is None else result.frames
    probs, was_interrupted = retry_on_interrupt(lambda: box.probs(frames.flatten(0, 1), batch_size=batch_size))
    return Morph.from_result(
        result,
        images=restore_in_original_units(result.input),
        frames=restore_in_original_units(frames),
        input=restore_in_original_units(x),
        targets=targets,
        probs=probs.view(*frames.shape[:2], -1),
        initial_gradient=own_box.restore_structure(gradient_to_original_units(box, result.initial_grad)),
        confidence_reached=result.finished,
        steps=result.steps,
        interrupted=result.interrupted or was_interrupted,
        method="Morph",
        names=tuple(box.classes[k] for k in targets.tolist()),
        classes=box.classes,
        input_spec=table_inputs(own_box.inputs),
    )


def _constraint_that_keeps_categories(constraint: Constraint, box: Box) -> Constraint:
    """The same constraint, whose steps leave categorical columns alone."""
    mask = categorical_mask(box.inputs)
    if mask is None:
        return constraint
    is_fixed, direction = mask.to(box.device), constraint.step_direction
    return replace(constraint, step_direction=lambda grad: direction(grad.masked_fill(is_fixed, 0)))


def _confidence_margin_objective(box: Box, targets: Tensor, confidence: float) -> Objective:
    """Above zero once the target's probability exceeds the confidence."""
    if box.outputs == "multilabel":
        return logit(targets) - math.log(confidence / (1 - confidence))
    return logprob(targets) - math.log(confidence)
