"""Auto-PGD: projected gradient descent that adapts its step size, with momentum.

Croce & Hein 2020, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks",
arXiv:2003.01690, Algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import Ball, NormBall
from ..engine.rows import broadcast_rows
from ..errors import InputError
from ..objectives import Objective, logit, loss, targeted_dlr
from ..parameters import (
    AttackSteps,
    AttackTarget,
    BatchSize,
    CustomAttackObjective,
    EpsOrOnePerPart,
    InputBatch,
    Labels,
    LinfOrL2Norm,
    Restarts,
    RoundingBits,
    Seed,
)
from ..settings import AtLeast, Unit, check_settings
from ..validation import valid_seed
from .attack_ball import resolve_attack_ball
from .attack_state import AttackState
from .predictions import top_other_classes
from .quantization import quantize_images
from .result import Adversarial

MOMENTUM_ALPHA = 0.75  # weight of the step; the rest is momentum
MIN_LOSS_INCREASING_STEPS_FRACTION = 0.75  # fraction of steps that must increase the loss, or the step size is halved
APGD_RESTART_SEED_STRIDE = 1_000  # between the seeds of two restarts


@card(
    name="APGD",
    aliases=("auto_pgd",),
    source="Croce & Hein 2020, arXiv:2003.01690, Algorithm 1",
    shows="An input within eps of this one that the model misclassifies, searched with adaptive steps.",
    does_not_show="That there is none where it fails: gradients may be masked. AutoAttack adds attacks of other kinds.",
    example=lambda method, box, x, y: method(box, x, y, eps=0.1, steps=3),
    runs=lambda s: 1 + (s["n_targets"] or 1) * s["restarts"] * (s["steps"] + 1),
    order=3,
)
def apgd(
    box: Box,
    x: InputBatch,
    y: Labels = None,
    *,
    eps: EpsOrOnePerPart = None,
    norm: LinfOrL2Norm = "linf",
    ball: Ball = None,
    target: AttackTarget = None,
    objective: CustomAttackObjective = None,
    loss: Annotated[Literal["ce", "margin", "dlr"] | None, "Loss that is maximized."] = None,
    n_targets: Annotated[
        int | None, AtLeast(1), Unit("classes"), "Number of most probable wrong classes that are targeted in turn."
    ] = None,
    steps: AttackSteps = 100,
    restarts: Restarts = 1,
    bits: RoundingBits = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """Adversarial images within `eps` of x: PGD that chooses its step size itself, with momentum.

    Stronger than `pgd` at the same number of steps, with nothing to tune. An example that is fooled stops.
    `auto_attack` runs this with two losses, and two attacks of other kinds after it.

    Args:
        box: The model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        y: Correct classes (N,), or one for all. None takes those that come with x, as in a Dataset; without any, give
            `target` or `objective`. Of other outputs, what they should be: numbers of a regression (None: what the
            model gives), a 0 or 1 for each of several labels (N, K), a class for each position of a label map.
        eps: Largest distance from x. In pixel range, 8/255 is eight gray levels; of a table, in standard deviations of
            its columns (see `Features`). Give this or `ball`.
            Of several inputs, {"image": 8 / 255} or a tuple in their order gives one for each part, and the others
            are not changed; `distance` and `step` are then shares of it.
        norm: Norm in which the distance from x is measured.
        ball: Norm ball to stay in, in place of eps and norm.
        target: Class to become (N,), or one for all. None: any class but y.
        objective: What is raised above zero, instead of a wrong class. Not together with `target`.
        loss: Loss that is maximized. "ce" is the cross-entropy; "margin" the largest other logit minus that of y; "dlr"
            the margin over the spread of the logits. None: "ce"; with n_targets, "dlr", or "margin" where there are
            fewer than four classes.
        n_targets: Number of most probable wrong classes that are targeted in turn. That is APGD-T; the paper takes 9.
            None: untargeted.
        steps: Number of iterations.
        restarts: Number of runs, each from another random start.
        bits: Bits per value to which images are rounded: 8 gives the levels of PNG files. Rounding would undo many
            attacks, so a search among the rounded images follows; `success` is then that of the rounded image.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        An `Adversarial`: `images` like x, and `success`, `distance`, `queries` and `initially_misclassified`, each
        (N,). Where the attack fails, `images` has its best try.
        Outputs that are not one class per example have no threshold: the loss is raised as far as it goes, by all
        steps, and there are `output_before`, `output_after`, `output_change` (N, K, ...), `loss_before` and
        `loss_after` (N,): of a regression the root mean square error, in the output's unit, else the cross-entropy.

    Raises:
        InputError: for settings out of their range, or without y, target and objective.
        OutputError: for a model without a gradient, or a `target` of one without classes.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(4)
        >>> ub.adversarial.apgd(box, x, y, eps=0.3, steps=10).success.tolist()
        [True, True, True, True]

    Source:
        Croce & Hein 2020, arXiv:2003.01690, algorithm 1; targeted DLR: equation 5. The step size is halved at the steps
        of section 3.1. Restarts run on examples that are not fooled yet.
    """
    check_settings(apgd, locals())
    ball = resolve_attack_ball(box, eps, norm, ball, takes_l1=False)
    seed = valid_seed(seed)
    loss_name = (loss or "ce") if n_targets is None else "ce"
    state = AttackState(
        box,
        x,
        y,
        norm=ball,
        target=target,
        objective=objective,
        loss_name=loss_name,
        batch_size=batch_size,
        raises_output_loss=True,
    )
    if n_targets is not None:
        _require_labels_and_no_target(state)
    with state:
        rows = state.find_rows_to_attack()
        for i, target_labels in enumerate(
            [None] if n_targets is None else top_wrong_classes(state, rows, n_targets).unbind(1)
        ):
            target_objective = None if target_labels is None else targeted_objective(state, target_labels, loss)
            for restart in range(restarts):
                run_apgd(
                    state,
                    ball,
                    rows,
                    target_objective,
                    steps=steps,
                    seed=seed + APGD_RESTART_SEED_STRIDE * (i * restarts + restart),
                )
    quantize_images(state, bits, ball)
    return state.to_result()


def _require_labels_and_no_target(state: AttackState) -> None:
    if state.goal.labels is None or state.goal.target_labels is not None:
        raise InputError(
            "n_targets= tries the most probable wrong classes in turn: give y, and no target= or objective="
        )


# -- towards other classes ---------------------------------------------------------------------------------------------


def top_wrong_classes(state: AttackState, rows: Tensor, max_classes: int) -> Tensor:
    """The most probable wrong classes (N, T) of the originals, the most probable first, filled in for `rows` (M,)."""
    labels, logits = state.goal.labels, state.logits(state.x[rows], rows)  # (N,), (M, K)
    if labels is None:
        raise InputError("the most probable wrong classes need the correct ones: give y")
    top_classes = top_other_classes(logits, labels[rows], min(max_classes, logits.shape[1] - 1))
    classes = torch.zeros(len(state.x), top_classes.shape[1], dtype=torch.long, device=rows.device)
    classes[rows] = top_classes
    return classes


def targeted_objective(state: AttackState, target_labels: Tensor, loss_name: str | None = None) -> Objective:
    """From y to classes k (N,): the targeted DLR, which takes four classes or more, else the margin."""
    labels, loss_name = state.goal.labels, loss_name or ("dlr" if state.box.n_outputs >= 4 else "margin")
    if labels is None or loss_name not in ("dlr", "margin", "ce"):
        raise InputError(f'loss must be "ce", "margin" or "dlr"; got {loss_name!r}')
    if loss_name == "dlr":
        return targeted_dlr(labels, target_labels)
    return -loss(target_labels) if loss_name == "ce" else logit(target_labels) - logit(labels)


# -- the ascent --------------------------------------------------------------------------------------------------------


def checkpoint_steps(steps: int) -> list[int]:
    """The steps w_0 = 0, w_1, ... at which the step size is checked: arXiv:2003.01690, section 3.1."""
    fractions = [0.0, 0.22]
    while fractions[-1] + 1e-9 < 1:
        fractions.append(fractions[-1] + max(fractions[-1] - fractions[-2] - 0.03, 0.06))
    steps_at = (math.ceil(round(fraction * steps, 9)) for fraction in fractions)
    return sorted({step for step in steps_at if step <= steps})


def run_apgd(
    state: AttackState, ball: NormBall, rows: Tensor, objective: Objective | None = None, *, steps: int, seed: int
) -> None:
    """One run of APGD for those of the rows that are not successes yet, from a random point of the ball."""
    rows = rows[~state.success[rows]]
    if not len(rows):
        return
    start_images = state.box.inputs.clip(ball.sample(state.x, seed))  # a row draws the same whichever others are left
    for batch_rows in state.split_rows_into_batches(rows):
        _APGD(state, ball, objective, steps).run(batch_rows, start_images[batch_rows])


@dataclass
class _APGDIterates:
    """The rows that are not successes yet; every field has one row per example."""

    rows: Tensor  # (n,)
    center: Tensor  # (n, ...) the originals
    x: Tensor
    previous_x: Tensor  # x of one step ago
    grad: Tensor
    best_x: Tensor  # x_max
    best_grad: Tensor
    score: Tensor  # (n,) f(x)
    best_score: Tensor  # (n,) f_max
    best_success_score: Tensor  # (n,) how near x_max comes to fooling
    step_size: Tensor  # (n,) the step size
    n_rises: Tensor  # (n,) steps since the last checkpoint that rose
    checkpoint_step_size: Tensor  # (n,) at the last checkpoint
    checkpoint_best_score: Tensor  # (n,) f_max at the last checkpoint

    def select_rows(self, index: Tensor) -> _APGDIterates:
        """The state of some of the rows."""
        return _APGDIterates(*(getattr(self, field.name)[index] for field in fields(self)))


class _APGD:
    """APGD on one block of rows."""

    def __init__(self, state: AttackState, ball: NormBall, objective: Objective | None, steps: int) -> None:
        self.state, self.ball, self.objective, self.steps = state, ball, objective, steps
        self.checkpoint_lengths = {
            step: step - previous_step for previous_step, step in pairwise(checkpoint_steps(steps))
        }  # the step, and the number of steps it checks

    def run(self, rows: Tensor, start: Tensor) -> None:
        iterates = self._evaluate_start_points(rows, start)
        try:
            for step in range(1, self.steps + 1):
                if not len(iterates.rows):
                    return
                iterates = self._step(iterates, step)
        finally:  # Ctrl-C too
            self.state.update_best_failure(iterates.best_x, iterates.rows, iterates.best_success_score)

    def _evaluate(self, x: Tensor, rows: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Score, fooled and gradient; after the last step nobody asks for the gradient."""
        if step < self.steps:
            evaluation = self.state.evaluate_with_grad(x, rows, self.objective)
            return evaluation.score, evaluation.success_score, evaluation.grad
        return *self.state.evaluate(x, rows, self.objective), x

    def _evaluate_start_points(self, rows: Tensor, x: Tensor) -> _APGDIterates:
        score, success_score, grad = self._evaluate(x, rows, 0)
        step_size, zero_counts = torch.full_like(score, 2 * self.ball.eps), torch.zeros_like(rows)
        center = self.state.x[rows]
        iterates = _APGDIterates(
            rows, center, x, x, grad, x, grad, score, score, success_score, step_size, zero_counts, step_size, score
        )
        return self._record_and_drop_successes(iterates, success_score)

    def _record_and_drop_successes(self, iterates: _APGDIterates, success_score: Tensor) -> _APGDIterates:
        is_adversarial = (success_score > 0) & self.state.goal.has_threshold
        if not is_adversarial.any():
            return iterates
        self.state.update_nearest(iterates.x, iterates.rows, is_adversarial)
        return iterates.select_rows(~is_adversarial)

    def _step(self, iterates: _APGDIterates, step: int) -> _APGDIterates:
        next_x = self._next_point(iterates, step)
        score, success_score, grad = self._evaluate(next_x, iterates.rows, step)
        iterates.n_rises = iterates.n_rises + (score > iterates.score)
        is_better = score > iterates.best_score
        iterates.best_x, iterates.best_grad = (
            torch.where(broadcast_rows(is_better, next_x), a, b)
            for a, b in ((next_x, iterates.best_x), (grad, iterates.best_grad))
        )
        iterates.best_score = torch.where(is_better, score, iterates.best_score)
        iterates.best_success_score = torch.where(is_better, success_score, iterates.best_success_score)
        iterates.previous_x, iterates.x, iterates.grad, iterates.score = iterates.x, next_x, grad, score
        iterates = self._record_and_drop_successes(iterates, success_score)
        return (
            self._adapt_step_size(iterates, self.checkpoint_lengths[step])
            if step in self.checkpoint_lengths
            else iterates
        )

    def _next_point(self, iterates: _APGDIterates, step: int) -> Tensor:
        """The next point: a projected step z, then three quarters of it and a quarter of the last step."""
        z = self._project(
            iterates.x + broadcast_rows(iterates.step_size, iterates.x) * self.ball.steepest_direction(iterates.grad),
            iterates.center,
        )
        if step == 1:
            return z
        # x + ALPHA (z - x) + (1 - ALPHA) (x - before)
        momentum_point = (
            z.mul_(MOMENTUM_ALPHA)
            .add_(iterates.x, alpha=2 - 2 * MOMENTUM_ALPHA)
            .sub_(iterates.previous_x, alpha=1 - MOMENTUM_ALPHA)
        )
        return self._project(momentum_point, iterates.center)

    def _project(self, x: Tensor, center: Tensor) -> Tensor:
        return self.state.box.inputs.clip(self.ball.project(x, center))

    def _adapt_step_size(self, iterates: _APGDIterates, n_steps: int) -> _APGDIterates:
        """At a checkpoint: rows whose loss rose too seldom, or is stuck, halve their step and return to their best."""
        rises_too_seldom = iterates.n_rises < MIN_LOSS_INCREASING_STEPS_FRACTION * n_steps
        is_stuck = (iterates.step_size == iterates.checkpoint_step_size) & (
            iterates.best_score == iterates.checkpoint_best_score
        )
        halves_step = rises_too_seldom | is_stuck
        iterates.checkpoint_step_size, iterates.checkpoint_best_score, iterates.n_rises = (
            iterates.step_size,
            iterates.best_score,
            torch.zeros_like(iterates.n_rises),
        )
        iterates.step_size = torch.where(halves_step, iterates.step_size / 2, iterates.step_size)
        iterates.score = torch.where(halves_step, iterates.best_score, iterates.score)
        iterates.x, iterates.grad = (
            torch.where(broadcast_rows(halves_step, iterates.x), a, b)
            for a, b in ((iterates.best_x, iterates.x), (iterates.best_grad, iterates.grad))
        )
        return iterates
