"""HopSkipJump: the direction of the boundary is estimated from decisions around a point on it.

Chen, Jordan & Wainwright 2020, "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack", arXiv:1904.02144.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import MIN_DENOMINATOR, Linf, l2_norm, unbounded_ball
from ..engine.rows import broadcast_rows
from ..parameters import (
    AttackTarget,
    BatchSize,
    CustomAttackObjective,
    EarlyStop,
    Eps,
    InputBatch,
    Labels,
    LinfOrL2Norm,
    MaxQueries,
    RoundingBits,
    Seed,
    StartImages,
)
from ..rng import sample_generator
from ..settings import AtLeast, Unit, check_settings
from .attack_state import AttackState
from .decisions import DecisionOracle
from .quantization import quantize_images
from .result import Adversarial

MAX_DIRECTION_VALUES_IN_MEMORY = 2**22  # of the images around the boundary in memory at a time
INITIAL_NUM_EVALS_BY_NORM = {
    "l2": 50,
    "linf": 200,
}  # at the first step: about the best at 1,000 to 3,000 queries on digits
MAX_STEP_HALVINGS = 12  # of a step, until it is adversarial


@card(
    name="HopSkipJump",
    aliases=("hsja",),
    source="Chen et al. 2020, arXiv:1904.02144, algorithm 2",
    shows="The nearest misclassified input found from the model's decisions alone, without gradients.",
    does_not_show="That none is nearer: more queries find nearer ones, and gradients, where there are any, do better.",
    example=lambda method, box, x, y: method(box, x, y, queries=20, initial_num_evals=4),
    runs=lambda s: s["queries"],
    minimal=True,
    order=26,
    gradient_free=True,
    exempt={"one forward": "it runs the model `queries` times"},
)
def hop_skip_jump(
    box: Box,
    x: InputBatch,
    y: Labels = None,
    *,
    eps: Eps = None,
    norm: LinfOrL2Norm = "l2",
    target: AttackTarget = None,
    objective: CustomAttackObjective = None,
    starts: StartImages = None,
    queries: MaxQueries = 5000,
    initial_num_evals: Annotated[
        int | None,
        AtLeast(2),
        Unit("forward passes"),
        "Points around the boundary that are asked about in the first step.",
    ] = None,
    early_stop: EarlyStop = True,
    bits: RoundingBits = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """The nearest adversarial images that decisions alone can find: the boundary's direction is estimated by sampling.

    For models that give only their decision. It comes nearer than `boundary` in as many queries. Where there are scores
    use `square`; where there is a gradient, `fab`.

    Args:
        box: The model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        y: Correct classes (N,), or one for all. None takes those that come with x, as in a Dataset; without any, give
            `target` or `objective`.
        eps: Largest distance from x. An image farther away is no success, and the original is returned for it. None:
            any distance will do.
        norm: Norm in which the distance from x is measured.
        target: Class to become (N,), or one for all. None: any class but y.
        objective: What is raised above zero, instead of a wrong class. Not together with `target`.
        starts: Images (S, ...) to start from. A targeted attack needs some of the target class; None starts from random
            images.
        queries: Largest number of forward passes per example.
        initial_num_evals: Points around the boundary that are asked about in the first step. At step t it is sqrt(t)
            times as many. None: 50, or 200 in L-inf.
        early_stop: Stop examples as soon as they are good enough. That is, fooled within eps. False: they get nearer
            still.
        bits: Bits per value to which images are rounded: 8 gives the levels of PNG files. Rounding would undo many
            attacks, so a search among the rounded images follows; `success` is then that of the rounded image.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        An `Adversarial`: `images` like x, and `success`, `distance`, `queries` and `initially_misclassified`, each
        (N,). Where the attack fails, `images` has the original.

    Raises:
        InputError: for settings out of their range, or without y, target and objective.
        OutputError: for a model without classes.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(4)
        >>> ub.adversarial.hop_skip_jump(box, x, y, queries=200).success.tolist()
        [True, True, True, True]

    Source:
        Chen et al. 2020, arXiv:1904.02144, algorithm 2; the estimate of the direction is equation 16. Deviations: the
        first step takes 50 points (200 in L-inf) where the paper takes 100, and an image is started from the nearest of
        `starts`.
    """
    check_settings(hop_skip_jump, locals())
    state = AttackState(box, x, y, norm=unbounded_ball(norm, ("l2", "linf")), target=target, objective=objective,
                      batch_size=batch_size)  # fmt: skip
    max_distance = math.inf if eps is None else eps
    oracle = DecisionOracle(state, queries, seed)
    start_pool = None if starts is None else state.validate_inputs(starts)
    first_num_evals = INITIAL_NUM_EVALS_BY_NORM[norm] if initial_num_evals is None else initial_num_evals
    attack = _HopSkipJump(oracle, first_num_evals, 0.0 if not early_stop or eps is None else max_distance)
    with state:
        rows = state.find_rows_to_attack()
        attack.run(*oracle.find_adversarial_starts(rows, start_pool))
    quantize_images(state, bits, use_gradients=False)
    return state.to_result(max_distance)


@dataclass
class _HopSkipJump:
    """Algorithm 2, until a row is within target_distance or has no queries left."""

    oracle: DecisionOracle
    initial_num_evals: int
    target_distance: float

    def __post_init__(self) -> None:
        self.is_linf = isinstance(self.oracle.norm, Linf)
        self.n_values = self.oracle.x[0].numel()
        self.bisection_steps = math.ceil(
            (2 if self.is_linf else 1.5) * math.log2(max(self.n_values, 2))
        )  # theta = d^-3/2; L-inf d^-2

    def run(self, images: Tensor, rows: Tensor) -> None:
        """From adversarial images (n, ...) to the boundary, and along it, until the budget is spent."""
        images = self.oracle.bisect_to_boundary(images, rows, self.bisection_steps)
        iteration = 1
        while len(rows):
            distance = self.oracle.norm.distance(images, self.oracle.x[rows])
            reserved_queries = self.bisection_steps + 4  # for the step and the bisection
            is_active = (self.oracle.remaining_queries(rows) > reserved_queries + 1) & (
                distance > max(self.target_distance, MIN_DENOMINATOR)
            )
            images, rows, distance = images[is_active], rows[is_active], distance[is_active]
            if len(rows):
                images = self._run_one_iteration(images, rows, distance, reserved_queries, iteration)
            iteration += 1

    def _run_one_iteration(
        self, images: Tensor, rows: Tensor, distance: Tensor, reserved_queries: int, iteration: int
    ) -> Tensor:
        """One step of algorithm 2: estimate a direction, step, return to the boundary."""
        radius = distance / self.n_values if iteration > 1 else 0.01 * distance
        num_evals = (self.oracle.remaining_queries(rows) - reserved_queries).clamp_max(
            int(self.initial_num_evals * math.sqrt(iteration))
        )
        step_direction = self.estimate_direction(images, rows, radius, num_evals, iteration)
        stepped = self._line_search(images, rows, step_direction, distance / math.sqrt(iteration))
        return self.oracle.bisect_to_boundary(stepped, rows, self.bisection_steps)

    def estimate_direction(
        self, images: Tensor, rows: Tensor, radius: Tensor, num_evals: Tensor, iteration: int
    ) -> Tensor:
        """The direction of the gradient, eq. 16, from num_evals (n,) decisions at distance radius (n,)."""
        adversarial_sum, direction_sum, n_adversarial = (
            torch.zeros_like(images),
            torch.zeros_like(images),
            torch.zeros_like(radius),
        )
        block_size = max(1, min(MAX_DIRECTION_VALUES_IN_MEMORY // 8 // self.n_values, 4096))
        rows_at_once = (
            len(rows)
            if self.oracle.box.batch_dependent
            else max(1, MAX_DIRECTION_VALUES_IN_MEMORY // (self.n_values * min(block_size, int(num_evals.max()))))
        )
        for block_index, block_start in enumerate(range(0, int(num_evals.max()), block_size)):
            for i in range(0, len(rows), rows_at_once):
                row_slice = slice(i, i + rows_at_once)
                block_evals = (num_evals[row_slice] - block_start).clamp(0, block_size)
                directions, is_adversarial = self._sample_and_query_directions(
                    images[row_slice], rows[row_slice], radius[row_slice], block_evals, iteration * 4096 + block_index
                )
                adversarial_sum[row_slice] += (directions * append_broadcast_axes(is_adversarial, directions)).sum(1)
                direction_sum[row_slice] += directions.sum(1)
                n_adversarial[row_slice] += is_adversarial.sum(1)
        estimate = _gradient_estimate(adversarial_sum, direction_sum, n_adversarial, num_evals)
        return (
            estimate.sign()
            if self.is_linf
            else estimate / broadcast_rows(l2_norm(estimate).clamp_min(MIN_DENOMINATOR), estimate)
        )

    def _sample_and_query_directions(
        self, images: Tensor, rows: Tensor, radius: Tensor, block_evals: Tensor, key: int
    ) -> tuple[Tensor, Tensor]:
        """Directions (n, B, ...) to valid points around images, zero beyond block_evals, and which are adversarial."""
        n_directions = max(1, int(block_evals.max()))
        is_asked = torch.arange(n_directions, device=images.device) < block_evals[:, None]  # (n, B)
        directions = torch.stack([self._sample_directions(int(row), key, n_directions, images) for row in rows])
        perturbed = self.oracle.box.inputs.clip(
            (images[:, None] + broadcast_rows(radius, directions) * directions).flatten(0, 1)
        ).view_as(directions)
        directions = (
            (perturbed - images[:, None])
            / broadcast_rows(radius, directions)
            * append_broadcast_axes(is_asked, directions)
        )  # clipping changed some of them
        return directions, self.oracle.decisions(perturbed, rows, is_asked)

    def _sample_directions(self, row: int, key: int, n_directions: int, images: Tensor) -> Tensor:
        """Directions (n_directions, ...) of length 1, keyed by the row: uniform, or for L-inf from a cube."""
        generator = sample_generator(self.oracle.seed, row, key + 2**20, images.device)
        sampler = torch.rand if self.is_linf else torch.randn
        directions = sampler(
            n_directions, *images.shape[1:], generator=generator, device=images.device, dtype=images.dtype
        )
        directions = 2 * directions - 1 if self.is_linf else directions
        return directions / broadcast_rows(l2_norm(directions).clamp_min(MIN_DENOMINATOR), directions)

    def _line_search(self, images: Tensor, rows: Tensor, directions: Tensor, step_size: Tensor) -> Tensor:
        """The longest step, halved from step_size (n,), that is adversarial; the image itself where none is."""
        stepped, pending = images.clone(), torch.arange(len(rows), device=images.device)
        for halvings in range(MAX_STEP_HALVINGS):
            candidates = self.oracle.box.inputs.clip(
                images[pending] + broadcast_rows(step_size[pending] / 2**halvings, directions) * directions[pending]
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
    """The sum of (phi - mean phi) u, phi = 1 where one is adversarial, else -1; of phi u where all are alike."""
    num_evals = num_evals.to(adversarial_sum.dtype)
    weighted_sum = 2 * (adversarial_sum - broadcast_rows(n_adversarial / num_evals, adversarial_sum) * direction_sum)
    unanimous_sum = torch.where(broadcast_rows(n_adversarial > 0, direction_sum), direction_sum, -direction_sum)
    return torch.where(
        broadcast_rows((n_adversarial > 0) & (n_adversarial < num_evals), adversarial_sum), weighted_sum, unanimous_sum
    )


def append_broadcast_axes(values: Tensor, like: Tensor) -> Tensor:
    """(n, B) -> (n, B, 1, ...), to broadcast with a tensor (n, B, ...)."""
    return values.view(*values.shape, *[1] * (like.ndim - 2))
