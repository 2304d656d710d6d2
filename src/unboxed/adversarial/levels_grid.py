"""The images that a file can hold, and those of them that are inside a ball: whole levels in place of numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..engine.optimize.constraints import NormBall, Linf, broadcast_rows

HALVINGS = 24
SLACK = 7e-8  # float32 rounds a level k/255 and an original by up to 3e-8 each


@dataclass(frozen=True, eq=False)
class Grid:
    """The images (N, ...) whose values are whole levels 0 .. top, and which of them are inside a ball."""

    x: Tensor  # (N, ...) the originals, and
    u: Tensor  # (N, ...) the same in levels: whole where the original is on the grid
    low: Tensor  # (N, ...) or (): the least and
    high: Tensor  # the highest level that a ball allows in each coordinate
    values: Tensor  # (top + 1,) what the levels are when loaded
    ball: NormBall | None

    @property
    def top(self) -> int:
        return len(self.values) - 1

    def rows(self, rows: Tensor) -> Grid:
        low, high = (h[rows] if h.ndim else h for h in (self.low, self.high))
        return replace(self, x=self.x[rows], u=self.u[rows], low=low, high=high)

    def image(self, z: Tensor) -> Tensor:
        """The very values that loading a file with these levels gives."""
        return self.values[z.long()]

    def nearest(self, v: Tensor) -> Tensor:
        return v.round().clamp(self.low, self.high)

    def inside(self, z: Tensor) -> Tensor:  # (N,)
        if self.ball is None:
            return torch.ones(len(z), dtype=torch.bool, device=z.device)
        return self.ball.distance(self.image(z), self.x) <= self.ball.eps * (1 + 1e-6) + SLACK

    def place(self, v: Tensor, stretch: float = 1.0) -> Tensor:
        """The levels nearest to v (N, ...), given in levels; where they are outside the ball, nearer to the original.

        Of round(u + t (v - u)), t at most `stretch`, the farthest that is inside: as t falls, coordinates go back to
        the original's level one after the other, those that gave least for what they cost first.
        """
        if self.ball is None or isinstance(self.ball, Linf):
            return self.nearest(v)
        z = self.nearest(self.u + stretch * (v - self.u))
        out = (~self.inside(z)).nonzero().flatten()
        if not len(out):
            return z
        some, off = self.rows(out), stretch * (v - self.u)[out]
        t = least(lambda t: some.inside(some.nearest(some.u + broadcast_rows(1 - t, off) * off)), v.new_ones(len(out)))
        z[out] = some.nearest(some.u + broadcast_rows(1 - t, off) * off)
        return z

    def hull(self, v: Tensor) -> Tensor:
        """v moved into the ball, between levels too."""
        if self.ball is None or isinstance(self.ball, Linf):
            return v.clamp(self.low, self.high)
        return (self.ball.project(v / self.top, self.u / self.top) * self.top).clamp(0, self.top)


def grid_of(x: Tensor, top: int, ball: NormBall | None) -> Grid:
    """The levels 0 .. top around originals x (N, ...) in [0, 1]."""
    # Divided on the CPU and in float32, as loaders do: an accelerator may multiply by 1/255, which is not the same.
    values = (torch.arange(top + 1, dtype=torch.float32) / top).to(x.device, x.dtype)
    near = (x * top).round()
    u = torch.where((values[near.long()] - x).abs() <= SLACK / 2, near, x * top)
    if not isinstance(ball, Linf):
        return Grid(x, u, x.new_zeros(()), x.new_full((), top), values, ball)
    most, rim = ball.eps * (1 + 1e-6) + SLACK, ball.eps * top + 1e-4
    low, high = (u - rim).ceil().clamp(0, top), (u + rim).floor().clamp(0, top)  # or one level too far out
    over, under = x - values[low.long()] > most, values[high.long()] - x > most
    return Grid(x, u, low + over.to(u.dtype), high - under.to(u.dtype), values, ball)


def least(enough: Callable[[Tensor], Tensor], high: Tensor) -> Tensor:
    """The least t (N,) in 0 .. high for which `enough(t)` (N,) holds, where it holds from there on."""
    low = torch.zeros_like(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        ok = enough(middle)
        low, high = torch.where(ok, low, middle), torch.where(ok, middle, high)
    return high
