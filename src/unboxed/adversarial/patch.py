"""Adversarial patches: one patch that decides the prediction of any image that it is put on.

Brown et al. 2017, "Adversarial Patch", arXiv:1712.09665, section 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import unbounded_ball
from ..engine.read.examples import inputs_and_labels
from ..engine.read.sizes import require_images
from ..engine.results import ResultMixin
from ..errors import InputError
from ..inputs.labels import ClassLabels
from ..objectives import Objective
from ..parameters import BatchSize, CustomAttackObjective, InputBatch, Labels, Seed, Steps
from ..rng import hashed_uniform, uniform
from ..settings import Above, AtLeast, AtMost, Below, Unit, ValueRole, check_settings
from ..validation import valid_seed
from .patch_placement import PatchPlacement
from .universal_objective import (
    N_UNIFORM_DRAWS_PER_PLACEMENT,
    UniversalAttack,
    fooling_rate,
    make_attack_state_and_target_mask,
)

ADAM_BETAS = 0.9, 0.999  # of Adam, Kingma & Ba 2015, arXiv:1412.6980, algorithm 1
ADAM_EPS = 1e-8


@dataclass(frozen=True, repr=False, eq=False)
class Patch(ResultMixin):
    """A patch, and where it may be placed. `plots.printable_patch` makes a page to print of it."""

    returns: ClassVar[str] = "images"

    pixels: Tensor  # (C, h, w) in [0, 1]
    mask: Tensor  # (h, w) bool: the pixels that belong to it
    target: int | None  # the class that images with it become; None: any but their own
    placement: PatchPlacement
    fooling_rates: Tensor  # (T,) fraction of the images of each step that it fooled
    objective: Objective | None = None
    interrupted: bool = False

    def summary_lines(self) -> Iterator[str]:
        size, rate = "x".join(map(str, self.pixels.shape[1:])), float(self.fooling_rates[-1])
        yield f"{size} pixels, {self.placement}: fools {rate:.1%} of the examples of its last step"

    def apply_to(self, x: Tensor, seed: int = 0) -> Tensor:
        """Images x (N, C, H, W) with the patch, each at a random position. Raises InputError for another size."""
        rows, seed = torch.arange(len(x), device=x.device), valid_seed(seed)
        patch_side = self.pixels.shape[-1]
        if x.ndim != 4 or x.shape[1] != len(self.pixels) or self.placement.patch_side(*x.shape[-2:]) != patch_side:
            raise InputError(f"this patch is {patch_side} pixels wide, for other images than {tuple(x.shape)}")
        return self.placement.paste(
            self.pixels[None].to(x), x, hashed_uniform(seed, rows, 0, N_UNIFORM_DRAWS_PER_PLACEMENT)
        )

    def fooling_rate(
        self, box: Box, x: Tensor, y: ClassLabels | None = None, *, n_samples: int = 1, seed: int = 0,
        batch_size: BatchSize = "auto",
    ) -> float:  # fmt: skip
        """The fooling rate: the fraction of images x (N, C, H, W) that the patch makes the model misclassify.

        Not counted are images that are misclassified without it or, targeted, that are of the target's class. Measure
        it on images that the patch was not made from.

        Args:
            box: The model.
            x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
            y: Correct classes (N,), or one for all. None: those that come with x, else the model's own predictions.
            n_samples: Number of random samples. That is, positions of the patch per image.
            seed: Seed of all random draws: same seed, same result.
            batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

        Raises:
            InputError: where no image counts.
        """
        (x, y), seed = inputs_and_labels(box, x, y), valid_seed(seed)
        return fooling_rate(
            self, box, x, y, lambda sample_index: self.apply_to(x, seed + sample_index), n_samples, batch_size
        )


@card(
    name="Adversarial patch",
    aliases=("adversarial_patch",),
    source="Brown et al. 2017, arXiv:1712.09665, section 2; the score's root is ours",
    shows="A small part of an image that decides the model's prediction, wherever it is put.",
    does_not_show="That no better patch exists, or that a printed one works: light, paper and camera are left out.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, x, y, target=1, area=0.2, steps=3),
    runs=lambda s: s["steps"],
    order=41,
    exempt={
        "row seeds": "one patch is made for all images: its start belongs to no row",
        "partial results": "a step is one forward pass, so an interrupted run is a step further; see its own test",
    },
)
def patch(
    box: Box,
    x: InputBatch,
    y: Labels = None,
    *,
    target: Annotated[int | None, ValueRole("labels"), "Class that all images are to become."] = None,
    objective: CustomAttackObjective = None,
    area: Annotated[float, Above(0), Below(1), "Fraction of the image that the patch covers."] = 0.1,
    shape: Annotated[Literal["square", "circle"], "Shape of the patch."] = "square",
    rotation: Annotated[float, AtLeast(0), AtMost(180), Unit("degrees"), "Largest rotation to either side."] = 22.5,
    scale: Annotated[float, AtLeast(0), Below(1), "Largest relative change of the patch's side."] = 0.1,
    steps: Steps = 300,
    step: Annotated[float, Above(0), Unit("pixel range"), "Learning rate of Adam."] = 0.1,
    images_per_step: Annotated[int, AtLeast(1), Unit("images"), "Images that a step sees, drawn at random."] = 64,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Patch:
    """A patch that makes the model see one class wherever it is put on an image.

    For an attack that could be printed. It works at any position, a little rotated and scaled. It is evaluated on other
    images: `Patch.fooling_rate`. Ctrl-C keeps what was reached. For a change that is small everywhere use `universal`.

    Args:
        box: The model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        y: Correct classes (N,), or one for all. None: those that come with x, else the model's own predictions.
        target: Class that all images are to become. None: any class but y.
        objective: What is raised above zero, instead of a wrong class. Not together with `target`.
        area: Fraction of the image that the patch covers.
        shape: Shape of the patch. A circle of the same area fools less often.
        rotation: Largest rotation to either side.
        scale: Largest relative change of the patch's side. 0.1: 10 % smaller to 10 % larger.
        steps: Number of iterations.
        step: Learning rate of Adam. It falls to zero along a cosine.
        images_per_step: Images that a step sees, drawn at random.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `Patch`: `pixels` (C, h, w) in [0, 1], its `mask` (h, w), and `fooling_rates` (T,) over the steps.

    Raises:
        InputError: for settings out of their range, a patch that does not fit, or a box of other inputs than images.
        OutputError: for a model without classes or without a gradient.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(64)
        >>> result = ub.adversarial.patch(box, x, y, target=8, area=0.2, steps=5)
        >>> result.pixels.shape
        torch.Size([1, 13, 13])

    Source:
        Brown et al. 2017, arXiv:1712.09665, section 2. Deviation: the fourth root of the loss is maximized, so that few
        images that cannot be fooled weigh less than many that nearly are.
    """
    check_settings(patch, locals())
    inputs, placement = require_images(box, "a patch"), PatchPlacement(area, shape, rotation, scale)
    seed = valid_seed(seed)
    patch_side = placement.patch_side(*inputs.shape[1:])

    def apply_patch(patch_image: Tensor, images: Tensor, rows: Tensor, step_index: int) -> Tensor:
        return placement.paste(
            patch_image, images, hashed_uniform(seed, rows, 2 * step_index + 1, N_UNIFORM_DRAWS_PER_PLACEMENT)
        )

    with torch.inference_mode(False):  # the caller may be in it
        state, has_target_label = make_attack_state_and_target_mask(
            box, x, y, target, objective, unbounded_ball("linf"), batch_size
        )
        initial_patch = uniform(state.x.new_empty(1, inputs.shape[0], patch_side, patch_side), seed)
        image, history = UniversalAttack(
            state, apply_patch, _ClippedAdam(initial_patch, step), steps, images_per_step, seed
        ).optimize(initial_patch, has_target_label)
    mask = placement.mask(patch_side, box.device)
    target_label = None if state.goal.target_labels is None else int(state.goal.target_labels[0])
    return Patch(image[0], mask, target_label, placement, history, objective, state.interrupted)


class _ClippedAdam:
    """Adam steps, clipped to [0, 1]."""

    def __init__(self, start: Tensor, step_size: float) -> None:
        self.grad_mean, self.grad_square = torch.zeros_like(start), torch.zeros_like(start)
        self.step_size, self.n_steps = step_size, 0

    def __call__(self, image: Tensor, grad: Tensor, lr_factor: float) -> Tensor:
        self.n_steps += 1
        (beta1, beta2), step_number = ADAM_BETAS, self.n_steps
        self.grad_mean = beta1 * self.grad_mean + (1 - beta1) * grad
        self.grad_square = beta2 * self.grad_square + (1 - beta2) * grad**2
        update = (self.grad_mean / (1 - beta1**step_number)) / (
            (self.grad_square / (1 - beta2**step_number)).sqrt() + ADAM_EPS
        )
        return (image + lr_factor * self.step_size * update).clamp(0, 1)
