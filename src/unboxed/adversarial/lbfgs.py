"""Box-constrained L-BFGS: the first adversarial examples. The only L-BFGS loop is `engine.optimize.lbfgs`.

Szegedy et al. 2013, "Intriguing properties of neural networks", arXiv:1312.6199, section 4.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import L2, MIN_DENOMINATOR, l2_norm, unbounded_ball
from ..engine.optimize.lbfgs import LBFGSState, concat_states, initial_state, where_states
from ..errors import InputError
from ..objectives import Acts, Constant, Objective, layer_objective
from ..parameters import (
    AttackSteps,
    AttackTarget,
    BatchSize,
    CustomAttackObjective,
    EarlyStop,
    Eps,
    InputBatch,
    L2NormOnly,
    Labels,
    RoundingBits,
)
from ..settings import Above, AtLeast, Unit, check_settings
from . import quantization
from .attack_ball import check_eps_within_data_range
from .attack_state import AttackState
from .goal import AttackGoal
from .result import Adversarial

C_GROWTH_FACTOR_UNBRACKETED, C_GROWTH_FACTOR_NEAR_BOUNDARY = (
    4.0,
    1.25,
)  # factor of c until a success and a failure are known


@card(
    name="L-BFGS",
    source="Szegedy et al. 2013, arXiv:1312.6199, section 4.1",
    shows="An input near this one that the model misclassifies.",
    does_not_show="That there is none nearer: its distance is an upper bound of the smallest.",
    example=lambda method, box, x, y: method(box, x, y, steps=3, n_searches=2),
    runs=lambda s: 2 + s["n_searches"] * s["steps"],
    minimal=True,
    order=25,
    exempt={"partial results": "`steps` bounds each of several searches, so fewer steps are no part of more steps"},
)
def lbfgs(
    box: Box,
    x: InputBatch,
    y: Labels = None,
    *,
    eps: Eps = None,
    norm: L2NormOnly = "l2",
    target: AttackTarget = None,
    objective: CustomAttackObjective = None,
    steps: AttackSteps = 50,
    n_searches: Annotated[int, AtLeast(1), Unit("searches"), "Number of values of c that are tried."] = 10,
    tolerance: Annotated[float, Above(0), "Relative gradient at which a minimization ends."] = 1e-4,
    early_stop: EarlyStop = True,
    bits: RoundingBits = None,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """The nearest adversarial images in L2: box-constrained L-BFGS, the first attack of all.

    Of historical interest, and accurate. `fab` and `ddn` are faster.

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
        steps: Number of iterations. At most, for each c; one forward pass each.
        n_searches: Number of values of c that are tried. c weighs the distance against the loss.
        tolerance: Relative gradient at which a minimization ends. Smaller is more exact, and slower.
        early_stop: Stop examples as soon as they are good enough. That is, fooled within eps. False: they get nearer
            still.
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
        >>> ub.adversarial.lbfgs(box, x, y, steps=20, n_searches=4).success.tolist()
        [True, True, True, True]

    Source:
        Szegedy et al. 2013, arXiv:1312.6199, section 4.1: minimize c |r|^2 + loss(x + r) within the valid range, with a
        search for c by bisection of its logarithm, per example. Deviations: |r|^2 in place of |r|, which has the same
        minimizers at another c and is smooth at r = 0; and untargeted attacks, whose loss is the cross-entropy of all
        other classes taken as one, and in the second half of the searches that of the class found, against y alone.
    """
    check_settings(lbfgs, locals())
    ball = unbounded_ball(norm, ("l2",))
    if eps is not None:
        check_eps_within_data_range(box, L2(eps))
    state = AttackState(box, x, y, norm=ball, target=target, objective=objective, batch_size=batch_size)
    target_distance = -1.0 if not early_stop or eps is None else eps
    attack = _LBFGSAttack(state, steps, tolerance, target_distance)
    with state:
        for rows in state.split_rows_into_batches(state.find_rows_to_attack()):
            attack.run(rows, n_searches)
    quantization.quantize_images(state, bits)
    return state.to_result(math.inf if eps is None else eps)


def distortion(images: Tensor, x: Tensor) -> Tensor:
    """The root mean square change of each image: the measure of distance in the first paper on adversarial examples.

    To compare with its figures; an attack's own `distance` is the norm of the change.

    Args:
        images: Adversarial images (N, ...).
        x: The originals (N, ...).

    Returns:
        sqrt(sum((x' - x)^2) / n) of each image (N,), of n values each.

    Raises:
        InputError: for images of another shape than x.

    Example:
        >>> import torch, unboxed as ub
        >>> ub.adversarial.distortion(torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, 1, 2, 2))
        tensor([0.5000])

    Source:
        Szegedy et al. 2013, arXiv:1312.6199, section 4.2.
    """
    if images.shape != x.shape:
        raise InputError(f"a distortion is of images and their originals; got {tuple(images.shape)}, {tuple(x.shape)}")
    return l2_norm(images - x.to(images)) / math.sqrt(x[0].numel())


def attack_log_prob_objective(goal: AttackGoal, class_mask: Tensor | None = None) -> Objective:
    """What is maximized: the log-probability of the goal; of the classes in class_mask (N, K) against y."""
    if not goal.is_class_goal:
        return _log_sigmoid_objective(goal.criterion)
    return (
        goal.ascent_objective
        if class_mask is None or goal.labels is None
        else _log_prob_of_class_set(goal.labels, class_mask)
    )


def _log_prob_of_class_set(labels: Tensor, class_mask: Tensor) -> Objective:
    """The log-probability (N,) of some classes (N, K), with no others than those and the correct one."""
    label_index, excluded = Constant(labels[:, None]), Constant(~class_mask)

    def score(logits: Tensor) -> Tensor:  # (N, K)
        other_logit = logits.masked_fill(excluded.to_like(logits), -math.inf).logsumexp(1)
        return -F.softplus(logits.gather(1, label_index.to_like(logits))[:, 0] - other_logit)

    return layer_objective(
        "logits",
        score,
        "log probability of others",
        lambda i: _log_prob_of_class_set(labels[i], class_mask[i]),
        len(labels),
    )


def _log_sigmoid_objective(criterion: Objective) -> Objective:
    """The log-probability that a score is above zero, taking it as a logit."""

    def score(acts: Acts) -> Tensor:
        return -F.softplus(-criterion(acts))

    select_rows = None if criterion.select is None else (lambda i: _log_sigmoid_objective(criterion.rows(i)))
    return Objective(
        score, criterion.layers, f"log sigmoid({criterion.name})", select_rows, criterion.batch_dependent, criterion.n
    )


@dataclass(frozen=True, eq=False)
class CBracket:
    """c of each row, between the largest of a success and the smallest of a failure."""

    c: Tensor  # (n,)
    largest_success: Tensor  # (n,) zero: none
    smallest_failure: Tensor  # (n,) infinite: none
    growth: Tensor  # (n,) factor until both are known

    @classmethod
    def from_initial_c(cls, c: Tensor, growth: float) -> CBracket:
        return cls(c.clamp_min(MIN_DENOMINATOR), 0 * c, torch.full_like(c, math.inf), torch.full_like(c, growth))

    def with_next_c(self, is_adversarial: Tensor) -> CBracket:
        """The larger c is, the nearer the image, until it is not adversarial any more."""
        largest_success = torch.where(is_adversarial, self.c, self.largest_success)
        smallest_failure = torch.where(is_adversarial, self.smallest_failure, self.c)
        geometric_mean = (largest_success * smallest_failure).sqrt()
        c = torch.where(
            smallest_failure.isinf(),
            self.c * self.growth,
            torch.where(largest_success == 0, self.c / self.growth, geometric_mean),
        )
        return CBracket(c, largest_success, smallest_failure, self.growth)

    def rows(self, index: Tensor) -> CBracket:
        return CBracket(*(getattr(self, f.name)[index] for f in fields(self)))

    def replace_rows(self, index: Tensor, other: CBracket) -> CBracket:
        """With the rows at index (m,) replaced by another's."""
        return CBracket(*(getattr(self, f.name).index_copy(0, index, getattr(other, f.name)) for f in fields(self)))


class _LBFGSAttack:
    """The minimizations of one call."""

    def __init__(self, state: AttackState, steps: int, tolerance: float, target_distance: float) -> None:
        self.state, self.steps, self.tolerance, self.target_distance = state, steps, tolerance, target_distance
        self.class_mask = self.other_classes_mask()  # (N, K) bool: the classes to go to
        self.log_prob = attack_log_prob_objective(state.goal, self.class_mask)
        example = state.x[:1]
        clip = state.box.inputs.clip
        self.lower, self.upper = (clip(torch.full_like(example, bound)).flatten(1) for bound in (-math.inf, math.inf))

    def run(self, rows: Tensor, n_searches: int) -> None:
        if not self.steps or not len(rows):
            return
        images = self.state.x[rows].flatten(1)
        loss, loss_grad, _ = self.evaluate(images, rows)
        linear_distance = loss / l2_norm(loss_grad).clamp_min(MIN_DENOMINATOR)  # (n,) to zero loss, for a linear model
        bracket = CBracket.from_initial_c(
            l2_norm(loss_grad) / (4 * linear_distance).clamp_min(MIN_DENOMINATOR), C_GROWTH_FACTOR_UNBRACKETED
        )
        lbfgs_state, c_of_state = (
            initial_state(images, loss, loss_grad, linear_distance, self.lower, self.upper),
            0 * linear_distance,
        )  # where to start; its c
        for search_index in range(n_searches):
            if search_index and search_index == n_searches // 2:
                lbfgs_state, bracket, c_of_state = self.retarget_to_predicted_class(
                    lbfgs_state, rows, bracket, c_of_state
                )
            start_state = self.lbfgs_state_for_larger_c(lbfgs_state, rows, bracket.c - c_of_state)
            final_state, is_adversarial = self.minimize(rows, bracket.c, start_state, bracket.largest_success > 0)
            enlarged = replace(
                lbfgs_state,
                first_step_length=torch.where(bracket.largest_success > 0, 1, 2) * lbfgs_state.first_step_length,
            )
            lbfgs_state, c_of_state = (
                where_states(is_adversarial, final_state, enlarged),
                torch.where(is_adversarial, bracket.c, c_of_state),
            )
            bracket = bracket.with_next_c(is_adversarial)
            is_active = self.state.distance[rows] > self.target_distance
            rows, bracket, lbfgs_state, c_of_state = (
                rows[is_active],
                bracket.rows(is_active),
                lbfgs_state.rows(is_active),
                c_of_state[is_active],
            )

    def other_classes_mask(self) -> Tensor | None:
        """All classes but y, for an untargeted attack."""
        goal = self.state.goal
        if goal.labels is None or goal.target_labels is not None:
            return None
        return torch.arange(self.state.box.n_outputs, device=goal.labels.device) != goal.labels[:, None]

    def retarget_to_predicted_class(
        self, lbfgs_state: LBFGSState, rows: Tensor, bracket: CBracket, c_of_state: Tensor
    ) -> tuple[LBFGSState, CBracket, Tensor]:
        """From the nearest image on, target the class that it is predicted as: its boundary with y is then sharp."""
        success_index = self.state.success[rows].nonzero()[:, 0]
        if self.class_mask is None or self.class_mask.shape[1] == 2 or not len(success_index):
            return lbfgs_state, bracket, c_of_state
        success_rows, image = rows[success_index], self.state.images[rows[success_index]]
        predictions = self.state.logits(image, success_rows).argmax(1)
        self.class_mask[success_rows] = (
            torch.arange(self.class_mask.shape[1], device=image.device) == predictions[:, None]
        )
        self.log_prob = attack_log_prob_objective(self.state.goal, self.class_mask)
        images, distance = image.flatten(1), self.state.distance[success_rows]
        loss, loss_grad, _ = self.evaluate(images, success_rows)
        new_bracket = CBracket.from_initial_c(
            l2_norm(loss_grad) / (2 * distance).clamp_min(MIN_DENOMINATOR), C_GROWTH_FACTOR_NEAR_BOUNDARY
        )  # where both gradients balance
        penalty, grad = self.distance_penalty_and_grad(images, success_rows, new_bracket.c)
        new_state = initial_state(images, loss + penalty, loss_grad + grad, distance / 10, self.lower, self.upper)
        return (
            lbfgs_state.replace_rows(success_index, new_state),
            bracket.replace_rows(success_index, new_bracket),
            c_of_state.index_copy(0, success_index, new_bracket.c),
        )

    def evaluate(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss (n,), its gradient (n, D) and whether images are adversarial (n,); those are kept."""
        images = images.view(len(rows), *self.state.x.shape[1:])
        evaluation = self.state.evaluate_with_grad(images, rows, self.log_prob)
        is_adversarial = evaluation.success_score > 0
        self.state.update_nearest(images, rows, is_adversarial)
        return -evaluation.score, -evaluation.grad.flatten(1), is_adversarial

    def minimize(
        self, rows: Tensor, c: Tensor, lbfgs_state: LBFGSState, was_adversarial: Tensor
    ) -> tuple[LBFGSState, Tensor]:
        """Minimize c |r|^2 + loss from the present state; returns whether the minimum is adversarial."""
        is_adversarial, finished_parts = was_adversarial.clone(), list[tuple[Tensor, LBFGSState]]()
        position = torch.arange(len(rows), device=rows.device)
        for _ in range(self.steps):
            if bool(lbfgs_state.finished.any()):
                finished_parts.append((position[lbfgs_state.finished], lbfgs_state.rows(lbfgs_state.finished)))
                position, lbfgs_state = position[~lbfgs_state.finished], lbfgs_state.rows(~lbfgs_state.finished)
            if not len(position):
                break
            images = lbfgs_state.trial_point(self.lower, self.upper)
            loss, loss_grad, trial_success = self.evaluate(images, rows[position])
            penalty, grad = self.distance_penalty_and_grad(images, rows[position], c[position])
            lbfgs_state = lbfgs_state.update(
                images, loss + penalty, loss_grad + grad, self.lower, self.upper, self.tolerance
            )
            is_adversarial[position] = torch.where(lbfgs_state.was_accepted, trial_success, is_adversarial[position])
        finished_parts.append((position, lbfgs_state))
        order = torch.cat([i for i, _ in finished_parts]).argsort()
        return concat_states([part for _, part in finished_parts]).rows(order), is_adversarial

    def distance_penalty_and_grad(self, images: Tensor, rows: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """c |r|^2 (n,) and its gradient (n, D)."""
        perturbation = images - self.state.x[rows].flatten(1)
        return c * (perturbation * perturbation).sum(1), 2 * c[:, None] * perturbation

    def lbfgs_state_for_larger_c(self, lbfgs_state: LBFGSState, rows: Tensor, c_increase: Tensor) -> LBFGSState:
        """The same point and history with c increased, whose effect on the curvature is known exactly."""
        penalty, grad = self.distance_penalty_and_grad(lbfgs_state.z, rows, c_increase)
        lbfgs_state = replace(
            lbfgs_state,
            grad_history=lbfgs_state.grad_history + 2 * c_increase[:, None, None] * lbfgs_state.step_history,
        )
        return lbfgs_state.with_new_value_and_grad(
            lbfgs_state.value + penalty, lbfgs_state.grad + grad, self.lower, self.upper
        )
