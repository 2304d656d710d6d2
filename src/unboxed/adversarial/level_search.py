"""The search among images of integer gray levels: adversarial ones, as near as possible or inside a ball.

In levels, with g the gradient of the margin at a grid point z, the nearest adversarial grid point to an original u is,
as far as the model is linear, the solution of a knapsack: one more level in coordinate i gains |g_i| and costs 2 n_i +
1 of the squared distance (n_i the levels taken so far), so the best purchase is round(u + t g) for the smallest t that
is enough. The search alternates like DeepFool and FAB: to the boundary where rounding undid the attack, and part of the
way to the knapsack's solution where the image is adversarial. It keeps the unrounded point, so that steps smaller than
a level add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..engine.optimize.constraints import L1, MIN_DENOMINATOR, Linf, NormBall
from ..engine.rows import broadcast_rows
from ..errors import NaNError, OutputError, warn
from .attack_state import AttackState
from .level_grid import PixelLevelGrid, bisect_smallest_sufficient_t

MAX_NEAREST_SEARCH_STEPS = 16  # at most, of the search for the nearest by gradient, and
MAX_BALL_ASCENT_STEPS = 30  # of that inside a ball
KNAPSACK_SOLUTION_STEP_FRACTION = 0.4  # of the way from an adversarial image to the knapsack's solution
MAX_OFFSET_STRETCH_FACTOR = 8.0  # how far a point of a ball may be moved out for its rounding to fill the ball
# Of the search without gradients: the perturbation grows to up to 100 times its size
MAX_PERTURBATION_SCALING_STEPS = 12
MIN_ROUNDED_MARGIN_FRACTION = 1e-5  # of the original's margin must be left, because float32 sums differ with the batch


class RoundedImageSearch:
    """The best rounded image of each of N examples, and the search for better ones."""

    def __init__(self, state: AttackState, grid: PixelLevelGrid) -> None:
        self.state, self.grid = state, grid
        self.found_levels = state.images * grid.highest_level  # (N, ...) what the attack found, in levels
        self.original_levels = grid.round_to_levels(grid.x_levels)  # the originals' own files
        self.best_levels = grid.round_to_levels_in_ball(self.found_levels)  # (N, ...) the best files so far
        self.has_level_in_ball = grid.is_inside_ball(self.best_levels)  # (N,) False where the ball holds no file
        self.score = torch.where(
            self._is_unperturbed(), state.initial_score, math.nan
        )  # (N,) of best_levels; nan: not evaluated
        self.min_score = MIN_ROUNDED_MARGIN_FRACTION * state.initial_score.abs().nan_to_num()
        self.distance = state.norm.distance(self.best_levels, grid.x_levels)

    def _is_unperturbed(self) -> Tensor:  # (N,) files that are the original itself
        return (self.grid.to_images(self.best_levels) == self.grid.x).flatten(1).all(1)

    @property
    def is_adversarial(self) -> Tensor:  # (N,)
        return self.score > self.min_score

    def restore_success_after_rounding(self, use_gradients: bool) -> None:
        """Evaluate all rounded images, and repair those that are not adversarial; without a ball, bring them nearer."""
        state, has_ball = self.state, self.grid.ball is not None
        needs_repair = self.has_level_in_ball & (self._has_several_levels_in_ball() if has_ball else state.success)
        if has_ball or not use_gradients:
            rows = self.row_indices_where(self.score.isnan() & self.has_level_in_ball)
            self.evaluate(self.best_levels[rows], rows)
        if state.interrupted:
            return
        for batch_rows in state.split_rows_into_batches(self.row_indices_where(needs_repair & ~self.is_adversarial)):
            used_gradient = use_gradients and self._run_gradient_search_if_possible(batch_rows)
            if not (used_gradient and has_ball):
                self._search_by_scaling_perturbation(batch_rows[~self.is_adversarial[batch_rows]])

    def row_indices_where(self, mask: Tensor) -> Tensor:
        return mask.nonzero().flatten()

    def write_to_attack_state(self) -> None:
        """Write the rounded images, and their success, to the attack's state."""
        state, grid = self.state, self.grid
        unevaluated = self.row_indices_where(
            self.score.isnan() & state.success & self.has_level_in_ball
        )  # after an interruption
        if len(unevaluated):
            self.evaluate(self.best_levels[unevaluated], unevaluated)
        if grid.ball is None:  # a minimal attack that found nothing returns the original
            failed_rows = self.row_indices_where(~(self.score > 0))
            self.best_levels[failed_rows] = self.original_levels[failed_rows]
            self.score[failed_rows] = torch.where(
                self._is_unperturbed()[failed_rows], state.initial_score[failed_rows], math.nan
            )
        images = grid.to_images(self.best_levels)
        needs_score = torch.ones_like(self.has_level_in_ball) if state.box.batch_dependent else self.score.isnan()
        if len(rows := self.row_indices_where(needs_score)):
            self.score[rows] = state.success_score(images[rows], rows)
        state.images, state.fallback_images = images, grid.to_images(self.original_levels)
        state.success = (self.score > 0) & self.has_level_in_ball
        infinite = torch.full_like(self.distance, math.inf)
        state.distance = torch.where(
            state.success, state.norm.distance(self.best_levels, grid.x_levels) / grid.highest_level, infinite
        )
        if n_without_level := int((~self.has_level_in_ball).sum()):
            n_levels = grid.highest_level + 1
            message = f"for {n_without_level} of {len(images)} images the ball holds no image of {n_levels} levels"
            warn(f"{message}: the nearest one, outside the ball, is returned as a failure")

    # -- evaluating --------------------------------------------------------------------------------------------------

    def evaluate(self, levels: Tensor, rows: Tensor) -> Tensor:
        """The scores (n,) of rounded images of the rows; better ones are kept."""
        score = self.state.success_score(self.grid.to_images(levels), rows)
        self._update_best_levels(levels, rows, score)
        return score

    def evaluate_with_grad(self, levels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The same with the gradient (n, ...) per level."""
        evaluation = self.state.evaluate_with_grad(self.grid.to_images(levels), rows, self.state.goal.criterion)
        self._update_best_levels(levels, rows, evaluation.score)
        return evaluation.score, evaluation.grad.nan_to_num(0, 0, 0) / self.grid.highest_level

    def _update_best_levels(self, levels: Tensor, rows: Tensor, score: Tensor) -> None:
        new_distance, is_success, was_success = (
            self.state.norm.distance(levels, self.grid.x_levels[rows]),
            score > self.min_score[rows],
            self.is_adversarial[rows],
        )
        is_closer = ~(self.score[rows] >= score)  # to success; also where there was no evaluation before
        is_better = torch.where(
            is_success & was_success, new_distance < self.distance[rows], is_success | (~was_success & is_closer)
        )
        better_rows = rows[is_better]
        self.best_levels[better_rows], self.score[better_rows], self.distance[better_rows] = (
            levels[is_better],
            score[is_better],
            new_distance[is_better],
        )

    def _has_several_levels_in_ball(self) -> Tensor:  # (N,) whether the ball holds more than one rounded image
        if isinstance(self.grid.ball, Linf):
            return (self.grid.upper > self.grid.lower).flatten(1).any(1)
        return torch.ones_like(self.has_level_in_ball)

    # -- three searches ---------------------------------------------------------------------------------------------

    def _run_gradient_search_if_possible(self, rows: Tensor) -> bool:
        """Returns False where the model has no gradient."""
        try:
            self._ascend_in_ball(
                rows, self.grid.ball
            ) if self.grid.ball is not None else self._search_nearest_by_gradient(rows)
        except NaNError:
            raise
        except OutputError:
            return False
        return True

    def _search_nearest_by_gradient(self, rows: Tensor) -> None:
        """To the boundary and back along it, ever nearer to the originals."""
        unrounded, n_failures = self.found_levels[rows], torch.zeros_like(self.score[rows])
        for _ in range(MAX_NEAREST_SEARCH_STEPS):
            levels = self.grid.round_to_levels(unrounded)
            score, grad = self.evaluate_with_grad(levels, rows)
            is_failure = score <= self.min_score[rows]
            is_active = is_failure | (levels != self.original_levels[rows]).flatten(1).any(
                1
            )  # nothing is nearer than the rounded original
            if not is_active.any():
                return
            rows, levels, unrounded, grad, score, is_failure = (
                rows[is_active],
                levels[is_active],
                unrounded[is_active],
                grad[is_active],
                score[is_active],
                is_failure[is_active],
            )
            grid, shortfall = self.grid.rows(rows), 2 * self.min_score[rows] - score
            n_failures = torch.where(is_failure, n_failures[is_active] + 1, 0)
            forward = unrounded + broadcast_rows(
                shortfall * (1 + (n_failures - 1).clamp_min(0) / 2), grad
            ) * self._min_norm_unit_increase_step(grad, unrounded - grid.x_levels)
            pulled_back = unrounded + KNAPSACK_SOLUTION_STEP_FRACTION * (
                self._knapsack_solution(grid, levels, unrounded, grad, shortfall) - unrounded
            )
            unrounded = torch.where(broadcast_rows(is_failure, grad), forward, pulled_back).clamp(0, grid.highest_level)

    def _min_norm_unit_increase_step(self, grad: Tensor, offset: Tensor) -> Tensor:
        """The smallest step, in the attack's norm, by which the score rises by one."""
        if isinstance(self.state.norm, Linf):
            return grad.sign() / broadcast_rows(grad.flatten(1).abs().sum(1).clamp_min(MIN_DENOMINATOR), grad)
        if isinstance(self.state.norm, L1):  # on what has moved, where anything has
            moved_grad = torch.where(offset.abs() > 0.5, grad, 0)
            grad = torch.where(broadcast_rows(moved_grad.flatten(1).any(1), grad), moved_grad, grad)
        return grad / broadcast_rows((grad * grad).flatten(1).sum(1).clamp_min(MIN_DENOMINATOR), grad)

    def _knapsack_solution(
        self, grid: PixelLevelGrid, levels: Tensor, unrounded: Tensor, grad: Tensor, shortfall: Tensor
    ) -> Tensor:
        """The nearest point to the originals that, for a linear model, is adversarial once rounded."""

        def is_margin_covered_after_rounding(path_length: Tensor) -> Tensor:
            return ((grid.round_to_levels(path(path_length)) - levels) * grad).flatten(1).sum(1) >= shortfall

        path, upper = self._path_fn_of_highest_gain(grid, levels, unrounded, grad, shortfall)
        return path(bisect_smallest_sufficient_t(is_margin_covered_after_rounding, upper))

    def _path_fn_of_highest_gain(
        self, grid: PixelLevelGrid, levels: Tensor, unrounded: Tensor, grad: Tensor, shortfall: Tensor
    ) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """A path t (n,) -> points of highest gain at their distance, and the largest t."""
        if isinstance(self.state.norm, L1):  # the moves that gain most are kept
            gain, max_grad = grad * (unrounded - grid.x_levels).sign(), grad.flatten(1).abs().amax(1)
            return (
                lambda t: (
                    grid.x_levels + (unrounded - grid.x_levels) * (gain >= broadcast_rows((1 - t) * max_grad, grad))
                ),
                0 * shortfall + 1,
            )
        steepest = grad.sign() if isinstance(self.state.norm, Linf) else grad
        needed_rise = (((levels - grid.x_levels) * grad).flatten(1).sum(1) + shortfall).clamp_min(0)
        gain = (steepest * grad).flatten(1).sum(1).clamp_min(MIN_DENOMINATOR)
        max_grad = steepest.flatten(1).abs().amax(1).clamp_min(MIN_DENOMINATOR)
        return lambda t: grid.x_levels + broadcast_rows(t, grad) * steepest, 4 * needed_rise / gain + 1 / max_grad

    def _ascend_in_ball(self, rows: Tensor, ball: NormBall) -> None:
        """Steepest ascent of the margin inside the ball, its gradient taken at integer levels."""
        unrounded = self.grid.rows(rows).project_unrounded_to_ball(self.found_levels[rows])
        for step_index in range(MAX_BALL_ASCENT_STEPS):
            grid = self.grid.rows(rows)
            score, grad = self.evaluate_with_grad(
                grid.round_to_levels_in_ball(unrounded, MAX_OFFSET_STRETCH_FACTOR), rows
            )
            is_active = score <= self.min_score[rows]
            rows, unrounded, grad = rows[is_active], unrounded[is_active], grad[is_active]
            if not len(rows):
                return
            step_size = ball.eps * self.grid.highest_level * (1 - step_index / MAX_BALL_ASCENT_STEPS)
            unrounded = self.grid.rows(rows).project_unrounded_to_ball(
                unrounded + step_size * ball.steepest_direction(grad)
            )

    def _search_by_scaling_perturbation(self, rows: Tensor) -> None:
        """Scale the perturbation up until it is adversarial; without a ball, then down as far as possible."""
        grid, offset = self.grid.rows(rows), (self.found_levels - self.grid.x_levels)[rows]
        lower, upper = torch.ones_like(self.score[rows]), torch.full_like(self.score[rows], math.inf)
        for _ in range(MAX_PERTURBATION_SCALING_STEPS):
            scale = torch.where(upper.isinf(), (2 * lower - 1).clamp_min(1.05), (lower + upper) / 2)
            active_index = (
                self.row_indices_where(~self.is_adversarial[rows])
                if grid.ball is not None
                else self.row_indices_where(scale > 0)
            )
            if not len(active_index):
                return
            score = lower.new_full(lower.shape, math.inf)
            score[active_index] = self.evaluate(
                grid.rows(active_index).round_to_levels_in_ball(
                    grid.x_levels[active_index] + broadcast_rows(scale[active_index], offset) * offset[active_index]
                ),
                rows[active_index],
            )
            is_failure = score <= self.min_score[rows]
            lower, upper = torch.where(is_failure, scale, lower), torch.where(is_failure, upper, scale)
