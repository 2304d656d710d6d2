"""Images that are files: on the grid of 8-bit levels, still inside the ball, still fooling once saved and loaded.

Rounding throws an attack away: a minimal perturbation is about as large as the rounding itself. So the grid's points
inside the ball are found in whole numbers (`levels_grid`), and a search among them repairs what rounding undid
(`levels_search`).
"""

from __future__ import annotations

from ..box import Box
from ..engine.optimize.constraints import NormBall
from ..engine.read.sizes import require_images
from ..errors import InputError, warn
from ..validation import check_int
from .attack_state import AttackState
from .level_grid import make_level_grid
from .level_search import LevelSearch

ALLOWED_BITS = (1, 2, 4, 8)  # a PNG's depths of which all levels are among the 256 of a byte


def quantize_images(
    state: AttackState, bits: int | None, ball: NormBall | None = None, *, use_gradients: bool = True
) -> None:
    """Put what an attempt has found on the grid of `bits`-bit levels, where None leaves it as it is.

    Inside `ball`, where the attack is bound to one; else as near as can be. `success` is then that of the saved file.
    Attacks that only ask the model for its answers say `gradients=False`. Originals that lie between levels are moved
    to the nearest ones where nothing fools; where a ball holds no level, that image is returned, as a failure, and an
    UnboxedWarning says so. Raises InputError.
    """
    if bits is None:
        return
    highest_level = max_level(state.box, bits)
    if ball is not None and ball.eps * highest_level < 1 - 1e-6:
        message = (
            f"eps={ball.eps:g} is less than one of {highest_level} levels: no file lies so near but the original's own"
        )
        warn(f"{message}, so nothing can be fooled within it")
    level_search = LevelSearch(state, make_level_grid(state.x, highest_level, ball))
    with state:
        level_search.repair(use_gradients)
    level_search.finish()


def max_level(box: Box, bits: int) -> int:
    """The highest level, 255 for eight bits. Raises InputError."""
    require_images(box, "bits= (images that survive being saved)")
    if check_int("bits", bits, minimum=1) not in ALLOWED_BITS:
        raise InputError(f"bits is 1, 2, 4 or 8, as many as fit in a byte of a PNG; got {bits}")
    return int(2**bits - 1)
