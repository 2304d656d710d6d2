"""One change for many images: the gradient ascent that patches and universal perturbations share, and its rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..box import Box
from ..engine.read.examples import inputs_and_labels
from ..errors import InputError
from ..inputs.labels import ClassLabels
from ..model.batching import BatchSize
from ..model.nan_checks import check_no_nan
from ..objectives import Objective
from ..rng import hashed_uniform
from ..validation import check_int
from .attack_state import AttackState
from .goal import AttackGoal, make_goal, require_attackable_classes
from .predictions import predict_classes

QUARTIC_ROOT_EPSILON = 1e-6  # a root has no finite gradient at zero
QUARTIC_ROOT_EXPONENT = 0.25  # of the score: see quartic_root_objective
N_UNIFORM_DRAWS_PER_PLACEMENT = 4  # random numbers per placement
ApplyPerturbationFn = Callable[
    [Tensor, Tensor, Tensor, int], Tensor
]  # change (1, ...), images (n, ...), rows (n,), step -> images
UpdatePerturbationFn = Callable[
    [Tensor, Tensor, float], Tensor
]  # change, its gradient uphill, a size falling from 1 to 0 -> change


class PerturbationWithGoal(Protocol):
    """What `fooling_rate` needs of a patch or a universal perturbation."""

    @property
    def target(self) -> int | None: ...
    @property
    def objective(self) -> Objective | None: ...


@dataclass(frozen=True)
class UniversalAttack:
    """The images that one change is made for, some of them in each step."""

    state: AttackState
    apply_change: ApplyPerturbationFn
    update_change: UpdatePerturbationFn
    steps: int
    images_per_step: int
    seed: int

    def optimize(self, start: Tensor, excluded: Tensor) -> tuple[Tensor, Tensor]:
        """The change (1, ...) after all steps, or those before Ctrl-C, and the fooling rate (T,) of each step."""
        change, fooling_rates = start, list[Tensor]()
        with self.state:
            rows = self.state.find_rows_to_attack()
            rows = rows[~excluded[rows]]
            for step_index in range(self.steps if len(rows) else 0):
                grad, fooled_fraction = self._gradient_and_fooling_rate(
                    change, self._sample_rows(rows, step_index), step_index
                )
                change = self.update_change(change, grad, (1 + math.cos(math.pi * step_index / self.steps)) / 2)
                fooling_rates.append(fooled_fraction)
        return change, torch.stack(fooling_rates) if fooling_rates else start.new_zeros(0)

    def _sample_rows(self, rows: Tensor, step_index: int) -> Tensor:
        """images_per_step of the rows, without replacement, in their order."""
        if len(rows) <= self.images_per_step:
            return rows
        order = hashed_uniform(self.seed, rows, 2 * step_index + 2, N_UNIFORM_DRAWS_PER_PLACEMENT)[:, 0].argsort()
        return rows[order[: self.images_per_step].sort().values]

    def _gradient_and_fooling_rate(self, change: Tensor, rows: Tensor, step_index: int) -> tuple[Tensor, Tensor]:
        """The mean gradient of the score with respect to the change, and the fooling rate."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf = change.detach().requires_grad_()
            images = self.apply_change(leaf, self.state.x[rows], rows, step_index)
            evaluation = self.state.evaluate_with_grad(
                images.detach(), rows, quartic_root_objective(self.state.goal.criterion)
            )
            (grad,) = torch.autograd.grad(images, leaf, evaluation.grad / len(rows))
        return grad.nan_to_num(0, 0, 0), (evaluation.success_score > 0).to(change.dtype).mean()


def quartic_root_objective(criterion: Objective) -> Objective:
    """-softplus(-score) ** (1/4): few images that cannot be fooled weigh less than many that nearly are.

    The mean of log-probabilities, which the papers maximize, is dominated by the images that are farthest from being
    fooled; what counts is how many are. On MNIST a patch by the fourth root fools .02 more of the images than by
    the square root, and that .02 more than by the log-probability.
    """

    def score(margin: Tensor) -> Tensor:
        return -(F.softplus(-margin) + QUARTIC_ROOT_EPSILON).pow(QUARTIC_ROOT_EXPONENT)

    select_rows = None if criterion.select is None else (lambda i: quartic_root_objective(criterion.rows(i)))
    return Objective(
        lambda acts: score(criterion(acts)),
        criterion.layers,
        f"rooted {criterion.name}",
        select_rows,
        criterion.batch_dependent,
        criterion.n,
    )


def make_attack_state_and_target_mask(
    box: Box, x: Any, y: ClassLabels | None, target: ClassLabels | None, objective: Objective | None, norm: Any,
    batch_size: BatchSize,
) -> tuple[AttackState, Tensor]:  # fmt: skip
    """The state of the attack, and which images (N,) are of the target's class. Raises InputError, OutputError."""
    if target is not None:
        target = require_single_target(box, target)
    if objective is None:  # before labels are read: those of other models have other forms
        require_attackable_classes(box)
    x, y = (x, y) if objective is not None else inputs_and_labels(box, x, y)
    if y is None and target is None and objective is None:
        y = predicted_labels(box, x, batch_size)
    state = AttackState(box, x, y, norm=norm, target=target, objective=objective, batch_size=batch_size)
    goal = state.goal
    return state, _target_class_mask(goal, state.initially_misclassified)


def _target_class_mask(goal: AttackGoal, no_rows: Tensor) -> Tensor:
    """Which examples are of the target's class."""
    return no_rows if goal.labels is None or goal.target_labels is None else torch.eq(goal.labels, goal.target_labels)


def require_single_target(box: Box, target: object) -> int:
    """The class that all images are to become. Raises InputError."""
    labels = box.class_labels(target, 1)
    if box.class_numbers(target).ndim:
        raise InputError("one change for all images has one target: an int")
    return int(labels[0])


def predicted_labels(box: Box, x: Tensor, batch_size: BatchSize) -> Tensor:
    """The model's own predictions, in place of labels. Raises OutputError."""
    require_attackable_classes(box)
    return predict_classes(box, box.validate_inputs(x), batch_size)


def fooling_rate(
    result: PerturbationWithGoal,
    box: Box,
    x: Tensor,
    y: ClassLabels | None,
    changed_images: Callable[[int], Tensor],
    n_samples: int,
    batch_size: BatchSize,
) -> float:
    """Of the images that count, the fraction that is fooled, over n_samples of changed_images. Raises InputError.

    Counted are images not of the target's class (without labels: not predicted as it); untargeted, those that are
    correctly classified; with an objective, those where it is not above zero.
    """
    n_samples = check_int("n_samples", n_samples, minimum=1)
    y = predicted_labels(box, x, batch_size) if y is None and result.objective is None else y
    goal = make_goal(box, len(x), y, result.target, result.objective)
    is_fooled = partial(_is_objective_positive, box, goal.criterion, batch_size=batch_size)
    is_counted = (
        ~is_fooled(x)
        if goal.labels is None or goal.target_labels is None
        else torch.ne(goal.labels, goal.target_labels)
    )
    if not is_counted.any():
        raise InputError("none of these images counts: the model already takes all of them for what they should become")
    fooled_fractions = [
        is_fooled(box.validate_inputs(changed_images(sample_index)))[is_counted].double().mean()
        for sample_index in range(n_samples)
    ]
    return float(torch.stack(fooled_fractions).mean())


def _is_objective_positive(box: Box, objective: Objective, images: Tensor, *, batch_size: BatchSize) -> Tensor:
    acts = box.read(images, sorted(objective.layers), batch_size=batch_size)
    return check_no_nan(objective(acts)) > 0
