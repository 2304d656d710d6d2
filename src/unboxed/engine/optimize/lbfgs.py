"""L-BFGS inside a box, a row a problem of its own: what asks of the function is left to the caller.

Projected quasi-Newton steps (Bertsekas 1982, "Projected Newton Methods for Optimization Problems with Simple
Constraints") with the two-loop recursion of Nocedal & Wright 2006, algorithm 7.4, on the coordinates that are free, and
backtracking along the projected path. Rows never wait for one another: at each look one row tries a shorter step while
another goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ...objectives import Index
from .constraints import TINY, length, per_row

ARMIJO = 1e-4  # the share of the promised decrease that a step must bring
SHORTEST = 2.0**-20  # of a step; where even that brings nothing, the row is done
dot = torch.linalg.vecdot


@dataclass(frozen=True, eq=False)
class Search:
    """Where each row stands. `trial` is what to look at next: `told(value, grad)` of it gives the next state."""

    z: Tensor  # (n, D) the best point so far
    value: Tensor  # (n,)
    grad: Tensor  # (n, D)
    first: Tensor  # (n,) length of a first step, when nothing is known of the curvature
    s: Tensor  # (n, H, D) the last steps, each at its own place
    y: Tensor  # (n, H, D) the changes of the gradient along them
    count: Tensor  # (n,) steps that were kept
    way: Tensor  # (n, D) direction
    size: Tensor  # (n,) share of the direction that is tried
    moved: Tensor  # (n,) bool: the last trial was taken
    done: Tensor  # (n,) bool

    def rows(self, index: Index) -> Search:
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def put(self, at: Tensor, other: Search) -> Search:
        """With another's rows in the place of some, `at` (m,)."""
        both = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return replace(self, **{name: p.index_copy(0, at, q) for name, (p, q) in both.items()})

    def trial(self, low: Tensor, high: Tensor) -> Tensor:
        """(n, D)"""
        return (self.z + self.size[:, None] * self.way).clamp(low, high)

    def told(self, trial: Tensor, value: Tensor, grad: Tensor, low: Tensor, high: Tensor, tolerance: float) -> Search:
        """After a look at the trial."""
        step = trial - self.z
        promised = dot(self.grad, step)  # below zero
        good = (value <= self.value + ARMIJO * promised) & (promised < 0)
        moved = self._moved(good, trial, value, grad, step)
        gain = self.value - value
        settled = good & (gain <= tolerance * value.abs().clamp_min(TINY))
        way = torch.where(good[:, None], moved._way(low, high), self.way)
        size = torch.where(good, 1, self.size * self._shorter(value))
        stuck = ~good & ((size < SHORTEST) | ~self.value.isfinite())
        flat = good & (-dot(moved.grad, way) <= tolerance * value.abs())  # rounding would decide
        return replace(moved, way=way, size=size, moved=good, done=self.done | settled | stuck | flat)

    def towards(self, value: Tensor, grad: Tensor, low: Tensor, high: Tensor) -> Search:
        """From the same point on, with another value and gradient there."""
        way = replace(self, value=value, grad=grad)._way(low, high)
        size, done = torch.ones_like(value), ~(way != 0).any(1)
        return replace(self, value=value, grad=grad, way=way, size=size, moved=done & False, done=done)

    def _shorter(self, value: Tensor) -> Tensor:
        """Where the parabola through what is known has its least, between a tenth and a half of the step."""
        slope = self.size * dot(self.grad, self.way)
        share: Tensor = -slope / (2 * (value - self.value - slope)).clamp_min(TINY)
        return share.nan_to_num(0.1).clamp(0.1, 0.5)

    def _moved(self, good: Tensor, trial: Tensor, value: Tensor, grad: Tensor, step: Tensor) -> Search:
        wide, change = good[:, None], grad - self.grad
        keep = good & (dot(step, change) > 1e-10 * dot(change, change))  # curvature that makes sense
        at = torch.where(keep, self.count % self.s.shape[1], -1)
        here = (torch.arange(self.s.shape[1], device=at.device) == at[:, None])[..., None]  # (n, H, 1)
        return replace(
            self,
            z=torch.where(wide, trial, self.z),
            value=torch.where(good, value, self.value),
            grad=torch.where(wide, grad, self.grad),
            s=torch.where(here, step[:, None], self.s),
            y=torch.where(here, change[:, None], self.y),
            count=self.count + keep,
        )

    def _way(self, low: Tensor, high: Tensor) -> Tensor:
        """Down, over what is not held by a bound, by the curvature seen there; where that fails, along the gradient."""
        free = ~(((self.z <= low) & (self.grad > 0)) | ((self.z >= high) & (self.grad < 0)))
        g = self.grad * free
        plain = -g * (self.first / length(g).clamp_min(TINY))[:, None]
        way = self._two_loops(g, free.to(g.dtype))
        down = dot(way, g) < -1e-10 * length(way) * length(g)
        return torch.where((down & (self.count > 0))[:, None], way, plain)

    def _two_loops(self, g: Tensor, free: Tensor) -> Tensor:
        """-H g (n, D), with the newest pairs first; a pair without curvature over the free coordinates is left out."""
        held = self.s.shape[1]
        rows = torch.arange(len(g), device=g.device)
        pairs, shares = list[tuple[Tensor, Tensor, Tensor]](), list[Tensor]()
        q, gamma = g, torch.zeros_like(self.value)
        for k in range(min(held, int(self.count.max())) if len(g) else 0):
            at = (self.count - 1 - k) % held
            s, y = self.s[rows, at] * free, self.y[rows, at] * free
            sy, yy = dot(s, y), dot(y, y)
            ok = (sy > 1e-10 * yy) & (self.count > k)
            rho = torch.where(ok, 1 / sy.clamp_min(TINY), 0)
            gamma = torch.where(ok & (gamma == 0), sy / yy.clamp_min(TINY), gamma)
            share = rho * dot(s, q)
            q = q - share[:, None] * y
            pairs.append((s, y, rho))
            shares.append(share)
        q = q * gamma[:, None]
        for (s, y, rho), share in zip(reversed(pairs), reversed(shares), strict=True):
            q = q + (share - rho * dot(y, q))[:, None] * s
        return -q


HISTORY = 10  # pairs that are remembered


def begun(z: Tensor, value: Tensor, grad: Tensor, first: Tensor, low: Tensor, high: Tensor) -> Search:
    """A search from z (n, D), whose value (n,) and gradient (n, D) are known."""
    memory = z.new_zeros(len(z), HISTORY, z.shape[1])
    none = torch.zeros(len(z), dtype=torch.long, device=z.device)
    no = torch.zeros_like(none, dtype=torch.bool)
    start = Search(z, value, grad, first, memory, memory, none, torch.zeros_like(z), torch.ones_like(value), no, no)
    return start.towards(value, grad, low, high)


def joined(parts: Sequence[Search]) -> Search:
    """Searches of one kind, one after the other."""
    return Search(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Search)))


def chosen(mask: Tensor, a: Search, b: Search) -> Search:
    """Rows of a where the mask (n,) is true, else of b."""
    both = ((getattr(a, f.name), getattr(b, f.name)) for f in fields(Search))
    return Search(*(torch.where(per_row(mask, p), p, q) for p, q in both))
