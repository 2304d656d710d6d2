"""What every attack gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, repr=False, eq=False)
class Adversarial:
    """Where an attack failed, `images` holds its best try (attacks within eps) or the original (minimal ones)."""

    images: Any  # (N, ...) inside the ball and the valid range; a dict or tuple for models of several inputs
    success: Tensor  # (N,) bool: the model's answer is wrong (targeted: is the target; with an objective: above zero)
    queries: Tensor  # (N,) forward passes spent on each
    distance: Tensor  # (N,) from the original, in the attack's norm
    initially_misclassified: Tensor  # (N,) bool: fooled by the original itself, which is returned as it is (but attacked with early_stop=False)
    norm: str  # of the distance: "linf", "l2" or "l1"
    interrupted: bool = False

    def __repr__(self) -> str:
        n, n_fooled = len(self.success), int(self.success.sum())
        message = f"{type(self).__name__}({n_fooled} of {n} fooled"
        if n_initial := int(self.initially_misclassified.sum()):
            message += f", {n_initial} of them already"
        if len(distances := self.distance[self.success & ~self.initially_misclassified]):
            message += f", median {self.norm} distance {float(distances.median()):.3g}"
        if n:
            message += f", {float(self.queries.double().mean()):.0f} queries each"
        return message + (", interrupted)" if self.interrupted else ")")
