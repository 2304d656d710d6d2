"""Channels: an image for each channel of a layer, all optimized in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read.features import resolve_address
from ..errors import InputError, LayerError
from ..objectives import channel, to_class_tensor
from ..objectives import diversity as diversity_objective
from ..parameters import (
    BatchSize,
    CanvasKind,
    Data,
    DiversityWeight,
    FrameInterval,
    RequiredLayerAddress,
    Seed,
    Steps,
    UnitIndices,
)
from ..settings import AtLeast, Unit, check_settings
from .feature import warn_dead_units
from .generated import GeneratedImages
from .recipe import (
    CANVAS_RECIPE_BY_NAME,
    DEFAULT_OPTIMIZATION_STEPS,
    SynthesisRunSettings,
    generate_images_and_find_dead_units,
    image_statistics,
)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Channels(GeneratedImages):
    """Images of the channels of `layer`. `names` are "channel 3" and so on."""

    layer: str  # its address
    targets: Tensor  # (N,) the channel of each image
    dead: Tensor  # (N,) bool: it has one value on random images and on the optimized image


@card(
    name="Channels",
    source="Olah et al. 2017, Distill, doi:10.23915/distill.00007, channel objective",
    shows="What each channel of a layer looks for: the texture or form that excites it all over the image.",
    does_not_show="How much the model's prediction depends on the channel, "
    "nor all that excites it: one image shows one form.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, "logits", [0, 1], steps=3),
    runs=lambda s: s["steps"] + 2,
    order=3,
)
def channels(
    box: Box,
    layer: RequiredLayerAddress,
    units: UnitIndices = None,
    *,
    images_per_channel: Annotated[int, AtLeast(1), Unit("images"), "Images of each channel."] = 1,
    diversity: DiversityWeight = 0.9,
    canvas: CanvasKind = "fourier",
    data: Data = None,
    steps: Steps = DEFAULT_OPTIMIZATION_STEPS,
    frame_every: FrameInterval = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Channels:
    """An image of every channel of a layer, or of some, that excites the channel most.

    An overview of a layer in one batched run; for one unit, or sums of units, use `feature`, for real examples that
    excite the channels `ub.activations.top_examples`. Of a convolution take the ReLU after it: the mean of a linear
    channel is largest for a plain color.

    Args:
        box: The opened model; its inputs must be images.
        layer: Address of the layer, as `box.layers` lists them.
        units: Units (channels) of the layer; None takes all of them.
        images_per_channel: Images of each channel. Those of one channel are next to one another.
        diversity: Weight of the term that makes the images of one objective differ. Used for several images per
            channel; as a fraction of the score's rise: 0.9 makes them a third less alike for an eighth of the score.
        canvas: Parameterization of the images. "fourier": Fourier coefficients; "pixels"; "maco": the phases alone, the
            spectrum's magnitudes being those of `data` or of natural images.
        data: Examples: a Dataset, a DataLoader, an iterable, or tensors. The images get their colors, total variation
            and spectrum; None takes those of natural images.
        steps: Number of iterations.
        frame_every: Keep every k-th step's images as frames. None keeps none.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `Channels`: `images` (N, C, H, W) of N = channels * images_per_channel, `targets` (N,), `dead` (N,) and
        `scores` (N,), the mean activation of the channel over positions.

    Raises:
        InputError: for a model whose inputs are not images, a channel that the layer does not have, settings out of
            their range.
        LayerError: for an unknown layer, or one without channels.
        NaNError: where the score of an image that it makes is NaN.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> result = ub.synthesis.channels(box, "relu1", [0, 3], steps=2)
        >>> result.names, tuple(result.images.shape)
        (('channel 0', 'channel 3'), (2, 1, 28, 28))

    Source:
        Olah et al. 2017, "Feature Visualization", doi:10.23915/distill.00007: channel objective and diversity term.
        Optimized as by `feature`.
    """
    check_settings(channels, locals())
    recipe, stats = CANVAS_RECIPE_BY_NAME[canvas], image_statistics(box, data)
    layer = resolve_address(box, layer)
    targets = _resolve_channel_indices(box, layer, units).repeat_interleave(images_per_channel)
    has_diversity = images_per_channel > 1 and diversity > 0
    term = diversity_objective(layer, targets) * diversity if has_diversity else None
    names, run = (
        tuple(f"channel {k}" for k in targets.tolist()),
        SynthesisRunSettings(steps, frame_every, seed, batch_size),
    )
    objective = channel(layer, targets)
    generated, dead = generate_images_and_find_dead_units(
        box, objective, names, stats, recipe, run, method="Channels", diversity_term=term
    )
    warn_dead_units(dead)
    values = {f.name: getattr(generated, f.name) for f in fields(generated)}
    return Channels(**values, targets=targets, dead=dead)


def _resolve_channel_indices(box: Box, layer: str, units: int | Sequence[int] | Tensor | None) -> Tensor:
    """Channel indices (K,). Raises InputError, LayerError for a layer without channels."""
    if units is not None:
        if isinstance(units, Sequence | Tensor) and len(units) == 0:
            raise InputError("units has no channel: give at least one, or None for all")
        indices = to_class_tensor(units, "a channel").flatten().to(box.device, torch.long)
        if int(indices.min()) < 0:
            raise InputError(f"a channel must be a whole number, 0 or more; got {int(indices.min())}")
        return indices
    noise = box.inputs.random_inputs(1, torch.Generator(box.device).manual_seed(0))
    h = box.read(noise.to(box.dtype), [layer])[layer]
    if h.ndim < 2:
        raise LayerError(f"{layer!r} has activations of shape {tuple(h.shape)}: no channels")
    return torch.arange(h.shape[1], device=box.device)
