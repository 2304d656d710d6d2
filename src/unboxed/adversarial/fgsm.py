"""The fast gradient sign method: one steepest step.

Goodfellow et al. 2015, "Explaining and Harnessing Adversarial Examples", arXiv:1412.6572, section 4.
"""

from __future__ import annotations

from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import NormBall
from ..model.batching import BatchSize
from ..objectives import Objective
from .attack_state import AttackState
from .gradient_attack import GradientAttackConfig, attack_ball, n_eot_samples, resolve_step_size, run_gradient_attack
from .result import Adversarial


@card(
    name="FGSM",
    source="Goodfellow et al. 2015, arXiv:1412.6572, section 4",
    shows="Whether one step along the slope of the loss fools the model.",
    does_not_show="What many steps find: a model trained on single steps may stand against these alone.",
    example=lambda method, box, x, y: method(box, x, y, eps=0.3),
    exempt={
        "one forward": "it looks again at what it made: success is the model's answer",
        "interrupt": "it is short work that keeps the start, as the climb of one step that it is",
        "another seed": "it draws nothing without random_start",
        "row seeds": "it draws nothing without random_start",
    },
)
def fgsm(
    box: Box,
    x: Tensor,
    y: Tensor | int | None = None,
    *,
    eps: float | None = None,
    norm: str = "linf",
    ball: NormBall | None = None,
    target: Tensor | int | None = None,
    objective: Objective | None = None,
    step: float | None = None,
    random_start: bool = False,
    early_stop: bool = True,
    eot: int = 1,
    bits: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """One step of length eps up the cross-entropy; arguments, result and errors as in `pgd`.

    `random_start` begins at a random point of the ball, with a step of 1.25 eps by default: Wong et al. 2020, "Fast is
    better than free: Revisiting adversarial training", arXiv:2001.03994, algorithm 3.
    """
    norm_ball = attack_ball(box, eps, norm, ball)
    step = resolve_step_size(step, (1.25 if random_start else 1.0) * norm_ball.eps, 1)
    config = GradientAttackConfig(norm_ball, 1, step, random_start, early_stop=early_stop, seed=seed)
    state = AttackState(
        box,
        x,
        y,
        norm=norm_ball,
        target=target,
        objective=objective,
        n_samples=n_eot_samples(box, eot),
        batch_size=batch_size,
    )
    return run_gradient_attack(state, config, bits)
