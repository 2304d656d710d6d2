"""The momentum iterative FGSM, whose images fool other models more often.

Dong et al. 2018, "Boosting Adversarial Attacks with Momentum", arXiv:1710.06081, algorithm 1.
"""

from __future__ import annotations

from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import NormBall
from ..model.batching import BatchSize
from ..objectives import Objective
from ..validation import check_float
from .attack_state import AttackState
from .gradient_attack import GradientAttackConfig, attack_ball, n_eot_samples, resolve_step_size, run_gradient_attack
from .result import Adversarial


@card(
    name="MI-FGSM",
    source="Dong et al. 2018, arXiv:1710.06081, algorithm 1",
    shows="An input within eps of this one that the model takes for something else, and other models often do too.",
    does_not_show="That there is none where it fails, nor that another model is fooled: ask it.",
    example=lambda method, box, x, y: method(box, x, y, eps=0.3, steps=3),
    exempt={"another seed": "it draws nothing", "row seeds": "it draws nothing"},
)
def mi_fgsm(
    box: Box,
    x: Tensor,
    y: Tensor | int | None = None,
    *,
    eps: float | None = None,
    norm: str = "linf",
    ball: NormBall | None = None,
    target: Tensor | int | None = None,
    objective: Objective | None = None,
    steps: int = 10,
    step: float | None = None,
    decay: float = 1.0,
    early_stop: bool = True,
    eot: int = 1,
    bits: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """Steps of eps / steps along the sum of all gradients so far, each divided by its L1 norm, older ones fading.

    `decay` (mu in the paper) is what is left of them after a step; for images that are to fool other models, give
    `early_stop=False`. Other arguments, result and errors as in `pgd`. Nothing is drawn, so `seed` changes nothing.
    """
    norm_ball = attack_ball(box, eps, norm, ball)
    decay = check_float("decay", decay, minimum=0)
    step = resolve_step_size(step, norm_ball.eps, steps)
    config = GradientAttackConfig(norm_ball, steps, step, early_stop=early_stop, momentum_decay=decay, seed=seed)
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
