"""The ball that an attack searches, from its settings."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..box import Box
from ..engine.optimize.constraints import L2, Linf, NormBall, changes_few_values, resolve_ball
from ..engine.optimize.part_balls import EpsOfParts, PartBalls, part_balls
from ..errors import InputError
from ..inputs.base import Inputs
from ..inputs.multi import MultiInput
from ..inputs.pixels import Pixels


def resolve_attack_ball(
    box: Box,
    eps: float | EpsOfParts | None,
    norm: str,
    ball: NormBall | None,
    *,
    takes_l1: bool = True,
    takes_own: bool = True,
) -> NormBall:
    """The ball of `eps` and `norm`, or the given one. Raises InputError for one that the attack does not take.

    `takes_own`: balls of the caller's own, of which an attack knows no more than what `NormBall` has.
    """
    resolved: NormBall
    if isinstance(eps, (Mapping, tuple, list)) and ball is None:
        resolved = part_balls(box.inputs, eps, norm)
    else:
        resolved = resolve_ball(eps, norm, ball)  # type: ignore[arg-type]
    takes_it = takes_l1 if changes_few_values(resolved) else takes_own or isinstance(resolved, (Linf, L2))
    if not takes_it:
        kind = "an eps for each part" if isinstance(resolved, PartBalls) else type(resolved).__name__
        raise InputError(f'this attack takes norm="linf" or "l2", or such a ball; got {kind}. pgd takes every ball')
    return check_eps_within_data_range(box, resolved)


def check_eps_within_data_range(box: Box, ball: NormBall) -> NormBall:
    """The ball. Raises InputError where eps is larger than any two images are apart."""
    if isinstance(ball, PartBalls) and isinstance(box.inputs, MultiInput):
        for (_, part), part_ball in zip(box.inputs.keys_and_parts(), ball.balls, strict=True):
            if part_ball is not None:
                _check_eps_within_range(part, part_ball)
    else:
        _check_eps_within_range(box.inputs, ball)
    return ball


def _check_eps_within_range(inputs: Inputs, ball: NormBall) -> None:
    if not isinstance(inputs, Pixels):
        return
    max_distance = float(ball.distance(torch.ones(1, *inputs.shape), torch.zeros(1, *inputs.shape)))
    if ball.eps > max_distance * (1 + 1e-6):
        is_in_gray_levels = isinstance(ball, Linf) and ball.eps <= 255
        hint = f": for {ball.eps:g} gray levels give eps={ball.eps:g}/255" if is_in_gray_levels else ""
        raise InputError(
            f"images lie in [0, 1], so none are more than {max_distance:g} apart; got eps={ball.eps:g}{hint}"
        )
