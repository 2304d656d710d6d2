"""FMN: gradient steps inside a ball whose radius follows the distance to the boundary, in L2, L-inf or L1.

Pintor et al. 2021, "Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints", arXiv:2102.12827,
algorithm 1. As published it stalls where images have values at 0 and 1: the gradient's part that points out of the
valid range is clipped off after the step, but counts in its length and in the estimate of the distance, and that
estimate is approached from below and not crossed. For rows that no image has fooled within the first steps, two lines
differ for that reason; they are marked.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import (
    L2,
    TINY,
    broadcast_rows,
    project_to_radii,
    unbounded_ball,
    zero_grad_at_bounds,
)
from ..engine.optimize.hyperplanes import DUAL_NORM, vector_norms
from ..model.batching import BatchSize
from ..objectives import Objective
from ..validation import check_float, check_int
from .attack_state import AttackState, Evaluation
from .quantization import quantize_images
from .result import Adversarial

FINAL_STEP_FRACTION, FINAL_GAMMA = (
    0.01,
    0.001,
)  # where the cosines end: the first as a share of the step, the second as it is
STALL_AFTER_STEPS = 5  # steps as published; from there on, rows that nothing has fooled so far are stalled
L2_DIRECTION = L2(math.inf).steepest_direction


@card(
    name="FMN",
    source="Pintor et al. 2021, arXiv:2102.12827, algorithm 1",
    shows="About the smallest change, by the norm's measure, that makes the model answer otherwise, in few steps.",
    does_not_show="A bound: a still smaller change may do.",
    example=lambda method, box, x, y: method(box, x, y, steps=3),
    exempt={"partial results": "only an image that fools is kept, and the first steps may lead to none"},
)
def fmn(
    box: Box,
    x: Tensor,
    y: Tensor | int | None = None,
    *,
    eps: float | None = None,
    norm: str = "l2",
    target: Tensor | int | None = None,
    objective: Objective | None = None,
    steps: int = 100,
    step: float = 1.0,
    gamma: float = 0.05,
    bits: int | None = None,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """The images nearest to x, by `norm` "l2", "linf" or "l1", that the model does not take for y: quick.

    Each of `steps` goes up the margin, its Euclidean length falling from `step` to a hundredth of that along a cosine,
    and back into a ball around x. Until an image fools, the ball's radius is the distance to the boundary by a linear
    estimate; then it is 1 - `gamma` times its last where the image fools, the nearest found at most, and 1 + `gamma`
    times where not; `gamma` falls to .001. Two lines differ from the paper: the estimate is exceeded by .001 of it, or
    on the boundary itself rounding decides; and for images that nothing fools within five steps, by `gamma`, and a
    gradient that points out of the valid range is left out. L0 and the start from an image that fools are left out.
    `target` is the class to become instead; `objective=` is to rise above zero. An image farther than `eps` is no
    success. Raises InputError.
    """
    eps = math.inf if eps is None else check_float("eps", eps, above=0)
    ball = unbounded_ball(norm)
    state = AttackState(
        box, x, y, norm=ball, target=target, objective=objective, loss_name="margin", batch_size=batch_size
    )
    steps, step, gamma = (
        check_int("steps", steps),
        check_float("step", step, above=0),
        check_float("gamma", gamma, above=0, below=1),
    )
    with state:
        for rows in state.row_batches(state.evaluate_originals()):
            _run_fmn(state, rows, steps, step, gamma)
    quantize_images(state, bits)
    return state.to_result(eps)


def _run_fmn(state: AttackState, rows: Tensor, steps: int, step_size: float, gamma: float) -> None:
    """Algorithm 1 for one block of rows; the last image is looked at too."""
    x = z = state.x[rows]
    clip_to_range, radius = state.box.inputs.clip, x.new_full((len(rows),), math.inf)
    is_stalled = torch.zeros_like(rows, dtype=torch.bool)
    for step_index in range(steps):
        evaluation = state.evaluate_with_grad(z, rows)
        state.keep_nearer(z, rows, evaluation.success_score > 0)
        if step_index == STALL_AFTER_STEPS:
            is_stalled = ~state.success[rows]
        grad = evaluation.grad.nan_to_num(0, 0, 0)
        grad = torch.where(
            broadcast_rows(is_stalled, x), zero_grad_at_bounds(grad, z, clip_to_range), grad
        )  # the paper: always the whole gradient
        radius = _next_radius(
            state,
            rows,
            z,
            radius,
            evaluation,
            grad,
            _cosine_schedule(gamma, FINAL_GAMMA, step_index, steps),
            is_stalled,
        )
        stepped = z + _cosine_schedule(step_size, FINAL_STEP_FRACTION * step_size, step_index, steps) * L2_DIRECTION(
            grad
        )
        z = clip_to_range(project_to_radii(state.norm, stepped, x, radius))
    if steps and len(rows):
        state.keep_nearer(z, rows, state.success_score(z, rows) > 0)


def _cosine_schedule(start: float, end: float, step_index: int, steps: int) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * step_index / steps)) / 2


def _next_radius(
    state: AttackState,
    rows: Tensor,
    z: Tensor,
    radius: Tensor,
    evaluation: Evaluation,
    grad: Tensor,
    gamma: float,
    is_stalled: Tensor,
) -> Tensor:
    """The next radius (n,) of each row's ball: lines 5 to 12 of algorithm 1."""
    dual_norm = DUAL_NORM[type(state.norm).__name__.lower()]
    boundary_distance = evaluation.score.abs() / vector_norms(dual_norm, grad.flatten(1)).clamp_min(TINY)
    linear_estimate = state.norm.distance(z, state.x[rows]) + boundary_distance
    overshot_estimate = torch.where(
        is_stalled, linear_estimate * (1 + gamma), linear_estimate * (1 + FINAL_GAMMA)
    )  # the paper: on the boundary itself
    radius_if_not_adversarial = torch.where(state.success[rows], radius * (1 + gamma), overshot_estimate)
    return torch.where(
        evaluation.success_score > 0,
        torch.minimum(radius * (1 - gamma), state.distance[rows]),
        radius_if_not_adversarial,
    )
