"""Texture and style: a new image in which the channels of chosen layers answer together as in a given one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import add
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import Constraint
from ..engine.optimize.loop import OptimizationConfig, optimize
from ..engine.optimize.parameterizations import RawCanvas
from ..engine.read import sizes
from ..engine.read.channel_axes import channels_first_layers
from ..engine.read.sizes import ANY_SIZE_EXEMPTION
from ..errors import InputError, LayerError
from ..model.batching import BatchSize, in_batches
from ..objectives import MODEL_ENDS, Objective, gram, match, total_variation
from ..objectives import style as matched
from ..rng import normal
from ..validation import check_float, check_seed
from .generated import GeneratedImages

TINY = 1e-12
MAX_DEFAULT_LAYERS = 5  # as the papers take from VGG-19
SIZE_HINT = "name layers before that, or resize the image"


def _example_style_image(box: Box) -> Tensor:
    return box.inputs.sample(1, torch.Generator(box.device).manual_seed(1))


@card(
    name="Texture",
    source="Gatys, Ecker & Bethge 2015, arXiv:1505.07376, eq. 1 to 4",
    shows="What a model keeps of an image once places are forgotten: which of its channels answer together.",
    does_not_show="What is where: an image and its texture are alike to these layers and may mean different things.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, x, layers=["input", "logits"], steps=3),
    exempt=ANY_SIZE_EXEMPTION,
)
def texture(
    box: Box,
    x: Tensor,
    layers: str | Sequence[str] | None = None,
    *,
    steps: int = 200,
    smooth: float = 2.0,
    frame_every: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> GeneratedImages:
    """From noise, images whose Gram matrices G come near those of x, A: climbs minus the mean of |G - A|^2 / |A|^2.

    That is the paper's E_l (eq. 3) in units of its value for an image that excites nothing, so that all layers of all
    models weigh the same. `layers`: by default the pixels and up to 5, the first of each size of map. `smooth` weighs
    the mean squared difference of neighboring pixels. Images (N, C, H, W) may have any size that the model takes as far
    as the layers. Raises InputError, LayerError.
    """
    x = sizes.validate_any_size(box, x, "a texture")
    objective = _style_objective(box, x, _resolve_layers(box, layers), len(x), batch_size)
    correction = min(1, x[0, 0].numel() - 1)  # a single pixel has no spread
    std, mean = x.std((2, 3), correction=correction, keepdim=True), x.mean((2, 3), keepdim=True)
    start = (mean + std * normal(x, check_seed(seed))).clamp(0, 1)
    return _optimize(box, objective, start, steps, smooth, frame_every, batch_size)


@card(
    name="Style transfer",
    source="Gatys, Ecker & Bethge 2016, 'Image Style Transfer Using Convolutional Neural Networks', eq. 1 to 7",
    shows="How far a model holds what is in an image apart from how it is painted: one is kept, the other exchanged.",
    does_not_show="What style is to a person: here it is which channels of these layers answer together.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(
        box, x, _example_style_image(box), layers=["input", "logits"], content_layer="logits", steps=3
    ),
    exempt=ANY_SIZE_EXEMPTION,
)
def style_transfer(
    box: Box,
    x: Tensor,
    style: Tensor,
    *,
    layers: str | Sequence[str] | None = None,
    content_layer: str | None = None,
    content_weight: float = 0.2,
    steps: int = 200,
    smooth: float = 2.0,
    frame_every: int | None = None,
    batch_size: BatchSize = "auto",
) -> GeneratedImages:
    """From x, images that keep its activation P `at` a layer and take the texture of `style`, (N or 1, C, H', W').

    Climbs `texture`'s objective for `style`, minus `content` times |F - P|^2 / |P|^2, F the image's activation at that
    layer: by default the middle one of `texture`'s layers. Both images may have any size that the model takes so far.
    Raises InputError, LayerError.
    """
    x, style = (sizes.validate_any_size(box, v, "style transfer") for v in (x, style))
    if len(style) not in (1, len(x)):
        raise InputError(f"give one style image, or one for each of {len(x)}; got {len(style)}")
    addresses = _resolve_layers(box, layers)
    content_layer = (
        addresses[min(len(addresses) - 1, (len(addresses) + 1) // 2)]
        if content_layer is None
        else _resolve_address(box, content_layer)
    )
    content_term = match(
        content_layer, _read_any_size(box, x, [content_layer], batch_size)[content_layer], relative=True
    )
    objective = (
        _style_objective(box, style, addresses, len(x), batch_size)
        + check_float("content_weight", content_weight, minimum=0) * content_term
    )
    return _optimize(box, objective, x, steps, smooth, frame_every, batch_size)


def _optimize(
    box: Box,
    objective: Objective,
    start: Tensor,
    steps: int,
    smooth: float,
    frame_every: int | None,
    batch_size: BatchSize,
) -> GeneratedImages:
    sizes.check_size(box, objective, (start.shape[2], start.shape[3]), SIZE_HINT)
    constraint = Constraint(project=lambda x, center: x.clamp(0, 1))
    weight = check_float("smooth", smooth, minimum=0) / start[0].numel()
    config = OptimizationConfig(
        steps,
        partial(Adam, lr=0.05),
        constraint,
        anneal_lr=True,
        frame_every=frame_every,
        prior=-weight * total_variation(),
    )
    return GeneratedImages.from_result(optimize(box, objective, RawCanvas(start), config, batch_size=batch_size))


# -- layers and what they give ----------------------------------------------------------------


def _resolve_layers(box: Box, layers: str | Sequence[str] | None) -> list[str]:
    if layers is None:
        return ["input", *_first_of_each_size(box)]
    addresses = [_resolve_address(box, a) for a in (layers if isinstance(layers, (list, tuple)) else [layers])]
    if not addresses:
        raise LayerError("no layers to match: name one, such as 'input'")
    return list(dict.fromkeys(addresses))


def _resolve_address(box: Box, name: Any) -> str:
    return name if name in MODEL_ENDS else box.layers.resolve(name)


def _first_of_each_size(box: Box) -> list[str]:
    """The first layer of each size of map, as the papers take conv1_1 and what follows each pooling."""
    layer_by_size: dict[tuple[int, ...], str] = {}
    for row in channels_first_layers(box):
        if len(row.shape) == 3 and math.prod(row.shape[1:]) > 1:
            layer_by_size.setdefault(row.shape[1:], row.addresses[0])
    if not layer_by_size:
        raise LayerError("no layer of this model has positions, so none has a texture; name layers, such as 'input'")
    return list(layer_by_size.values())[:MAX_DEFAULT_LAYERS]


def _style_objective(box: Box, x: Tensor, layers: Sequence[str], n: int, batch_size: BatchSize) -> Objective:
    """The texture of images x (n or 1, ...) as one objective for n rows."""
    grams = _read_any_size(box, x, layers, batch_size, gram)  # each (n or 1, C, C)
    return reduce(add, [_relative_style(a, g.expand(n, -1, -1)) * (1 / len(layers)) for a, g in grams.items()])


def _relative_style(layer: str, g: Tensor) -> Objective:
    """Minus |G - A|^2 / |A|^2; a layer that gives nothing asks for nothing."""
    zero_style = g.flatten(1).pow(2).sum(1) / (4 * g.shape[1] ** 2)  # (n,), what `style` gives for zero
    return matched(layer, g) * torch.where(zero_style > 0, 1 / zero_style, 0)


def _read_any_size(
    box: Box,
    x: Tensor,
    layers: Sequence[str],
    batch_size: BatchSize,
    reduce_fn: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """What is made of the activations of images of any size, a row an image. Raises InputError, LayerError."""
    all_layers = Objective(lambda acts: _sum_of_means([acts[a] for a in layers]), frozenset(layers), ", ".join(layers))
    box.check_objective(all_layers, len(x))
    sizes.check_size(box, all_layers, (x.shape[2], x.shape[3]), SIZE_HINT)

    def read_rows(rows: slice) -> list[Tensor]:
        with box.isolated(grad=False):
            acts = box.forward(x[rows], layers)
            activations = [_require_channels(a, acts[a].to(box.dtype)) for a in layers]
            return activations if reduce_fn is None else [reduce_fn(h) for h in activations]

    parts = zip(*in_batches(read_rows, len(x), *box.batch_plan(len(x), batch_size)), strict=True)
    return {a: torch.cat(h) for a, h in zip(layers, parts, strict=True)}


def _sum_of_means(activations: Sequence[Tensor]) -> Tensor:
    return torch.stack([h.flatten(1).float().mean(1) for h in activations]).sum(0)


def _require_channels(layer: str, h: Tensor) -> Tensor:
    if h.ndim < 2 or not h.is_floating_point():
        raise LayerError(f"{layer} gives {tuple(h.shape)} {h.dtype} for a batch: no channels to compare")
    return h
