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
from ..cpu_cache import cpu_rows_per_chunk
from .constraints import MIN_DENOMINATOR

MAX_CPU_CHUNK_VALUES = 2**17  # of a chunk that a CPU's cache holds
# Coordinates that a step in L1 takes to move, at first; sorting all of them is seldom needed
N_INITIAL_L1_COORDINATES = 64
EXTRA_NEWTON_STEPS = 8  # steps beyond one for each kink, which rounding may ask for


@dataclass(frozen=True, eq=False)
class Hyperplane:
    value: Tensor  # (n,) v
    normal: Tensor  # (n, D) w

    def rows(self, index: Tensor | slice) -> Hyperplane:
        return Hyperplane(self.value[index], self.normal[index])


def min_norm_step_to_hyperplane(norm: str, x: Tensor, plane: Hyperplane, lower: Tensor, upper: Tensor) -> Tensor:
    """The smallest change (n, D) that takes x (n, D) onto the plane within low <= z <= high, each (1, D).

    Where the plane does not intersect the box: to the corner nearest to it. Croce & Hein 2020, arXiv:1907.02044,
    section 2.2; there by sorting, here by a few Newton steps, which end at the same point.
    """
    chunk_rows = cpu_rows_per_chunk(x, MAX_CPU_CHUNK_VALUES)
    parts = [
        _min_norm_step_to_hyperplane_chunk(
            norm, x[i : i + chunk_rows], plane.rows(slice(i, i + chunk_rows)), lower, upper
        )
        for i in range(0, len(x), chunk_rows)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.zeros_like(x)


def _min_norm_step_to_hyperplane_chunk(norm: str, x: Tensor, plane: Hyperplane, lower: Tensor, upper: Tensor) -> Tensor:
    toward_plane = plane.normal * -plane.value.sign()[:, None]  # (n, D)
    max_change = (torch.where(toward_plane > 0, upper, lower) - x).abs()  # (n, D)
    weight, distance = toward_plane.abs(), plane.value.abs()
    return toward_plane.sign() * MIN_CHANGE_FN_BY_NORM[norm](weight, max_change, distance)


def _min_linf_change(weight: Tensor, max_change: Tensor, distance: Tensor) -> Tensor:
    return torch.minimum(water_filling_level(weight, max_change, distance)[:, None], max_change)


def _min_l2_change(weight: Tensor, max_change: Tensor, distance: Tensor) -> Tensor:
    max_level = max_change / weight.clamp_min(MIN_DENOMINATOR)
    return weight * torch.minimum(water_filling_level(weight * weight, max_level, distance)[:, None], max_level)


def _min_l1_change(
    weight: Tensor, max_change: Tensor, distance: Tensor, n_largest: int = N_INITIAL_L1_COORDINATES
) -> Tensor:
    """Change at most N_INITIAL_L1_COORDINATES coordinates with the largest weights; rows that need more take more."""
    n_largest = min(n_largest, weight.shape[1])
    largest, index = torch.where(max_change > 0, weight, 0).topk(n_largest)  # (n, few)
    largest_change = torch.minimum(
        max_change.gather(1, index), distance[:, None] / largest.clamp_min(MIN_DENOMINATOR)
    )  # finite
    total = (largest * largest_change).cumsum(1)
    total_before = torch.cat([torch.zeros_like(distance)[:, None], total[:, :-1]], 1)
    wanted_change = ((distance[:, None] - total_before) / largest.clamp_min(MIN_DENOMINATOR)).clamp_min(0)
    change = torch.zeros_like(weight).scatter_(1, index, torch.minimum(wanted_change, largest_change))
    is_short = total[:, -1] < distance
    if n_largest < weight.shape[1] and bool(is_short.any()):
        change[is_short] = _min_l1_change(weight[is_short], max_change[is_short], distance[is_short], 8 * n_largest)
    return change


MIN_CHANGE_FN_BY_NORM = {"linf": _min_linf_change, "l2": _min_l2_change, "l1": _min_l1_change}


def water_filling_level(weight: Tensor, max_level: Tensor, distance: Tensor) -> Tensor:
    """The level s (n,) with sum_i weight_i min(s, max_level_i) = distance, or one above all without any.

    The sum is concave and piecewise linear in s, so Newton steps from below never overshoot, and the one after the last
    kink is exact.
    """
    s = torch.zeros_like(distance)
    tolerance = 8 * torch.finfo(s.dtype).eps
    for _ in range(weight.shape[1] + EXTRA_NEWTON_STEPS):
        is_free = (max_level > s[:, None]).to(weight.dtype)  # (n, D)
        slope = torch.linalg.vecdot(weight, is_free)
        missing = distance - torch.linalg.vecdot(weight, torch.minimum(max_level, s[:, None]))
        increase = torch.where(slope > 0, missing / slope.clamp_min(MIN_DENOMINATOR), 0).clamp_min(0)
        s = s + increase
        if not bool((increase > tolerance * s).any()):
            break
    return s


def random_directions(norm: str, like: Tensor, rows: Tensor, seed: int, step: int) -> Tensor:
    """Random directions (n, D) of norm 1, keyed by (seed, row, step): uniform on the L-inf and L2 sphere."""
    uniform = hashed_uniform(seed, rows, step, like.shape[1]).to(like.dtype)
    signed = 2 * uniform - 1
    if norm == "l2":
        signed = torch.erfinv(signed.clamp(-1 + 1e-6, 1 - 1e-6))
    if norm == "l1":
        signed = -signed.sign() * torch.log1p(-signed.abs().clamp_max(1 - 1e-6))
    return signed / vector_norms(norm, signed).clamp_min(MIN_DENOMINATOR)[:, None]


DUAL_NORM_BY_NORM = {"linf": "l1", "l2": "l2", "l1": "linf"}


def vector_norms(norm: str, d: Tensor) -> Tensor:
    """The norm of the last axis."""
    if norm == "linf":
        return d.abs().amax(-1)  # faster than vector_norm
    norms: Tensor = torch.linalg.vector_norm(d, 1 if norm == "l1" else 2, dim=-1)
    return norms
