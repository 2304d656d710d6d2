"""Caricature: an image of what a layer responds to in an input, exaggerated."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch

from ..box import Box
from ..cards import card
from ..engine.optimize.transforms import random_affine
from ..engine.read.features import resolve_address
from ..objectives import dot
from ..parameters import BatchSize, Data, FrameInterval, InputBatch, RequiredLayerAddress, Seed, Steps
from ..settings import AtLeast, check_settings
from .generated import GeneratedImages, image_names_from_examples
from .recipe import (
    CANVAS_RECIPE_BY_NAME,
    DEFAULT_OPTIMIZATION_STEPS,
    SynthesisRunSettings,
    generate_images_and_find_dead_units,
    image_statistics,
)


@card(
    name="Caricature",
    source="Olah et al. 2018, Distill, doi:10.23915/distill.00010 (dot x cosine); Johnson et al., lucid's caricatures",
    shows="What of this input the layer sees: what it responds to is exaggerated, the rest is left out.",
    does_not_show="What the model makes of it: the layers after it may ignore what this layer sees.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, x, "logits", steps=3),
    runs=lambda s: s["steps"] + 3,
    order=6,
)
def caricature(
    box: Box,
    x: InputBatch,
    layer: RequiredLayerAddress,
    *,
    power: Annotated[float, AtLeast(0), "Exponent of the cosine in the objective."] = 1.0,
    data: Data = None,
    steps: Steps = DEFAULT_OPTIMIZATION_STEPS,
    frame_every: FrameInterval = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> GeneratedImages:
    """An image, from noise, whose activation points in the direction of that of x, position by position, and is large.

    To see which of an input's patterns a layer responds to. `inversion` reconstructs the activation without
    exaggeration; `deepdream` amplifies patterns within x itself.

    Args:
        box: The opened model; its inputs must be images.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        layer: Address of the layer, as `box.layers` lists them.
        power: Exponent of the cosine in the objective. 0 exaggerates most; a larger one stays closer to x.
        data: Examples: a Dataset, a DataLoader, an iterable, or tensors. The images get their colors, total variation
            and spectrum; None takes those of natural images.
        steps: Number of iterations.
        frame_every: Keep every k-th step's images as frames. None keeps none.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `GeneratedImages`: `images` (N, C, H, W), `scores` (N,), `history` (T, N), `frames`.

    Raises:
        InputError: for inputs that are not images, or settings out of their range.
        LayerError: for an unknown layer, or one with integer activations.
        NaNError: where the score of an image that it makes is NaN.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.synthesis.caricature(box, x, "relu2", steps=2).images.shape
        torch.Size([2, 1, 28, 28])

    Source:
        Olah et al. 2018, "The Building Blocks of Interpretability", doi:10.23915/distill.00010: <h, h(x)> max(0.1,
        cos(h, h(x))) ** power is maximized, summed over positions. Optimized as by `feature`, with smaller transforms.
    """
    check_settings(caricature, locals())
    stats = image_statistics(box, data)
    x = box.validate_inputs(x)
    layer = resolve_address(box, layer)
    recipe = replace(CANVAS_RECIPE_BY_NAME["fourier"], transform=random_affine(degrees=4, scale=0.04, jitter=0.03))
    with torch.inference_mode(False):
        h = box.read(x, [layer], batch_size=batch_size)[layer]
    objective, run = dot(layer, h, power=power), SynthesisRunSettings(steps, frame_every, seed, batch_size)
    return generate_images_and_find_dead_units(
        box, objective, image_names_from_examples(len(x)), stats, recipe, run, method="Caricature"
    )[0]
