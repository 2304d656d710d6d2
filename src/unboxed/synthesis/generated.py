"""What the methods of this family return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from ..box import Box
from ..engine.optimize.loop import OptimizationResult
from ..engine.results import ResultMixin
from ..objectives import Objective


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GeneratedImages(ResultMixin):
    """Images that were optimized, and what their figures need.

    `ub.plots.image_sheet`, `frame_strip` and `save_animation` take it; the latter two need frames (`frame_every=k`).
    """

    returns: ClassVar[str] = "images"

    images: Tensor  # (N, ...) in the box's units
    scores: Tensor  # (N,) of the objective, without priors; NaN where Ctrl-C came before the first evaluation
    history: Tensor  # (T, N) scores of all steps, the start's first
    frames: Tensor | None = (
        None  # (T, N, ...) images of every k-th step, the start first; None where they were not asked for
    )
    before_clamp: Tensor  # (N,) bool: a ReLU held the gradient at exactly zero, and it was taken before that ReLU
    interrupted: bool  # by Ctrl-C: the fields have what was reached until then
    method: str  # its name, as its card has it
    names: tuple[str, ...]  # (N,) what each image is of: "class 3", "channel 5", "example 0"
    layer: str | None = None  # address of the layer whose activations were optimized; None where there is no single one
    transparency: Tensor | None = None  # (N, ...) the sum of the gradient's magnitudes: where the optimization worked

    @classmethod
    def from_result(cls, result: OptimizationResult, box: Box | None = None, **fields: Any) -> Self:
        """The result of an optimization; `fields` are those that it does not have, or that replace its own.

        With the box, images have the shape of its inputs: of signals (N, C, T).
        """
        restore = (lambda h: h) if box is None else box.restore_structure
        shared = {
            "images": restore(result.input),
            "scores": result.score,
            "history": result.history,
            "frames": None if result.frames is None else restore(result.frames),
            "before_clamp": result.before_clamp,
            "interrupted": result.interrupted,
            "transparency": None if result.abs_grad_sum is None else restore(result.abs_grad_sum),
        }
        return cls(**{**shared, **fields})


def image_names_from_examples(n_examples: int) -> tuple[str, ...]:
    """The names of images that are made from n examples."""
    return tuple(f"example {i}" for i in range(n_examples))


def image_names_from_objective(objective: Objective, n_images: int) -> tuple[str, ...]:
    """The names of n images of one objective, or of one that has a row for each."""
    return (objective.name,) if n_images == 1 else tuple(f"{objective.name}, image {i}" for i in range(n_images))


def single_layer_of_objective(objective: Objective) -> str | None:
    """The layer that an objective reads; None where it reads several."""
    return next(iter(objective.layers)) if len(objective.layers) == 1 else None
