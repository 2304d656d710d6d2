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
from .drawn import Drawn
from .feature import tell
from .recipe import STEPS, draw, look, way


@dataclass(frozen=True, kw_only=True, eq=False)
class Channels(Drawn):
    layer: str
    targets: Tensor  # (N,) which channel each image is of
    dead: Tensor  # (N,) bool: neither random images nor what was drawn move it


@card(
    name="Channels",
    source="Olah et al. 2017, Distill, doi:10.23915/distill.00007, channel objective",
    shows="What each channel of a layer looks for: the texture or form that excites it all over the image.",
    does_not_show="How much the model's answer hangs on the channel, nor all that excites it: one image shows one form.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, "logits", [0, 1], steps=3),
)
def channels(
    box: Box,
    layer: str,
    units: int | Sequence[int] | Tensor | None = None,
    *,
    each: int = 1,
    diversity: float = 0.9,
    canvas: str = "fourier",
    data: Any = None,
    steps: int = STEPS,
    every: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Channels:
    """Draw `each` images of every channel of a layer (or of some `units`), as `feature` does, in one batched run.

    With `each` > 1 those of one channel stand together and are kept apart by `diversity`. Of a convolution, take the
    ReLU after it: the mean of what is linear is largest for an even color. Raises InputError, LayerError.
    """
    chosen, seen = way(canvas), look(box, data)
    layer = layer if layer in MODEL_ENDS else box.layers.resolve(layer)
    check_int("each", each, minimum=1)
    targets = _units(box, layer, units).repeat_interleave(each)
    weight = check_float("diversity", diversity, minimum=0) if each > 1 else 0.0
    drawn, dead = draw(
        box, channel(layer, targets), len(targets), seen, chosen, steps=steps, every=every, seed=seed,
        batch_size=batch_size, diverse=unlike(layer, targets) * weight if weight > 0 else None,
    )  # fmt: skip
    tell(dead)
    same = {f.name: getattr(drawn, f.name) for f in fields(drawn)}
    return Channels(**same, layer=layer, targets=targets, dead=dead)


def _units(box: Box, layer: str, units: int | Sequence[int] | Tensor | None) -> Tensor:
    """Numbers of channels (K,). Raises InputError, LayerError for a layer without channels."""
    if units is not None:
        if isinstance(units, Sequence | Tensor) and len(units) == 0:
            raise InputError("no channel to draw: units is empty")
        chosen = as_classes(units, "a channel").flatten().to(box.device, torch.long)
        if int(chosen.min()) < 0:
            raise InputError(f"a channel must be a whole number, 0 or more; got {int(chosen.min())}")
        return chosen
    noise = box.inputs.sample(1, torch.Generator(box.device).manual_seed(0))
    h = box.read(noise.to(box.dtype), [layer])[layer]
    if h.ndim < 2:
        raise LayerError(f"{layer!r} gives {tuple(h.shape)}: it has no channels")
    return torch.arange(h.shape[1], device=box.device)
