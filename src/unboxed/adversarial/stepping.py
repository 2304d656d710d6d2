"""What FGSM, BIM, PGD and MI-FGSM share: steps uphill inside a ball, by the engine's one loop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..box import Box
from ..engine.optimize.ascent import OptimizationConfig, OptimizationResult, OptimizerFactory, optimize
from ..engine.optimize.constraints import NormBall, Constraint, resolve_ball, broadcast_rows, ball_constraint
from ..engine.optimize.constraints import unconstrained_grad as unconstrained_grad
from ..engine.optimize.constraints import identity_grad as identity_grad
from ..engine.optimize.optimizers import Momentum, PlainAscent
from ..engine.optimize.parameterizations import RawCanvas
from ..errors import InputError, warn
from ..validation import check_seed, check_float, check_int
from .attempt import ASK_ONLY, Attempt, differentiable, in_range
from .levels import saved
from .result import Adversarial

AGAIN = 7_919  # from the seed of one restart to that of the next


@dataclass(frozen=True)
class Way:
    """What a method of this family chooses. `decay` is that of momentum."""

    ball: NormBall
    steps: int
    step: float
    random_start: bool = False
    restarts: int = 1
    keep_going: bool = False
    decay: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_int("steps", self.steps)
        object.__setattr__(self, "seed", check_seed(self.seed))
        check_float("step", self.step, above=0)
        if check_int("restarts", self.restarts, minimum=1) > 1 and not self.random_start:
            raise InputError("restarts differ by their random starts, and random_start=False")

    def start(self, box: Box, x: Tensor, turn: int) -> Tensor:
        """Where turn number `turn` begins: a row draws the same whichever others are still to be fooled."""
        return box.inputs.clip(self.ball.sample(x, self.seed + AGAIN * turn)) if self.random_start else x

    def rule(self, constraint: Constraint) -> tuple[OptimizerFactory, Constraint]:
        """How steps are made of gradients, and what is left for the constraint to do."""
        if self.decay is None:
            return partial(PlainAscent, lr=self.step), constraint
        rule = partial(Momentum, lr=self.step, decay=self.decay, ascent_direction=constraint.ascent_direction)
        return rule, replace(constraint, step_direction=identity_grad, feasible_grad=unconstrained_grad)


def bound(box: Box, eps: float | None, norm: str, ball: NormBall | None) -> NormBall:
    """The ball that an attack was given. Raises InputError."""
    return in_range(box, resolve_ball(eps, norm, ball))


def step_of(step: float | None, reach: float, steps: int) -> float:
    """The length of a step; by default all of them together reach so far. Raises InputError."""
    return reach / max(check_int("steps", steps), 1) if step is None else step


def draws_of(box: Box, eot: int) -> int:
    """How many draws a look takes: a model that draws nothing answers alike each time."""
    draws = check_int("eot", eot, minimum=1)
    return draws if box.stochastic else 1


def stepped(attempt: Attempt, way: Way, bits: int | None) -> Adversarial:
    """Attack what the model is not fooled by, again from elsewhere where that fails; with `keep_going`, everything."""
    found = _Found(attempt, way)
    with attempt:
        if way.random_start:
            attempt.begin()
        for turn in range(way.restarts):
            rows = found.wanted()
            if not len(rows) or attempt.interrupted:
                break
            climb = found.climb(rows, turn)
            found.take(climb, rows, turn)
            if turn == 0:
                _tell_of_flat(climb, way)
        found.look_again()
    saved(attempt, bits, way.ball)
    return attempt.result()


class _Found:
    """The best image of each example over the turns: one that fools, and of two such (or none) that of higher score."""

    def __init__(self, attempt: Attempt, way: Way) -> None:
        self.attempt, self.way = attempt, way
        goal = attempt.goal
        self.coupled = attempt.box.batch_dependent or goal.climb.batch_dependent or goal.fooled.batch_dependent
        self.best = attempt.x.new_full((len(attempt.x),), -torch.inf)

    def wanted(self) -> Tensor:
        """The rows to climb (M,). Those that change others climb with them, though they stay where they are."""
        left = ~self.attempt.success | self.way.keep_going
        if self.coupled and left.any():
            left = torch.ones_like(left)
        return left.nonzero()[:, 0]

    def climb(self, rows: Tensor, turn: int) -> OptimizationResult:
        box, x, goal = self.attempt.box, self.attempt.x, self.attempt.goal
        start, settled = self.way.start(box, x, turn), None
        if self.coupled and not self.way.keep_going:
            settled = self.attempt.success
            start = torch.where(broadcast_rows(settled, x), self.attempt.images, start)
        rule, inside = self.way.rule(ball_constraint(self.way.ball, x[rows], box.inputs.clip))
        plan = OptimizationConfig(
            steps=self.way.steps,
            optimizer=rule,
            constraint=inside,
            stop_when=goal.fooled.rows(rows),
            continue_finished=self.way.keep_going,
            relu_bypass="no",
            n_samples=self.attempt.draws,
            frozen_rows=settled,
        )
        with differentiable():
            return optimize(
                box, goal.climb.rows(rows), RawCanvas(start[rows]), plan, batch_size=self.attempt.batch_size
            )

    def take(self, climb: OptimizationResult, rows: Tensor, turn: int) -> None:
        """Note what a turn came to, where it is better than what was there."""
        attempt, had = self.attempt, self.attempt.success[rows]
        attempt.interrupted |= climb.interrupted
        attempt.queries[rows] += climb.n_forwards
        if turn == 0 and not self.way.random_start:  # the first look was at the originals
            attempt.already[rows] = climb.initially_finished
        if len(unclear := (climb.score.isnan() & ~climb.finished).nonzero()[:, 0]):  # NaN, if not of the score alone
            attempt.fooled(climb.input[unclear], rows[unclear])
        stronger = (climb.finished == had) & (climb.score > self.best[rows])
        better = (climb.finished & ~had | stronger) & ((climb.n_forwards > 0) | (turn == 0))
        at = rows[better]
        attempt.images[at], attempt.success[at] = climb.input[better], attempt.success[at] | climb.finished[better]
        attempt.distance[at] = attempt.norm.distance(attempt.images[at], attempt.x[at])
        self.best[at] = climb.score[better]

    def look_again(self) -> None:
        """Where the objective makes examples change one another, each is judged in the company that it ends in."""
        attempt = self.attempt
        if self.coupled and not attempt.box.batch_dependent:  # the attempt's result sees to the model's own coupling
            rows = torch.arange(len(attempt.x), device=attempt.x.device)
            attempt.success = attempt.fooled(attempt.images, rows) > 0


def _tell_of_flat(climb: OptimizationResult, way: Way) -> None:
    """Warn of examples that can't be climbed from where they start."""
    looked = ~climb.initially_finished & (climb.n_forwards > 0)
    flat = looked & ~(climb.initial_grad.abs() > 0).flatten(1).any(1)
    if way.steps and not climb.interrupted and (n := int(flat.sum())):
        warn(
            f"the first gradient is exactly zero (or NaN) for {n} of {int(looked.sum())} examples, which take no step "
            f"there; loss='margin' has a slope where the cross-entropy is saturated, and {ASK_ONLY}"
        )
