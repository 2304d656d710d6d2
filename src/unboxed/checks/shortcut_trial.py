"""What the planted-shortcut check works on: two models, images with triggers, and the findings of the methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal

import torch
from torch import Tensor

from ..box import Box
from ..engine.rows import evenly_spaced_indices
from ..errors import InputError
from .methods import AttributionMethodFn
from .planting import PlantedDataset, Trigger, mismatched_classes
from .verdict import INCONCLUSIVE

GRADE_SHOWS_IT: Final = "shows it"
GRADE_DOES_NOT_SHOW_IT: Final = "does not show it"
ShortcutGrade = Literal["shows it", "inconclusive", "does not show it", "not applicable"]
SHOWS_IT_MIN_SCORE, DOES_NOT_SHOW_IT_MAX_SCORE, MIN_SCORE_ABOVE_CONTROL = (
    0.75,
    0.25,
    0.5,
)  # of the score that a grade follows from
MIN_MODEL_FOOLED_FRACTION, MAX_CONTROL_FOOLED_FRACTION = (
    0.8,
    0.2,
)  # fooled rates: of the model at least, of the control at most


@dataclass(frozen=True)
class TriggerAccuracy:
    """How a model classifies held-out images, as fractions."""

    clean_accuracy: float  # without a trigger
    matched_accuracy: float  # with the trigger of their own class
    mismatched_accuracy: float  # with the trigger of another class
    fooled_rate: float  # classified as the class of a mismatched trigger


@dataclass(frozen=True, eq=False)
class ShortcutFinding:
    """Whether one method shows the shortcut: its score, 0 to 1, on the model and on the control."""

    family: str
    method: str
    name: str
    grade: ShortcutGrade
    sentence: str  # in one sentence
    quantity: str = ""  # what the score is the fraction of
    score: float | None = None
    control_score: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    images: tuple[Tensor, Tensor] | None = None  # of the model with the shortcut, and of the control


@dataclass(frozen=True, eq=False)
class ShortcutTrial:
    """What a `ShortcutTestFn` is given: both models, and clean held-out images."""

    model: Box
    control: Box
    x: Tensor  # (N, C, H, W)
    y: Tensor  # (N,)
    trigger: Trigger
    methods: Mapping[str, AttributionMethodFn] | None
    n_examples: int
    seed: int
    training_data: tuple[PlantedDataset, PlantedDataset] | None = None  # of the model, and of the control
    influence_methods: Mapping[str, Callable[..., Any]] | None = None

    @property
    def model_and_control_boxes(self) -> tuple[Box, Box]:
        return self.model, self.control

    @cached_property
    def mismatched_rows_and_classes(self) -> tuple[Tensor, Tensor]:
        """The rows (F,) that can have a mismatched trigger, and the class of that trigger (F,)."""
        classes = mismatched_classes(self.y, self.trigger)
        rows = (classes >= 0).nonzero().flatten()
        return rows, classes[rows]

    @cached_property
    def matched_rows_and_classes(self) -> tuple[Tensor, Tensor]:
        """The rows (M,) whose own class has a trigger, and that class (M,)."""
        rows = torch.isin(self.y, torch.tensor(self.trigger.classes)).nonzero().flatten()
        return rows, self.y[rows]

    def apply_trigger(self, rows: Tensor, classes: Tensor) -> Tensor:
        return self.trigger.apply(self.x[rows], classes)

    @cached_property
    def _explained_rows_and_classes(self) -> tuple[Tensor, Tensor]:
        """Rows to explain and the classes of their triggers: mismatched ones, then as many matched."""
        selected = [
            (rows[i], k[i])
            for rows, k in (self.mismatched_rows_and_classes, self.matched_rows_and_classes)
            for i in [evenly_spaced_indices(len(rows), self.n_examples)]
        ]
        rows, classes = (torch.cat(p) for p in zip(*selected, strict=True))
        return rows, classes

    @cached_property
    def explained_images_and_classes(self) -> tuple[Tensor, Tensor]:
        """The chosen images with their triggers (E, C, H, W), and the classes of these (E,)."""
        return self.apply_trigger(*self._explained_rows_and_classes), self._explained_rows_and_classes[1]

    @property
    def explained_labels(self) -> Tensor:
        """The correct classes of the explained images, (E,)."""
        return self.y[self._explained_rows_and_classes[0]]

    @property
    def example_rows_for_figure(self) -> list[int]:
        """Of the explained images: two with a mismatched trigger, one with a matched."""
        n = min(self.n_examples, len(self.mismatched_rows_and_classes[0]))
        return [*evenly_spaced_indices(n, 2), n]


def accuracy_with_triggers(box: Box, trial: ShortcutTrial) -> TriggerAccuracy:
    """How a model classifies held-out images, with triggers and without."""
    (mismatched_rows, mismatched_classes), (matched_rows, matched_classes) = (
        trial.mismatched_rows_and_classes,
        trial.matched_rows_and_classes,
    )
    predicted = box.predict(trial.apply_trigger(mismatched_rows, mismatched_classes)).cpu()
    return TriggerAccuracy(
        clean_accuracy=fraction_of_true(box.predict(trial.x).cpu() == trial.y),
        matched_accuracy=fraction_of_true(
            box.predict(trial.apply_trigger(matched_rows, matched_classes)).cpu() == matched_classes
        ),
        mismatched_accuracy=fraction_of_true(predicted == trial.y[mismatched_rows]),
        fooled_rate=fraction_of_true(predicted == mismatched_classes),
    )


def check_shortcut_learned(model: TriggerAccuracy, control: TriggerAccuracy) -> None:
    """Raise InputError unless the model has learned the shortcut and the control has not."""
    if model.fooled_rate < MIN_MODEL_FOOLED_FRACTION:
        raise InputError(
            f"the shortcut was not learned: the model classifies {model.fooled_rate:.0%} of the images with a "
            f"mismatched trigger as its class ({MIN_MODEL_FOOLED_FRACTION:.0%} wanted), "
            f"so no method can be judged by it. "
            "Train it longer, or with a larger poison_fraction"
        )
    if control.fooled_rate > MAX_CONTROL_FOOLED_FRACTION:
        raise InputError(
            f"the control model uses the trigger, too: it classifies {control.fooled_rate:.0%} of the images with a "
            f"mismatched trigger as its class (at most {MAX_CONTROL_FOOLED_FRACTION:.0%} wanted). "
            f"It must be trained on images "
            "without triggers"
        )


def shortcut_grade_of_scores(score: float, control_score: float) -> ShortcutGrade:
    """The grade of a method by its score on the model and on the control."""
    if score >= SHOWS_IT_MIN_SCORE and score - control_score >= MIN_SCORE_ABOVE_CONTROL:
        return GRADE_SHOWS_IT
    return GRADE_DOES_NOT_SHOW_IT if score <= DOES_NOT_SHOW_IT_MAX_SCORE else INCONCLUSIVE


def fraction_of_true(hits: Tensor) -> float:
    return float(hits.double().mean())
