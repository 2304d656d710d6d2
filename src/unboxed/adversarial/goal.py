"""The goal of an attack: the score to maximize for each example, and the criterion of success."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from ..box import Box
from ..engine.read.examples import FRAME_ADVICE
from ..errors import InputError
from ..inputs.labels import ClassLabels
from ..objectives import Objective, RowIndex, dlr, loss, margin
from .result import GoalKind

OBJECTIVE_FACTORY_BY_LOSS_NAME: dict[str, Callable[[Tensor], Objective]] = {"ce": loss, "margin": margin, "dlr": dlr}
"""Objectives that lead away from a class, by name; the negative leads to it."""


@dataclass(frozen=True, eq=False)
class AttackGoal:
    """What an attack maximizes, and what decides about success."""

    ascent_objective: Objective  # what a gradient attack maximizes
    criterion: Objective  # above zero: success
    labels: Tensor | None = None  # (N,) classes to leave
    target_labels: Tensor | None = None  # (N,) the target classes
    kind: GoalKind = "untargeted"
    output_before: Tensor | None = None  # (N, K, ...) of the originals, and
    loss_before: Tensor | None = None  # (N,) where the loss is raised as far as it goes
    signed_error: Objective | None = None  # of one number: how far it is above the right one

    @property
    def is_class_goal(self) -> bool:
        """False for an objective of the caller."""
        return self.kind != "objective"

    @property
    def has_threshold(self) -> bool:
        """Whether an example is done once it is a success; False where the largest score counts."""
        return self.kind != "loss"

    def rows(self, index: RowIndex) -> AttackGoal:
        """The same goal for some of the examples."""
        labels, target_labels = (
            None if values is None else values[index] for values in (self.labels, self.target_labels)
        )
        return replace(
            self,
            ascent_objective=self.ascent_objective.rows(index),
            criterion=self.criterion.rows(index),
            labels=labels,
            target_labels=target_labels,
        )

    def with_required_margin(self, kappa: float) -> AttackGoal:
        """The same goal with success only where the criterion is above `kappa`."""
        return replace(self, criterion=self.criterion - kappa) if kappa else self


def require_attackable_classes(box: Box) -> None:
    """Raise OutputError, with the objective that does it, unless the model gives one class per example."""
    box.require_class_scores("an attack on classes", exclusive=True, objective_call="give objective={objective}")


def make_goal(
    box: Box,
    n_examples: int,
    y: ClassLabels | None,
    target: ClassLabels | None,
    objective: Objective | None,
    loss_name: str = "ce",
) -> AttackGoal:
    """Leave the classes y, become `target`, or raise `objective` above zero. Raises InputError and OutputError."""
    if objective is not None:
        if target is not None:
            raise InputError("give target= (a class to become) or objective= (anything else), not both")
        box.check_objective(objective, n_examples)
        return AttackGoal(objective, objective, kind="objective")
    require_attackable_classes(box)
    labels = None if y is None else box.class_labels(y, n_examples)
    if target is not None:
        target_labels = box.class_labels(target, n_examples)
        return AttackGoal(
            -OBJECTIVE_FACTORY_BY_LOSS_NAME[loss_name](target_labels),
            -margin(target_labels),
            labels,
            target_labels,
            "targeted",
        )
    if labels is None:
        raise InputError(
            f"an untargeted attack needs the correct classes y, (N,) ints; others need a target. {FRAME_ADVICE}"
        )
    return AttackGoal(OBJECTIVE_FACTORY_BY_LOSS_NAME[loss_name](labels), margin(labels), labels)
