"""What every attack returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor


@dataclass(frozen=True, repr=False, eq=False)
class Adversarial:
    """The images that an attack made, and which of them fool the model.

    Where an attack failed, `images` has its best try (attacks within eps) or the original (minimal attacks).
    """

    returns: ClassVar[str] = "adversarial"

    images: Any  # (N, ...) in the valid range and in the ball; a dict or tuple for models of several inputs
    success: Tensor  # (N,) bool: misclassified; targeted: classified as the target; objective: above zero
    queries: Tensor  # (N,) forward passes per example
    distance: Tensor  # (N,) from the original, in the attack's norm
    initially_misclassified: Tensor  # (N,) bool: the original is a success itself; it is returned (if early_stop)
    norm: str  # of the distance: "linf", "l2" or "l1"
    interrupted: bool = False  # by Ctrl-C: the fields have what was found until then
    input: Any = None  # (N, ...) the originals, as x was given
    classes: tuple[str, ...] = ()  # names of the model's classes

    def __repr__(self) -> str:
        n, n_fooled = len(self.success), int(self.success.sum())
        message = f"{type(self).__name__}({n_fooled} of {n} fooled"
        if n_initial := int(self.initially_misclassified.sum()):
            message += f", {n_initial} of them initially misclassified"
        if len(distances := self.distance[self.success & ~self.initially_misclassified]):
            message += f", median {self.norm} distance {float(distances.median()):.3g}"
        if n:
            message += f", {float(self.queries.double().mean()):.0f} queries each"
        return message + (", interrupted)" if self.interrupted else ")")
