"""The basic iterative method: FGSM in small steps, from the image itself.

Kurakin et al. 2017, "Adversarial examples in the physical world", arXiv:1607.02533, section 2.2 (targeted: 2.3).
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
    name="BIM",
    source="Kurakin et al. 2017, arXiv:1607.02533, section 2.2",
    shows="An input within eps of this one, reached in small steps from it, that the model takes for something else.",
    does_not_show="That there is none where it fails: it starts at one point alone.",
    example=lambda method, box, x, y: method(box, x, y, eps=0.3, steps=3),
    exempt={"another seed": "it draws nothing", "row seeds": "it draws nothing"},
)
def bim(
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
    early_stop: bool = True,
    eot: int = 1,
    bits: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """Steps up the cross-entropy, 1.25 eps long in all by default; arguments, result and errors as in `pgd`.

    1.25 is the paper's own: it takes 1.25 eps steps of one gray level. Nothing is drawn, so `seed` changes nothing.
    """
    norm_ball = attack_ball(box, eps, norm, ball)
    step = resolve_step_size(step, 1.25 * norm_ball.eps, steps)
    config = GradientAttackConfig(norm_ball, steps, step, early_stop=early_stop, seed=seed)
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
