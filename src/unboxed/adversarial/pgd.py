"""Projected gradient descent: steepest steps inside a ball, from a random point of it.

Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks", arXiv:1706.06083, section 2.1.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.optim import SGD

from ..arguments import number, whole
from ..box import Box
from ..cards import card
from ..engine.ascent import Ascent, Climb, ascend
from ..engine.balls import Ball, Linf, ball_of, within
from ..engine.canvases import Raw
from ..errors import InputError, OutputError
from ..inputs import Pixels
from ..net.batching import BatchSize
from ..objectives import Objective, loss, margin
from .result import Adversarial


@card(
    name="PGD",
    source="Madry et al. 2018, arXiv:1706.06083, section 2.1",
    tells="An image within eps of this one that the net takes for something else.",
    not_tells="That there is none where it fails: stronger attacks may find one.",
    example=lambda method, box, x, y: method(box, x, y, eps=0.3, steps=3),
)
def pgd(
    box: Box,
    x: Tensor,
    y: Tensor | int | None = None,
    *,
    eps: float | None = None,
    norm: str = "linf",
    ball: Ball | None = None,
    target: Tensor | int | None = None,
    objective: Objective | None = None,
    steps: int = 40,
    step: float | None = None,
    random_start: bool = True,
    keep_going: bool = False,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """Images within `eps` of x (in pixel range; `norm` "linf" or "l2", or `ball=`) that the net does not take for y.

    `target` is the class to become, instead of just leaving y; `objective=` climbs anything else. `step` is 2.5 eps /
    steps by default. Examples that are fooled stop (`keep_going=True`: they go on and get stronger). Raises InputError.
    """
    ball, x, steps = ball_of(eps, norm, ball), box.accept(x), whole("steps", steps)
    _check_units(box, ball)
    step = 2.5 * ball.eps / max(steps, 1) if step is None else number("step", step, above=0)
    whole("seed", seed, least=-(2**62))
    goal, fooled = _goal(box, len(x), y, target, objective)
    start = box.inputs.clip(ball.sample(x, seed)) if random_start else x
    plan = Ascent(
        steps=steps,
        optimizer=partial(SGD, lr=step),
        constraint=within(ball, x, box.inputs.clip),
        until=fooled,
        keep_going=keep_going,
        unclamp="no",
        seed=seed,
    )
    climb = ascend(box, goal, Raw(start), plan, batch_size=batch_size)
    success = climb.done if fooled is not None else _rose(climb)
    return Adversarial(
        climb.input,
        success,
        climb.steps + 1,
        ball.distance(climb.input, x),
        climb.done & False,
        norm,
        climb.interrupted,
    )


def _check_units(box: Box, ball: Ball) -> None:
    if isinstance(box.inputs, Pixels) and isinstance(ball, Linf) and ball.eps > 1:
        raise InputError(f"images lie in [0, 1]: for {ball.eps:g} gray levels give eps={ball.eps:g}/255")


def _goal(
    box: Box, n: int, y: Tensor | int | None, target: Tensor | int | None, objective: Objective | None
) -> tuple[Objective, Objective | None]:
    """What to climb, and what is above zero once the net is fooled."""
    if objective is not None:
        return objective, None
    box.one_class_each("an attack on classes")
    if box.outputs == "multilabel":
        raise OutputError(f"the box's outputs are {box.outputs}, not one class an example: give the attack objective=")
    if target is not None:
        become = box.labels(target, n)
        return -loss(become), -margin(become)
    if y is None:
        raise InputError("an untargeted attack needs the true classes y, (N,) ints")
    right = box.labels(y, n)
    return loss(right), margin(right)


def _rose(climb: Climb) -> Tensor:
    return climb.score > climb.history[0] if len(climb.history) > 1 else torch.zeros_like(climb.done)
