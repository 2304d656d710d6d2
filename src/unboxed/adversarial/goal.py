"""What an attack wants of each example: which score to climb, and when the model counts as fooled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from ..box import Box
from ..errors import InputError, OutputError
from ..objectives import Index, Objective, dlr, loss, margin

LOSSES: dict[str, Callable[[Tensor], Objective]] = {"ce": loss, "margin": margin, "dlr": dlr}
"""What leads away from a class, by name; its negative leads to it."""


@dataclass(frozen=True, eq=False)
class Goal:
    climb: Objective  # what a gradient attack climbs
    fooled: Objective  # above zero once the example is what the attack wants
    right: Tensor | None = None  # (N,) classes to leave
    become: Tensor | None = None  # (N,) the target classes
    of_classes: bool = True  # False where an objective of the caller's own says what is wanted

    def rows(self, index: Index) -> Goal:
        """The same goal for some of the examples."""
        right, become = (None if k is None else k[index] for k in (self.right, self.become))
        return replace(
            self, climb=self.climb.rows(index), fooled=self.fooled.rows(index), right=right, become=become
        )  # fmt: skip


def goal_of(
    box: Box,
    n: int,
    y: Tensor | int | None,
    target: Tensor | int | None,
    objective: Objective | None,
    way: str = "ce",
) -> Goal:
    """Leave the classes y, become `target`, or raise `objective` above zero. Raises InputError and OutputError."""
    if objective is not None:
        if target is not None:
            raise InputError("give target= (a class to become) or objective= (anything else), not both")
        box.check_objective(objective, n)
        return Goal(objective, objective, of_classes=False)
    box.require_class_scores("an attack on classes")
    if box.outputs == "multilabel":
        raise OutputError(f"the box's outputs are {box.outputs}, not one class an example: give the attack objective=")
    if way not in LOSSES:
        raise InputError(f"loss is one of {', '.join(LOSSES)}; got {way!r}")
    right = None if y is None else box.class_labels(y, n)
    if target is not None:
        become = box.class_labels(target, n)
        return Goal(-LOSSES[way](become), -margin(become), right, become)
    if right is None:
        raise InputError("an untargeted attack needs the true classes y, (N,) ints")
    return Goal(LOSSES[way](right), margin(right), right)
