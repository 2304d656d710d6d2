"""What an attack changed, example by example: prediction and probability before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..box import Box
from ..model.nan_checks import check_no_nan
from .result import Adversarial


@dataclass(frozen=True, eq=False)
class PredictionChange:
    """One example before and after an attack."""

    row: int  # of the attack's call
    original: Tensor  # (C, H, W)
    image: Tensor  # (C, H, W)
    class_before: int  # the predicted class
    class_after: int
    probs_before: tuple[float, float]  # of those two classes, before the attack
    probs_after: tuple[float, float]
    distance: float  # in the attack's norm
    is_adversarial: bool

    @property
    def delta(self) -> Tensor:
        return self.image - self.original


def prediction_changes(
    box: Box, x: Tensor, result: Adversarial, rows: Sequence[int] | None = None
) -> list[PredictionChange]:
    """The changes of these rows of an attack's result (None: all). Raises what the box raises."""
    row_list = list(range(len(x)) if rows is None else rows)
    x, adversarial = box.validate_inputs(x)[row_list], box.validate_inputs(result.images)[row_list]
    logits_before, logits_after = (check_no_nan(box(h)).cpu() for h in (x, adversarial))  # (n, K) logits
    probs_before, probs_after = box.probs_from_logits(logits_before), box.probs_from_logits(logits_after)
    return [
        PredictionChange(
            row,
            x[i],
            adversarial[i],
            class_before := int(logits_before[i].argmax()),
            class_after := int(logits_after[i].argmax()),
            (float(probs_before[i, class_before]), float(probs_before[i, class_after])),
            (float(probs_after[i, class_before]), float(probs_after[i, class_after])),
            float(result.distance[row]),
            bool(result.success[row]),
        )
        for i, row in enumerate(row_list)
    ]
