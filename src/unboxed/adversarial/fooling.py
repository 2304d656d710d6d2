"""Fooling images: meaningless to people, classified by the model with high confidence.

Nguyen et al. 2015, "Deep Neural Networks are Easily Fooled", arXiv:1412.1897.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Adam

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import Constraint
from ..engine.optimize.loop import OptimizationConfig, optimize, retry_on_interrupt
from ..engine.optimize.parameterizations import RawCanvas
from ..engine.read.class_labels import requested_classes
from ..engine.read.sizes import require_images
from ..engine.results import ResultMixin
from ..model.output_advice import FEATURE_CALL_TEMPLATE
from ..objectives import Objective, logit, logprob
from ..parameters import BatchSize, OptionalSteps, Seed, StopProbability, TargetClasses
from ..rng import uniform
from ..settings import AtLeast, Unit, check_settings
from ..validation import valid_seed
from .evolution import ENCODING_BY_ALGORITHM, evolve

DEFAULT_STEPS_BY_ALGORITHM = {"gradient": 256, "evolution": 200, "cppn": 200}
ADAM_LR = 0.02  # learning rate of Adam, in pixel range


@dataclass(frozen=True, repr=False, eq=False)
class Fooling(ResultMixin):
    """Images without meaning that a model is sure of."""

    returns: ClassVar[str] = "images"

    images: Tensor  # (K, C, H, W)
    targets: Tensor  # (K,)
    confidence: Tensor  # (K,) the model's probability of the target
    confidence_history: Tensor  # (T, K) the same after each step or generation, the start first
    n_evaluated: int  # images that the model was run on
    interrupted: bool  # by Ctrl-C


@card(
    name="Fooling images",
    source="Nguyen et al. 2015, arXiv:1412.1897, sections 2.2 and 3 (MAP-Elites) and gradient ascent; the CPPN's "
    "topology is fixed, where the paper grows it",
    shows="That the model is confident of images that show nothing: its confidence is no sign of knowledge.",
    does_not_show="What the class looks like, to the model or to people: class images are for that.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, steps=3),
    runs=lambda s: 256 if s["steps"] is None else s["steps"] + 1,
    order=42,
)
def fooling(
    box: Box,
    target: TargetClasses = None,
    *,
    algorithm: Annotated[Literal["gradient", "evolution", "cppn"], "How images are found."] = "gradient",
    confidence: StopProbability = 0.9999,
    steps: OptionalSteps = None,
    n_children: Annotated[int, AtLeast(1), Unit("images"), "Images per generation of an evolution."] = 100,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Fooling:
    """Images that show nothing, and that the model classifies as each target class with high confidence.

    To show that a high confidence is no sign of knowledge. No data are used. For what a class looks like to the model
    use `class_image`.

    Args:
        box: The model.
        target: Classes (K,) to make an image for. None: every class.
        algorithm: How images are found. "gradient": gradient ascent from uniform noise; "evolution": pixels that mutate
            one by one; "cppn": patterns of a small network that mutates. The latter two need no gradient.
        confidence: Probability of the target at which an image is done.
        steps: Number of iterations. Of evolution: generations. None: 256 for gradient ascent, 200 for evolution.
        n_children: Images per generation of an evolution.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `Fooling`: `images` (K, C, H, W) in [0, 1], their `targets` (K,) and `confidence` (K,).

    Raises:
        InputError: for settings out of their range, an unknown class, or a box of other inputs than images.
        NaNError: where the model gives NaN for an image that is tried.
        OutputError: for a model without classes.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> ub.adversarial.fooling(box, [3, 8], steps=100).images.shape
        torch.Size([2, 1, 28, 28])

    Source:
        Nguyen et al. 2015, arXiv:1412.1897, section 2.2 (MAP-Elites, with a direct encoding or a CPPN) and section 3
        (gradient ascent). The CPPN has a fixed topology, where the paper grows it.
    """
    check_settings(fooling, locals())
    require_images(box, "a fooling image")
    box.require_class_scores("a fooling image", objective_call=FEATURE_CALL_TEMPLATE)
    targets, max_steps = (
        requested_classes(box, target),
        DEFAULT_STEPS_BY_ALGORITHM[algorithm] if steps is None else steps,
    )
    seed = valid_seed(seed)
    with torch.inference_mode(False):
        if algorithm == "gradient":
            return _optimize_images(box, targets, confidence, max_steps, seed, batch_size)
        evolved = evolve(
            box, targets, ENCODING_BY_ALGORITHM[algorithm], confidence, max_steps, n_children, seed, batch_size
        )
    return Fooling(
        evolved.images, targets, evolved.fitness.exp(), evolved.history.exp(), evolved.n_evaluated, evolved.interrupted
    )


def _optimize_images(
    box: Box, targets: Tensor, min_confidence: float, steps: int, seed: int, batch_size: BatchSize
) -> Fooling:
    score, stop_when = _maximized_and_stop_objectives(box, targets, min_confidence)
    start = uniform(torch.zeros(len(targets), *box.inputs.shape, device=box.device, dtype=box.dtype), seed)
    config = OptimizationConfig(
        steps=steps,
        optimizer=partial(Adam, lr=ADAM_LR),
        constraint=Constraint(project=lambda x, center: box.inputs.clip(x)),
        stop_when=stop_when,
        relu_bypass="all",
        seed=seed,
    )
    result = optimize(box, score, RawCanvas(start), config, batch_size=batch_size)
    (probs, was_interrupted) = retry_on_interrupt(lambda: box.probs(result.input, batch_size=batch_size))
    history = result.history.sigmoid() if box.outputs == "multilabel" else result.history.exp()
    n_evaluated = int(result.steps.sum()) + len(targets)
    target_probs = probs.gather(1, targets[:, None])[:, 0]
    fooling_result = Fooling(result.input, targets, target_probs, history, n_evaluated, result.interrupted)
    return replace(fooling_result, interrupted=result.interrupted or was_interrupted)


def _maximized_and_stop_objectives(box: Box, targets: Tensor, min_confidence: float) -> tuple[Objective, Objective]:
    """What is maximized, and what is above zero where min_confidence is reached."""
    if box.outputs == "multilabel":
        return logit(targets), logit(targets) - math.log(min_confidence / (1 - min_confidence))
    return logprob(targets), logprob(targets) - math.log(min_confidence)
