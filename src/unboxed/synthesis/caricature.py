"""Caricature: what of an input a layer sees, drawn anew and exaggerated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.transforms import random_affine
from ..model.batching import BatchSize
from ..objectives import MODEL_ENDS, dot
from ..validation import check_float
from .generated import GeneratedImages
from .recipe import DEFAULT_STEPS, canvas_recipe, generate, image_statistics


@card(
    name="Caricature",
    source="Olah et al. 2018, Distill, doi:10.23915/distill.00010 (dot x cosine); Johnson et al., lucid's caricatures",
    shows="What of this input the layer sees: what it responds to is drawn large, the rest is left out.",
    does_not_show="What the model makes of it: a layer may see what its answer then ignores.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, x, "logits", steps=3),
)
def caricature(
    box: Box,
    x: Tensor,
    layer: str,
    *,
    power: float = 1.0,
    data: Any = None,
    steps: int = DEFAULT_STEPS,
    frame_every: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> GeneratedImages:
    """From noise, climb <h, h(x)> max(.1, cos(h, h(x))) ** power in a layer, position by position.

    `power` 0 exaggerates most; larger ones keep closer to what is there. `data` as for `feature`. Raises InputError,
    LayerError.
    """
    stats = image_statistics(box, data)
    x = box.validate_inputs(x)
    power = check_float("power", power, minimum=0)
    layer = layer if layer in MODEL_ENDS else box.layers.resolve(layer)
    recipe = replace(canvas_recipe("fourier"), transform=random_affine(degrees=4, scale=0.04, jitter=0.03))
    with torch.inference_mode(False):
        h = box.read(x, [layer], batch_size=batch_size)[layer]
    generated, _ = generate(
        box,
        dot(layer, h, power=power),
        len(x),
        stats,
        recipe,
        steps=steps,
        frame_every=frame_every,
        seed=seed,
        batch_size=batch_size,
    )
    return generated
