"""What the methods of this family give back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..engine.optimize.loop import OptimizationResult


@dataclass(frozen=True, eq=False)
class GeneratedImages:
    """Drawn images. `plots.drawings`, `plots.strip` and `plots.animation` take it; frames need `every=k`."""

    images: Tensor  # (N, ...)
    scores: Tensor  # (N,) of the objective, without its priors
    history: Tensor  # (T, N) scores, the start's first
    frames: Tensor | None  # (T, N, ...), the start first
    before_clamp: Tensor  # (N,) bool: somewhere the gradient was zero, and was taken before a clamp
    interrupted: bool
    transparency: Tensor | None = None  # (N, ...) where the ascent worked: the sum of the gradient's magnitudes

    @classmethod
    def from_result(cls, result: OptimizationResult) -> GeneratedImages:
        r = result
        return cls(r.input, r.score, r.history, r.frames, r.before_clamp, r.interrupted, r.abs_grad_sum)
