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
    unbounded_ball,
    broadcast_rows,
    project_to_radii,
    zero_grad_at_bounds,
)
from ..engine.optimize.hyperplanes import DUAL_NORM, vector_norms
from ..model.batching import BatchSize
from ..objectives import Objective
from ..validation import check_float, check_int
from .attempt import Attempt, Slope
from .levels import saved
from .result import Adversarial

LAST_STEP, LAST_GAMMA = 0.01, 0.001  # where the cosines end: the first as a share of the step, the second as it is
PATIENCE = 5  # steps as published; from there on, rows that nothing has fooled so far are stalled
STEEPEST = L2(math.inf).steepest_direction


@card(
    name="FMN",
    source="Pintor et al. 2021, arXiv:2102.12827, algorithm 1",
    shows="About the smallest change, by the norm's measure, that makes the model answer otherwise, in few steps.",
    does_not_show="A bound: a still smaller change may do.",
    example=lambda method, box, x, y: method(box, x, y, steps=3),
    exempt={"steps kept": "only an image that fools is kept, and the first steps may lead to none"},
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
    attempt = Attempt(box, x, y, norm=ball, target=target, objective=objective, loss="margin", batch_size=batch_size)
    steps, step, gamma = (
        check_int("steps", steps),
        check_float("step", step, above=0),
        check_float("gamma", gamma, above=0, below=1),
    )
    with attempt:
        for rows in attempt.blocks(attempt.begin()):
            _descend(attempt, rows, steps, step, gamma)
    saved(attempt, bits)
    return attempt.result(eps)


def _descend(attempt: Attempt, rows: Tensor, steps: int, step: float, gamma: float) -> None:
    """Algorithm 1 for one block of rows; the last image is looked at too."""
    x = z = attempt.x[rows]
    clip, radius = attempt.box.inputs.clip, x.new_full((len(rows),), math.inf)
    stalled = torch.zeros_like(rows, dtype=torch.bool)
    for k in range(steps):
        slope = attempt.slope(z, rows)
        attempt.keep(z, rows, slope.fooled > 0)
        if k == PATIENCE:
            stalled = ~attempt.success[rows]
        grad = slope.grad.nan_to_num(0, 0, 0)
        grad = torch.where(
            broadcast_rows(stalled, x), zero_grad_at_bounds(grad, z, clip), grad
        )  # the paper: always the whole gradient
        radius = _radius(attempt, rows, z, radius, slope, grad, _cosine(gamma, LAST_GAMMA, k, steps), stalled)
        moved = z + _cosine(step, LAST_STEP * step, k, steps) * STEEPEST(grad)
        z = clip(project_to_radii(attempt.norm, moved, x, radius))
    if steps and len(rows):
        attempt.keep(z, rows, attempt.fooled(z, rows) > 0)


def _cosine(first: float, last: float, k: int, steps: int) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * k / steps)) / 2


def _radius(
    attempt: Attempt,
    rows: Tensor,
    z: Tensor,
    radius: Tensor,
    slope: Slope,
    grad: Tensor,
    gamma: float,
    stalled: Tensor,
) -> Tensor:
    """The next radius (n,) of each row's ball: lines 5 to 12 of algorithm 1."""
    dual = DUAL_NORM[type(attempt.norm).__name__.lower()]
    left = slope.score.abs() / vector_norms(dual, grad.flatten(1)).clamp_min(TINY)
    linear = attempt.norm.distance(z, attempt.x[rows]) + left
    beyond = torch.where(stalled, linear * (1 + gamma), linear * (1 + LAST_GAMMA))  # the paper: on the boundary itself
    outside = torch.where(attempt.success[rows], radius * (1 + gamma), beyond)
    return torch.where(slope.fooled > 0, torch.minimum(radius * (1 - gamma), attempt.distance[rows]), outside)
