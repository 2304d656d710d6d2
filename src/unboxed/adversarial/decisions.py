"""What decision-based attacks share: a budget of queries, starting images, and bisection to the boundary."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.optimize.constraints import Linf
from ..engine.rows import broadcast_rows
from ..errors import InputError, warn
from ..inputs.pixels import Pixels
from ..rng import hashed_uniform, sample_generator
from ..validation import valid_seed
from .attack_state import AttackState

MAX_RANDOM_STARTS = 100  # random images that are tried as a start
COARSE_NOISE_CELLS_ON_LONGER_SIDE = 7  # on the longer side of coarse noise


class DecisionOracle:
    """Whether images are adversarial, and nothing else; at most `queries` times per row."""

    def __init__(self, state: AttackState, queries: int, seed: int) -> None:
        self.state, self.queries, self.seed = state, queries, valid_seed(seed)
        self.box, self.x, self.norm = state.box, state.x, state.norm

    def remaining_queries(self, rows: Tensor) -> Tensor:
        """(n,) queries left of each row."""
        return self.queries - self.state.queries[rows]

    def is_adversarial(self, images: Tensor, rows: Tensor) -> Tensor:
        """(n,) bool; False, without running the model, for rows that have no queries left."""
        has_budget = self.remaining_queries(rows) > 0
        decisions = torch.zeros_like(has_budget)
        if has_budget.any():
            decisions[has_budget] = self.state.success_score(images[has_budget], rows[has_budget]) > 0
        return decisions

    def decisions(self, images: Tensor, rows: Tensor, is_asked: Tensor) -> Tensor:
        """(n, B) bool, of several images (n, B, ...) per row: those where is_asked (n, B), within the budget."""
        decisions = torch.zeros_like(is_asked)
        if not self.box.batch_dependent:
            decisions[is_asked] = (
                self.state.success_score(images[is_asked], rows[:, None].expand_as(is_asked)[is_asked]) > 0
            )
            return decisions
        for column in range(images.shape[1]):  # batch-dependent: one image of each row at a time
            has_query = is_asked[:, column]
            if has_query.any():
                decisions[has_query, column] = self.state.success_score(images[has_query, column], rows[has_query]) > 0
        return decisions

    # -- starting images ---------------------------------------------------------------------------------------------

    def find_adversarial_starts(self, rows: Tensor, start_images: Tensor | None) -> tuple[Tensor, Tensor]:
        """Adversarial images (m, ...) at any distance, and the rows (m,) for which one was found."""
        if start_images is None and self.state.goal.target_labels is not None:
            raise InputError("a targeted attack by decisions needs images to start from: give some of the target "
                             "class, starts=")  # fmt: skip
        images = self.x[rows]
        has_start = torch.zeros_like(rows, dtype=torch.bool)
        start_order = None if start_images is None else self._start_indices_by_distance(rows, start_images)
        for try_index in range(MAX_RANDOM_STARTS if start_order is None or start_images is None else len(start_images)):
            pending = (~has_start & (self.remaining_queries(rows) > 0)).nonzero()[:, 0]
            if not len(pending):
                break
            candidates = (
                self._random_start_candidates(rows[pending], try_index)
                if start_order is None or start_images is None
                else start_images[start_order[pending, try_index]]
            )
            is_adversarial = self.is_adversarial(candidates, rows[pending])
            images[pending[is_adversarial]], has_start[pending[is_adversarial]] = candidates[is_adversarial], True
            self.state.update_nearest(candidates, rows[pending], is_adversarial)
        self._warn_no_start(int((~has_start).sum()), start_images is not None)
        return images[has_start], rows[has_start]

    def _start_indices_by_distance(self, rows: Tensor, start_images: Tensor) -> Tensor:
        """(n, S) the starts ordered by their distance from each row."""
        distances = [self.norm.distance(start_images, self.x[row].expand_as(start_images)) for row in rows]
        return torch.stack(distances).argsort(dim=1, stable=True) if distances else rows.new_zeros(0, len(start_images))

    def _random_start_candidates(self, rows: Tensor, try_index: int) -> Tensor:
        """The k-th random start of each row (n, ...): valid inputs; for images, of four kinds."""
        images = [self._random_start_candidate(int(row), try_index) for row in rows]
        return self.box.inputs.clip(torch.stack(images).to(self.x.dtype))

    def _random_start_candidate(self, row: int, try_index: int) -> Tensor:
        inputs = self.box.inputs
        noise = inputs.random_inputs(1, sample_generator(self.seed, row, try_index, self.x.device))[0]
        if not isinstance(inputs, Pixels) or try_index % 4 == 0:
            return noise
        if try_index % 4 == 1:
            return _coarsen_noise(noise)
        return (
            1 - self.x[row] if try_index == 2 else (_coarsen_noise(noise) > 0.5 if try_index % 4 == 3 else noise > 0.5)
        )

    def _warn_no_start(self, n_missing: int, has_start_images: bool) -> None:
        if n_missing:
            hint = "none of `starts`" if has_start_images else "no random image"
            advice = "" if has_start_images else ": give images of other classes, starts="
            examples = "1 example, which was" if n_missing == 1 else f"{n_missing} examples, which were"
            warn(f"{hint} is adversarial for {examples} not attacked{advice}")

    # -- to the boundary ---------------------------------------------------------------------------------------------

    def interpolate(self, images: Tensor, rows: Tensor, fraction: Tensor) -> Tensor:
        """Between the original (fraction 0) and the image (fraction 1).

        On a straight line; in L-inf, by clipping the change. `fraction` (n,) is of the distance in the norm.
        """
        x = self.x[rows]
        if isinstance(self.norm, Linf):
            radius = broadcast_rows(fraction * self.norm.distance(images, x), images)
            return torch.minimum(torch.maximum(images, x - radius), x + radius)
        return self.box.inputs.clip(x + broadcast_rows(fraction, images) * (images - x))

    def bisect_to_boundary(self, images: Tensor, rows: Tensor, steps: int) -> Tensor:
        """The nearest adversarial image between originals and adversarial images, to 2 ** -steps of the distance."""
        lower, upper = torch.zeros(len(rows), dtype=images.dtype, device=images.device), images.new_ones(len(rows))
        for _ in range(steps):
            middle = (lower + upper) / 2
            has_budget = self.remaining_queries(rows) > 0
            if not has_budget.any():
                break
            is_adversarial = self.is_adversarial(self.interpolate(images, rows, middle), rows)
            upper, lower = (
                torch.where(is_adversarial, middle, upper),
                torch.where(has_budget & ~is_adversarial, middle, lower),
            )
        nearest_image = torch.where(broadcast_rows(upper < 1, images), self.interpolate(images, rows, upper), images)
        self.state.update_nearest(nearest_image, rows, torch.ones_like(rows, dtype=torch.bool))
        return nearest_image


def _coarsen_noise(noise: Tensor) -> Tensor:
    """Noise (C, H, W) in a few large cells."""
    longer_side = max(noise.shape[-2:])
    cells = [
        -(-length * min(COARSE_NOISE_CELLS_ON_LONGER_SIDE, longer_side) // longer_side) for length in noise.shape[-2:]
    ]
    cell_values = noise[:, : cells[0], : cells[1]]
    return F.interpolate(cell_values[None], tuple(noise.shape[-2:]), mode="nearest")[0]


def hashed_normal(seed: int, rows: Tensor, step_index: int, n_values: int) -> Tensor:
    """Standard normal float32 values (n, n_values), keyed as `hashed_uniform`."""
    half = (n_values + 1) // 2
    u, v = hashed_uniform(seed, rows, step_index, 2 * half).view(-1, 2, half).unbind(1)
    r = (-2 * torch.log1p(-u)).sqrt()  # Box & Muller 1958
    return torch.cat([r * (2 * math.pi * v).cos(), r * (2 * math.pi * v).sin()], 1)[:, :n_values]
