"""Fooling images: noise to people, and yet the model is sure of what it sees.

Nguyen et al. 2015, "Deep Neural Networks are Easily Fooled", arXiv:1412.1897.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.optim import Adam

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import Constraint
from ..engine.optimize.loop import OptimizationConfig, optimize, retry_on_interrupt
from ..engine.optimize.parameterizations import RawCanvas
from ..engine.read.sizes import require_images
from ..errors import InputError
from ..model.batching import BatchSize
from ..objectives import Objective, as_classes, logit, logprob
from ..rng import uniform
from ..validation import check_float, check_int, check_seed
from .evolution import ENCODINGS, evolve

ALGORITHMS = ("gradient", *ENCODINGS)
DEFAULT_STEPS = {"gradient": 256, "evolution": 200, "cppn": 200}
ADAM_LR = 0.02  # of the range, a step of Adam


@dataclass(frozen=True, eq=False)
class Fooling:
    images: Tensor  # (K, C, H, W)
    targets: Tensor  # (K,)
    confidence: Tensor  # (K,) the model's probability of the target
    confidence_history: Tensor  # (T, K) the same after each step or generation; the start's first
    n_evaluated: int  # how many images the model has seen
    interrupted: bool


@card(
    name="Fooling images",
    source="Nguyen et al. 2015, arXiv:1412.1897, sections 2.2 and 3 (MAP-Elites) and gradient ascent; the CPPN's "
    "topology is fixed, where the paper grows it",
    shows="That the model is sure of images that show nothing: its confidence is no sign that it knows.",
    does_not_show="What the class looks like, to the model or to us: class images and features are for that.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, steps=3),
)
def fooling(
    box: Box,
    target: int | Sequence[int] | Tensor | None = None,
    *,
    algorithm: str = "gradient",
    confidence: float = 0.9999,
    steps: int | None = None,
    n_children: int = 100,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Fooling:
    """Images of nothing that the model takes for each target class (None: every class) as surely as `confidence`.

    `how`: "gradient" climbs from uniform noise; "evolution" (pixels, one by one) and "cppn" (patterns that a small
    model draws) breed `sample` children a generation in one archive of all the classes, and need no gradient. An image
    that is sure enough is left; the others go on for `steps`. No data are used. Raises InputError, OutputError.
    """
    require_images(box, "a fooling image")
    box.require_class_scores("a fooling image")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise InputError(f"how is one of {', '.join(ALGORITHMS)}; got {algorithm!r}")
    targets, max_steps = (
        _target_classes(box, target),
        check_int("steps", DEFAULT_STEPS[algorithm] if steps is None else steps),
    )
    min_confidence = check_float("confidence", confidence, above=0, below=1)
    seed = check_seed(seed)
    check_int("n_children", n_children, minimum=1)
    with torch.inference_mode(False):
        if algorithm == "gradient":
            return _optimize_images(box, targets, min_confidence, max_steps, seed, batch_size)
        evolved = evolve(box, targets, ENCODINGS[algorithm], min_confidence, max_steps, n_children, seed, batch_size)
    return Fooling(
        evolved.images, targets, evolved.fitness.exp(), evolved.history.exp(), evolved.n_evaluated, evolved.interrupted
    )


def _target_classes(box: Box, target: int | Sequence[int] | Tensor | None) -> Tensor:
    if target is None:
        return torch.arange(box.n_outputs, device=box.device)
    requested = as_classes(target)
    targets = box.class_labels(requested, requested.numel() if requested.ndim else 1)
    if len(targets) == 0:
        raise InputError("no class to fool the model with: target is empty")
    return targets


def _optimize_images(
    box: Box, targets: Tensor, min_confidence: float, steps: int, seed: int, batch_size: BatchSize
) -> Fooling:
    score, stop_when = _score_and_stop(box, targets, min_confidence)
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


def _score_and_stop(box: Box, targets: Tensor, min_confidence: float) -> tuple[Objective, Objective]:
    """What to climb, and what is above zero where the model is sure."""
    if box.outputs == "multilabel":
        return logit(targets), logit(targets) - math.log(min_confidence / (1 - min_confidence))
    return logprob(targets), logprob(targets) - math.log(min_confidence)
