"""Images of integer gray levels, as files hold them, and those of them that are inside a ball."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..engine.optimize.constraints import Linf, NormBall, eps_with_rounding_tolerance
from ..engine.rows import broadcast_rows

N_SUFFICIENT_T_BISECTION_STEPS = 24
BALL_FLOAT32_TOLERANCE = 7e-8  # float32 rounds a level k/255 and an original by up to 3e-8 each


@dataclass(frozen=True, eq=False)
class PixelLevelGrid:
    """The images (N, ...) whose values are integer levels 0 .. top, and which of them are inside a ball."""

    x: Tensor  # (N, ...) the originals, and
    x_levels: Tensor  # (N, ...) the same in levels: integers where the original is on the grid
    lower: Tensor  # (N, ...) or (): the lowest and
    upper: Tensor  # the highest level that a ball allows in each coordinate
    level_values: Tensor  # (top + 1,) what the levels are when loaded
    ball: NormBall | None

    @property
    def highest_level(self) -> int:
        return len(self.level_values) - 1

    def rows(self, rows: Tensor) -> PixelLevelGrid:
        lower, upper = (bound[rows] if bound.ndim else bound for bound in (self.lower, self.upper))
        return replace(self, x=self.x[rows], x_levels=self.x_levels[rows], lower=lower, upper=upper)

    def to_images(self, levels: Tensor) -> Tensor:
        """The very values that loading a file with these levels gives."""
        return self.level_values[levels.long()]

    def round_to_levels(self, unrounded: Tensor) -> Tensor:
        return unrounded.round().clamp(self.lower, self.upper)

    def is_inside_ball(self, levels: Tensor) -> Tensor:  # (N,)
        if self.ball is None:
            return torch.ones(len(levels), dtype=torch.bool, device=levels.device)
        max_distance = eps_with_rounding_tolerance(self.ball.eps) + BALL_FLOAT32_TOLERANCE
        return self.ball.distance(self.to_images(levels), self.x) <= max_distance

    def round_to_levels_in_ball(self, unrounded: Tensor, max_stretch: float = 1.0) -> Tensor:
        """The levels nearest to v (N, ...), given in levels; where they are outside the ball, nearer to the original.

        Of round(u + t (v - u)), t at most `stretch`, the farthest that is inside: as t falls, coordinates go back to
        the original's level one after the other, those that gained least for what they cost first.
        """
        if self.ball is None or isinstance(self.ball, Linf):
            return self.round_to_levels(unrounded)
        levels = self.round_to_levels(self.x_levels + max_stretch * (unrounded - self.x_levels))
        outside_rows = (~self.is_inside_ball(levels)).nonzero().flatten()
        if not len(outside_rows):
            return levels
        outside_grid, offset = self.rows(outside_rows), max_stretch * (unrounded - self.x_levels)[outside_rows]
        shrinkage = bisect_smallest_sufficient_t(
            lambda t: outside_grid.is_inside_ball(
                outside_grid.round_to_levels(outside_grid.x_levels + broadcast_rows(1 - t, offset) * offset)
            ),
            unrounded.new_ones(len(outside_rows)),
        )
        levels[outside_rows] = outside_grid.round_to_levels(
            outside_grid.x_levels + broadcast_rows(1 - shrinkage, offset) * offset
        )
        return levels

    def project_unrounded_to_ball(self, unrounded: Tensor) -> Tensor:
        """v moved into the ball, between levels too."""
        if self.ball is None or isinstance(self.ball, Linf):
            return unrounded.clamp(self.lower, self.upper)
        return (
            self.ball.project(unrounded / self.highest_level, self.x_levels / self.highest_level) * self.highest_level
        ).clamp(0, self.highest_level)


def level_grid_in_ball(x: Tensor, highest_level: int, ball: NormBall | None) -> PixelLevelGrid:
    """The levels 0 .. top around originals x (N, ...) in [0, 1]."""
    # Divided on the CPU and in float32, as loaders do: an accelerator may multiply by 1/255, which is not the same.
    level_values = (torch.arange(highest_level + 1, dtype=torch.float32) / highest_level).to(x.device, x.dtype)
    rounded = (x * highest_level).round()
    x_levels = torch.where(
        (level_values[rounded.long()] - x).abs() <= BALL_FLOAT32_TOLERANCE / 2, rounded, x * highest_level
    )
    if not isinstance(ball, Linf):
        return PixelLevelGrid(x, x_levels, x.new_zeros(()), x.new_full((), highest_level), level_values, ball)
    max_offset, max_offset_levels = (
        eps_with_rounding_tolerance(ball.eps) + BALL_FLOAT32_TOLERANCE,
        ball.eps * highest_level + 1e-4,
    )
    lower, upper = (
        (x_levels - max_offset_levels).ceil().clamp(0, highest_level),
        (x_levels + max_offset_levels).floor().clamp(0, highest_level),
    )  # or one level too far out
    is_below, is_above = x - level_values[lower.long()] > max_offset, level_values[upper.long()] - x > max_offset
    return PixelLevelGrid(
        x, x_levels, lower + is_below.to(x_levels.dtype), upper - is_above.to(x_levels.dtype), level_values, ball
    )


def bisect_smallest_sufficient_t(is_enough: Callable[[Tensor], Tensor], upper: Tensor) -> Tensor:
    """The smallest t (N,) in 0 .. high for which `enough(t)` (N,) holds, where it holds from there on."""
    lower = torch.zeros_like(upper)
    for _ in range(N_SUFFICIENT_T_BISECTION_STEPS):
        middle = (lower + upper) / 2
        satisfied = is_enough(middle)
        lower, upper = torch.where(satisfied, lower, middle), torch.where(satisfied, middle, upper)
    return upper
