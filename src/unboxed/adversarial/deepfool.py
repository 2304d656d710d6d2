"""DeepFool: repeated projection onto the nearest linearized decision boundary.

Moosavi-Dezfooli et al. 2016, "DeepFool: a simple and accurate method to fool deep neural networks", arXiv:1511.04599,
algorithm 2. Images have bounds, which the paper leaves out: here a step is the shortest that stays inside them, so that
pixels at 0 or 1 cost nothing. Adversarial images are then moved back along the line to the original.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import MIN_DENOMINATOR, Linf, NormBall, unbounded_ball
from ..engine.rows import broadcast_rows
from ..parameters import (
    AttackSteps,
    AttackTarget,
    BatchSize,
    CustomAttackObjective,
    Eps,
    InputBatch,
    Labels,
    LinfOrL2Norm,
    RoundingBits,
)
from ..settings import AtLeast, Unit, check_settings
from .attack_state import AttackState
from .predictions import top_other_classes
from .quantization import quantize_images
from .result import Adversarial

MIN_BOUNDARY_OVERSHOOT = 1e-4  # how far beyond a plane a step goes at least: on it, rounding decides
MAX_SEARCH_TOWARD_ORIGINAL_STEPS = 6  # of the search between an adversarial image and the original
N_STEPS_PER_REFINEMENT_RUN, MIN_RELATIVE_DISTANCE_GAIN = (
    4,
    0.01,
)  # steps of a run from the boundary; smallest gain for another run
TOWARD_ORIGINAL_RELATIVE_TOLERANCE = 1e-3  # it ends where no more than this fraction of the distance can be gained


@card(
    name="DeepFool",
    source="Moosavi-Dezfooli et al. 2016, arXiv:1511.04599, algorithm 2",
    shows="A small change that changes the model's prediction, and so about how near its decision boundary is.",
    does_not_show="The smallest change: it uses planes where the boundary is curved.",
    example=lambda method, box, x, y: method(box, x, y, steps=3),
    runs=lambda s: 2 * s["steps"],
    minimal=True,
    order=20,
    exempt={"partial results": "a full run is followed by a search back, an interrupted one is not"},
)
def deepfool(
    box: Box,
    x: InputBatch,
    y: Labels = None,
    *,
    eps: Eps = None,
    norm: LinfOrL2Norm = "l2",
    target: AttackTarget = None,
    objective: CustomAttackObjective = None,
    steps: AttackSteps = 50,
    refinement_rounds: Annotated[
        int, AtLeast(0), Unit("rounds"), "Number of further runs from the boundary, each back towards x."
    ] = 2,
    candidates: Annotated[
        int | None,
        AtLeast(2),
        Unit("classes"),
        "Number of most probable classes whose boundaries are tried, y included.",
    ] = 10,
    overshoot: Annotated[float, AtLeast(0), "Share of its length by which a step is lengthened."] = 0.02,
    bits: RoundingBits = None,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """Adversarial images near x: steps onto the nearest linearized decision boundary.

    A quick estimate of the distance to the decision boundary in L2 or L-inf. `fab` comes somewhat nearer and takes
    longer; `fmn` and `ddn` are its rivals in speed.

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
        steps: Number of iterations.
        refinement_rounds: Number of further runs from the boundary, each back towards x. 0 gives the algorithm of the
            paper.
        candidates: Number of most probable classes whose boundaries are tried, y included. One backward pass each per
            step; None: all.
        overshoot: Share of its length by which a step is lengthened. Without it, rounding decides on the boundary.
        bits: Bits per value to which images are rounded: 8 gives the levels of PNG files. Rounding would undo many
            attacks, so a search among the rounded images follows; `success` is then that of the rounded image.
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
        >>> ub.adversarial.deepfool(box, x, y).success.tolist()
        [True, True, True, True]

    Source:
        Moosavi-Dezfooli et al. 2016, arXiv:1511.04599, algorithm 2. Three deviations: a step is the shortest one that
        stays in the valid range, which the paper ignores; what fools is then moved back along the line to x; and
        `refinement_rounds` further runs start at the projection of x onto the boundary found, as in FAB (Croce & Hein
        2020, arXiv:1907.02044).
    """
    check_settings(deepfool, locals())
    state = AttackState(
        box, x, y, norm=unbounded_ball(norm, ("l2", "linf")), target=target, objective=objective, loss_name="margin",
        batch_size=batch_size,
    )  # fmt: skip
    with state:
        initial_score, step_factor = torch.full_like(state.distance, math.nan), 1 + overshoot
        solver, rows = (
            _DeepFool(state, candidates, step_factor, step_factor, initial_score),
            state.find_rows_to_attack(),
        )
        solver.run(rows, state.x[rows], steps)
        solver.refine_from_original(rows, min(steps, N_STEPS_PER_REFINEMENT_RUN), refinement_rounds)
    quantize_images(state, bits)
    return state.to_result(math.inf if eps is None else eps)


@dataclass(frozen=True)
class _DeepFool:
    state: AttackState
    candidates: int | None
    step_factor: float  # of a step, in its own length
    first_step_factor: float  # of the first
    initial_score: Tensor  # (N,) of the originals, below zero

    def run(self, rows: Tensor, images: Tensor, steps: int) -> None:
        """From the original onto the nearest plane, linearized at images (n, ...), and on from there until adversarial.

        A row that no longer moves is dropped. Adversarial images are moved back.
        """
        projection_start, successes = self.state.x[rows], [(rows[:0], images[:0], self.initial_score[:0])]
        for step in range(steps):
            if not len(rows):
                break
            next_images = self._batched_step_to_nearest_plane(
                rows, images, projection_start, self.first_step_factor if step == 0 else self.step_factor
            )
            score = self.state.success_score(next_images, rows)
            is_adversarial, is_stuck = score > 0, (next_images == images).flatten(1).all(1)
            self.state.update_nearest(next_images, rows, is_adversarial)
            successes.append((rows[is_adversarial], next_images[is_adversarial], score[is_adversarial]))
            rows, images = rows[~is_adversarial & ~is_stuck], next_images[~is_adversarial & ~is_stuck]
            projection_start = images
        success_rows, images, success_scores = (torch.cat(parts) for parts in zip(*successes, strict=True))
        search_toward_original(self.state, success_rows, images, success_scores, self.initial_score[success_rows])

    def _batched_step_to_nearest_plane(
        self, rows: Tensor, images: Tensor, projection_start: Tensor, step_factor: float
    ) -> Tensor:
        """In bounded batches also of the gradients, one per candidate."""
        batch_rows, max_rows = self.state.box.batch_size_and_max_rows(len(rows), self.state.batch_size)
        batch_rows, parts = max_rows if batch_rows == "auto" else batch_rows, []
        for i in range(0, len(rows), batch_rows):
            batch_index, batch_images = rows[i : i + batch_rows], images[i : i + batch_rows]
            linearization = _linearize(self.state, batch_images, batch_index, self.candidates)
            is_first = self.initial_score[batch_index].isnan()  # the first evaluation is of the original
            self.initial_score[batch_index] = torch.where(
                is_first, linearization.values.amax(1), self.initial_score[batch_index]
            )
            parts.append(
                _step_to_nearest_plane(
                    self.state, linearization, projection_start[i : i + batch_rows], batch_images, step_factor
                )
            )
        return torch.cat(parts)

    def refine_from_original(self, rows: Tensor, steps: int, n_rounds: int) -> None:
        """Walk again from the original, by the plane linearized at the boundary, while that gains."""
        return_solver = replace(
            self, candidates=2, first_step_factor=1.0
        )  # the plane is linearized at the boundary: no overshoot needed
        rows = rows[self.state.success[rows]]
        for _ in range(n_rounds):
            if not len(rows):
                return
            old_distance = self.state.distance[rows]
            return_solver.run(rows, self.state.images[rows], steps)
            rows = rows[self.state.distance[rows] < old_distance * (1 - MIN_RELATIVE_DISTANCE_GAIN)]


# -- one step ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LinearizedClassBoundaries:
    """The linearized boundaries to J other classes: f + w . r = 0."""

    values: Tensor  # (n, J) below zero: not crossed
    normals: Tensor  # (n, J, ...)


def _linearize(state: AttackState, images: Tensor, rows: Tensor, candidates: int | None) -> LinearizedClassBoundaries:
    if state.goal.labels is None or state.goal.target_labels is not None or candidates == 2:
        evaluation = state.evaluate_with_grad(images, rows)
        return LinearizedClassBoundaries(evaluation.score[:, None], evaluation.grad[:, None])
    labels = state.goal.labels

    def margins_to_candidate_classes(logits: Tensor, row_index: Tensor) -> Tensor:  # (n, K), (n,) -> (n, J)
        row_labels, n_candidates = labels[row_index], min(candidates or logits.shape[1], logits.shape[1]) - 1
        return logits.gather(1, top_other_classes(logits, row_labels, n_candidates)) - logits.gather(
            1, row_labels[:, None]
        )

    return LinearizedClassBoundaries(*state.jacobian(images, rows, margins_to_candidate_classes)[1:])


def _step_to_nearest_plane(
    state: AttackState,
    linearization: LinearizedClassBoundaries,
    projection_start: Tensor,
    images: Tensor,
    step_factor: float,
) -> Tensor:
    """The valid point nearest to `projection_start` on the nearest plane, `step_factor` times as far."""
    clip, normals = state.box.inputs.clip, linearization.normals.flatten(2)  # (n, J, D)
    upward_room, downward_room = (
        clip(torch.full_like(projection_start, bound)).sub(projection_start).flatten(1)[:, None]
        for bound in (math.inf, -math.inf)
    )
    max_abs_step = torch.where(normals > 0, upward_room, -downward_room).clamp_min(0)  # (n, J, D)
    needed_rise = -linearization.values - (normals * (projection_start - images).flatten(1)[:, None]).sum(
        2
    )  # (n, J) from `start`
    is_masked = linearization.values == -math.inf  # (n, J) classes of logit -inf
    needed_rise = needed_rise.where(~is_masked, 0)
    steps = shortest_step_within_bounds(
        normals, needed_rise.clamp_min(0) * step_factor, max_abs_step, state.norm
    )  # (n, J, D)
    step_lengths = steps.abs().amax(2) if isinstance(state.norm, Linf) else steps.norm(dim=2)
    is_out_of_reach = (normals * steps).sum(2) < needed_rise * (1 - 1e-3)  # the plane is outside the valid range
    nearest_index = (
        (step_lengths + is_out_of_reach * step_lengths.amax().clamp_min(1)).where(~is_masked, math.inf).argmin(1)
    )
    nearest_step = steps[torch.arange(len(steps), device=steps.device), nearest_index]
    return clip(projection_start + nearest_step.view_as(projection_start))


def shortest_step_within_bounds(normals: Tensor, needed_rise: Tensor, max_abs_step: Tensor, norm: NormBall) -> Tensor:
    """The shortest r (n, J, D) with w . r = needed_rise (n, J) and |r_i| <= room (n, J, D), in the direction of w.

    r is t w (or t sign(w), in the norm "linf") with each value clipped at its room. w . r as a function of t is
    concave and piecewise linear, so Newton's method from below is exact as soon as no further value is clipped.
    """
    is_linf = isinstance(norm, Linf)
    direction = torch.where(normals != 0, 1.0, 0.0).to(normals.dtype) if is_linf else normals.abs()
    t_max, gain_per_t = (
        max_abs_step / direction.clamp_min(MIN_DENOMINATOR),
        direction * normals.abs(),
    )  # (n, J, D) clipped from t_max on
    needed_rise = needed_rise + MIN_BOUNDARY_OVERSHOOT * torch.where(t_max > 0, gain_per_t, 0).sum(2).pow(
        1.0 if is_linf else 0.5
    )
    t, n_free = torch.zeros_like(needed_rise), -1
    while (n_left := int((is_free := t_max > t[..., None]).sum())) != n_free:
        n_free = n_left
        total_gain = torch.where(is_free, gain_per_t, 0).sum(2)
        shortfall = needed_rise - (gain_per_t * torch.minimum(t_max, t[..., None])).sum(2)
        t = torch.where(total_gain > 0, t + shortfall / total_gain.clamp_min(MIN_DENOMINATOR), t)
    return normals.sign() * direction * torch.minimum(t_max, t[..., None])


# -- back to the original ---------------------------------------------------------------------------------------------


def search_toward_original(
    state: AttackState, rows: Tensor, images: Tensor, image_score: Tensor, original_score: Tensor
) -> None:
    """Keep the nearest adversarial image between each of the `images` (n, ...) and its original.

    The image has image_score (n,) > 0, the original original_score (n,) < 0. Evaluated are in turn the zero of the
    chord and the middle, in case the score is far from linear.
    """
    x, near_fraction, far_fraction = state.x[rows], torch.zeros_like(image_score), torch.ones_like(image_score)
    for iteration in range(MAX_SEARCH_TOWARD_ORIGINAL_STEPS):
        crossing = image_score / (image_score - original_score).clamp_min(
            MIN_DENOMINATOR
        )  # (n,) from far, of what is between
        is_active = crossing * (far_fraction - near_fraction) > TOWARD_ORIGINAL_RELATIVE_TOLERANCE * far_fraction
        rows, images, x, near_fraction, far_fraction, image_score, original_score, crossing = (
            values[is_active]
            for values in (rows, images, x, near_fraction, far_fraction, image_score, original_score, crossing)
        )
        if not len(rows):
            return
        fraction = far_fraction - (far_fraction - near_fraction) * (
            crossing * 0.95 if iteration % 2 == 0 else 0.5 + 0 * crossing
        )
        candidates = state.box.inputs.clip(x + broadcast_rows(fraction, x) * (images - x))
        score = state.success_score(candidates, rows)
        is_adversarial = score > 0
        state.update_nearest(candidates, rows, is_adversarial)
        far_fraction, image_score = (
            torch.where(is_adversarial, fraction, far_fraction),
            torch.where(is_adversarial, score, image_score),
        )
        near_fraction, original_score = (
            torch.where(is_adversarial, near_fraction, fraction),
            torch.where(is_adversarial, original_score, score),
        )
