"""The boundary attack: a random walk along the decision boundary, towards the original.

Brendel, Rauber & Bethge 2018, "Decision-Based Adversarial Attacks: Reliable Attacks Against Black-Box Machine Learning
Models", arXiv:1712.04248.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import MIN_DENOMINATOR, l2_norm, unbounded_ball
from ..engine.rows import broadcast_rows
from ..parameters import (
    AttackTarget,
    BatchSize,
    CustomAttackObjective,
    EarlyStop,
    Eps,
    InputBatch,
    L2NormOnly,
    Labels,
    MaxQueries,
    RoundingBits,
    Seed,
    StartImages,
)
from ..settings import check_settings
from .attack_state import AttackState
from .decisions import DecisionOracle, hashed_normal
from .quantization import quantize_images
from .result import Adversarial

N_INITIAL_BISECTION_STEPS = 7  # before the walk: to the boundary, to within 1 %
SPHERICAL_CHECK_INTERVAL_STEPS = 10  # steps between two evaluations of the spherical step alone
INITIAL_SPHERICAL_AND_SOURCE_STEPS = (
    0.1,
    0.03,
)  # spherical step and step to the source, relative to the distance; both adapt
SPHERICAL_STEP_TARGET_SUCCESS_RATE, SOURCE_STEP_TARGET_SUCCESS_RATE = (
    0.5,
    0.25,
)  # success rates that the step sizes are adapted to


@card(
    name="Boundary attack",
    source="Brendel et al. 2018, arXiv:1712.04248",
    shows="A near input that the model misclassifies, found by a walk from decisions alone.",
    does_not_show="That none is nearer: the walk is slow, and HopSkipJump comes nearer in as many queries.",
    example=lambda method, box, x, y: method(box, x, y, queries=10),
    runs=lambda s: s["queries"],
    minimal=True,
    order=27,
    gradient_free=True,
    exempt={"one forward": "it runs the model `queries` times"},
)
def boundary(
    box: Box,
    x: InputBatch,
    y: Labels = None,
    *,
    eps: Eps = None,
    norm: L2NormOnly = "l2",
    target: AttackTarget = None,
    objective: CustomAttackObjective = None,
    starts: StartImages = None,
    queries: MaxQueries = 5000,
    early_stop: EarlyStop = True,
    bits: RoundingBits = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """Near adversarial images by a random walk along the decision boundary, from decisions alone.

    The classical decision-based attack. `hop_skip_jump` comes nearer in as many queries.

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
        >>> ub.adversarial.boundary(box, x, y, queries=100).success.tolist()
        [True, True, True, True]

    Source:
        Brendel et al. 2018, arXiv:1712.04248: a step on the sphere around x, then one towards x, both of adaptive
        length. Deviation: the start is first moved to the boundary by 7 bisections.
    """
    check_settings(boundary, locals())
    state = AttackState(box, x, y, norm=unbounded_ball(norm, ("l2",)), target=target, objective=objective,
                      batch_size=batch_size)  # fmt: skip
    max_distance = math.inf if eps is None else eps
    oracle = DecisionOracle(state, queries, seed)
    start_pool = None if starts is None else state.validate_inputs(starts)
    with state:
        rows = state.find_rows_to_attack()
        images, rows = oracle.find_adversarial_starts(rows, start_pool)
        _BoundaryWalk(
            oracle, oracle.bisect_to_boundary(images, rows, N_INITIAL_BISECTION_STEPS), rows
        ).walk_along_boundary(0.0 if not early_stop or eps is None else max_distance)
    quantize_images(state, bits, use_gradients=False)
    return state.to_result(max_distance)


class _BoundaryWalk:
    """The rows still attacked: their images, and step sizes relative to the distance."""

    def __init__(self, oracle: DecisionOracle, images: Tensor, rows: Tensor) -> None:
        self.oracle, self.images, self.rows = oracle, images, rows
        self.spherical_step, self.source_step = (
            torch.full_like(rows, initial_step, dtype=images.dtype)
            for initial_step in INITIAL_SPHERICAL_AND_SOURCE_STEPS
        )
        self.x = oracle.x[rows]
        self.distance = l2_norm(images - self.x)

    def walk_along_boundary(self, target_distance: float) -> None:
        step = 0
        while self._drop_inactive_rows(
            (self.oracle.remaining_queries(self.rows) > 0) & (self.distance > max(target_distance, MIN_DENOMINATOR))
        ):
            self._propose_and_accept(step)
            step += 1

    def _drop_inactive_rows(self, is_active: Tensor) -> bool:
        if not is_active.all():
            for name in ("images", "rows", "spherical_step", "source_step", "x", "distance"):
                setattr(self, name, getattr(self, name)[is_active])
        return bool(is_active.any())

    def _propose_and_accept(self, step_index: int) -> None:
        """A step on the sphere around the original, then one towards it: kept where that is adversarial."""
        proposal = self._spherical_proposal(step_index)
        candidates = self.oracle.box.inputs.clip(
            self.x + broadcast_rows(1 - self.source_step, self.x) * (proposal - self.x)
        )
        is_adversarial = self.oracle.is_adversarial(candidates, self.rows)
        self.source_step = (
            self.source_step * _step_size_factor(is_adversarial, SOURCE_STEP_TARGET_SUCCESS_RATE, 20)
        ).clamp_max(0.5)
        distance = l2_norm(candidates - self.x)
        is_adversarial &= distance < self.distance  # clipping may have changed it
        self.images, self.distance = (
            torch.where(broadcast_rows(is_adversarial, candidates), candidates, self.images),
            torch.where(is_adversarial, distance, self.distance),
        )
        self.oracle.state.update_nearest(self.images, self.rows, is_adversarial)
        if step_index % SPHERICAL_CHECK_INTERVAL_STEPS == 0:
            self._adapt_spherical_step(proposal)

    def _adapt_spherical_step(self, proposal: Tensor) -> None:
        """Adapt the spherical step so that half of them succeed: the boundary is then nearly flat on that scale."""
        has_budget = self.oracle.remaining_queries(self.rows) > 0
        is_adversarial = self.oracle.is_adversarial(self.oracle.box.inputs.clip(proposal), self.rows)
        self.spherical_step = torch.where(
            has_budget,
            self.spherical_step * _step_size_factor(is_adversarial, SPHERICAL_STEP_TARGET_SUCCESS_RATE, 3),
            self.spherical_step,
        ).clamp_max(1.0)

    def _spherical_proposal(self, step_index: int) -> Tensor:
        """A random point at the same distance from the original, a spherical step from the image."""
        offset = self.images - self.x
        noise = (
            hashed_normal(self.oracle.seed, self.rows, step_index, offset[0].numel()).to(offset.dtype).view_as(offset)
        )
        noise = noise - broadcast_rows((noise * offset).flatten(1).sum(1) / self.distance.square(), offset) * offset
        perturbed = (
            offset
            + broadcast_rows(self.spherical_step * self.distance / l2_norm(noise).clamp_min(MIN_DENOMINATOR), offset)
            * noise
        )
        return self.x + broadcast_rows(self.distance / l2_norm(perturbed), perturbed) * perturbed


def _step_size_factor(succeeded: Tensor, target_rate: float, smoothing: int) -> Tensor:
    """Factor (n,) for a step size: 1 in the mean where `target_rate` of the steps succeed."""
    return torch.exp((succeeded.to(torch.float32) - target_rate) / smoothing)
