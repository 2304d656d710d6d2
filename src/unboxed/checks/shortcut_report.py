"""What the planted-shortcut check gives."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from .planting import Trigger
from .shortcut_trial import (
    FAILS_BELOW,
    MIN_CONTROL_GAP,
    SHOWS_ABOVE,
    ShortcutFinding,
    TriggerRates,
)

TOLERANCE_PIXELS = 2  # pixels around the mark that still count as pointing at it: maps are as fine as their method

MIN_RELATIVE_PEAK = 0.5  # of the height of the peak on the model: a lower one on the control tells nothing of the mark


@dataclass(frozen=True, eq=False)
class ShortcutReport:
    """All findings; `images` (S, C, H, W) with the marks of `classes` (S,) are what the first maps shown are of."""

    trigger: Trigger
    model_rates: TriggerRates
    control_rates: TriggerRates
    findings: tuple[ShortcutFinding, ...]
    images: Tensor
    classes: Tensor
    labels: Tensor  # (S,) what they are in truth
    predicted: tuple[Tensor, Tensor]  # (S,) each: what the model and the control say
    interrupted: bool

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, as JSON takes it."""
        rows = [{k: v for k, v in vars(f).items() if k != "images"} for f in self.findings]
        thresholds = {
            "sure": SHOWS_ABOVE,
            "faint": FAILS_BELOW,
            "apart": MIN_CONTROL_GAP,
            "near": TOLERANCE_PIXELS,
            "high": MIN_RELATIVE_PEAK,
        }
        rates = {"model": asdict(self.model_rates), "control": asdict(self.control_rates)}
        return {
            "mark": asdict(self.trigger), "answers": rates, "thresholds": thresholds, "findings": rows,
            "interrupted": self.interrupted,
        }  # fmt: skip
