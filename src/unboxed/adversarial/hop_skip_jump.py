"""HopSkipJump: which way the boundary lies is told by decisions around a point of it.

Chen, Jordan & Wainwright 2020, "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack", arXiv:1904.02144.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import TINY, Linf, broadcast_rows, l2_norm, unbounded_ball
from ..model.batching import BatchSize
from ..objectives import Objective
from ..rng import sample_generator
from ..validation import check_float, check_int
from .attack_state import AttackState
from .decisions import DecisionOracle
from .quantization import quantize_images
from .result import Adversarial

MAX_VALUES_AT_ONCE = 2**22  # of the images around the boundary that are held at a time
INITIAL_NUM_EVALS = {"l2": 50, "linf": 200}  # at the first step: about the best at 1,000 to 3,000 queries on digits
MAX_HALVINGS = 12  # of a step, until it fools


@card(
    name="HopSkipJump",
    source="Chen et al. 2020, arXiv:1904.02144, algorithm 2",
    shows="The nearest input found that the model takes for something else, from its decisions alone, no gradient.",
    does_not_show="That none is nearer: with more queries it comes nearer, and where a gradient can be had, that is surer.",
    norms=("l2", "linf"),
    example=lambda method, box, x, y: method(box, x, y, queries=40, initial_num_evals=10),
    exempt={"one forward": "it asks the model `queries` times"},
)
def hop_skip_jump(
    box: Box,
    x: Tensor,
    y: Tensor | int | None = None,
    *,
    eps: float | None = None,
    norm: str = "l2",
    target: Tensor | int | None = None,
    objective: Objective | None = None,
    starts: Tensor | None = None,
    queries: int = 5000,
    initial_num_evals: int | None = None,
    early_stop: bool = True,
    bits: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """Images as near as can be (in `norm`, "l2" or "linf") that fool the model, in `queries` looks an example.

    It starts from the nearest fooling one of `starts` (S, ...), which a targeted attack must have, or from images of
    chance, and asks about `draws` points around the boundary at first (by default 50, in L-inf, where signs are wanted,
    200; the paper takes 100), and about sqrt(t) times as many at step t. With `eps`, an example leaves once it is
    within eps (`early_stop=False`: it goes on), and what is farther is no success.
    Raises InputError.
    """
    state = AttackState(box, x, y, norm=unbounded_ball(norm, ("l2", "linf")), target=target, objective=objective,
                      batch_size=batch_size)  # fmt: skip
    max_distance = math.inf if eps is None else check_float("eps", eps, above=0)
    oracle = DecisionOracle(state, queries, seed)
    start_pool = None if starts is None else box.validate_inputs(starts)
    first_num_evals = check_int(
        "draws", INITIAL_NUM_EVALS[norm.lower()] if initial_num_evals is None else initial_num_evals, minimum=2
    )
    attack = _HopSkipJump(oracle, first_num_evals, 0.0 if not early_stop or eps is None else max_distance)
    rows = state.evaluate_originals()
    with state:
        attack.run(*oracle.find_starts(rows, start_pool))
    quantize_images(state, bits, use_gradients=False)
    return state.to_result(max_distance)


@dataclass
class _HopSkipJump:
    """The rows still under way; enough is their distance."""

    oracle: DecisionOracle
    initial_num_evals: int
    target_distance: float

    def __post_init__(self) -> None:
        self.is_linf = isinstance(self.oracle.norm, Linf)
        self.n_values = self.oracle.x[0].numel()
        self.bisection_steps = math.ceil(
            (2 if self.is_linf else 1.5) * math.log2(max(self.n_values, 2))
        )  # theta = d^-3/2; L-inf d^-2

    def run(self, z: Tensor, rows: Tensor) -> None:
        """From fooling images z (n, ...) to the boundary, and along it, until the budget is spent."""
        z = self.oracle.bisect(z, rows, self.bisection_steps)
        iteration = 1
        while len(rows):
            distance = self.oracle.norm.distance(z, self.oracle.x[rows])
            reserved_queries = self.bisection_steps + 4  # for the step and the way back
            is_active = (self.oracle.remaining_queries(rows) > reserved_queries + 1) & (
                distance > max(self.target_distance, TINY)
            )
            z, rows, distance = z[is_active], rows[is_active], distance[is_active]
            if len(rows):
                z = self._iterate(z, rows, distance, reserved_queries, iteration)
            iteration += 1

    def _iterate(self, z: Tensor, rows: Tensor, distance: Tensor, reserved_queries: int, iteration: int) -> Tensor:
        """One step of algorithm 2: a direction, a step that still fools, back to the boundary."""
        radius = distance / self.n_values if iteration > 1 else 0.01 * distance
        num_evals = (self.oracle.remaining_queries(rows) - reserved_queries).clamp_max(
            int(self.initial_num_evals * math.sqrt(iteration))
        )
        step_direction = self.estimate_direction(z, rows, radius, num_evals, iteration)
        stepped = self._line_search(z, rows, step_direction, distance / math.sqrt(iteration))
        return self.oracle.bisect(stepped, rows, self.bisection_steps)

    def estimate_direction(self, z: Tensor, rows: Tensor, radius: Tensor, num_evals: Tensor, iteration: int) -> Tensor:
        """Where more of the neighborhood fools the model, eq. 16, from `many` (n,) decisions within `radius` (n,)."""
        adversarial_sum, direction_sum, n_adversarial = (
            torch.zeros_like(z),
            torch.zeros_like(z),
            torch.zeros_like(radius),
        )
        block_size = max(1, min(MAX_VALUES_AT_ONCE // 8 // self.n_values, 4096))
        rows_at_once = (
            len(rows)
            if self.oracle.box.batch_dependent
            else max(1, MAX_VALUES_AT_ONCE // (self.n_values * min(block_size, int(num_evals.max()))))
        )
        for block_index, block_start in enumerate(range(0, int(num_evals.max()), block_size)):
            for i in range(0, len(rows), rows_at_once):
                row_slice = slice(i, i + rows_at_once)
                block_evals = (num_evals[row_slice] - block_start).clamp(0, block_size)
                directions, is_adversarial = self._query_around(
                    z[row_slice], rows[row_slice], radius[row_slice], block_evals, iteration * 4096 + block_index
                )
                adversarial_sum[row_slice] += (directions * expand_like(is_adversarial, directions)).sum(1)
                direction_sum[row_slice] += directions.sum(1)
                n_adversarial[row_slice] += is_adversarial.sum(1)
        estimate = _gradient_estimate(adversarial_sum, direction_sum, n_adversarial, num_evals)
        return (
            estimate.sign() if self.is_linf else estimate / broadcast_rows(l2_norm(estimate).clamp_min(TINY), estimate)
        )

    def _query_around(
        self, z: Tensor, rows: Tensor, radius: Tensor, block_evals: Tensor, key: int
    ) -> tuple[Tensor, Tensor]:
        """Directions u (n, B, ...) to valid points around z (zero beyond `some`), and which of those fool."""
        n_directions = max(1, int(block_evals.max()))
        is_asked = torch.arange(n_directions, device=z.device) < block_evals[:, None]  # (n, B)
        directions = torch.stack([self._sample_directions(int(row), key, n_directions, z) for row in rows])
        perturbed = self.oracle.box.inputs.clip(
            (z[:, None] + broadcast_rows(radius, directions) * directions).flatten(0, 1)
        ).view_as(directions)
        directions = (
            (perturbed - z[:, None]) / broadcast_rows(radius, directions) * expand_like(is_asked, directions)
        )  # clipping turned some of them
        return directions, self.oracle.decisions(perturbed, rows, is_asked)

    def _sample_directions(self, row: int, key: int, n_directions: int, z: Tensor) -> Tensor:
        """Directions (count, ...) of length 1, keyed by the row: uniform, or for L-inf from a cube, as the paper's."""
        generator = sample_generator(self.oracle.seed, row, key + 2**20, z.device)
        sampler = torch.rand if self.is_linf else torch.randn
        directions = sampler(n_directions, *z.shape[1:], generator=generator, device=z.device, dtype=z.dtype)
        directions = 2 * directions - 1 if self.is_linf else directions
        return directions / broadcast_rows(l2_norm(directions).clamp_min(TINY), directions)

    def _line_search(self, z: Tensor, rows: Tensor, directions: Tensor, step_size: Tensor) -> Tensor:
        """The longest step along v, halved from `size` (n,), that still fools; z where none does."""
        stepped, pending = z.clone(), torch.arange(len(rows), device=z.device)
        for halvings in range(MAX_HALVINGS):
            candidates = self.oracle.box.inputs.clip(
                z[pending] + broadcast_rows(step_size[pending] / 2**halvings, directions) * directions[pending]
            )
            is_adversarial = self.oracle.is_adversarial(candidates, rows[pending])
            stepped[pending[is_adversarial]] = candidates[is_adversarial]
            pending = pending[~is_adversarial]
            if not len(pending):
                break
        return stepped


def _gradient_estimate(
    adversarial_sum: Tensor, direction_sum: Tensor, n_adversarial: Tensor, num_evals: Tensor
) -> Tensor:
    """The sum of (phi - mean phi) u, phi being 1 where a direction fools and else -1; of phi u where all are alike."""
    num_evals = num_evals.to(adversarial_sum.dtype)
    weighted_sum = 2 * (adversarial_sum - broadcast_rows(n_adversarial / num_evals, adversarial_sum) * direction_sum)
    unanimous_sum = torch.where(broadcast_rows(n_adversarial > 0, direction_sum), direction_sum, -direction_sum)
    return torch.where(
        broadcast_rows((n_adversarial > 0) & (n_adversarial < num_evals), adversarial_sum), weighted_sum, unanimous_sum
    )


def expand_like(values: Tensor, like: Tensor) -> Tensor:
    """(n, B) -> (n, B, 1, ...), to go with a tensor (n, B, ...)."""
    return values.view(*values.shape, *[1] * (like.ndim - 2))
