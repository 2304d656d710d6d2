"""The fast gradient sign method: one steepest step.

Goodfellow et al. 2015, "Explaining and Harnessing Adversarial Examples", arXiv:1412.6572, section 4.
"""

from __future__ import annotations

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import Ball
from ..parameters import (
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
    RoundingBits,
    Seed,
    StepSize,
)
from ..settings import check_settings
from .attack_ball import resolve_attack_ball
from .gradient_attack import GradientAttackConfig, loss_attack_state, resolve_step_size, run_gradient_attack
from .result import Adversarial


@card(
    name="FGSM",
    aliases=("fast_gradient_sign_method",),
    source="Goodfellow et al. 2015, arXiv:1412.6572, section 4",
    shows="Whether one step along the gradient of the loss fools the model.",
    does_not_show="What many steps find: a model trained on single steps may be robust to those alone.",
    example=lambda method, box, x, y: method(box, x, y, eps=0.3),
    runs=lambda s: 2 * s["eot"],
    order=2,
    default_attack={},
    exempt={
        "one forward": "it runs the model again on its images: success is what the model predicts",
        "interrupt": "it is one step, and returns the start",
        "another seed": "it draws nothing without random_start",
        "row seeds": "it draws nothing without random_start",
    },
)
def fgsm(
    box: Box,
    x: InputBatch,
    y: Labels = None,
    *,
    eps: EpsOrOnePerPart = None,
    norm: Norm = "linf",
    ball: Ball = None,
    target: AttackTarget = None,
    objective: CustomAttackObjective = None,
    step: StepSize = None,
    random_start: RandomStart = False,
    early_stop: EarlyStop = True,
    eot: NModelNoiseDraws = 1,
    bits: RoundingBits = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """Adversarial images within `eps` of x by one step along the sign of the gradient.

    The fastest attack: two forward passes and one backward pass. It misses much that many steps find, so a model that
    it fails on may still not be robust: then use `pgd`.

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
        step: Length of a step, in the norm. None: eps, or 1.25 eps with random_start.
        random_start: Start at a random point of the ball instead of at x.
        early_stop: Stop examples as soon as they are good enough. That is, keep originals that are misclassified as
            they are. False: they take the step too.
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
        >>> ub.adversarial.fgsm(box, x, y, eps=0.3).distance.max() <= 0.3 * (1 + 1e-6)
        tensor(True)

    Source:
        Goodfellow et al. 2015, arXiv:1412.6572, section 4: x + eps sign(gradient). With random_start: Wong et al. 2020,
        arXiv:2001.03994, algorithm 3.
    """
    check_settings(fgsm, locals())
    norm_ball = resolve_attack_ball(box, eps, norm, ball)
    step = resolve_step_size(step, (1.25 if random_start else 1.0) * norm_ball.eps, 1)
    config = GradientAttackConfig(norm_ball, 1, step, random_start, early_stop=early_stop, seed=seed)
    state = loss_attack_state(
        box, x, y, norm=norm_ball, target=target, objective=objective, eot=eot, batch_size=batch_size
    )
    return run_gradient_attack(state, config, bits)
