"""Channels: what each channel of a layer looks for, all drawn in one batched run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..errors import InputError, LayerError
from ..model.batching import BatchSize
from ..objectives import MODEL_ENDS, as_classes, channel
from ..objectives import diversity as unlike
from ..validation import check_float, check_int
from .feature import warn_dead
from .generated import GeneratedImages
from .recipe import DEFAULT_STEPS, canvas_recipe, generate, image_statistics


@dataclass(frozen=True, kw_only=True, eq=False)
class Channels(GeneratedImages):
    layer: str
    targets: Tensor  # (N,) which channel each image is of
    dead: Tensor  # (N,) bool: neither random images nor what was drawn move it


@card(
    name="Channels",
    source="Olah et al. 2017, Distill, doi:10.23915/distill.00007, channel objective",
    shows="What each channel of a layer looks for: the texture or form that excites it all over the image.",
    does_not_show="How much the model's answer hangs on the channel, "
    "nor all that excites it: one image shows one form.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, "logits", [0, 1], steps=3),
)
def channels(
    box: Box,
    layer: str,
    units: int | Sequence[int] | Tensor | None = None,
    *,
    images_per_channel: int = 1,
    diversity: float = 0.9,
    canvas: str = "fourier",
    data: Any = None,
    steps: int = DEFAULT_STEPS,
    frame_every: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Channels:
    """Draw `each` images of every channel of a layer (or of some `units`), as `feature` does, in one batched run.

    With `each` > 1 those of one channel stand together and are kept apart by `diversity`. Of a convolution, take the
    ReLU after it: the mean of what is linear is largest for an even color. Raises InputError, LayerError.
    """
    recipe, stats = canvas_recipe(canvas), image_statistics(box, data)
    layer = layer if layer in MODEL_ENDS else box.layers.resolve(layer)
    check_int("images_per_channel", images_per_channel, minimum=1)
    targets = _channel_indices(box, layer, units).repeat_interleave(images_per_channel)
    weight = check_float("diversity", diversity, minimum=0) if images_per_channel > 1 else 0.0
    generated, dead = generate(
        box, channel(layer, targets), len(targets), stats, recipe, steps=steps, frame_every=frame_every, seed=seed,
        batch_size=batch_size, diversity_term=unlike(layer, targets) * weight if weight > 0 else None,
    )  # fmt: skip
    warn_dead(dead)
    values = {f.name: getattr(generated, f.name) for f in fields(generated)}
    return Channels(**values, layer=layer, targets=targets, dead=dead)


def _channel_indices(box: Box, layer: str, units: int | Sequence[int] | Tensor | None) -> Tensor:
    """Numbers of channels (K,). Raises InputError, LayerError for a layer without channels."""
    if units is not None:
        if isinstance(units, Sequence | Tensor) and len(units) == 0:
            raise InputError("no channel to draw: units is empty")
        indices = as_classes(units, "a channel").flatten().to(box.device, torch.long)
        if int(indices.min()) < 0:
            raise InputError(f"a channel must be a whole number, 0 or more; got {int(indices.min())}")
        return indices
    noise = box.inputs.sample(1, torch.Generator(box.device).manual_seed(0))
    h = box.read(noise.to(box.dtype), [layer])[layer]
    if h.ndim < 2:
        raise LayerError(f"{layer!r} gives {tuple(h.shape)}: it has no channels")
    return torch.arange(h.shape[1], device=box.device)
