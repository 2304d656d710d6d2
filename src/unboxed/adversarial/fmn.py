"""FMN: gradient steps inside a ball whose radius follows the distance to the boundary, in L2, L-inf or L1.

Pintor et al. 2021, "Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints", arXiv:2102.12827,
algorithm 1. As published it stalls where images have values at 0 and 1: the gradient's part that points out of the
valid range is clipped off after the step, but counts in its length and in the estimate of the distance, and that
estimate is approached from below and not crossed. For rows without a success within the first steps, two lines
differ for that reason; they are marked.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import L2, MIN_DENOMINATOR, project_to_radii, unbounded_ball, zero_grad_at_bounds
from ..engine.optimize.hyperplanes import DUAL_NORM_BY_NORM, vector_norms
from ..engine.rows import broadcast_rows
from ..parameters import (
    AttackSteps,
    AttackTarget,
    BatchSize,
    CustomAttackObjective,
    Eps,
    InputBatch,
    Labels,
    Norm,
    RoundingBits,
)
from ..settings import Above, Below, Unit, check_settings
from .attack_state import AttackState, ScoreAndGradient
from .quantization import quantize_images
from .result import Adversarial

FINAL_STEP_SIZE_FRACTION, FINAL_GAMMA = 0.01, 0.001  # where the cosines end: as a fraction of the step, and as it is
STALL_CHECK_STEP = 5  # steps as published; rows without a success by then are stalled
steepest_l2_direction = L2(math.inf).steepest_direction


@card(
    name="FMN",
    aliases=("fast_minimum_norm",),
    source="Pintor et al. 2021, arXiv:2102.12827, algorithm 1",
    shows="About the smallest change, in the norm, that changes the model's prediction, in few steps.",
    does_not_show="A bound: a still smaller change may do.",
    example=lambda method, box, x, y: method(box, x, y, steps=3),
    runs=lambda s: s["steps"] + 2,
    minimal=True,
    order=22,
    exempt={"partial results": "only adversarial images are kept, and the first steps may find none"},
)
def fmn(
    box: Box,
    x: InputBatch,
    y: Labels = None,
    *,
    eps: Eps = None,
    norm: Norm = "l2",
    target: AttackTarget = None,
    objective: CustomAttackObjective = None,
    steps: AttackSteps = 100,
    step: Annotated[float, Above(0), Unit("pixel range"), "Length of the first step, in L2."] = 1.0,
    gamma: Annotated[float, Above(0), Below(1), "Fraction by which the radius changes at first."] = 0.05,
    bits: RoundingBits = None,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """The nearest adversarial images, quickly: gradient steps in a ball that follows the boundary.

    For a short budget, in all three norms. `fab` comes nearer where there is more time.

    Args:
        box: The model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        y: Correct classes (N,), or one for all. None takes those that come with x, as in a Dataset; without any, give
            `target` or `objective`.
        eps: Largest distance from x. An image farther away is no success, and the original is returned for it. None:
            any distance will do.
        norm: Norm in which the distance from x is measured.
        target: Class to become (N,), or one for all. None: any class but y.
        objective: What is raised above zero, instead of a wrong class. Not together with `target`.
        steps: Number of iterations.
        step: Length of the first step, in L2. It falls to a hundredth of that along a cosine.
        gamma: Fraction by which the radius changes at first. It falls to 0.001 along a cosine.
        bits: Bits per value to which images are rounded: 8 gives the levels of PNG files. Rounding would undo many
            attacks, so a search among the rounded images follows; `success` is then that of the rounded image.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        An `Adversarial`: `images` like x, and `success`, `distance`, `queries` and `initially_misclassified`, each
        (N,). Where the attack fails, `images` has the original.

    Raises:
        InputError: for settings out of their range, or without y, target and objective.
        OutputError: for a model without classes or without a gradient.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(4)
        >>> ub.adversarial.fmn(box, x, y, steps=30).success.tolist()
        [True, True, True, True]

    Source:
        Pintor et al. 2021, arXiv:2102.12827, algorithm 1. The radius is the linear estimate of the distance to the
        boundary until an image fools; then 1 - gamma times the last one where the image fools (at most the nearest
        distance found), else 1 + gamma times. Deviations: the estimate is exceeded by 0.1 %, or rounding decides on the
        boundary; for examples that nothing fools within five steps it is exceeded by gamma, and the gradient's part
        that points out of the valid range is left out. L0 and the start from an adversarial image are left out.
    """
    check_settings(fmn, locals())
    ball = unbounded_ball(norm)
    state = AttackState(
        box, x, y, norm=ball, target=target, objective=objective, loss_name="margin", batch_size=batch_size
    )
    with state:
        for rows in state.split_rows_into_batches(state.find_rows_to_attack()):
            _run_fmn(state, rows, steps, step, gamma)
    quantize_images(state, bits)
    return state.to_result(math.inf if eps is None else eps)


def _run_fmn(state: AttackState, rows: Tensor, steps: int, step_size: float, gamma: float) -> None:
    """Algorithm 1 for one batch of rows; the last image is evaluated too."""
    x = images = state.x[rows]
    clip_to_range, radius = state.box.inputs.clip, x.new_full((len(rows),), math.inf)
    is_stalled = torch.zeros_like(rows, dtype=torch.bool)
    for step_index in range(steps):
        evaluation = state.evaluate_with_grad(images, rows)
        state.update_nearest(images, rows, evaluation.success_score > 0)
        if step_index == STALL_CHECK_STEP:
            is_stalled = ~state.success[rows]
        grad = evaluation.grad.nan_to_num(0, 0, 0)
        grad = torch.where(
            broadcast_rows(is_stalled, x), zero_grad_at_bounds(grad, images, clip_to_range), grad
        )  # the paper: always the full gradient
        radius = _next_ball_radius(
            state,
            rows,
            images,
            radius,
            evaluation,
            grad,
            _cosine_schedule(gamma, FINAL_GAMMA, step_index, steps),
            is_stalled,
        )
        length = _cosine_schedule(step_size, FINAL_STEP_SIZE_FRACTION * step_size, step_index, steps)
        stepped = images + length * steepest_l2_direction(grad)
        images = clip_to_range(project_to_radii(state.norm, stepped, x, radius))
    if steps and len(rows):
        state.update_nearest(images, rows, state.success_score(images, rows) > 0)


def _cosine_schedule(start: float, end: float, step_index: int, steps: int) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * step_index / steps)) / 2


def _next_ball_radius(
    state: AttackState,
    rows: Tensor,
    images: Tensor,
    radius: Tensor,
    evaluation: ScoreAndGradient,
    grad: Tensor,
    gamma: float,
    is_stalled: Tensor,
) -> Tensor:
    """The next radius (n,) of each row's ball: lines 5 to 12 of algorithm 1."""
    dual_norm = DUAL_NORM_BY_NORM[type(state.norm).__name__.lower()]
    boundary_distance = evaluation.score.abs() / vector_norms(dual_norm, grad.flatten(1)).clamp_min(MIN_DENOMINATOR)
    linear_estimate = state.norm.distance(images, state.x[rows]) + boundary_distance
    overshot_estimate = torch.where(
        is_stalled, linear_estimate * (1 + gamma), linear_estimate * (1 + FINAL_GAMMA)
    )  # the paper: on the boundary itself
    radius_if_not_adversarial = torch.where(state.success[rows], radius * (1 + gamma), overshot_estimate)
    return torch.where(
        evaluation.success_score > 0,
        torch.minimum(radius * (1 - gamma), state.distance[rows]),
        radius_if_not_adversarial,
    )
