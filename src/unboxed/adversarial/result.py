"""What every attack returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..engine.result_views import ResultViewsMixin
from ..inputs.base import Inputs

GoalKind = Literal["untargeted", "targeted", "objective", "loss"]
SUCCESS_WORDS_BY_GOAL: dict[GoalKind, tuple[str, str]] = {
    "untargeted": ("fooled", "{} of them initially misclassified"),
    "targeted": ("classified as the target", "{} of them initially"),
    "objective": ("meet the objective", "objective already met for {} of them"),
    "loss": ("with a larger loss", "{} of them initially"),
}
"""What successes are called, and those of the originals."""


@dataclass(frozen=True, repr=False, eq=False)
class Adversarial(ResultViewsMixin):
    """The images that an attack made, and which of them fool the model.

    Where an attack failed, `images` has its best try (attacks within eps) or the original (minimal attacks).
    """

    returns: ClassVar[str] = "adversarial"

    images: Any  # (N, ...) in the valid range and in the ball; a dict or tuple for models of several inputs
    success: Tensor  # (N,) bool: misclassified; targeted: classified as the target; objective: above zero; loss: larger
    queries: Tensor  # (N,) forward passes per example
    distance: Tensor  # (N,) from the original, in the attack's norm
    initially_misclassified: Tensor  # (N,) bool: the original is a success itself and is returned (if early_stop)
    norm: str  # of the distance: "linf", "l2" or "l1"
    interrupted: bool = False  # by Ctrl-C: the fields have what was found until then
    input: Any = None  # (N, ...) the originals, as x was given
    classes: tuple[str, ...] = ()  # names of the model's classes
    goal: GoalKind = "untargeted"  # success: leave the class, become the target, meet the objective, or raise the loss
    output_before: Tensor | None = None  # (N, K, ...) outputs or logits of the originals, and
    output_after: Tensor | None = None  # of `images`; both only of outputs that are not one class per example
    loss_before: Tensor | None = None  # (N,) of a regression the error in the output's unit, else the cross-entropy
    loss_after: Tensor | None = None
    input_spec: Inputs | None = field(default=None, repr=False, metadata={"in_summary": False})  # of inputs with tables

    @property
    def output_change(self) -> Tensor | None:
        """(N, K, ...) by how much the attack changed the outputs, in their unit; None of classes."""
        if self.output_before is None or self.output_after is None:
            return None
        return self.output_after - self.output_before

    def outcome_text(self, row: int) -> str:
        """What became of one example, for a caption."""
        if self.loss_before is None or self.loss_after is None:
            return "adversarial" if self.success[row] else "attack failed"
        return f"loss {float(self.loss_before[row]):.3g} -> {float(self.loss_after[row]):.3g}"

    @property
    def success_count_text(self) -> str:
        """How many are successes, and of how many the original was one: "3 of 8 fooled"."""
        success_word, initial_text = SUCCESS_WORDS_BY_GOAL[self.goal]
        text = f"{int(self.success.sum())} of {len(self.success)} {success_word}"
        n_initial = int(self.initially_misclassified.sum())
        return text + (", " + initial_text.format(n_initial) if n_initial else "")

    def __repr__(self) -> str:
        message = f"{type(self).__name__}({self.success_count_text}"
        if self.loss_before is not None and self.loss_after is not None and len(self.success):
            before, after = (float(loss.double().mean()) for loss in (self.loss_before, self.loss_after))
            message += f", mean loss {before:.3g} -> {after:.3g}"
        if len(distances := self.distance[self.success & ~self.initially_misclassified]):
            message += f", median {self.norm} distance {float(distances.median()):.3g}"
        if len(self.success):
            message += f", {float(self.queries.double().mean()):.0f} queries each"
        return message + (", interrupted)" if self.interrupted else ")")
