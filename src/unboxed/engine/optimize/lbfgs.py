"""Box-constrained L-BFGS of many independent problems, one per row; the caller evaluates the function.

Projected quasi-Newton steps (Bertsekas 1982, "Projected Newton Methods for Optimization Problems with Simple
Constraints") with the two-loop recursion of Nocedal & Wright 2006, algorithm 7.4, on the free coordinates, and
backtracking along the projected path. Rows do not wait for one another: in one evaluation one row tries a shorter step
while another goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ...objectives import RowIndex
from ..rows import broadcast_rows
from .constraints import MIN_DENOMINATOR, l2_norm

ARMIJO_FRACTION = 1e-4  # the fraction of the expected decrease that a step must bring
MIN_BACKTRACKING_STEP_SCALE = 2.0**-20  # where even that brings no decrease, the row is finished
row_dot_products = torch.linalg.vecdot


@dataclass(frozen=True, eq=False)
class LBFGSState:
    """The state of each row. `trial_point` is evaluated next; `update(trial, value, grad)` is the next state."""

    z: Tensor  # (n, D) the best point so far
    value: Tensor  # (n,)
    grad: Tensor  # (n, D)
    first_step_length: Tensor  # (n,) while the curvature is unknown
    step_history: Tensor  # (n, H, D) a ring buffer of the last steps
    grad_history: Tensor  # (n, H, D) the changes of the gradient along them
    n_pairs: Tensor  # (n,) of steps and changes stored so far
    direction: Tensor  # (n, D)
    step_scale: Tensor  # (n,) fraction of the direction that is tried
    was_accepted: Tensor  # (n,) bool: the last trial
    finished: Tensor  # (n,) bool

    def rows(self, index: RowIndex) -> LBFGSState:
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def replace_rows(self, index: Tensor, other: LBFGSState) -> LBFGSState:
        """This state with the rows `index` (m,) replaced by another's."""
        field_pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return replace(self, **{name: p.index_copy(0, index, q) for name, (p, q) in field_pairs.items()})

    def trial_point(self, lower: Tensor, upper: Tensor) -> Tensor:
        """(n, D)"""
        return (self.z + self.step_scale[:, None] * self.direction).clamp(lower, upper)

    def update(
        self, trial_point: Tensor, value: Tensor, grad: Tensor, lower: Tensor, upper: Tensor, tolerance: float
    ) -> LBFGSState:
        """The state after the trial was evaluated."""
        step = trial_point - self.z
        expected_change = row_dot_products(self.grad, step)  # negative
        is_accepted = (value <= self.value + ARMIJO_FRACTION * expected_change) & (expected_change < 0)
        accepted_state = self._apply_accepted_steps(is_accepted, trial_point, value, grad, step)
        decrease = self.value - value
        converged = is_accepted & (decrease <= tolerance * value.abs().clamp_min(MIN_DENOMINATOR))
        direction = torch.where(is_accepted[:, None], accepted_state._descent_direction(lower, upper), self.direction)
        step_scale = torch.where(is_accepted, 1, self.step_scale * self._backtrack_factor(value))
        stalled = ~is_accepted & ((step_scale < MIN_BACKTRACKING_STEP_SCALE) | ~self.value.isfinite())
        is_flat = is_accepted & (
            -row_dot_products(accepted_state.grad, direction) <= tolerance * value.abs()
        )  # below rounding
        return replace(
            accepted_state,
            direction=direction,
            step_scale=step_scale,
            was_accepted=is_accepted,
            finished=self.finished | converged | stalled | is_flat,
        )

    def with_new_value_and_grad(self, value: Tensor, grad: Tensor, lower: Tensor, upper: Tensor) -> LBFGSState:
        """Continue from the same point with another value and gradient."""
        direction = replace(self, value=value, grad=grad)._descent_direction(lower, upper)
        step_scale, finished = torch.ones_like(value), ~(direction != 0).any(1)
        return replace(
            self,
            value=value,
            grad=grad,
            direction=direction,
            step_scale=step_scale,
            was_accepted=finished & False,
            finished=finished,
        )

    def _backtrack_factor(self, value: Tensor) -> Tensor:
        """The minimum of the interpolating parabola, between a tenth and a half of the step."""
        slope = self.step_scale * row_dot_products(self.grad, self.direction)
        factor: Tensor = -slope / (2 * (value - self.value - slope)).clamp_min(MIN_DENOMINATOR)
        return factor.nan_to_num(0.1).clamp(0.1, 0.5)

    def _apply_accepted_steps(
        self, is_accepted: Tensor, trial_point: Tensor, value: Tensor, grad: Tensor, step: Tensor
    ) -> LBFGSState:
        accepted_column, change = is_accepted[:, None], grad - self.grad
        has_curvature = is_accepted & (
            row_dot_products(step, change) > 1e-10 * row_dot_products(change, change)
        )  # positive curvature
        slot = torch.where(has_curvature, self.n_pairs % self.step_history.shape[1], -1)
        is_slot = (torch.arange(self.step_history.shape[1], device=slot.device) == slot[:, None])[
            ..., None
        ]  # (n, H, 1)
        return replace(
            self,
            z=torch.where(accepted_column, trial_point, self.z),
            value=torch.where(is_accepted, value, self.value),
            grad=torch.where(accepted_column, grad, self.grad),
            step_history=torch.where(is_slot, step[:, None], self.step_history),
            grad_history=torch.where(is_slot, change[:, None], self.grad_history),
            n_pairs=self.n_pairs + has_curvature,
        )

    def _descent_direction(self, lower: Tensor, upper: Tensor) -> Tensor:
        """A quasi-Newton step over the free coordinates, or the negative gradient where that does not descend."""
        is_free = ~(((self.z <= lower) & (self.grad > 0)) | ((self.z >= upper) & (self.grad < 0)))
        g = self.grad * is_free
        gradient_step = -g * (self.first_step_length / l2_norm(g).clamp_min(MIN_DENOMINATOR))[:, None]
        direction = self._two_loop_recursion(g, is_free.to(g.dtype))
        is_descent = row_dot_products(direction, g) < -1e-10 * l2_norm(direction) * l2_norm(g)
        return torch.where((is_descent & (self.n_pairs > 0))[:, None], direction, gradient_step)

    def _two_loop_recursion(self, g: Tensor, free_mask: Tensor) -> Tensor:
        """-H g (n, D), newest pairs first; pairs without positive curvature over the free coordinates are left out."""
        history_size = self.step_history.shape[1]
        rows = torch.arange(len(g), device=g.device)
        pairs, alphas = list[tuple[Tensor, Tensor, Tensor]](), list[Tensor]()
        q, gamma = g, torch.zeros_like(self.value)
        for k in range(min(history_size, int(self.n_pairs.max())) if len(g) else 0):
            slot = (self.n_pairs - 1 - k) % history_size
            s, y = self.step_history[rows, slot] * free_mask, self.grad_history[rows, slot] * free_mask
            sy, yy = row_dot_products(s, y), row_dot_products(y, y)
            has_curvature = (sy > 1e-10 * yy) & (self.n_pairs > k)
            rho = torch.where(has_curvature, 1 / sy.clamp_min(MIN_DENOMINATOR), 0)
            gamma = torch.where(has_curvature & (gamma == 0), sy / yy.clamp_min(MIN_DENOMINATOR), gamma)
            alpha = rho * row_dot_products(s, q)
            q = q - alpha[:, None] * y
            pairs.append((s, y, rho))
            alphas.append(alpha)
        q = q * gamma[:, None]
        for (s, y, rho), alpha in zip(reversed(pairs), reversed(alphas), strict=True):
            q = q + (alpha - rho * row_dot_products(y, q))[:, None] * s
        return -q


MAX_HISTORY_PAIRS = 10  # pairs of step and change of the gradient that are stored


def initial_state(
    z: Tensor, value: Tensor, grad: Tensor, first_step_length: Tensor, lower: Tensor, upper: Tensor
) -> LBFGSState:
    """The state at z (n, D), whose value (n,) and gradient (n, D) are known."""
    memory = z.new_zeros(len(z), MAX_HISTORY_PAIRS, z.shape[1])
    zero_counts = torch.zeros(len(z), dtype=torch.long, device=z.device)
    all_false = torch.zeros_like(zero_counts, dtype=torch.bool)
    start = LBFGSState(
        z,
        value,
        grad,
        first_step_length,
        memory,
        memory,
        zero_counts,
        torch.zeros_like(z),
        torch.ones_like(value),
        all_false,
        all_false,
    )
    return start.with_new_value_and_grad(value, grad, lower, upper)


def concat_states(states: Sequence[LBFGSState]) -> LBFGSState:
    """The rows of several states as one."""
    return LBFGSState(*(torch.cat([getattr(p, f.name) for p in states]) for f in fields(LBFGSState)))


def where_states(mask: Tensor, a: LBFGSState, b: LBFGSState) -> LBFGSState:
    """Rows of a where the mask (n,) is True, else of b."""
    field_pairs = ((getattr(a, f.name), getattr(b, f.name)) for f in fields(LBFGSState))
    return LBFGSState(*(torch.where(broadcast_rows(mask, p), p, q) for p, q in field_pairs))
