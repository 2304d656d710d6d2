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
from ..engine.optimize.ascent import OptimizationConfig, optimize, retry_on_interrupt
from ..engine.optimize.constraints import Constraint
from ..engine.optimize.parameterizations import RawCanvas
from ..engine.read.sizes import require_images
from ..errors import InputError
from ..model.batching import BatchSize
from ..objectives import Objective, as_classes, logit, logprob
from ..rng import uniform
from ..validation import check_seed, check_float, check_int
from .evolution import ENCODINGS, evolve

WAYS = ("gradient", *ENCODINGS)
STEPS = {"gradient": 256, "evolution": 200, "cppn": 200}
PACE = 0.02  # of the range, a step of Adam


@dataclass(frozen=True, eq=False)
class Fooling:
    images: Tensor  # (K, C, H, W)
    targets: Tensor  # (K,)
    confidence: Tensor  # (K,) the model's probability of the target
    history: Tensor  # (T, K) the same after each step or generation; the start's first
    evaluated: int  # how many images the model has seen
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
    how: str = "gradient",
    confidence: float = 0.9999,
    steps: int | None = None,
    sample: int = 100,
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
    if not isinstance(how, str) or how not in WAYS:
        raise InputError(f"how is one of {', '.join(WAYS)}; got {how!r}")
    goal, most = _goal(box, target), check_int("steps", STEPS[how] if steps is None else steps)
    sure = check_float("confidence", confidence, above=0, below=1)
    seed = check_seed(seed)
    check_int("sample", sample, minimum=1)
    with torch.inference_mode(False):
        if how == "gradient":
            return _climbed(box, goal, sure, most, seed, batch_size)
        made = evolve(box, goal, ENCODINGS[how], sure, most, sample, seed, batch_size)
    return Fooling(made.images, goal, made.fitness.exp(), made.history.exp(), made.evaluated, made.interrupted)


def _goal(box: Box, target: int | Sequence[int] | Tensor | None) -> Tensor:
    if target is None:
        return torch.arange(box.n_outputs, device=box.device)
    wanted = as_classes(target)
    goal = box.class_labels(wanted, wanted.numel() if wanted.ndim else 1)
    if len(goal) == 0:
        raise InputError("no class to fool the model with: target is empty")
    return goal


def _climbed(box: Box, goal: Tensor, sure: float, steps: int, seed: int, batch_size: BatchSize) -> Fooling:
    score, enough = _wanted(box, goal, sure)
    start = uniform(torch.zeros(len(goal), *box.inputs.shape, device=box.device, dtype=box.dtype), seed)
    plan = OptimizationConfig(
        steps=steps,
        optimizer=partial(Adam, lr=PACE),
        constraint=Constraint(project=lambda x, centre: box.inputs.clip(x)),
        stop_when=enough,
        relu_bypass="all",
        seed=seed,
    )
    climb = optimize(box, score, RawCanvas(start), plan, batch_size=batch_size)
    (probs, stopped) = retry_on_interrupt(lambda: box.probs(climb.input, batch_size=batch_size))
    history = climb.history.sigmoid() if box.outputs == "multilabel" else climb.history.exp()
    evaluated = int(climb.steps.sum()) + len(goal)
    own = probs.gather(1, goal[:, None])[:, 0]
    made = Fooling(climb.input, goal, own, history, evaluated, climb.interrupted)
    return replace(made, interrupted=climb.interrupted or stopped)


def _wanted(box: Box, goal: Tensor, sure: float) -> tuple[Objective, Objective]:
    """What to climb, and what is above zero where the model is sure."""
    if box.outputs == "multilabel":
        return logit(goal), logit(goal) - math.log(sure / (1 - sure))
    return logprob(goal), logprob(goal) - math.log(sure)
