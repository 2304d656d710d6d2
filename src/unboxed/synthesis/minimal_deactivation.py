"""Minimal deactivating change: the smallest change of an input that deactivates a unit.

Equation 1 of Simonyan et al. 2014, arXiv:1312.6034, descended from an image, by the projected steps of Madry et al.
2018, arXiv:1706.06083, in balls whose radius is bisected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import SGD
from torch.utils._pytree import tree_map

from ..box import Box
from ..cards import card
from ..engine.gradients.score import gradients
from ..engine.optimize.constraints import BALL_BY_NORM, MIN_DENOMINATOR, Constraint, NormBall, l2_norm
from ..engine.optimize.loop import OptimizationConfig, optimize, retry_on_interrupt
from ..engine.optimize.parameterizations import RawCanvas
from ..engine.results import ResultMixin
from ..engine.rows import broadcast_rows
from ..errors import InputError
from ..model.batching import map_in_batches
from ..model.nan_checks import check_no_nan
from ..objectives import Objective, RowIndex, logit
from ..parameters import BatchSize, Eps, InputBatch, LinfOrL2Norm, RequiredObjective, Steps
from ..settings import check_settings
from .generated import image_names_from_examples

MAX_RADIUS_SEARCH_ROUNDS = 12  # of the search for the radius
N_TOWARD_INPUT_BISECTIONS = 16  # of the line back to the input
UNBOUNDED_RANGE_SUBSTITUTE = 1e6  # in place of a bound where the range has none
# Fraction of the wanted decrease of the score within which the threshold counts as reached
THRESHOLD_TOLERANCE_FRACTION = 1e-5
RADIUS_RELATIVE_TOLERANCE = 0.01  # relative width of the interval of the radius at which an example is done


@dataclass(frozen=True, eq=False, repr=False)
class MinimalDeactivation(ResultMixin):
    """The smallest changes that were found to lower an objective to a threshold."""

    returns: ClassVar[str] = "images"

    input: Any  # (N, ...)
    images: Any  # (N, ...) the changed input; where it failed, the last attempt
    distance: Tensor  # (N,) from the input, in the norm
    score_before: Tensor  # (N,) the objective of the input
    score_after: Tensor  # (N,) and of the image
    deactivated: Tensor  # (N,) bool: at the threshold, within a hundred-thousandth of the decrease
    norm: str  # of the distance
    names: tuple[str, ...]  # (N,) "example 0" and so on
    interrupted: bool  # by Ctrl-C: the fields have what was found until then
    method: str = "Minimal deactivating change"

    @property
    def change(self) -> Any:  # (N, ...)
        """What was added to the input."""
        return tree_map(torch.sub, self.images, self.input)


@card(
    name="Minimal deactivating change",
    source="Simonyan et al. 2014, arXiv:1312.6034, eq. 1, descended from an image for any unit; by the projected steps "
    "of Madry et al. 2018, arXiv:1706.06083, section 2.1, in balls whose radius is bisected",
    shows="What this unit responds to here: the least that must change for it to be inactive.",
    does_not_show="That no smaller change would do: the search is local, so that its distance is an upper bound.",
    example=lambda method, box, x, y: method(box, x, logit(0), threshold=0.1, steps=2),
    exempt={"partial results": "the radius is searched in rounds: one that was cut short is no point of a path"},
    runs=lambda s: MAX_RADIUS_SEARCH_ROUNDS * (s["steps"] + 1) + N_TOWARD_INPUT_BISECTIONS + 8,
    order=11,
)
def minimal_deactivation(
    box: Box,
    x: InputBatch,
    objective: RequiredObjective,
    *,
    threshold: Annotated[float, "Score to which the objective is lowered."] = 0.0,
    eps: Eps = None,
    norm: LinfOrL2Norm = "l2",
    steps: Steps = 20,
    batch_size: BatchSize = "auto",
) -> MinimalDeactivation:
    """The smallest change of x, within the valid range, that lowers an objective to a threshold.

    To see what in x excites a hidden unit: what must go for it to be inactive. For a class use a minimal attack
    (`ub.adversarial.ddn`, `fab`), for a map over all pixels `ub.attribution.gradient`.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        objective: An objective (a score per example), such as `ub.channel("conv2", 3)`.
        threshold: Score to which the objective is lowered. 0 is where a ReLU is inactive.
        eps: Largest distance from x. None: no limit but the valid range.
        norm: Norm in which the distance from x is measured.
        steps: Number of iterations. Of projected descent in each of a dozen balls, whose radius is bisected between one
            in which it fails and one in which it succeeds; then along the straight line back to x.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `MinimalDeactivation`: `images` (N, ...) and `change` (N, ...) like x, `distance` (N,), `deactivated` (N,),
        `score_before` (N,) and `score_after` (N,). Ctrl-C keeps the smallest change found.

    Raises:
        InputError: for what is no objective, inputs or settings out of their range.
        LayerError: for an unknown layer, or one with integer activations.
        NaNError: where the score of an input is NaN.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> result = ub.synthesis.minimal_deactivation(box, x, ub.neuron("relu3", 5), steps=2)
        >>> result.deactivated.tolist(), bool((result.score_after <= 0).all())
        ([True, True], True)

    Source:
        Simonyan et al. 2014, arXiv:1312.6034, equation 1, from an image and for any unit, by the projected steps of
        Madry et al. 2018, arXiv:1706.06083, section 2.1. For a linear unit w x + b above zero the change is
        -(w x + b) w / |w|^2.
    """
    check_settings(minimal_deactivation, locals())
    x = box.validate_inputs(x)
    if not isinstance(objective, Objective):
        raise InputError(f"objective must be an objective, like channel('conv1', 0); got {type(objective).__name__}")
    with torch.inference_mode(False):
        objective = box.check_objective(objective, len(x))
        max_distance = math.inf if eps is None else eps
        return _DeactivationRadiusSearch(box, x, objective, threshold, max_distance, norm, steps, batch_size).run()


@dataclass(frozen=True)
class _PerRowBallConstraint(Constraint):
    """A ball of its own radius for each row; `balls_of_rows` gives those of some rows."""

    balls_of_rows: Callable[[RowIndex], Constraint] | None = None

    def rows(self, index: RowIndex) -> Constraint:
        return self if self.balls_of_rows is None else self.balls_of_rows(index)


def _per_row_ball_constraint(
    ball: NormBall, x: Tensor, radius: Tensor, step_fraction: float, clip: Callable[[Tensor], Tensor]
) -> _PerRowBallConstraint:
    """Steepest steps of `step_fraction` radii (N,), in a unit ball scaled to each row's radius, in the valid range."""
    size = broadcast_rows(radius, x)

    def project_to_row_balls(z: Tensor, center: Tensor | None) -> Tensor:
        return z if center is None else clip(center + size * ball.project((z - center) / size, torch.zeros_like(z)))

    def balls_of_rows(i: RowIndex) -> _PerRowBallConstraint:
        return _per_row_ball_constraint(ball, x[i], radius[i], step_fraction, clip)

    return _PerRowBallConstraint(
        lambda grad: step_fraction * size * ball.steepest_direction(grad),
        project_to_row_balls,
        x,
        balls_of_rows=balls_of_rows,
    )


class _DeactivationRadiusSearch:
    """For each row, the interval between the largest radius that failed and the distance of the nearest success."""

    def __init__(
        self, box: Box, x: Tensor, objective: Objective, threshold: float, max_distance: float, norm: str, steps: int,
        batch_size: BatchSize,
    ) -> None:  # fmt: skip
        self.box, self.x, self.objective, self.steps, self.batch_size = box, x, objective, steps, batch_size
        self.ball, self.norm = BALL_BY_NORM[norm](1.0), norm
        self.score_before, self.interrupted = retry_on_interrupt(lambda: self._objective_scores(x))
        check_no_nan(self.score_before)
        self.threshold = threshold
        self.target_score = threshold + THRESHOLD_TOLERANCE_FRACTION * (self.score_before - threshold).clamp_min(0)
        self.images, self.lower_radius = x.clone(), torch.zeros_like(self.score_before)
        is_inactive = self.score_before <= self.target_score
        self.upper_radius = torch.full_like(self.score_before, math.inf).masked_fill(is_inactive, 0)
        self.max_radius = self._max_distance().clamp_max(max_distance)

    def run(self) -> MinimalDeactivation:
        try:
            self._search_radius()
            self._bisect_toward_input()
            self._extend_to_threshold()
        except KeyboardInterrupt:
            self.interrupted = True
        score_after, interrupted = retry_on_interrupt(lambda: self._objective_scores(self.images))
        return MinimalDeactivation(
            input=self.box.restore_structure(self.x),
            images=self.box.restore_structure(self.images),
            distance=self.ball.distance(self.images, self.x),
            score_before=self.score_before,
            score_after=score_after,
            deactivated=score_after <= self.target_score,
            norm=self.norm,
            names=image_names_from_examples(len(self.x)),
            interrupted=interrupted or self.interrupted,
        )

    def _objective_scores(self, z: Tensor) -> Tensor:
        """The objective (N,) of inputs z."""

        def score_rows(rows: slice) -> Tensor:
            with self.box.isolated(grad=False):
                acts = self.box.forward(z[rows], self.objective.layers)
                return self.objective.rows(rows)(acts).to(self.box.dtype)

        sizes = self.box.batch_size_and_max_rows(len(z), self.batch_size, self.objective.batch_dependent)
        return torch.cat(map_in_batches(score_rows, len(z), *sizes))

    def _max_distance(self) -> Tensor:
        """The largest distance (N,) from x within the valid range."""
        clip, x = self.box.inputs.clip, self.x
        max_change = torch.maximum(clip(x + UNBOUNDED_RANGE_SUBSTITUTE) - x, x - clip(x - UNBOUNDED_RANGE_SUBSTITUTE))
        return self.ball.distance(max_change, torch.zeros_like(x)).clamp_min(MIN_DENOMINATOR)

    def _search_radius(self) -> None:
        radius = self._estimate_radius()
        for _ in range(MAX_RADIUS_SEARCH_ROUNDS):
            rows = self._rows_with_unknown_distance(radius)
            if self.interrupted or len(rows) == 0:
                return
            self._optimize_within_radius(rows, radius)
            larger_radius = torch.minimum(3 * radius, self.max_radius)
            radius = torch.where(
                self.upper_radius.isinf(), larger_radius, (self.lower_radius + self.upper_radius) / 2
            ).clamp_min(MIN_DENOMINATOR)

    def _estimate_radius(self) -> Tensor:
        """The distance at which a linear objective would be at the threshold, and a tenth more."""
        g = gradients(self.box, self.objective, self.x, batch_size=self.batch_size).map
        dual_norm = g.flatten(1).abs().sum(1) if self.norm == "linf" else l2_norm(g)
        distance = (self.score_before - self.target_score) / dual_norm.clamp_min(MIN_DENOMINATOR)
        return torch.minimum(1.1 * distance.nan_to_num(0).clamp_min(MIN_DENOMINATOR), self.max_radius)

    def _rows_with_unknown_distance(self, radius: Tensor) -> Tensor:
        """The rows whose distance is not known to a hundredth; all, where the batch is dependent."""
        is_unresolved = torch.where(
            self.upper_radius.isinf(),
            self.lower_radius < self.max_radius,
            self.upper_radius - self.lower_radius > RADIUS_RELATIVE_TOLERANCE * self.upper_radius,
        )
        if (self.box.batch_dependent or self.objective.batch_dependent) and is_unresolved.any():
            is_unresolved = torch.ones_like(is_unresolved)
        return is_unresolved.nonzero()[:, 0]

    def _optimize_within_radius(self, rows: Tensor, radius: Tensor) -> None:
        objective, x = self.objective.rows(rows), self.x[rows]
        config = OptimizationConfig(
            steps=self.steps,
            optimizer=partial(SGD, lr=1.0),
            constraint=_per_row_ball_constraint(
                self.ball, x, radius[rows], 2.5 / max(1, self.steps), self.box.inputs.clip
            ),
            stop_when=-objective + self.target_score[rows],
            allow_nan=True,  # a radius in which nothing was found
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
        """Along the straight line from x, as near to it as the objective is still at the threshold."""
        d, lower, upper = self.images - self.x, torch.zeros_like(self.score_before), torch.ones_like(self.score_before)
        if self.interrupted or not bool(torch.isfinite(self.upper_radius).any()):
            return
        for _ in range(N_TOWARD_INPUT_BISECTIONS):
            midpoint = (lower + upper) / 2
            z = self.box.inputs.clip(self.x + broadcast_rows(midpoint, d) * d)
            is_inactive = (self._objective_scores(z) <= self.target_score) & self.upper_radius.isfinite()
            self.images = torch.where(broadcast_rows(is_inactive, z), z, self.images)
            lower, upper = torch.where(is_inactive, lower, midpoint), torch.where(is_inactive, midpoint, upper)

    def _extend_to_threshold(self) -> None:
        """The rest of the distance to the threshold itself, along the same line, where that is possible."""
        for k in (2, 8, 32):
            z = self.box.inputs.clip(self.x + (1 + k * THRESHOLD_TOLERANCE_FRACTION) * (self.images - self.x))
            crosses = (self._objective_scores(self.images) > self.threshold) & (
                self._objective_scores(z) <= self.threshold
            )
            crosses &= self.upper_radius.isfinite() & (self.ball.distance(z, self.x) <= self.max_radius)
            self.images = torch.where(broadcast_rows(crosses, z), z, self.images)
