"""Projected gradient descent: steepest steps inside a ball, from a random point of it.

Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks", arXiv:1706.06083, section 2.1.
"""

from __future__ import annotations

from typing import Annotated, Literal

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import Ball
from ..parameters import (
    AttackSteps,
    AttackTarget,
    BatchSize,
    CustomAttackObjective,
    EarlyStop,
    EpsOrOnePerPart,
    InputBatch,
    Labels,
    NModelNoiseDraws,
    Norm,
    RandomStart,
    Restarts,
    RoundingBits,
    Seed,
    StepSize,
)
from ..settings import check_settings
from .attack_ball import resolve_attack_ball
from .gradient_attack import GradientAttackConfig, loss_attack_state, resolve_step_size, run_gradient_attack
from .result import Adversarial


@card(
    name="PGD",
    aliases=("projected_gradient_descent",),
    source="Madry et al. 2018, arXiv:1706.06083, section 2.1",
    shows="An input within eps of this one that the model misclassifies.",
    does_not_show="That there is none where it fails: stronger attacks may find one.",
    example=lambda method, box, x, y: method(box, x, y, eps=0.3, steps=3),
    runs=lambda s: s["eot"] * (1 + s["restarts"] * (s["steps"] + 1)),
    order=1,
    default_attack={},
)
def pgd(
    box: Box,
    x: InputBatch,
    y: Labels = None,
    *,
    eps: EpsOrOnePerPart = None,
    norm: Norm = "linf",
    ball: Ball = None,
    target: AttackTarget = None,
    objective: CustomAttackObjective = None,
    loss: Annotated[Literal["ce", "margin", "dlr"], "Loss that is maximized."] = "ce",
    steps: AttackSteps = 40,
    step: StepSize = None,
    random_start: RandomStart = True,
    restarts: Restarts = 1,
    early_stop: EarlyStop = True,
    eot: NModelNoiseDraws = 1,
    bits: RoundingBits = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """Adversarial images within `eps` of x: projected gradient descent from a random start.

    The standard white-box attack, and the one to start with. For a robust accuracy to publish prefer `auto_attack`; for
    the smallest change that fools the model, `fab` or `deepfool`; for a model without gradients, `square`.

    Args:
        box: The model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        y: Correct classes (N,), or one for all. None takes those that come with x, as in a Dataset; without any, give
            `target` or `objective`. Of other outputs, what they should be: numbers of a regression (None: what the
            model gives), a 0 or 1 for each of several labels (N, K), a class for each position of a label map.
        eps: Largest distance from x. In pixel range, 8/255 is eight gray levels; of a table, in standard deviations of
            its columns (see `Features`). Give this or `ball`.
            Of several inputs, {"image": 8 / 255} or a tuple in their order gives one for each part, and the others
            are not changed; `distance` and `step` are then shares of it.
        norm: Norm in which the distance from x is measured.
        ball: Norm ball to stay in, in place of eps and norm.
        target: Class to become (N,), or one for all. None: any class but y.
        objective: What is raised above zero, instead of a wrong class. Not together with `target`.
        loss: Loss that is maximized. "ce" is the cross-entropy; "margin" the largest other logit minus that of y; "dlr"
            the margin over the spread of the logits.
        steps: Number of iterations.
        step: Length of a step, in the norm. None: 2.5 eps / steps, so that all steps together can cross the ball.
        random_start: Start at a random point of the ball instead of at x.
        restarts: Number of runs, each from another random start. Needs random_start. Only examples that are not fooled
            yet are run again.
        early_stop: Stop examples as soon as they are good enough. That is, once fooled. False: all take every step and
            keep the last image that fools, of several runs the one of the highest loss.
        eot: Draws of the model's own noise that gradients are averaged over. Used only where the model draws random
            numbers when it runs.
        bits: Bits per value to which images are rounded: 8 gives the levels of PNG files. Rounding would undo many
            attacks, so a search among the rounded images follows; `success` is then that of the rounded image.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        An `Adversarial`: `images` like x, and `success`, `distance`, `queries` and `initially_misclassified`, each
        (N,). Where the attack fails, `images` has its best try.
        Outputs that are not one class per example have no threshold: the loss is raised as far as it goes, by all
        steps, and there are `output_before`, `output_after`, `output_change` (N, K, ...), `loss_before` and
        `loss_after` (N,): of a regression the root mean square error, in the output's unit, else the cross-entropy.
        A single number is led to both sides of the right one, by as many steps each, and the farther is kept.

    Raises:
        InputError: for settings out of their range, or without y, target and objective.
        OutputError: for a model without a gradient, or a `target` of one without classes.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(4)
        >>> ub.adversarial.pgd(box, x, y, eps=0.3, steps=10).success.tolist()
        [True, True, True, True]

    Source:
        Madry et al. 2018, arXiv:1706.06083, section 2.1: x <- project(x + step * direction(gradient)), which is
        `engine.optimize.constraints.Constraint.step`. Steps in L2 go along the normalized gradient, in L1 along the
        signs of the largest 1 % of its values (Tramer & Boneh 2019, arXiv:1904.13000). Unlike the paper, an example
        stops once it is fooled, unless early_stop=False.
    """
    check_settings(pgd, locals())
    norm_ball = resolve_attack_ball(box, eps, norm, ball)
    step = resolve_step_size(step, 2.5 * norm_ball.eps, steps)
    config = GradientAttackConfig(norm_ball, steps, step, random_start, restarts, early_stop, seed=seed)
    state = loss_attack_state(
        box, x, y, norm=norm_ball, target=target, objective=objective, loss_name=loss, eot=eot, batch_size=batch_size
    )
    return run_gradient_attack(state, config, bits)
