"""The result of the planted-shortcut check."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..engine.results import ResultMixin
from .planting import Trigger
from .shortcut_trial import (
    DOES_NOT_SHOW_IT_MAX_SCORE,
    MIN_SCORE_ABOVE_CONTROL,
    SHOWS_IT_MIN_SCORE,
    ShortcutFinding,
    TriggerAccuracy,
)

# Pixels around the trigger that still count as pointing at it: maps are no finer than a method
POINTING_TOLERANCE_PIXELS = 2
MIN_CONTROL_TO_MODEL_PEAK_RATIO = 0.5  # of the peak on the model: a lower peak on the control does not count


@dataclass(frozen=True, repr=False, eq=False)
class ShortcutReport(ResultMixin):
    """All findings; the maps in them are of `images` (S, C, H, W) with the triggers of `classes` (S,)."""

    trigger: Trigger
    model_accuracy: TriggerAccuracy
    control_accuracy: TriggerAccuracy
    findings: tuple[ShortcutFinding, ...]
    images: Tensor
    classes: Tensor
    labels: Tensor  # (S,) their correct classes
    predicted: tuple[Tensor, Tensor]  # (S,) each: by the model and by the control
    interrupted: bool

    def to_dict(self) -> dict[str, Any]:
        """Everything but the images, for JSON."""
        rows = [{k: v for k, v in vars(f).items() if k != "images"} for f in self.findings]
        thresholds = {
            "shows_above": SHOWS_IT_MIN_SCORE,
            "fails_below": DOES_NOT_SHOW_IT_MAX_SCORE,
            "min_control_gap": MIN_SCORE_ABOVE_CONTROL,
            "tolerance_pixels": POINTING_TOLERANCE_PIXELS,
            "min_relative_peak": MIN_CONTROL_TO_MODEL_PEAK_RATIO,
        }
        rates = {"model": asdict(self.model_accuracy), "control": asdict(self.control_accuracy)}
        return {
            "trigger": asdict(self.trigger),
            "rates": rates,
            "thresholds": thresholds,
            "findings": rows,
            "interrupted": self.interrupted,
        }
