"""DDN: gradient steps for the direction, and a norm that shrinks where the image is adversarial, else grows.

Rony et al. 2019, "Decoupling Direction and Norm for Efficient Gradient-Based L2 Adversarial Attacks and Defenses",
arXiv:1811.09600, algorithm 1.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import L2, unbounded_ball
from ..engine.rows import broadcast_rows
from ..parameters import (
    AttackSteps,
    AttackTarget,
    BatchSize,
    CustomAttackObjective,
    Eps,
    InputBatch,
    L2NormOnly,
    Labels,
    RoundingBits,
)
from ..settings import Above, Below, Unit, check_settings
from .attack_state import AttackState
from .quantization import quantize_images
from .result import Adversarial

FINAL_STEP_SIZE_OF_COSINE = 0.01  # the step that the cosine falls to, from one
steepest_l2_direction = L2(math.inf).steepest_direction


@card(
    name="DDN",
    source="Rony et al. 2019, arXiv:1811.09600, algorithm 1",
    shows="About the smallest change, in L2, that changes the model's prediction, in few steps.",
    does_not_show="A bound: a still smaller change may do.",
    example=lambda method, box, x, y: method(box, x, y, steps=3),
    runs=lambda s: s["steps"] + 2,
    minimal=True,
    order=23,
    exempt={"partial results": "only adversarial images are kept, and the first steps may find none"},
)
def ddn(
    box: Box,
    x: InputBatch,
    y: Labels = None,
    *,
    eps: Eps = None,
    norm: L2NormOnly = "l2",
    target: AttackTarget = None,
    objective: CustomAttackObjective = None,
    steps: AttackSteps = 100,
    init_eps: Annotated[float, Above(0), Unit("pixel range"), "Distance from x of the first image."] = 1.0,
    gamma: Annotated[float, Above(0), Below(1), "Fraction by which the distance changes in a step."] = 0.05,
    bits: RoundingBits = None,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """The nearest adversarial images in L2, quickly: the direction and the norm of the change are optimized apart.

    In place of `carlini_wagner`, which takes many times as long for much the same images. For other norms use `fmn`.

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
        init_eps: Distance from x of the first image. In L2.
        gamma: Fraction by which the distance changes in a step. Down where the image fools, up where it does not.
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
        >>> ub.adversarial.ddn(box, x, y, steps=30).success.tolist()
        [True, True, True, True]

    Source:
        Rony et al. 2019, arXiv:1811.09600, algorithm 1. Steps along the gradient of the cross-entropy, whose length
        falls from 1 to 0.01 along a cosine. The paper rounds images to gray levels in each step; here `bits=8` does at
        the end.
    """
    check_settings(ddn, locals())
    state = AttackState(
        box, x, y, norm=unbounded_ball(norm, ("l2",)), target=target, objective=objective, batch_size=batch_size
    )
    with state:
        for rows in state.split_rows_into_batches(state.find_rows_to_attack()):
            _run_ddn(state, rows, steps, init_eps, gamma)
    quantize_images(state, bits)
    return state.to_result(math.inf if eps is None else eps)


def _run_ddn(state: AttackState, rows: Tensor, steps: int, initial_radius: float, gamma: float) -> None:
    """Algorithm 1 for one batch of rows; the last image is evaluated too."""
    x = images = state.x[rows]
    delta, radius = torch.zeros_like(x), x.new_full((len(rows),), initial_radius)
    for step_index in range(steps):
        evaluation = state.evaluate_with_grad(images, rows)
        is_adversarial = evaluation.success_score > 0
        state.update_nearest(images, rows, is_adversarial)
        radius = torch.where(is_adversarial, (1 - gamma) * radius, (1 + gamma) * radius)
        step_size = (
            FINAL_STEP_SIZE_OF_COSINE
            + (1 - FINAL_STEP_SIZE_OF_COSINE) * (1 + math.cos(math.pi * step_index / steps)) / 2
        )
        delta = delta + step_size * steepest_l2_direction(evaluation.grad.nan_to_num(0, 0, 0))
        images = state.box.inputs.clip(x + broadcast_rows(radius, x) * steepest_l2_direction(delta))
        delta = images - x
    if steps and len(rows):
        state.update_nearest(images, rows, state.success_score(images, rows) > 0)
