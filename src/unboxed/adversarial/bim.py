"""The basic iterative method: FGSM in small steps, from the image itself.

Kurakin et al. 2017, "Adversarial examples in the physical world", arXiv:1607.02533, section 2.2 (targeted: 2.3).
"""

from __future__ import annotations

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
    RoundingBits,
    Seed,
    StepSize,
)
from ..settings import check_settings
from .attack_ball import resolve_attack_ball
from .gradient_attack import GradientAttackConfig, loss_attack_state, resolve_step_size, run_gradient_attack
from .result import Adversarial


@card(
    name="BIM",
    aliases=("basic_iterative_method", "i_fgsm"),
    source="Kurakin et al. 2017, arXiv:1607.02533, section 2.2",
    shows="An input within eps of this one, reached in small steps from it, that the model misclassifies.",
    does_not_show="That there is none where it fails: it starts at one point alone.",
    example=lambda method, box, x, y: method(box, x, y, eps=0.3, steps=3),
    runs=lambda s: s["eot"] * (s["steps"] + 1),
    order=10,
    exempt={"another seed": "it draws nothing", "row seeds": "it draws nothing"},
)
def bim(
    box: Box,
    x: InputBatch,
    y: Labels = None,
    *,
    eps: EpsOrOnePerPart = None,
    norm: Norm = "linf",
    ball: Ball = None,
    target: AttackTarget = None,
    objective: CustomAttackObjective = None,
    steps: AttackSteps = 10,
    step: StepSize = None,
    early_stop: EarlyStop = True,
    eot: NModelNoiseDraws = 1,
    bits: RoundingBits = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """Adversarial images within `eps` of x: FGSM in small steps, from x itself.

    Deterministic, where `pgd` starts at random. It takes a single start, so `pgd` with restarts finds more.

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
        steps: Number of iterations.
        step: Length of a step, in the norm. None: 1.25 eps / steps.
        early_stop: Stop examples as soon as they are good enough. That is, once fooled. False: all take every step and
            keep the last image that fools.
        eot: Draws of the model's own noise that gradients are averaged over. Used only where the model draws random
            numbers when it runs.
        bits: Bits per value to which images are rounded: 8 gives the levels of PNG files. Rounding would undo many
            attacks, so a search among the rounded images follows; `success` is then that of the rounded image.
        seed: Seed of all random draws: same seed, same result. Nothing is drawn here, so it changes nothing.
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
        >>> ub.adversarial.bim(box, x, y, eps=0.3).success.tolist()
        [True, True, True, True]

    Source:
        Kurakin et al. 2017, arXiv:1607.02533, section 2.2 (targeted: 2.3). The paper takes 1.25 eps steps of one gray
        level; here the number of steps is given, and their total length is 1.25 eps.
    """
    check_settings(bim, locals())
    norm_ball = resolve_attack_ball(box, eps, norm, ball)
    step = resolve_step_size(step, 1.25 * norm_ball.eps, steps)
    config = GradientAttackConfig(norm_ball, steps, step, early_stop=early_stop, seed=seed)
    state = loss_attack_state(
        box, x, y, norm=norm_ball, target=target, objective=objective, eot=eot, batch_size=batch_size
    )
    return run_gradient_attack(state, config, bits)
