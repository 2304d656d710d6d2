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
from .placing import Placing
from .shared import DRAWS, Crowd, crowd, settings, share_fooled

BETAS = 0.9, 0.999  # of Adam, Kingma & Ba 2015, arXiv:1412.6980, algorithm 1
EPS = 1e-8


@dataclass(frozen=True, eq=False)
class Patch:
    """A patch with its rules. `plots.printable` makes a picture to print of it."""

    image: Tensor  # (C, h, w) in [0, 1]
    mask: Tensor  # (h, w) bool: the pixels that belong to it
    target: int | None  # the class that images with it become; None: any but their own
    placing: Placing
    history: Tensor  # (T,) the share of each step's images that it fooled
    objective: Objective | None = None
    interrupted: bool = False

    def applied(self, x: Tensor, seed: int = 0) -> Tensor:
        """Images x (N, C, H, W) with the patch at random places, a draw an image. Raises InputError."""
        rows, seed = torch.arange(len(x), device=x.device), check_seed(seed)
        size = self.image.shape[-1]
        if x.ndim != 4 or x.shape[1] != len(self.image) or self.placing.side(*x.shape[-2:]) != size:
            raise InputError(f"this patch is {size} pixels wide, for other images than {tuple(x.shape)}")
        return self.placing.put(self.image[None].to(x), x, hashed_uniform(seed, rows, 0, DRAWS))

    def success(
        self, box: Box, x: Tensor, y: Tensor | int | None = None, *, draws: int = 1, seed: int = 0,
        batch_size: BatchSize = "auto",
    ) -> float:  # fmt: skip
        """The share of images x that it fools, each at `draws` random places.

        Those of the target's class, by the labels y or else by the model, do not count; nor, untargeted, those that the
        model gets wrong without it. Raises InputError where none counts.
        """
        x, seed = box.validate_inputs(x), check_seed(seed)
        return share_fooled(self, box, x, y, lambda draw: self.applied(x, seed + draw), draws, batch_size)


@card(
    name="Adversarial patch",
    source="Brown et al. 2017, arXiv:1712.09665, section 2; the score's root is ours",
    shows="What a small part of a picture has to look like for the model to see nothing else in it.",
    does_not_show="That no better patch exists, or that a printed one works: light, paper and camera are not part of this.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, x, y, target=1, area=0.2, steps=3),
    exempt={
        "draws of rows": "one patch serves all images: the start is no row's",
        "steps kept": "one step is one look, so what is kept is a step further; see the method's own test",
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
    sample: int = 64,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Patch:
    """A patch for the class `target` (None: for any but y, or but the model's own answers), made from images x.

    It covers a share `area` of the image as a "square" or "circle" (which is weaker), lies anywhere inside, is turned
    by up to `rotation` degrees and scaled by 1 ± `scale`; each of the `steps` sees `sample` images, each with a place
    of its own. Ctrl-C keeps what was reached. How good it is, other images say: `Patch.success`. Raises InputError,
    OutputError.
    """
    inputs, placing = require_images(box, "a patch"), Placing(area, shape, rotation, scale)
    seed = settings(steps, step, sample, seed)
    side = placing.side(*inputs.shape[1:])

    def apply(image: Tensor, some: Tensor, rows: Tensor, at: int) -> Tensor:
        return placing.put(image, some, hashed_uniform(seed, rows, 2 * at + 1, DRAWS))

    with torch.inference_mode(False):  # the caller may be in it
        attempt, there = crowd(box, x, y, target, objective, unbounded_ball("linf"), batch_size)
        start = uniform(attempt.x.new_empty(1, inputs.shape[0], side, side), seed)
        image, history = Crowd(attempt, apply, _Adam(start, step), steps, sample, seed).climb(start, there)
    mask = placing.mask(side, box.device)
    become = None if attempt.goal.become is None else int(attempt.goal.become[0])
    return Patch(image[0], mask, become, placing, history, objective, attempt.interrupted)


class _Adam:
    """Steps by Adam that end inside [0, 1]."""

    def __init__(self, start: Tensor, size: float) -> None:
        self.mean, self.square = torch.zeros_like(start), torch.zeros_like(start)
        self.size, self.taken = size, 0

    def __call__(self, image: Tensor, grad: Tensor, pace: float) -> Tensor:
        self.taken += 1
        (a, b), t = BETAS, self.taken
        self.mean = a * self.mean + (1 - a) * grad
        self.square = b * self.square + (1 - b) * grad**2
        uphill = (self.mean / (1 - a**t)) / ((self.square / (1 - b**t)).sqrt() + EPS)
        return (image + pace * self.size * uphill).clamp(0, 1)
