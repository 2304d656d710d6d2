"""Images rounded to 8-bit levels: inside the ball, and still adversarial once saved and loaded.

Rounding undoes many attacks: a minimal perturbation is about as large as the rounding itself. So the grid points inside
the ball are found in integers (`level_grid`), and a search among them repairs what rounding undid
(`level_search`).
"""

from __future__ import annotations

from ..box import Box
from ..engine.optimize.constraints import NormBall
from ..engine.read.sizes import require_images
from ..errors import InputError, warn
from ..validation import check_int
from .attack_state import AttackState
from .level_grid import level_grid_in_ball
from .level_search import RoundedImageSearch

ALLOWED_BITS = (1, 2, 4, 8)  # a PNG's depths of which all levels are among the 256 of a byte


def quantize_images(
    state: AttackState, bits: int | None, ball: NormBall | None = None, *, use_gradients: bool = True
) -> None:
    """Round the images of an attack to `bits`-bit levels (None: leave them), and repair those that rounding undid.

    Inside `ball`, if there is one; else as near as possible to the original. `success` is then that of the saved file.
    Attacks without gradients give use_gradients=False. Originals between two levels are moved to the nearest one where
    nothing was found; where a ball holds no level, that image is returned as a failure, with an UnboxedWarning. Raises
    InputError.
    """
    if bits is None:
        return
    highest_level = highest_level_from_bits(state.box, bits)
    if ball is not None and ball.eps * highest_level < 1 - 1e-6:
        message = (
            f"eps={ball.eps:g} is less than one of {highest_level} levels: no other file is that near to the original"
        )
        warn(f"{message}, so no file within it can be adversarial")
    level_search = RoundedImageSearch(state, level_grid_in_ball(state.x, highest_level, ball))
    with state:
        level_search.restore_success_after_rounding(use_gradients)
    level_search.write_to_attack_state()


def highest_level_from_bits(box: Box, bits: int) -> int:
    """The highest level, 255 for eight bits. Raises InputError."""
    require_images(box, "bits= (images that survive being saved)")
    depth = check_int("bits", bits, minimum=1)
    if depth not in ALLOWED_BITS:
        raise InputError(f"bits must be 1, 2, 4 or 8, the depths of a PNG; got {bits}")
    return int(2**depth - 1)
