"""Feature visualization: the image that maximizes a neuron, a channel, a direction or any other objective."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from ..box import Box
from ..cards import card
from ..errors import InputError, warn
from ..objectives import Objective, logit
from ..objectives import diversity as diversity_objective
from ..parameters import BatchSize, CanvasKind, Data, DiversityWeight, FrameInterval, RequiredObjective, Seed, Steps
from ..settings import AtLeast, Unit, check_settings
from .generated import GeneratedImages, image_names_from_objective
from .recipe import (
    CANVAS_RECIPE_BY_NAME,
    DEFAULT_OPTIMIZATION_STEPS,
    SynthesisRunSettings,
    generate_images_and_find_dead_units,
    image_statistics,
)


@card(
    name="Feature visualization",
    aliases=("feature_visualization", "activation_maximization"),
    source="Olah et al. 2017, Distill, doi:10.23915/distill.00007; MACO: Fel et al. 2023, arXiv:2306.06805, section 3",
    shows="What excites this part of the model most, when rotated, scaled and shifted a little.",
    does_not_show="That real inputs excite it by this: the image may look like nothing that the model will ever see.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, logit(y[:2]), steps=3),
    runs=lambda s: s["steps"] + 2,
    order=2,
)
def feature(
    box: Box,
    objective: RequiredObjective,
    *,
    n_images: Annotated[int | None, AtLeast(1), Unit("images"), "Number of images."] = None,
    canvas: CanvasKind = "fourier",
    data: Data = None,
    diversity: DiversityWeight = 0.0,
    steps: Steps = DEFAULT_OPTIMIZATION_STEPS,
    frame_every: FrameInterval = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> GeneratedImages:
    """An image that maximizes an objective: a neuron, a channel, a direction, a logit, or sums of them.

    The general method of feature visualization. For classes `class_image` is tuned; for all channels of a layer use
    `channels`; for real examples that excite a unit, `ub.activations.top_examples`. Objectives add up (joint neurons)
    and take a weight per image: with w = torch.linspace(0, 1, 5), `channel("conv2", 3) * w + channel("conv2", 8) *
    (1 - w)` gives five steps from one channel to another.

    Args:
        box: The opened model; its inputs must be images.
        objective: An objective (a score per example), such as `ub.channel("conv2", 3)`. One that holds a value per
            example gets an image for each.
        n_images: Number of images. None: as many as the objective holds values for, or one.
        canvas: Parameterization of the images. "fourier": Fourier coefficients; "pixels"; "maco": the phases alone, the
            spectrum's magnitudes being those of `data` or of natural images; it fills `transparency`.
        data: Examples: a Dataset, a DataLoader, an iterable, or tensors. The images get their colors, total variation
            and spectrum; None takes those of natural images.
        diversity: Weight of the term that makes the images of one objective differ. As a fraction of the score's rise:
            0.9 makes them a third less alike for an eighth of the score. `history` is then of the sum.
        steps: Number of iterations.
        frame_every: Keep every k-th step's images as frames. None keeps none.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `GeneratedImages`: `images` (N, C, H, W), `scores` (N,) of the objective, `history` (T, N), `frames`.

    Raises:
        InputError: for a model whose inputs are not images, what is no objective, settings out of their range.
        LayerError: for an unknown layer, or one with integer activations.
        NaNError: where the score of an image that it makes is NaN.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> result = ub.synthesis.feature(box, ub.channel("relu1", 3), steps=2)
        >>> result.names, tuple(result.images.shape), tuple(result.history.shape)
        (('relu1 channel 3',), (1, 1, 28, 28), (3, 1))

    Source:
        Olah et al. 2017, "Feature Visualization", doi:10.23915/distill.00007. MACO: Fel et al. 2023, arXiv:2306.06805,
        section 3, with larger crops, for images as small as the model's inputs. Deviations: a score is in units of its
        standard deviation on random images, so that one learning rate and one weight per prior serve every model; total
        variation beyond that of natural images, and the distance from the mean color, are penalized.
    """
    check_settings(feature, locals())
    n_images = _resolve_n_images(objective, n_images)
    recipe, stats = CANVAS_RECIPE_BY_NAME[canvas], image_statistics(box, data)
    if canvas == "maco" and data is None:
        warn("no data for the spectrum: it falls as 1/f, as in natural images")
    if diversity > 0 and n_images == 1:
        raise InputError("diversity makes several images of one objective differ: give their number, n_images=4")
    term = _diversity_term(objective) * diversity if diversity > 0 else None
    names, run = (
        image_names_from_objective(objective, n_images),
        SynthesisRunSettings(steps, frame_every, seed, batch_size),
    )
    method = "Feature visualization"
    generated, dead = generate_images_and_find_dead_units(
        box, objective, names, stats, recipe, run, method=method, diversity_term=term
    )
    warn_dead_units(dead)
    return generated


def warn_dead_units(dead: Tensor) -> None:
    """Warn of units whose score is the same for random images and for the optimized one."""
    if k := int(dead.sum()):
        warn(f"{k} of {len(dead)} units seem dead: they have one value on random images and on the optimized images")


def _resolve_n_images(objective: Objective, n: int | None) -> int:
    if not isinstance(objective, Objective):
        raise InputError(f'objective must be an objective, such as unboxed.channel("conv2", 3); got {objective!r}')
    if objective.batch_dependent:
        raise InputError("the objective is batch-dependent; for several different images of one unit give diversity=")
    return (objective.n or 1) if n is None else objective.check_batch(n).n or n


def _diversity_term(objective: Objective) -> Objective:
    """The diversity term in the layer of the objective."""
    if objective.n is not None or len(objective.layers) != 1:
        raise InputError("diversity is among images of one objective of one layer")
    (layer,) = objective.layers
    return diversity_objective(layer)
