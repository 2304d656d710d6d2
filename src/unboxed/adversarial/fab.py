"""Fast adaptive boundary attack: projections onto the linearized decision boundary, biased towards the original.

Croce & Hein 2020, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack", arXiv:1907.02044.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import BALL_BY_NORM, MIN_DENOMINATOR, unbounded_ball
from ..engine.optimize.hyperplanes import (
    DUAL_NORM_BY_NORM,
    Hyperplane,
    min_norm_step_to_hyperplane,
    random_directions,
    vector_norms,
)
from ..engine.rows import broadcast_rows
from ..errors import InputError
from ..objectives import Objective, logit
from ..parameters import (
    AttackSteps,
    AttackTarget,
    BatchSize,
    CustomAttackObjective,
    EarlyStop,
    Eps,
    InputBatch,
    Labels,
    Norm,
    Restarts,
    RoundingBits,
    Seed,
)
from ..settings import Above, AtLeast, AtMost, Unit, check_settings
from ..validation import valid_seed
from . import quantization
from .attack_ball import check_eps_within_data_range
from .attack_state import AttackState
from .predictions import top_other_classes
from .result import Adversarial

INF = math.inf
MIN_CLASSES_FOR_TOP_CLASSES_ONLY, N_TOP_OTHER_CLASSES = (
    1000,
    10,
)  # from as many classes, the boundaries of as many most probable ones
FINAL_SEARCH_STEPS = 3  # forward passes of the final search
# Of the score at x: the final search aims that far above zero, so that rounding does not decide
FINAL_SEARCH_RELATIVE_OVERSHOOT = 1e-3


@card(
    name="FAB",
    aliases=("fast_adaptive_boundary",),
    source="Croce & Hein 2020, arXiv:1907.02044",
    shows="An input near this one, by the norm's measure, that the model misclassifies.",
    does_not_show="That there is none nearer: its distance is an upper bound of the smallest.",
    example=lambda method, box, x, y: method(box, x, y, steps=2, restarts=2),
    runs=lambda s: 2 * s["steps"] * s["restarts"] * (s["n_targets"] or 1),
    minimal=True,
    order=21,
    exempt={
        "partial results": "a full run is followed by a final search, an interrupted one is not",
        "another seed": "only restarts are random, and only those that come nearer show; see its own test",
        "row seeds": "as for another seed",
    },
)
def fab(
    box: Box,
    x: InputBatch,
    y: Labels = None,
    *,
    eps: Eps = None,
    norm: Norm = "l2",
    target: AttackTarget = None,
    objective: CustomAttackObjective = None,
    n_targets: Annotated[
        int | None, AtLeast(1), Unit("classes"), "Number of most probable wrong classes that are targeted in turn."
    ] = None,
    steps: AttackSteps = 100,
    restarts: Restarts = 1,
    alpha_max: Annotated[float, AtLeast(0), AtMost(1), "Largest weight of the projection from x."] = 0.1,
    eta: Annotated[float, Above(0), "Factor by which a step is lengthened."] = 1.05,
    beta: Annotated[float, AtLeast(0), AtMost(1), "Fraction of the distance to x that is kept after a success."] = 0.9,
    early_stop: EarlyStop = True,
    bits: RoundingBits = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """The nearest adversarial images: projections onto the linearized boundary, biased towards x.

    The most accurate of the quick minimal attacks, in all three norms. Use `deepfool` or `fmn` where it takes too long,
    and `pgd` where only success within eps matters.

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
        n_targets: Number of most probable wrong classes that are targeted in turn. That is FAB-T, quicker where there
            are many classes. None: the boundaries of all classes at once; of 1,000 classes or more, those of the ten
            most probable at each step.
        steps: Number of iterations.
        restarts: Number of runs, each from another random start. The first starts at x.
        alpha_max: Largest weight of the projection from x. The rest is the projection from the present point.
        eta: Factor by which a step is lengthened. 1 ends on the linearized boundary itself.
        beta: Fraction of the distance to x that is kept after a success. It is the step back of the paper.
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
        OutputError: for a model without classes or without a gradient.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(4)
        >>> ub.adversarial.fab(box, x, y, steps=10).success.tolist()
        [True, True, True, True]

    Source:
        Croce & Hein 2020, arXiv:1907.02044: algorithm 1, the nearest class by equation 7, final search of 3 steps.
        Deviations: the projection onto the plane within bounds is found by Newton steps in place of sorting, and the
        final search goes where the score's chord crosses zero. Of 1,000 classes or more, ten are tried.
    """
    check_settings(fab, locals())
    ball = unbounded_ball(norm)
    if eps is not None:
        check_eps_within_data_range(box, BALL_BY_NORM[norm.lower()](eps))
    state = AttackState(box, x, y, norm=ball, target=target, objective=objective, batch_size=batch_size)
    if n_targets is not None and (state.goal.labels is None or state.goal.target_labels is not None):
        raise InputError(
            "n_targets=k runs to the k most probable classes other than y: leave out target= and objective="
        )
    config = FABConfig(norm.lower(), steps, alpha_max, eta, beta, -1.0 if not early_stop or eps is None else eps)
    attack = FAB(state, config, INF if eps is None else eps, valid_seed(seed))
    with state:
        for rows in state.split_rows_into_batches(state.find_rows_to_attack()):
            attack.run(rows, n_targets, restarts)
    quantization.quantize_images(state, bits)
    return state.to_result(INF if eps is None else eps)


@dataclass(frozen=True)
class FABConfig:
    """Settings of a run. An example is done once within target_distance."""

    norm: str
    steps: int
    alpha_max: float
    eta: float
    beta: float
    target_distance: float


@dataclass(frozen=True, eq=False)
class LinearizedBoundary:
    """The linearized boundary at some points, and which of them are adversarial."""

    plane: Hyperplane
    is_adversarial: Tensor  # (n,) bool


LinearizeBoundaryFn = Callable[[Tensor, Tensor], LinearizedBoundary]  # images (n, ...) of rows (n,) -> boundary


class FAB:
    """The runs of one call, for all rows that are not done."""

    def __init__(self, state: AttackState, config: FABConfig, eps: float, seed: int) -> None:
        self.state, self.config, self.eps, self.seed = state, config, eps, seed
        example = state.x[:1]
        self.lower, self.upper = (
            state.box.inputs.clip(torch.full_like(example, bound)).flatten(1) for bound in (-INF, INF)
        )

    def run(self, rows: Tensor, n_targets: int | None, n_restarts: int) -> None:
        """Each run starts from what earlier ones found, so that more of them never make an image farther."""
        boundary_fn_per_run = self.boundary_fn_per_run(rows, n_targets)
        images = self.state.x[rows]
        for restart in range(n_restarts):
            old_distance = self.state.distance.clone()
            for run_index, boundary_fn in enumerate(boundary_fn_per_run):
                rows, images = self.drop_rows_within_target_distance(rows, images)
                start_images = (
                    self.random_restart_points(images, rows, restart * len(boundary_fn_per_run) + run_index)
                    if restart
                    else self.state.x[rows]
                )
                images = self.run_fab_steps(boundary_fn, rows, start_images)
            rows, images = self.drop_rows_within_target_distance(rows, images)
            self.search_between_original_and_adversarial(rows[self.state.distance[rows] < old_distance[rows]])

    def drop_rows_within_target_distance(self, rows: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """The rows that are not within target_distance yet."""
        is_active = self.state.distance[rows] > self.config.target_distance
        return (rows, images) if bool(is_active.all()) else (rows[is_active], images[is_active])

    # -- which boundary ----------------------------------------------------------------------------------------------

    def boundary_fn_per_run(self, rows: Tensor, n_targets: int | None) -> list[LinearizeBoundaryFn]:
        """One for each run from x."""
        goal, n_classes = self.state.goal, self.state.box.n_outputs
        if not len(rows):
            return []
        if n_targets is not None and goal.labels is not None:
            return [
                self.score_boundary_fn(score)
                for score in self.objectives_toward_top_classes(rows, goal.labels, min(n_targets, n_classes - 1))
            ]
        if goal.target_labels is not None or goal.labels is None or n_classes == 2:
            return [self.score_boundary_fn(goal.criterion)]
        return [self.nearest_class_boundary_fn(goal.labels)]

    def objectives_toward_top_classes(self, rows: Tensor, labels: Tensor, n_targets: int) -> list[Objective]:
        """From each row's class to each of the most probable others."""
        logits = self.state.logits(self.state.x[rows], rows)
        other_classes = labels[:, None].repeat(1, n_targets)  # (N, targets)
        other_classes[rows] = top_other_classes(logits, labels[rows], n_targets)
        return [logit(other_classes[:, rank]) - logit(labels) for rank in range(n_targets)]

    def score_boundary_fn(self, score: Objective) -> LinearizeBoundaryFn:
        """The zero of a score as the boundary."""

        def linearize(images: Tensor, rows: Tensor) -> LinearizedBoundary:
            evaluation = self.state.evaluate_with_grad(images, rows, score)
            return LinearizedBoundary(
                Hyperplane(evaluation.score, evaluation.grad.flatten(1)), evaluation.success_score > 0
            )

        return linearize

    def nearest_class_boundary_fn(self, labels: Tensor) -> LinearizeBoundaryFn:
        """The nearest of all linearized boundaries: arXiv:1907.02044, eq. 7."""
        n_classes = self.state.box.n_outputs
        n_others = n_classes - 1 if n_classes < MIN_CLASSES_FOR_TOP_CLASSES_ONLY else N_TOP_OTHER_CLASSES
        class_index = torch.arange(n_others, device=labels.device)
        dual_norm, n_values = DUAL_NORM_BY_NORM[self.config.norm], self.lower.shape[1]

        def logit_differences_to_label(logits: Tensor, row_index: Tensor) -> Tensor:
            row_labels = labels[row_index, None]
            if n_others < n_classes - 1:  # (n, J)
                other_classes = top_other_classes(logits, row_labels[:, 0], n_others)
            else:
                other_classes = class_index + (class_index >= row_labels)
            return logits.gather(1, other_classes) - logits.gather(1, row_labels)

        def linearize(images: Tensor, rows: Tensor) -> LinearizedBoundary:
            logits, scores, grads = self.state.jacobian(images, rows, logit_differences_to_label)
            distances = scores.abs() / vector_norms(dual_norm, grads.flatten(2)).clamp_min(MIN_DENOMINATOR)  # (n, J)
            nearest_index = distances.argmin(1, keepdim=True)
            normal = grads.flatten(2).gather(1, nearest_index[..., None].expand(-1, 1, n_values))[:, 0]
            success_score = self.state.goal.criterion.rows(rows)({"logits": logits})
            return LinearizedBoundary(Hyperplane(scores.gather(1, nearest_index)[:, 0], normal), success_score > 0)

        return linearize

    # -- one run -----------------------------------------------------------------------------------------------------

    def random_restart_points(self, last_images: Tensor, rows: Tensor, run_index: int) -> Tensor:
        """A random point at half the distance from x of the nearest image found, of eps, or of the last run's end."""
        x = self.state.x[rows]
        distance = self.state.distance[rows].clamp_max(self.eps)
        distance = torch.where(distance.isfinite(), distance, self.state.norm.distance(last_images, x))
        offset = random_directions(self.config.norm, x.flatten(1), rows, self.seed, run_index).view_as(x)
        return self.state.box.inputs.clip(x + broadcast_rows(distance / 2, x) * offset)

    def run_fab_steps(self, boundary_fn: LinearizeBoundaryFn, rows: Tensor, images: Tensor) -> Tensor:
        """Steps from `images`; returns the last images of all given rows."""
        final_images, position = images.clone(), torch.arange(len(rows), device=rows.device)
        for _ in range(self.config.steps):
            if not len(rows):
                break
            linearization = boundary_fn(images, rows)
            self.state.update_nearest(images, rows, linearization.is_adversarial)
            images = self.fab_step(images, rows, linearization.plane)
            is_adversarial = self.state.success_score(images, rows) > 0
            self.state.update_nearest(images, rows, is_adversarial)
            biased_back = self.state.x[rows].lerp(images, self.config.beta)
            final_images[position] = images = torch.where(broadcast_rows(is_adversarial, images), biased_back, images)
            is_active = self.state.distance[rows] > self.config.target_distance
            if not bool(is_active.all()):
                rows, images, position = rows[is_active], images[is_active], position[is_active]
        return final_images

    def fab_step(self, images: Tensor, rows: Tensor, plane: Hyperplane) -> Tensor:
        """A weighted mean of the projections from the images and from x: arXiv:1907.02044, algorithm 1."""
        norm, eta, box = self.config.norm, self.config.eta, self.state.box
        images, x = images.flatten(1), self.state.x[rows].flatten(1)
        plane_from_x = Hyperplane(
            plane.value + torch.linalg.vecdot(plane.normal, x - images), plane.normal
        )  # the same plane from x
        from_z, from_x = (
            min_norm_step_to_hyperplane(norm, point, boundary, self.lower, self.upper)
            for point, boundary in ((images, plane), (x, plane_from_x))
        )
        length_z, length_x = vector_norms(norm, from_z), vector_norms(norm, from_x)
        alpha = (length_z / (length_z + length_x).clamp_min(MIN_DENOMINATOR)).clamp_max(self.config.alpha_max)
        next_images = torch.lerp(images + eta * from_z, x + eta * from_x, alpha[:, None])
        return box.inputs.clip(next_images.view(len(rows), *self.state.x.shape[1:]))

    def search_between_original_and_adversarial(self, rows: Tensor) -> None:
        """The final search: between x and the adversarial image, just beyond the zero of the score's chord."""
        if not len(rows):
            return
        near_images, far_images = self.state.x[rows], self.state.images[rows]
        near_score, far_score = self.state.success_score(near_images, rows), self.state.success_score(far_images, rows)
        target_score = FINAL_SEARCH_RELATIVE_OVERSHOOT * near_score.abs()
        for _ in range(FINAL_SEARCH_STEPS):
            fraction = ((target_score - near_score) / (far_score - near_score).clamp_min(MIN_DENOMINATOR)).clamp(0, 1)
            images = self.state.box.inputs.clip(near_images.lerp(far_images, broadcast_rows(fraction, near_images)))
            score = self.state.success_score(images, rows)
            is_adversarial = score > target_score / 2
            self.state.update_nearest(images, rows, is_adversarial)
            near_images, far_images = (
                torch.where(broadcast_rows(is_adversarial, images), near_images, images),
                torch.where(broadcast_rows(is_adversarial, images), images, far_images),
            )
            near_score, far_score = (
                torch.where(is_adversarial, near_score, score),
                torch.where(is_adversarial, score, far_score),
            )
