"""What the planted shortcut is judged on: two models, marked images, and what a method's finding says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ..box import Box
from ..engine.rows import evenly_spaced
from ..errors import InputError
from .methods import Method
from .planting import Trigger, mismatched_classes

ShortcutGrade = Literal["shows it", "doubtful", "does not", "refused"]
SHOWS_ABOVE, FAILS_BELOW, MIN_CONTROL_GAP = 0.75, 0.25, 0.5  # of the shares that a verdict goes by
MIN_FOOLED_MODEL, MAX_FOOLED_CONTROL = (
    0.8,
    0.2,
)  # falsely marked images that must be taken for the mark's class, and by the control may be


@dataclass(frozen=True)
class TriggerRates:
    """How a model answers held-out images, as shares."""

    clean_accuracy: float  # right, without any mark
    matched_accuracy: float  # right, with their own class's mark
    mismatched_accuracy: float  # right, in spite of another class's mark
    fooled_rate: float  # answered as another class's mark says


@dataclass(frozen=True, eq=False)
class ShortcutFinding:
    """What one method shows of the shortcut: its share `found`, 0 to 1, beside the same on the `control` model."""

    family: str
    method: str
    name: str
    grade: ShortcutGrade
    sentence: str  # in one sentence
    quantity: str = ""  # it is the share of
    score: float | None = None
    control_score: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    images: tuple[Tensor, Tensor] | None = None  # what it drew of the model with the shortcut, and of the control


@dataclass(frozen=True, eq=False)
class ShortcutTrial:
    """What a judge is given: both models, and clean held-out images."""

    model: Box
    control: Box
    x: Tensor  # (N, C, H, W)
    y: Tensor  # (N,)
    trigger: Trigger
    methods: Mapping[str, Method] | None
    n_examples: int
    seed: int

    @property
    def boxes(self) -> tuple[Box, Box]:
        return self.model, self.control

    @cached_property
    def mismatched(self) -> tuple[Tensor, Tensor]:
        """The images that can be falsely marked (F,), and with the mark of which class (F,)."""
        classes = mismatched_classes(self.y, self.trigger)
        rows = (classes >= 0).nonzero().flatten()
        return rows, classes[rows]

    @cached_property
    def matched(self) -> tuple[Tensor, Tensor]:
        """The images whose own class has a mark."""
        rows = torch.isin(self.y, torch.tensor(self.trigger.classes)).nonzero().flatten()
        return rows, self.y[rows]

    def apply_trigger(self, rows: Tensor, classes: Tensor) -> Tensor:
        return self.trigger.apply(self.x[rows], classes)

    @cached_property
    def _explained_rows(self) -> tuple[Tensor, Tensor]:
        """Images to explain and the classes of their marks: falsely marked ones, then as many rightly marked."""
        selected = [
            (rows[i], k[i])
            for rows, k in (self.mismatched, self.matched)
            for i in [evenly_spaced(len(rows), self.n_examples)]
        ]
        rows, classes = (torch.cat(p) for p in zip(*selected, strict=True))
        return rows, classes

    @cached_property
    def explained_images(self) -> tuple[Tensor, Tensor]:
        """The chosen images with their marks (E, C, H, W), and what these say (E,)."""
        return self.apply_trigger(*self._explained_rows), self._explained_rows[1]

    @property
    def explained_labels(self) -> Tensor:
        """What the explained images are in truth, (E,)."""
        return self.y[self._explained_rows[0]]

    @property
    def figure_rows(self) -> list[int]:
        """Of the explained images: two that are falsely marked, one that is rightly."""
        n = min(self.n_examples, len(self.mismatched[0]))
        return [*evenly_spaced(n, 2), n]


def trigger_rates(box: Box, trial: ShortcutTrial) -> TriggerRates:
    """How the model answers, with marks and without."""
    (mismatched_rows, mismatched_classes), (matched_rows, matched_classes) = trial.mismatched, trial.matched
    predicted = box.predict(trial.apply_trigger(mismatched_rows, mismatched_classes)).cpu()
    return TriggerRates(
        clean_accuracy=fraction_true(box.predict(trial.x).cpu() == trial.y),
        matched_accuracy=fraction_true(
            box.predict(trial.apply_trigger(matched_rows, matched_classes)).cpu() == matched_classes
        ),
        mismatched_accuracy=fraction_true(predicted == trial.y[mismatched_rows]),
        fooled_rate=fraction_true(predicted == mismatched_classes),
    )


def check_shortcut_learned(model: TriggerRates, control: TriggerRates) -> None:
    """Raise InputError unless the model goes by the mark and the control doesn't."""
    if model.fooled_rate < MIN_FOOLED_MODEL:
        raise InputError(
            f"the shortcut was not learned: it takes {model.fooled_rate:.0%} "
            "of falsely marked images for what the mark "
            f"says ({MIN_FOOLED_MODEL:.0%} wanted), so no method can "
            "be judged by it. Train it longer, or plant more strays"
        )
    if control.fooled_rate > MAX_FOOLED_CONTROL:
        raise InputError(
            "the control model goes by the mark too: it takes "
            f"{control.fooled_rate:.0%} of falsely marked images for what "
            f"the mark says (at most {MAX_FOOLED_CONTROL:.0%} wanted). It must be trained on images without marks"
        )


def grade_shortcut(score: float, control_score: float) -> ShortcutGrade:
    """Of the share of what a method drew that shows the mark, beside the same on the control model."""
    if score >= SHOWS_ABOVE and score - control_score >= MIN_CONTROL_GAP:
        return "shows it"
    return "does not" if score <= FAILS_BELOW else "doubtful"


def fraction_true(hits: Tensor) -> float:
    return float(hits.double().mean())
