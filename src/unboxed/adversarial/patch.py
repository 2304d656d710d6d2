"""Adversarial patches: one sticker that turns whatever it lies on into what one likes.

Brown et al. 2017, "Adversarial Patch", arXiv:1712.09665, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import unbounded_ball
from ..engine.read.sizes import require_images
from ..errors import InputError
from ..model.batching import BatchSize
from ..objectives import Objective
from ..rng import hashed_uniform, uniform
from ..validation import check_seed
from .patch_placement import PatchPlacement
from .universal_objective import (
    UNIFORMS_PER_PLACEMENT,
    UniversalAttack,
    check_settings,
    fooling_rate,
    start_universal_attack,
)

ADAM_BETAS = 0.9, 0.999  # of Adam, Kingma & Ba 2015, arXiv:1412.6980, algorithm 1
ADAM_EPS = 1e-8


@dataclass(frozen=True, eq=False)
class Patch:
    """A patch with its rules. `plots.printable` makes a picture to print of it."""

    image: Tensor  # (C, h, w) in [0, 1]
    mask: Tensor  # (h, w) bool: the pixels that belong to it
    target: int | None  # the class that images with it become; None: any but their own
    placement: PatchPlacement
    fooling_rates: Tensor  # (T,) the share of each step's images that it fooled
    objective: Objective | None = None
    interrupted: bool = False

    def apply_to(self, x: Tensor, seed: int = 0) -> Tensor:
        """Images x (N, C, H, W) with the patch at random places, a draw an image. Raises InputError."""
        rows, seed = torch.arange(len(x), device=x.device), check_seed(seed)
        patch_side = self.image.shape[-1]
        if x.ndim != 4 or x.shape[1] != len(self.image) or self.placement.patch_side(*x.shape[-2:]) != patch_side:
            raise InputError(f"this patch is {patch_side} pixels wide, for other images than {tuple(x.shape)}")
        return self.placement.paste(self.image[None].to(x), x, hashed_uniform(seed, rows, 0, UNIFORMS_PER_PLACEMENT))

    def success(
        self, box: Box, x: Tensor, y: Tensor | int | None = None, *, n_samples: int = 1, seed: int = 0,
        batch_size: BatchSize = "auto",
    ) -> float:  # fmt: skip
        """The share of images x that it fools, each at `draws` random places.

        Those of the target's class, by the labels y or else by the model, do not count; nor, untargeted, those that the
        model gets wrong without it. Raises InputError where none counts.
        """
        x, seed = box.validate_inputs(x), check_seed(seed)
        return fooling_rate(
            self, box, x, y, lambda sample_index: self.apply_to(x, seed + sample_index), n_samples, batch_size
        )


@card(
    name="Adversarial patch",
    source="Brown et al. 2017, arXiv:1712.09665, section 2; the score's root is ours",
    shows="What a small part of a picture has to look like for the model to see nothing else in it.",
    does_not_show="That no better patch exists, or that a printed one works: light, paper and camera are not part of this.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, x, y, target=1, area=0.2, steps=3),
    exempt={
        "row seeds": "one patch serves all images: the start is no row's",
        "partial results": "one step is one look, so what is kept is a step further; see the method's own test",
    },
)
def patch(
    box: Box,
    x: Tensor,
    y: Tensor | int | None = None,
    *,
    target: int | None = None,
    objective: Objective | None = None,
    area: float = 0.1,
    shape: str = "square",
    rotation: float = 22.5,
    scale: float = 0.1,
    steps: int = 300,
    step: float = 0.1,
    images_per_step: int = 64,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Patch:
    """A patch for the class `target` (None: for any but y, or but the model's own answers), made from images x.

    It covers a share `area` of the image as a "square" or "circle" (which is weaker), lies anywhere inside, is turned
    by up to `rotation` degrees and scaled by 1 ± `scale`; each of the `steps` sees `sample` images, each with a place
    of its own. Ctrl-C keeps what was reached. How good it is, other images say: `Patch.success`. Raises InputError,
    OutputError.
    """
    inputs, placement = require_images(box, "a patch"), PatchPlacement(area, shape, rotation, scale)
    seed = check_settings(steps, step, images_per_step, seed)
    patch_side = placement.patch_side(*inputs.shape[1:])

    def apply_patch(patch_image: Tensor, images: Tensor, rows: Tensor, step_index: int) -> Tensor:
        return placement.paste(
            patch_image, images, hashed_uniform(seed, rows, 2 * step_index + 1, UNIFORMS_PER_PLACEMENT)
        )

    with torch.inference_mode(False):  # the caller may be in it
        state, has_target_label = start_universal_attack(
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
    """Steps by Adam that end inside [0, 1]."""

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
