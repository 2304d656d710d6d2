"""Projected gradient descent: steepest steps inside a ball, from a random point of it.

Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks", arXiv:1706.06083, section 2.1.
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
    name="PGD",
    source="Madry et al. 2018, arXiv:1706.06083, section 2.1",
    shows="An input within eps of this one that the model takes for something else.",
    does_not_show="That there is none where it fails: stronger attacks may find one.",
    example=lambda method, box, x, y: method(box, x, y, eps=0.3, steps=3),
)
def pgd(
    box: Box,
    x: Tensor,
    y: Tensor | int | None = None,
    *,
    eps: float | None = None,
    norm: str = "linf",
    ball: NormBall | None = None,
    target: Tensor | int | None = None,
    objective: Objective | None = None,
    loss: str = "ce",
    steps: int = 40,
    step: float | None = None,
    random_start: bool = True,
    restarts: int = 1,
    early_stop: bool = True,
    eot: int = 1,
    bits: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """Images within `eps` of x (in pixel range; `norm` "linf", "l2" or "l1", or `ball=`) that the model takes for
    others.

    `target` is the class to become, instead of just leaving y; `objective=` is raised above zero instead. `loss` "ce",
    "margin" or "dlr" is what is climbed; `step` is 2.5 eps / steps by default. Examples that fool the model stop, and
    `restarts` try the others again. `early_stop=False`: all take every step, and are what the last one gives (where that
    doesn't fool the model, the last image that did), over restarts the one of the highest loss. `eot`: how many draws
    of its own noise a model that has some is averaged over. Raises InputError and OutputError.
    """
    norm_ball = attack_ball(box, eps, norm, ball)
    step = resolve_step_size(step, 2.5 * norm_ball.eps, steps)
    config = GradientAttackConfig(norm_ball, steps, step, random_start, restarts, early_stop, seed=seed)
    state = AttackState(
        box,
        x,
        y,
        norm=norm_ball,
        target=target,
        objective=objective,
        loss_name=loss,
        n_samples=n_eot_samples(box, eot),
        batch_size=batch_size,
    )
    return run_gradient_attack(state, config, bits)
