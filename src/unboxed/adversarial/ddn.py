"""DDN: gradient steps of the direction, and a norm that shrinks where the image fools and grows where it does not.

Rony et al. 2019, "Decoupling Direction and Norm for Efficient Gradient-Based L2 Adversarial Attacks and Defenses",
arXiv:1811.09600, algorithm 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import L2, broadcast_rows, unbounded_ball
from ..model.batching import BatchSize
from ..objectives import Objective
from ..validation import check_float, check_int
from .attack_state import AttackState
from .quantization import quantize_images
from .result import Adversarial

FINAL_STEP_SIZE = 0.01  # the step that the cosine falls to, from one
L2_DIRECTION = L2(math.inf).steepest_direction


@card(
    name="DDN",
    source="Rony et al. 2019, arXiv:1811.09600, algorithm 1",
    shows="About the smallest change, in L2, that makes the model answer otherwise, in few steps.",
    does_not_show="A bound: a still smaller change may do.",
    norms=("l2",),
    example=lambda method, box, x, y: method(box, x, y, steps=3),
    exempt={"partial results": "only an image that fools is kept, and the first steps may lead to none"},
)
def ddn(
    box: Box,
    x: Tensor,
    y: Tensor | int | None = None,
    *,
    eps: float | None = None,
    norm: str = "l2",
    target: Tensor | int | None = None,
    objective: Objective | None = None,
    steps: int = 100,
    init_eps: float = 1.0,
    gamma: float = 0.05,
    bits: int | None = None,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """The images nearest to x, in L2, that the model does not take for y: quick, where C&W is slow.

    Each of `steps` goes along the gradient of the cross-entropy, its size falling from 1 to .01 along a cosine, and is
    put at a distance from x that starts at `init_eps` and is then 1 - `gamma` times its last where the image fools, and
    1 + `gamma` times where not. `target` is the class to become instead; `objective=` is to rise above zero. An image
    farther than `eps` is no success. Images are not rounded to levels, as the paper does: `bits=8` does. Raises
    InputError.
    """
    eps = math.inf if eps is None else check_float("eps", eps, above=0)
    state = AttackState(
        box, x, y, norm=unbounded_ball(norm, ("l2",)), target=target, objective=objective, batch_size=batch_size
    )
    steps, initial_radius = check_int("steps", steps), check_float("init_eps", init_eps, above=0)
    gamma = check_float("gamma", gamma, above=0, below=1)
    with state:
        for rows in state.row_batches(state.evaluate_originals()):
            _run_ddn(state, rows, steps, initial_radius, gamma)
    quantize_images(state, bits)
    return state.to_result(eps)


def _run_ddn(state: AttackState, rows: Tensor, steps: int, initial_radius: float, gamma: float) -> None:
    """Algorithm 1 for one block of rows; the last image is looked at too."""
    x = z = state.x[rows]
    delta, radius = torch.zeros_like(x), x.new_full((len(rows),), initial_radius)
    for step_index in range(steps):
        evaluation = state.evaluate_with_grad(z, rows)
        is_adversarial = evaluation.success_score > 0
        state.keep_nearer(z, rows, is_adversarial)
        radius = torch.where(is_adversarial, (1 - gamma) * radius, (1 + gamma) * radius)
        step_size = FINAL_STEP_SIZE + (1 - FINAL_STEP_SIZE) * (1 + math.cos(math.pi * step_index / steps)) / 2
        delta = delta + step_size * L2_DIRECTION(evaluation.grad.nan_to_num(0, 0, 0))
        z = state.box.inputs.clip(x + broadcast_rows(radius, x) * L2_DIRECTION(delta))
        delta = z - x
    if steps and len(rows):
        state.keep_nearer(z, rows, state.success_score(z, rows) > 0)
