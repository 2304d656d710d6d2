"""Feature visualization: the image that a neuron, a channel, a direction or any other objective looks for."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..box import Box
from ..cards import card
from ..errors import InputError, warn
from ..model.batching import BatchSize
from ..objectives import Objective, logit
from ..objectives import diversity as unlike
from ..validation import check_float, check_int
from .generated import GeneratedImages
from .recipe import DEFAULT_STEPS, canvas_recipe, generate, image_statistics


@card(
    name="Feature visualization",
    source="Olah et al. 2017, Distill, doi:10.23915/distill.00007; MACO: Fel et al. 2023, arXiv:2306.06805, section 3",
    shows="What excites this part of the model most, when turned, zoomed and shifted a little.",
    does_not_show="That real inputs excite it by this: the drawing may look like nothing that the model will ever see.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, logit(y[:2]), steps=3),
)
def feature(
    box: Box,
    objective: Objective,
    *,
    n_images: int | None = None,
    canvas: str = "fourier",
    data: Any = None,
    diversity: float = 0.0,
    steps: int = DEFAULT_STEPS,
    frame_every: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> GeneratedImages:
    """Draw an image for each row of the objective, or `n` images of one objective.

    Objectives add up (joint neurons) and take a weight a row: with w = torch.linspace(0, 1, 5), `channel("conv2", 3)
    * w + channel("conv2", 8) * (1 - w)` gives five steps from one channel to another. `diversity` weighs how far the n
    images' textures are to differ, as a share of its rise (.9: a third less alike for an eighth of it); `history` is of
    the sum. Canvases: "fourier", "pixels" and "maco" (magnitudes of the spectrum held; fills `transparency`). `data`,
    images of the model's kind, give colors, roughness and spectrum; without them those of natural images are used.

    Raises InputError without pixels, LayerError.
    """
    n_images = _n_images(objective, n_images)
    recipe, stats = canvas_recipe(canvas), image_statistics(box, data)
    if canvas == "maco" and data is None:
        warn("no data for the spectrum: it falls as 1/f, as in natural images")
    weight = check_float("diversity", diversity, minimum=0)
    if weight > 0 and n_images == 1:
        raise InputError("diversity is among several drawings of one objective: say how many, n=4")
    diversity_term = _diversity_objective(objective) * weight if weight > 0 else None
    generated, dead = generate(
        box,
        objective,
        n_images,
        stats,
        recipe,
        steps=steps,
        frame_every=frame_every,
        seed=seed,
        batch_size=batch_size,
        diversity_term=diversity_term,
    )
    warn_dead(dead)
    return generated


def warn_dead(dead: Tensor) -> None:
    """Warn of drawings that came to nothing."""
    if k := int(dead.sum()):
        message = f"{k} of {len(dead)} units seem dead: random images and what was drawn leave them at one value"
        warn(message)


def _n_images(objective: Objective, n: int | None) -> int:
    if not isinstance(objective, Objective):
        raise InputError(f'an objective says what to draw, as unboxed.channel("conv2", 3); got {objective!r}')
    if objective.batch_dependent:
        raise InputError("this objective couples its rows; for several different drawings of one unit say diversity=")
    if n is not None:
        return objective.check_batch(check_int("n_images", n, minimum=1)).n or n
    return objective.n or 1


def _diversity_objective(objective: Objective) -> Objective:
    """The diversity term, in the layer that is climbed."""
    if objective.n is not None or len(objective.layers) != 1:
        raise InputError("diversity is among drawings of one objective in one layer")
    (layer,) = objective.layers
    return unlike(layer)
