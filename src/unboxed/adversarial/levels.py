"""Images on the grid of 8-bit files: still inside the ball, still fooling once saved and loaded."""

from __future__ import annotations

from ..engine.balls import Ball
from .attempt import Attempt


def saved(attempt: Attempt, bits: int | None, ball: Ball | None = None) -> None:
    """Put what an attempt has found on the grid of `bits`-bit levels, where None leaves it as it is.

    Inside `ball`, where the attack is bound to one; else as near as can be. `success` is then that of the saved file.
    """
