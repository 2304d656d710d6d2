"""What an attack changed, example by example: what the model said before and says after, and how surely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..box import Box
from ..model.answers import check_no_nan
from .result import Adversarial


@dataclass(frozen=True, eq=False)
class Change:
    row: int  # of the attack's call
    original: Tensor  # (C, H, W)
    image: Tensor  # (C, H, W)
    before: int  # the class that the model says
    after: int
    p_before: tuple[float, float]  # of those two classes, before the attack
    p_after: tuple[float, float]
    distance: float  # in the attack's norm
    fooled: bool

    @property
    def delta(self) -> Tensor:
        return self.image - self.original


def changes(box: Box, x: Tensor, found: Adversarial, rows: Sequence[int] | None = None) -> list[Change]:
    """Of these rows of the attack's call (default: all). Raises InputError and OutputError as the box does."""
    at = list(range(len(x)) if rows is None else rows)
    x, z = box.validate_inputs(x)[at], box.validate_inputs(found.images)[at]
    said, says = (check_no_nan(box(h)).cpu() for h in (x, z))  # (n, K) logits
    before, after = box.probs_from(said), box.probs_from(says)
    return [
        Change(
            row, x[i], z[i], b := int(said[i].argmax()), a := int(says[i].argmax()),
            (float(before[i, b]), float(before[i, a])), (float(after[i, b]), float(after[i, a])),
            float(found.distance[row]), bool(found.success[row]),
        )
        for i, row in enumerate(at)
    ]  # fmt: skip
