"""The nearest point of a hyperplane inside a box: batched, exact, by norm.

A plane is where v + w . (z - x) = 0, with a value v (n,) and a normal w (n, D) a row. With r = |v| to be made up for
and room c_i in the direction that helps, the least change t >= 0 with sum_i |w_i| t_i = r is min(s, c_i) in L-inf and
min(s |w_i|, c_i) in L2, for one level s a row; in L1 the largest weights are used up first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...rng import hashed_uniform
from .constraints import TINY

ELEMENTS = 2**17  # of a part: what is worked on stays in a processor's cache
FEW = 64  # coordinates that a step in L1 takes to move, at first; sorting all of them is seldom needed
SPARE = 8  # steps beyond one for each kink, which rounding may ask for


@dataclass(frozen=True, eq=False)
class Plane:
    value: Tensor  # (n,) v
    normal: Tensor  # (n, D) w

    def rows(self, index: Tensor | slice) -> Plane:
        return Plane(self.value[index], self.normal[index])


def shift(norm: str, x: Tensor, plane: Plane, low: Tensor, high: Tensor) -> Tensor:
    """The smallest change (n, D) that takes x (n, D) onto the plane within low <= z <= high, each (1, D).

    Where the plane does not meet the box: to the corner that comes nearest to it. Croce & Hein 2020, arXiv:1907.02044,
    section 2.2; there by sorting, here by Newton steps, which end at the same point after a few of them.
    """
    size = max(1, ELEMENTS // x.shape[1]) if x.device.type == "cpu" else max(1, len(x))
    parts = [
        _shift(norm, x[i : i + size], plane.rows(slice(i, i + size)), low, high) for i in range(0, len(x), size)
    ]  # fmt: skip
    return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.zeros_like(x)


def _shift(norm: str, x: Tensor, plane: Plane, low: Tensor, high: Tensor) -> Tensor:
    way = plane.normal * -plane.value.sign()[:, None]  # (n, D) where to go
    room = (torch.where(way > 0, high, low) - x).abs()  # (n, D)
    weight, need = way.abs(), plane.value.abs()
    return way.sign() * CHANGES[norm](weight, room, need)


def _linf(weight: Tensor, room: Tensor, need: Tensor) -> Tensor:
    return torch.minimum(level(weight, room, need)[:, None], room)


def _l2(weight: Tensor, room: Tensor, need: Tensor) -> Tensor:
    most = room / weight.clamp_min(TINY)
    return weight * torch.minimum(level(weight * weight, most, need)[:, None], most)


def _l1(weight: Tensor, room: Tensor, need: Tensor, few: int = FEW) -> Tensor:
    """Up to `few` of the coordinates with the largest weights move; rows for which these do not do take more."""
    few = min(few, weight.shape[1])
    largest, at = torch.where(room > 0, weight, 0).topk(few)  # (n, few)
    most = torch.minimum(room.gather(1, at), need[:, None] / largest.clamp_min(TINY))  # finite
    total = (largest * most).cumsum(1)
    before = torch.cat([torch.zeros_like(need)[:, None], total[:, :-1]], 1)
    moved = ((need[:, None] - before) / largest.clamp_min(TINY)).clamp_min(0)
    change = torch.zeros_like(weight).scatter_(1, at, torch.minimum(moved, most))
    short = total[:, -1] < need
    if few < weight.shape[1] and bool(short.any()):
        change[short] = _l1(weight[short], room[short], need[short], 8 * few)
    return change


CHANGES = {"linf": _linf, "l2": _l2, "l1": _l1}


def level(p: Tensor, most: Tensor, need: Tensor) -> Tensor:
    """The level s (n,) at which sum_i p_i min(s, most_i) = need; where even the most is too little, one above it.

    The sum is concave and piecewise linear in s, so Newton's steps from below never overshoot, and after the last
    kink the next one is exact.
    """
    s = torch.zeros_like(need)
    close = 8 * torch.finfo(s.dtype).eps
    for _ in range(p.shape[1] + SPARE):
        free = (most > s[:, None]).to(p.dtype)  # (n, D)
        steep = torch.linalg.vecdot(p, free)
        missing = need - torch.linalg.vecdot(p, torch.minimum(most, s[:, None]))
        more = torch.where(steep > 0, missing / steep.clamp_min(TINY), 0).clamp_min(0)
        s = s + more
        if not bool((more > close * s).any()):
            break
    return s


def direction(norm: str, like: Tensor, rows: Tensor, seed: int, step: int) -> Tensor:
    """A random direction (n, D) of norm 1 a row, keyed by (seed, row, step): uniform on the L-inf and L2 sphere."""
    u = hashed_uniform(seed, rows, step, like.shape[1]).to(like.dtype)
    side = 2 * u - 1
    if norm == "l2":
        side = torch.erfinv(side.clamp(-1 + 1e-6, 1 - 1e-6))
    if norm == "l1":
        side = -side.sign() * torch.log1p(-side.abs().clamp_max(1 - 1e-6))
    return side / lengths(norm, side).clamp_min(TINY)[:, None]


DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}


def lengths(norm: str, d: Tensor) -> Tensor:
    """The norm of the last axis."""
    if norm == "linf":
        return d.abs().amax(-1)  # several times as quick as vector_norm
    found: Tensor = torch.linalg.vector_norm(d, 1 if norm == "l1" else 2, dim=-1)
    return found
