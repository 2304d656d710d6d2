"""What every attack returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..engine.result_views import ResultViewsMixin

GoalKind = Literal["untargeted", "targeted", "objective"]
SUCCESS_WORDS_BY_GOAL: dict[GoalKind, tuple[str, str]] = {
    "untargeted": ("fooled", "{} of them initially misclassified"),
    "targeted": ("classified as the target", "{} of them initially"),
    "objective": ("meet the objective", "objective already met for {} of them"),
}
"""What successes are called, and those of the originals."""


@dataclass(frozen=True, repr=False, eq=False)
class Adversarial(ResultViewsMixin):
    """The images that an attack made, and which of them fool the model.

    Where an attack failed, `images` has its best try (attacks within eps) or the original (minimal attacks).
    """

    returns: ClassVar[str] = "adversarial"

    images: Any  # (N, ...) in the valid range and in the ball; a dict or tuple for models of several inputs
    success: Tensor  # (N,) bool: misclassified; targeted: classified as the target; objective: above zero
    queries: Tensor  # (N,) forward passes per example
    distance: Tensor  # (N,) from the original, in the attack's norm
    initially_misclassified: Tensor  # (N,) bool: the original is a success itself and is returned (if early_stop)
    norm: str  # of the distance: "linf", "l2" or "l1"
    interrupted: bool = False  # by Ctrl-C: the fields have what was found until then
    input: Any = None  # (N, ...) the originals, as x was given
    classes: tuple[str, ...] = ()  # names of the model's classes
    goal: GoalKind = "untargeted"  # what a success is: leave the class, become the target, or meet the objective

    @property
    def success_count_text(self) -> str:
        """How many are successes, and of how many the original was one: "3 of 8 fooled"."""
        success_word, initial_text = SUCCESS_WORDS_BY_GOAL[self.goal]
        text = f"{int(self.success.sum())} of {len(self.success)} {success_word}"
        n_initial = int(self.initially_misclassified.sum())
        return text + (", " + initial_text.format(n_initial) if n_initial else "")

    def __repr__(self) -> str:
        message = f"{type(self).__name__}({self.success_count_text}"
        if len(distances := self.distance[self.success & ~self.initially_misclassified]):
            message += f", median {self.norm} distance {float(distances.median()):.3g}"
        if len(self.success):
            message += f", {float(self.queries.double().mean()):.0f} queries each"
        return message + (", interrupted)" if self.interrupted else ")")
