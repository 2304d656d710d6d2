"""Silence: the smallest change of an input that a hidden unit no longer answers to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.optim import SGD
from torch.utils._pytree import tree_map

from ..box import Box
from ..cards import card
from ..engine.gradients.score import gradients
from ..engine.optimize.constraints import BALL_BY_NORM, TINY, Constraint, NormBall, broadcast_rows, l2_norm
from ..engine.optimize.loop import OptimizationConfig, optimize, retry_on_interrupt
from ..engine.optimize.parameterizations import RawCanvas
from ..errors import InputError
from ..model.batching import BatchSize, in_batches
from ..objectives import Index, Objective, logit
from ..validation import check_float, check_int

RADIUS_ROUNDS = 12  # of the search for the radius
LINE_BISECTIONS = 16  # of the line back to the input
UNBOUNDED_DISTANCE = 1e6  # stands for a bound where the range has none
THRESHOLD_TOLERANCE = (
    1e-5  # of what the score has to fall: so near to the threshold counts as there while the radius is sought
)


@dataclass(frozen=True, eq=False)
class Silence:
    input: Tensor  # (N, ...)
    images: Tensor  # (N, ...); where not silenced, the last attempt
    distance: Tensor  # (N,) in the norm asked for
    score_before: Tensor  # (N,) the objective's score of the input
    score_after: Tensor  # (N,) and of the image
    silenced: Tensor  # (N,) bool: down to the threshold, or nearer than a hundred-thousandth of the way to it
    interrupted: bool

    @property
    def change(self) -> Tensor:  # (N, ...)
        change: Tensor = tree_map(torch.sub, self.images, self.input)
        return change


@card(
    name="Silence",
    source="Simonyan et al. 2014, arXiv:1312.6034, eq. 1, descended from an image for any unit; by the projected steps "
    "of Madry et al. 2018, arXiv:1706.06083, section 2.1, in balls whose radius is bisected",
    shows="What this unit answers to here: the least that must change for it to fall silent.",
    does_not_show="That no smaller change would do: the search is local, so its distance is an upper bound.",
    example=lambda method, box, x, y: method(box, x, logit(0), below=0.1, steps=2),
    exempt={"partial results": "the radius is searched in rounds: one that was cut short is no point of a path"},
)
def silence(
    box: Box,
    x: Tensor,
    objective: Objective,
    *,
    below: float = 0.0,
    eps: float | None = None,
    norm: str = "l2",
    steps: int = 20,
    batch_size: BatchSize = "auto",
) -> Silence:
    """The smallest change of x, in norm "l2" or "linf" and within the valid range, that lowers `objective` to `below`.

    `steps` of projected descent in each of a dozen balls, whose radius is brought between one that does not do and one
    that does (at most `eps`); then back along the straight line to x. For a linear unit w x + b above zero that is
    -(w x + b) w / |w|^2. Ctrl-C keeps the smallest change found. Raises InputError, LayerError.
    """
    x, steps = box.validate_inputs(x), check_int("steps", steps)
    if not isinstance(objective, Objective):
        raise InputError(f"give the objective to lower, like channel('conv1', 0); got {type(objective).__name__}")
    if not isinstance(norm, str) or norm.lower() not in BALL_BY_NORM:
        raise InputError(f"norm is one of {', '.join(BALL_BY_NORM)}; got {norm!r}")
    max_distance = math.inf if eps is None else check_float("eps", eps, above=0)
    with torch.inference_mode(False):
        checked_objective = box.check_objective(objective, len(x))
        return _SilenceState(
            box, x, checked_objective, check_float("below", below), max_distance, norm.lower(), steps, batch_size
        ).run()


@dataclass(frozen=True)
class _RowBalls(Constraint):
    """A ball of its own radius for each row; `again` makes those of some rows."""

    make_rows: Callable[[Index], Constraint] | None = None

    def rows(self, index: Index) -> Constraint:
        return self if self.make_rows is None else self.make_rows(index)


def _row_balls(
    ball: NormBall, centre: Tensor, radius: Tensor, step_fraction: float, clip: Callable[[Tensor], Tensor]
) -> _RowBalls:
    """Steepest steps of `pace` radii (N,), in a unit ball blown up to each row's radius and inside the valid range."""
    size = broadcast_rows(radius, centre)

    def project(z: Tensor, center: Tensor | None) -> Tensor:
        return z if center is None else clip(center + size * ball.project((z - center) / size, torch.zeros_like(z)))

    def make_rows(i: Index) -> _RowBalls:
        return _row_balls(ball, centre[i], radius[i], step_fraction, clip)

    return _RowBalls(
        lambda grad: step_fraction * size * ball.steepest_direction(grad), project, centre, make_rows=make_rows
    )


class _SilenceState:
    """For each row: between the largest radius that did not do (`low`) and the distance of the nearest that did."""

    def __init__(
        self, box: Box, x: Tensor, objective: Objective, below: float, max_distance: float, norm: str, steps: int,
        batch_size: BatchSize,
    ) -> None:  # fmt: skip
        self.box, self.x, self.objective, self.steps, self.batch_size = box, x, objective, steps, batch_size
        self.ball, self.is_linf = BALL_BY_NORM[norm](1.0), norm == "linf"
        self.score_before, self.interrupted = retry_on_interrupt(lambda: self._scores(x))
        self.below = below
        self.target_score = below + THRESHOLD_TOLERANCE * (self.score_before - below).clamp_min(0)
        self.images, self.lower_radius = x.clone(), torch.zeros_like(self.score_before)
        self.upper_radius = torch.full_like(self.score_before, math.inf).masked_fill(
            self.score_before <= self.target_score, 0
        )
        self.max_radius = self._max_distance().clamp_max(max_distance)

    def run(self) -> Silence:
        try:
            self._search_radius()
            self._bisect_toward_input()
            self._cross_threshold()
        except KeyboardInterrupt:
            self.interrupted = True
        score_after, interrupted = retry_on_interrupt(lambda: self._scores(self.images))
        distance = self.ball.distance(self.images, self.x)
        interrupted |= self.interrupted
        structured = self.box.restore_structure(self.x), self.box.restore_structure(self.images)
        return Silence(
            *structured, distance, self.score_before, score_after, score_after <= self.target_score, interrupted
        )

    def _scores(self, z: Tensor) -> Tensor:
        """The objective (N,) of inputs z."""

        def score_rows(rows: slice) -> Tensor:
            with self.box.isolated(grad=False):
                acts = self.box.forward(z[rows], self.objective.layers)
                return self.objective.rows(rows)(acts).to(self.box.dtype)

        sizes = self.box.batch_plan(len(z), self.batch_size, self.objective.batch_dependent)
        return torch.cat(in_batches(score_rows, len(z), *sizes))

    def _max_distance(self) -> Tensor:
        """How far (N,) the valid range reaches from x."""
        clip, x = self.box.inputs.clip, self.x
        max_change = torch.maximum(clip(x + UNBOUNDED_DISTANCE) - x, x - clip(x - UNBOUNDED_DISTANCE))
        return self.ball.distance(max_change, torch.zeros_like(x)).clamp_min(TINY)

    def _search_radius(self) -> None:
        radius = self._estimate_radius()
        for _ in range(RADIUS_ROUNDS):
            rows = self._unresolved_rows(radius)
            if self.interrupted or len(rows) == 0:
                return
            self._attempt_radius(rows, radius)
            larger_radius = torch.minimum(3 * radius, self.max_radius)
            radius = torch.where(
                self.upper_radius.isinf(), larger_radius, (self.lower_radius + self.upper_radius) / 2
            ).clamp_min(TINY)

    def _estimate_radius(self) -> Tensor:
        """The distance at which a linear objective would be silent, and a little more."""
        g = gradients(self.box, self.objective, self.x, batch_size=self.batch_size).map
        dual_norm = g.flatten(1).abs().sum(1) if self.is_linf else l2_norm(g)  # of the dual norm
        distance = (self.score_before - self.target_score) / dual_norm.clamp_min(TINY)
        return torch.minimum(1.1 * distance.nan_to_num(0).clamp_min(TINY), self.max_radius)

    def _unresolved_rows(self, radius: Tensor) -> Tensor:
        """The rows whose distance is not known to a hundredth; all, where rows are coupled."""
        is_unresolved = torch.where(
            self.upper_radius.isinf(),
            self.lower_radius < self.max_radius,
            self.upper_radius - self.lower_radius > 0.01 * self.upper_radius,
        )
        if (self.box.batch_dependent or self.objective.batch_dependent) and is_unresolved.any():
            is_unresolved = torch.ones_like(is_unresolved)
        return is_unresolved.nonzero()[:, 0]

    def _attempt_radius(self, rows: Tensor, radius: Tensor) -> None:
        objective, x = self.objective.rows(rows), self.x[rows]
        config = OptimizationConfig(
            steps=self.steps,
            optimizer=partial(SGD, lr=1.0),
            constraint=_row_balls(self.ball, x, radius[rows], 2.5 / max(1, self.steps), self.box.inputs.clip),
            stop_when=-objective + self.target_score[rows],
        )
        result = optimize(self.box, -objective, RawCanvas(x), config, batch_size=self.batch_size)
        self.interrupted |= result.interrupted
        distance = self.ball.distance(result.input, x)
        is_better = torch.where(result.finished, distance < self.upper_radius[rows], self.upper_radius[rows].isinf())
        self.images[rows] = torch.where(broadcast_rows(is_better, x), result.input, self.images[rows])
        self.upper_radius[rows] = torch.where(result.finished & is_better, distance, self.upper_radius[rows])
        self.lower_radius[rows] = torch.where(
            result.finished, self.lower_radius[rows], torch.maximum(self.lower_radius[rows], radius[rows])
        )

    def _bisect_toward_input(self) -> None:
        """Along the straight line from x, as near to it as the image is still silent."""
        d, lower, upper = self.images - self.x, torch.zeros_like(self.score_before), torch.ones_like(self.score_before)
        for _ in range(
            LINE_BISECTIONS if bool(torch.isfinite(self.upper_radius).any()) and not self.interrupted else 0
        ):
            midpoint = (lower + upper) / 2
            z = self.box.inputs.clip(self.x + broadcast_rows(midpoint, d) * d)
            is_silent = (self._scores(z) <= self.target_score) & self.upper_radius.isfinite()
            self.images = torch.where(broadcast_rows(is_silent, z), z, self.images)
            lower, upper = torch.where(is_silent, lower, midpoint), torch.where(is_silent, midpoint, upper)

    def _cross_threshold(self) -> None:
        """The rest of the way to the threshold, along the same line, where that is possible."""
        for k in (2, 8, 32):
            z = self.box.inputs.clip(self.x + (1 + k * THRESHOLD_TOLERANCE) * (self.images - self.x))
            crosses = (self._scores(self.images) > self.below) & (self._scores(z) <= self.below)
            crosses &= self.upper_radius.isfinite() & (self.ball.distance(z, self.x) <= self.max_radius)
            self.images = torch.where(broadcast_rows(crosses, z), z, self.images)
