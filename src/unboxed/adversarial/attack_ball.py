"""The ball that an attack searches, from its settings."""

from __future__ import annotations

import torch

from ..box import Box
from ..engine.optimize.constraints import L1, L2, Linf, NormBall, resolve_ball
from ..errors import InputError
from ..inputs.pixels import Pixels


def resolve_attack_ball(
    box: Box, eps: float | None, norm: str, ball: NormBall | None, *, takes_l1: bool = True, takes_own: bool = True
) -> NormBall:
    """The ball of `eps` and `norm`, or the given one. Raises InputError for one that the attack does not take.

    `takes_own`: balls of the caller's own, of which an attack knows no more than what `NormBall` has.
    """
    resolved = resolve_ball(eps, norm, ball)
    takes_it = takes_l1 if isinstance(resolved, L1) else takes_own or isinstance(resolved, (Linf, L2))
    if not takes_it:
        kind = type(resolved).__name__
        raise InputError(f'this attack takes norm="linf" or "l2", or such a ball; got {kind}. pgd takes every ball')
    return check_eps_within_data_range(box, resolved)


def check_eps_within_data_range(box: Box, ball: NormBall) -> NormBall:
    """The ball. Raises InputError where eps is larger than any two images are apart."""
    if not isinstance(box.inputs, Pixels):
        return ball
    max_distance = float(ball.distance(torch.ones(1, *box.inputs.shape), torch.zeros(1, *box.inputs.shape)))
    if ball.eps > max_distance * (1 + 1e-6):
        is_in_gray_levels = isinstance(ball, Linf) and ball.eps <= 255
        hint = f": for {ball.eps:g} gray levels give eps={ball.eps:g}/255" if is_in_gray_levels else ""
        raise InputError(
            f"images lie in [0, 1], so none are more than {max_distance:g} apart; got eps={ball.eps:g}{hint}"
        )
    return ball
