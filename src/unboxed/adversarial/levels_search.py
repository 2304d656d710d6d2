"""The search among the images that a file can hold: which of them fools, as near as can be or inside a ball.

In levels, with g the gradient of the margin at a grid point z, the nearest grid point to an original u that fools is,
as far as the model is linear, the solution of a knapsack: one more level in coordinate i gains |g_i| and costs 2 n_i +
1 of the squared distance (n_i the levels taken so far), so the best purchase is round(u + t g) for the least t that is
enough. The search goes to and fro like DeepFool and FAB: to the boundary from where rounding undid the attack, and part
of the way to the knapsack's solution from where the image fools. It keeps the unrounded point, so that steps smaller
than a level add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..engine.optimize.constraints import L1, TINY, NormBall, Linf, broadcast_rows
from ..errors import NaNError, OutputError, warn
from .attempt import Attempt
from .levels_grid import Grid, least

LOOKS = 16  # at most, of the search for the nearest by gradient, and
CLIMB = 30  # of that inside a ball
PULL = 0.4  # how far an image that fools is drawn to the nearest point of the linear model's boundary
FILL = 8.0  # how far a point of a ball may be moved out for its rounding to fill the ball
SCALES = 12  # looks of the search without gradients: the perturbation grows to up to 100 times its size
SURE = 1e-5  # of the original's margin: so much must be left, for float32 sums differ with the batch


class Search:
    """The best file found for each of N examples, and the looks that find better ones."""

    def __init__(self, attempt: Attempt, grid: Grid) -> None:
        self.attempt, self.grid = attempt, grid
        self.v = attempt.images * grid.top  # (N, ...) what the attack found, in levels
        self.home = grid.nearest(grid.u)  # the originals' own files
        self.z = grid.place(self.v)  # (N, ...) the best files so far
        self.reached = grid.inside(self.z)  # (N,) False where the ball holds no file
        self.score = torch.where(self._untouched(), attempt.before, math.nan)  # (N,) of z; nan: not looked at
        self.sure = SURE * attempt.before.abs().nan_to_num()
        self.distance = attempt.norm.distance(self.z, grid.u)

    def _untouched(self) -> Tensor:  # (N,) files that are the original itself
        return (self.grid.image(self.z) == self.grid.x).flatten(1).all(1)

    @property
    def good(self) -> Tensor:  # (N,)
        return self.score > self.sure

    def run(self, gradients: bool) -> None:
        """Look at all files, and repair those that do not fool; without a ball, make them nearer too."""
        attempt, bound = self.attempt, self.grid.ball is not None
        wanted = self.reached & (self._room() if bound else attempt.success)
        if bound or not gradients:
            rows = self.rows(self.score.isnan() & self.reached)
            self.look(self.z[rows], rows)
        if attempt.interrupted:
            return
        for part in attempt.blocks(self.rows(wanted & ~self.good)):
            by_gradient = gradients and self._by_gradient(part)
            if not (by_gradient and bound):
                self._scaled(part[~self.good[part]])

    def rows(self, which: Tensor) -> Tensor:
        return which.nonzero().flatten()

    def finish(self) -> None:
        """Hand the files over to the attempt, with what the model says of them."""
        attempt, grid = self.attempt, self.grid
        unseen = self.rows(self.score.isnan() & attempt.success & self.reached)  # after an interruption
        if len(unseen):
            self.look(self.z[unseen], unseen)
        if grid.ball is None:  # a minimal attack that found nothing gives the original back
            lost = self.rows(~(self.score > 0))
            self.z[lost] = self.home[lost]
            self.score[lost] = torch.where(self._untouched()[lost], attempt.before[lost], math.nan)
        images = grid.image(self.z)
        ask = torch.ones_like(self.reached) if attempt.box.batch_dependent else self.score.isnan()
        if len(rows := self.rows(ask)):
            self.score[rows] = attempt.fooled(images[rows], rows)
        attempt.images, attempt.blank = images, grid.image(self.home)
        attempt.success = (self.score > 0) & self.reached
        far = torch.full_like(self.distance, math.inf)
        attempt.distance = torch.where(attempt.success, attempt.norm.distance(self.z, grid.u) / grid.top, far)
        if n := int((~self.reached).sum()):
            said = f"for {n} of {len(images)} images the ball holds no image of {grid.top + 1} levels"
            warn(f"{said}: the nearest one, outside the ball, is returned as a failure")

    # -- looking -----------------------------------------------------------------------------------------------------

    def look(self, z: Tensor, rows: Tensor) -> Tensor:
        """The scores (n,) of files z of the rows; the better ones are kept."""
        score = self.attempt.fooled(self.grid.image(z), rows)
        self._keep(z, rows, score)
        return score

    def slope(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The same with the gradient (n, ...) a level."""
        slope = self.attempt.slope(self.grid.image(z), rows, self.attempt.goal.fooled)
        self._keep(z, rows, slope.score)
        return slope.score, slope.grad.nan_to_num(0, 0, 0) / self.grid.top

    def _keep(self, z: Tensor, rows: Tensor, score: Tensor) -> None:
        d, good, was = self.attempt.norm.distance(z, self.grid.u[rows]), score > self.sure[rows], self.good[rows]
        closer = ~(self.score[rows] >= score)  # to fooling; also where there was no look before
        better = torch.where(good & was, d < self.distance[rows], good | (~was & closer))
        at = rows[better]
        self.z[at], self.score[at], self.distance[at] = z[better], score[better], d[better]

    def _room(self) -> Tensor:  # (N,) whether the ball holds more than one file
        if isinstance(self.grid.ball, Linf):
            return (self.grid.high > self.grid.low).flatten(1).any(1)
        return torch.ones_like(self.reached)

    # -- the ways to search ------------------------------------------------------------------------------------------

    def _by_gradient(self, rows: Tensor) -> bool:
        """False where the model has no gradient."""
        try:
            self._inside(rows, self.grid.ball) if self.grid.ball is not None else self._nearest(rows)
        except NaNError:
            raise
        except OutputError:
            return False
        return True

    def _nearest(self, rows: Tensor) -> None:
        """To the boundary and back along it, ever nearer to the originals."""
        w, fails = self.v[rows], torch.zeros_like(self.score[rows])
        for _ in range(LOOKS):
            z = self.grid.nearest(w)
            score, g = self.slope(z, rows)
            bad = score <= self.sure[rows]
            on = bad | (z != self.home[rows]).flatten(1).any(1)  # nothing is nearer than the original's own file
            if not on.any():
                return
            rows, z, w, g, score, bad = rows[on], z[on], w[on], g[on], score[on], bad[on]
            grid, short = self.grid.rows(rows), 2 * self.sure[rows] - score
            fails = torch.where(bad, fails[on] + 1, 0)
            there = w + broadcast_rows(short * (1 + (fails - 1).clamp_min(0) / 2), g) * self._forth(g, w - grid.u)
            back = w + PULL * (self._back(grid, z, w, g, short) - w)
            w = torch.where(broadcast_rows(bad, g), there, back).clamp(0, grid.top)

    def _forth(self, g: Tensor, d: Tensor) -> Tensor:
        """The least step, in the attack's norm, by which the score rises by one."""
        if isinstance(self.attempt.norm, Linf):
            return g.sign() / broadcast_rows(g.flatten(1).abs().sum(1).clamp_min(TINY), g)
        if isinstance(self.attempt.norm, L1):  # on what has moved, where anything has
            moved = torch.where(d.abs() > 0.5, g, 0)
            g = torch.where(broadcast_rows(moved.flatten(1).any(1), g), moved, g)
        return g / broadcast_rows((g * g).flatten(1).sum(1).clamp_min(TINY), g)

    def _back(self, grid: Grid, z: Tensor, w: Tensor, g: Tensor, short: Tensor) -> Tensor:
        """The nearest point to the originals that, where the model is linear, still fools once rounded."""

        def enough(t: Tensor) -> Tensor:
            return ((grid.nearest(way(t)) - z) * g).flatten(1).sum(1) >= short

        way, high = self._way(grid, z, w, g, short)
        return way(least(enough, high))

    def _way(
        self, grid: Grid, z: Tensor, w: Tensor, g: Tensor, short: Tensor
    ) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Points by how far they go, t (n,), and the largest t: of all points of one distance those that gain most."""
        if isinstance(self.attempt.norm, L1):  # the moves that gain most are kept
            gain, most = g * (w - grid.u).sign(), g.flatten(1).abs().amax(1)
            return lambda t: grid.u + (w - grid.u) * (gain >= broadcast_rows((1 - t) * most, g)), 0 * short + 1
        steepest = g.sign() if isinstance(self.attempt.norm, Linf) else g
        need = (((z - grid.u) * g).flatten(1).sum(1) + short).clamp_min(0)
        gain = (steepest * g).flatten(1).sum(1).clamp_min(TINY)
        most = steepest.flatten(1).abs().amax(1).clamp_min(TINY)
        return lambda t: grid.u + broadcast_rows(t, g) * steepest, 4 * need / gain + 1 / most

    def _inside(self, rows: Tensor, ball: NormBall) -> None:
        """Steepest ascent of the margin inside the ball, its gradient taken at whole levels."""
        w = self.grid.rows(rows).hull(self.v[rows])
        for k in range(CLIMB):
            grid = self.grid.rows(rows)
            score, g = self.slope(grid.place(w, FILL), rows)
            on = score <= self.sure[rows]
            rows, w, g = rows[on], w[on], g[on]
            if not len(rows):
                return
            size = ball.eps * self.grid.top * (1 - k / CLIMB)
            w = self.grid.rows(rows).hull(w + size * ball.steepest_direction(g))

    def _scaled(self, rows: Tensor) -> None:
        """The perturbation grown until it fools, and then, without a ball, taken back as far as can be."""
        grid, d = self.grid.rows(rows), (self.v - self.grid.u)[rows]
        low, high = torch.ones_like(self.score[rows]), torch.full_like(self.score[rows], math.inf)
        for _ in range(SCALES):
            t = torch.where(high.isinf(), (2 * low - 1).clamp_min(1.05), (low + high) / 2)
            on = self.rows(~self.good[rows]) if grid.ball is not None else self.rows(t > 0)
            if not len(on):
                return
            score = low.new_full(low.shape, math.inf)
            score[on] = self.look(grid.rows(on).place(grid.u[on] + broadcast_rows(t[on], d) * d[on]), rows[on])
            bad = score <= self.sure[rows]
            low, high = torch.where(bad, t, low), torch.where(bad, high, t)
