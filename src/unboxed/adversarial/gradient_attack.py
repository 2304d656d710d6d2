"""What FGSM, BIM, PGD and MI-FGSM share: projected gradient ascent of the loss.

    z = x, or a random point of the ball
    for _ in range(steps):
        z = project(z + step * direction(gradient of the loss at z))        # Constraint.step

`engine.optimize.loop` runs these steps in batches and drops examples that are successes; here are the start of each
restart, and the best image over all of them. Adversarial training takes the same step (`training.defense`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..box import Box
from ..engine.optimize.constraints import (
    Constraint,
    NormBall,
    ball_constraint,
    gradient_as_direction,
    unconstrained_grad,
)
from ..engine.optimize.loop import OptimizationConfig, OptimizationResult, OptimizerFactory, optimize
from ..engine.optimize.optimizers import NormalizedMomentum, PlainAscent
from ..engine.optimize.parameterizations import RawCanvas
from ..engine.rows import broadcast_rows
from ..errors import InputError, warn
from ..objectives import Objective
from ..validation import valid_seed
from .attack_state import AttackState
from .attacks_without_gradients import explaining_missing_gradient, gradient_free_attacks_hint
from .quantization import quantize_images
from .result import Adversarial

PGD_RESTART_SEED_STRIDE = 7_919  # from the seed of one restart to that of the next

loss_attack_state = partial(AttackState, raises_output_loss=True)
"""The state of an attack that needs no threshold: of outputs that are not one class it raises the loss."""


@dataclass(frozen=True)
class GradientAttackConfig:
    """What a method of this family chooses."""

    ball: NormBall
    steps: int
    step: float
    random_start: bool = False
    restarts: int = 1
    early_stop: bool = True
    momentum_decay: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", valid_seed(self.seed))
        if self.restarts > 1 and not self.random_start:
            raise InputError("restarts differ by their random starts, and random_start=False")

    def start_images(self, box: Box, x: Tensor, restart: int) -> Tensor:
        """The start of a run. An example draws the same whichever others are still attacked."""
        return (
            box.inputs.clip(self.ball.sample(x, self.seed + PGD_RESTART_SEED_STRIDE * restart))
            if self.random_start
            else x
        )

    def optimizer_and_constraint(self, constraint: Constraint) -> tuple[OptimizerFactory, Constraint]:
        """The optimizer, and what is left for the constraint to do."""
        if self.momentum_decay is None:
            return partial(PlainAscent, lr=self.step), constraint
        make_optimizer = partial(
            NormalizedMomentum, lr=self.step, decay=self.momentum_decay, ascent_direction=constraint.ascent_direction
        )
        return make_optimizer, replace(
            constraint, step_direction=gradient_as_direction, feasible_grad=unconstrained_grad
        )


def resolve_step_size(step: float | None, total_length: float, steps: int) -> float:
    """The length of a step; by default all of them together are `total_length`."""
    return total_length / max(steps, 1) if step is None else step


def run_gradient_attack(state: AttackState, config: GradientAttackConfig, bits: int | None) -> Adversarial:
    """Attack all examples that are not successes yet, `restarts` times; without `early_stop`, all examples."""
    attack_state = _GradientAttackState(state, config)
    with state:
        if config.random_start:
            state.find_rows_to_attack()
        for restart in range(config.restarts):
            rows = attack_state.rows_still_to_attack()
            if not len(rows) or state.interrupted:
                break
            optimization = attack_state.optimize_rows(rows, restart)
            attack_state.update_best(optimization, rows, restart)
            if restart == 0:
                _warn_zero_gradient(optimization, config, state)
            if state.goal.signed_error is not None and not state.interrupted:
                other_side = attack_state.objective_of_other_side(state.goal.signed_error, optimization, rows)
                attack_state.update_best(attack_state.optimize_rows(rows, restart, other_side), rows, restart)
        attack_state.recheck_success()
    quantize_images(state, bits, config.ball)
    return state.to_result()


class _GradientAttackState:
    """The best image of each example over all runs: a success, and of two alike the one of the higher score."""

    def __init__(self, state: AttackState, config: GradientAttackConfig) -> None:
        self.state, self.config = state, config
        goal = state.goal
        self.batch_dependent = (
            state.box.batch_dependent or goal.ascent_objective.batch_dependent or goal.criterion.batch_dependent
        )
        self.best_score = state.x.new_full((len(state.x),), -torch.inf if goal.has_threshold else 0.0)

    def rows_still_to_attack(self) -> Tensor:
        """The rows (M,) to attack: all in a batch-dependent model, where those that are done stay fixed."""
        is_active = ~self.state.success | (not self.config.early_stop)
        if self.batch_dependent and is_active.any():
            is_active = torch.ones_like(is_active)
        return is_active.nonzero()[:, 0]

    def objective_of_other_side(
        self, signed_error: Objective, optimization: OptimizationResult, rows: Tensor
    ) -> Objective:
        """Of one number: the increase of its error on the side of the right number that a run did not end on.

        A start, which may be across, decides the side that the error's gradient leads to, and the other may be farther.
        """
        error, _ = self.state.evaluate(optimization.input, rows, signed_error)
        side = self.best_score.new_ones(len(self.best_score))
        side[rows] = torch.where(error > 0, -1.0, 1.0).to(side)
        loss_before = self.state.goal.loss_before
        return signed_error * side - (0 if loss_before is None else loss_before)

    def optimize_rows(self, rows: Tensor, restart: int, objective: Objective | None = None) -> OptimizationResult:
        box, x, goal = self.state.box, self.state.x, self.state.goal
        start_images, frozen_rows = self.config.start_images(box, x, restart), None
        if self.batch_dependent and self.config.early_stop:
            frozen_rows = self.state.success
            start_images = torch.where(broadcast_rows(frozen_rows, x), self.state.images, start_images)
        make_optimizer, constraint = self.config.optimizer_and_constraint(
            ball_constraint(self.config.ball, x[rows], box.inputs.clip)
        )
        loop_config = OptimizationConfig(
            steps=self.config.steps,
            optimizer=make_optimizer,
            constraint=constraint,
            stop_when=goal.criterion.rows(rows) if goal.has_threshold else None,
            keep_best=not goal.has_threshold,
            continue_finished=not self.config.early_stop,
            relu_bypass="no",
            n_samples=self.state.n_samples,
            frozen_rows=frozen_rows,
            allow_nan=True,  # `update_best` names the rows of all examples
        )
        with explaining_missing_gradient(box):
            return optimize(
                box,
                (goal.ascent_objective if objective is None else objective).rows(rows),
                RawCanvas(start_images[rows]),
                loop_config,
                batch_size=self.state.batch_size,
            )

    def update_best(self, optimization: OptimizationResult, rows: Tensor, restart: int) -> None:
        """Keep what a run found where it is better than what was there."""
        state, had_success = self.state, self.state.success[rows]
        state.interrupted |= optimization.interrupted
        state.queries[rows] += optimization.n_forwards
        if restart == 0 and not self.config.random_start:  # the first evaluation was of the originals
            state.initially_misclassified[rows] = optimization.initially_finished
        is_nan = optimization.score.isnan() & ~optimization.finished & (not optimization.interrupted)
        if len(nan_index := is_nan.nonzero()[:, 0]):  # raises NaNError, if not of the score alone
            state.success_score(optimization.input[nan_index], rows[nan_index])
        has_higher_score = (optimization.finished == had_success) & (optimization.score > self.best_score[rows])
        is_better = (optimization.finished & ~had_success | has_higher_score) & (
            (optimization.n_forwards > 0) | (restart == 0)
        )
        better_rows = rows[is_better]
        state.images[better_rows], state.success[better_rows] = (
            optimization.input[is_better],
            state.success[better_rows] | optimization.finished[is_better],
        )
        state.distance[better_rows] = state.norm.distance(state.images[better_rows], state.x[better_rows])
        self.best_score[better_rows] = optimization.score[is_better]

    def recheck_success(self) -> None:
        """Evaluate all examples together where the objective mixes them: each as the others are at the end."""
        state = self.state
        if self.batch_dependent and not state.box.batch_dependent:  # of the model's own mixing, `to_result` takes care
            rows = torch.arange(len(state.x), device=state.x.device)
            state.success = state.success_score(state.images, rows) > 0


def _warn_zero_gradient(optimization: OptimizationResult, config: GradientAttackConfig, state: AttackState) -> None:
    """Warn of examples whose first gradient is zero."""
    was_evaluated = ~optimization.initially_finished & (optimization.n_forwards > 0)
    has_zero_gradient = was_evaluated & ~(optimization.initial_grad.abs() > 0).flatten(1).any(1)
    if config.steps and not optimization.interrupted and (n_zero := int(has_zero_gradient.sum())):
        advice = (
            "loss='margin' has a gradient where the cross-entropy is saturated, and "
            f"{gradient_free_attacks_hint(state.box)}"
            if state.goal.has_threshold
            else "pgd and apgd start at a random point, where there may be one"
        )
        warn(
            f"the first gradient is exactly zero (or NaN) for {n_zero} of {int(was_evaluated.sum())} examples, which "
            f"take no step there; {advice}"
        )
