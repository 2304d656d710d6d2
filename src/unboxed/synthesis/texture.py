"""Texture synthesis and style transfer: images with the Gram matrices of a given image.

Gatys, Ecker & Bethge 2015, arXiv:1505.07376, and 2016, "Image Style Transfer Using Convolutional Neural Networks".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import add
from typing import Annotated

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
from ..engine.read.features import resolve_address
from ..engine.read.sizes import ANY_SIZE_CARD_EXEMPTION
from ..errors import InputError, LayerError
from ..model.batching import map_in_batches
from ..objectives import Objective, gram_matrix, match, total_variation
from ..objectives import style as style_objective
from ..parameters import BatchSize, FrameInterval, InputBatch, LayerAddresses, Seed, Steps, TotalVariationWeight
from ..rng import normal
from ..settings import AtLeast, ValueRole, check_settings
from ..validation import address_list, valid_seed
from .generated import GeneratedImages, image_names_from_examples

MAX_DEFAULT_TEXTURE_LAYERS = 5  # as the papers take from VGG-19
HINT_FOR_UNSUPPORTED_IMAGE_SIZE = "name earlier layers, or resize the image"


def _random_style_image(box: Box) -> Tensor:
    return box.inputs.random_inputs(1, torch.Generator(box.device).manual_seed(1))


@card(
    name="Texture",
    source="Gatys, Ecker & Bethge 2015, arXiv:1505.07376, eq. 1 to 4",
    shows="What a model represents of an image apart from positions: which channels are active together.",
    does_not_show="What is where: an image and its texture have equal statistics and may mean different things.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, x, layers=["input", "logits"], steps=3),
    exempt=ANY_SIZE_CARD_EXEMPTION,
    runs=lambda s: s["steps"] + 2,
    order=9,
)
def texture(
    box: Box,
    x: InputBatch,
    layers: LayerAddresses = None,
    *,
    steps: Steps = 200,
    smooth: TotalVariationWeight = 2.0,
    frame_every: FrameInterval = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> GeneratedImages:
    """Images, from noise, with the texture of x: the channels of some layers are active together as for x.

    To see what a model represents of an image apart from where it is. `inversion` keeps positions; `style_transfer`
    gives the texture to another image.

    Args:
        box: The opened model; its inputs must be images.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1]. They may have any size that the model
            takes as far as the layers.
        layers: Addresses of the layers, as `box.layers` lists them. None: the pixels and up to 5 layers, the first of
            each size of activation map.
        steps: Number of iterations.
        smooth: Weight of the total variation, which is kept small. Of exponent 2, as a mean over pixels.
        frame_every: Keep every k-th step's images as frames. None keeps none.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `GeneratedImages`: `images` (N, C, H, W) like x, `scores` (N,), `history` (T, N), `frames`.

    Raises:
        InputError: for inputs that are not images, of a size that the model does not take, settings out of their range.
        LayerError: for an unknown layer, or one without channels.
        NaNError: where the score of an image that it makes is NaN.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(1)
        >>> ub.synthesis.texture(box, x, ["input", "relu1"], steps=2).images.shape
        torch.Size([1, 1, 28, 28])

    Source:
        Gatys, Ecker & Bethge 2015, arXiv:1505.07376, equations 1 to 4. Deviations: the loss of a layer is |G - A|^2 /
        |A|^2 of Gram matrices G of the image and A of x, so that all layers of all models weigh the same; Adam instead
        of L-BFGS; a penalty on total variation.
    """
    check_settings(texture, locals())
    x = sizes.validate_any_size(box, x, "a texture")
    objective = _style_objective_of_images(box, x, _resolve_texture_layers(box, layers), len(x), batch_size)
    correction = min(1, x[0, 0].numel() - 1)  # a single pixel has no standard deviation
    std, mean = x.std((2, 3), correction=correction, keepdim=True), x.mean((2, 3), keepdim=True)
    start = (mean + std * normal(x, valid_seed(seed))).clamp(0, 1)
    return _optimize_texture(box, objective, start, steps, smooth, frame_every, batch_size, "Texture")


@card(
    name="Style transfer",
    source="Gatys, Ecker & Bethge 2016, 'Image Style Transfer Using Convolutional Neural Networks', eq. 1 to 7",
    shows="How far a model separates the content of an image from its style: one is kept, the other exchanged.",
    does_not_show="What style is to a person: here it is which channels of these layers are active together.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(
        box, x, _random_style_image(box), layers=["input", "logits"], content_layer="logits", steps=3
    ),
    exempt=ANY_SIZE_CARD_EXEMPTION,
    runs=lambda s: s["steps"] + 3,
    order=12,
)
def style_transfer(
    box: Box,
    x: InputBatch,
    style: Annotated[
        Tensor, ValueRole("inputs"), "Images (N, C, H, W) in [0, 1] of the style, or one (1, C, H, W) for all."
    ],
    *,
    layers: LayerAddresses = None,
    content_layer: Annotated[str | None, ValueRole("layer"), "Address of the layer whose activation is kept."] = None,
    content_weight: Annotated[float, AtLeast(0), "Weight of the content, against the style."] = 0.2,
    steps: Steps = 200,
    smooth: TotalVariationWeight = 2.0,
    frame_every: FrameInterval = None,
    batch_size: BatchSize = "auto",
) -> GeneratedImages:
    """Images with the content of x and the style of another image.

    Both are what the model makes of them: the content an activation, the style Gram matrices. For the style alone use
    `texture`, for the content alone `inversion`.

    Args:
        box: The opened model; its inputs must be images.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1]. They may have any size that the model
            takes as far as the layers.
        style: Images (N, C, H, W) in [0, 1] of the style, or one (1, C, H, W) for all. Of any such size.
        layers: Addresses of the layers, as `box.layers` lists them. Of the style. None: the pixels and up to 5 layers,
            the first of each size of activation map.
        content_layer: Address of the layer whose activation is kept. None: the middle one of `layers`.
        content_weight: Weight of the content, against the style.
        steps: Number of iterations.
        smooth: Weight of the total variation, which is kept small. Of exponent 2, as a mean over pixels.
        frame_every: Keep every k-th step's images as frames. None keeps none.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `GeneratedImages`: `images` (N, C, H, W) like x, `scores` (N,), `history` (T, N), `frames`.

    Raises:
        InputError: for inputs that are not images, of a size that the model does not take, settings out of their range.
        LayerError: for an unknown layer, or one without channels.
        NaNError: where the score of an image that it makes is NaN.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.synthesis.style_transfer(box, x[:1], x[1:], layers=["input", "relu1"], steps=2).images.shape
        torch.Size([1, 1, 28, 28])

    Source:
        Gatys, Ecker & Bethge 2016, equations 1 to 7, from x: the objective of `texture` for the style, minus
        content_weight * |F - P|^2 / |P|^2 of activations F of the image and P of x. Deviations as for `texture`.
    """
    check_settings(style_transfer, locals())
    x, style = (sizes.validate_any_size(box, v, "style transfer") for v in (x, style))
    if len(style) not in (1, len(x)):
        raise InputError(f"give one style image, or one for each of {len(x)}; got {len(style)}")
    addresses = _resolve_texture_layers(box, layers)
    middle = addresses[min(len(addresses) - 1, (len(addresses) + 1) // 2)]
    content_layer = middle if content_layer is None else resolve_address(box, content_layer)
    content = _read_at_any_size(box, x, [content_layer], batch_size)[content_layer]
    content_term = match(content_layer, content, relative=True)
    objective = _style_objective_of_images(box, style, addresses, len(x), batch_size) + content_weight * content_term
    return _optimize_texture(box, objective, x, steps, smooth, frame_every, batch_size, "Style transfer")


def _optimize_texture(
    box: Box,
    objective: Objective,
    start: Tensor,
    steps: int,
    smooth: float,
    frame_every: int | None,
    batch_size: BatchSize,
    method: str,
) -> GeneratedImages:
    sizes.check_model_accepts_size(box, objective, (start.shape[2], start.shape[3]), HINT_FOR_UNSUPPORTED_IMAGE_SIZE)
    constraint = Constraint(project=lambda x, center: x.clamp(0, 1))
    weight = smooth / start[0].numel()
    config = OptimizationConfig(
        steps,
        partial(Adam, lr=0.05),
        constraint,
        anneal_lr=True,
        frame_every=frame_every,
        prior=-weight * total_variation(),
    )
    result = optimize(box, objective, RawCanvas(start), config, batch_size=batch_size)
    return GeneratedImages.from_result(result, box, method=method, names=image_names_from_examples(len(start)))


# -- layers and their activations --------------------------------------------------------------------------------------


def _resolve_texture_layers(box: Box, layers: str | Sequence[str] | None) -> list[str]:
    if layers is None:
        return ["input", *_first_layer_of_each_size(box)]
    return list(dict.fromkeys(resolve_address(box, a) for a in address_list(layers)))


def _first_layer_of_each_size(box: Box) -> list[str]:
    """The first layer of each size of activation map, as the papers take conv1_1 and what follows each pooling."""
    layer_by_size: dict[tuple[int, ...], str] = {}
    for row in channels_first_layers(box):
        if len(row.shape) == 3 and math.prod(row.shape[1:]) > 1:
            layer_by_size.setdefault(row.shape[1:], row.addresses[0])
    if not layer_by_size:
        raise LayerError(
            "no layer of this model has positions, so that none has a texture; name layers, such as 'input'"
        )
    return list(layer_by_size.values())[:MAX_DEFAULT_TEXTURE_LAYERS]


def _style_objective_of_images(
    box: Box, x: Tensor, layers: Sequence[str], n_rows: int, batch_size: BatchSize
) -> Objective:
    """The texture of images x (n or 1, ...) as one objective for n rows."""
    grams = _read_at_any_size(box, x, layers, batch_size, gram_matrix)  # each (n or 1, C, C)
    return reduce(
        add, [_layer_style_objective(a, g.expand(n_rows, -1, -1)) * (1 / len(layers)) for a, g in grams.items()]
    )


def _layer_style_objective(layer: str, target_gram: Tensor) -> Objective:
    """Minus |G - A|^2 / |A|^2; zero for a layer whose activation is zero."""
    zero_style = target_gram.flatten(1).pow(2).sum(1) / (
        4 * target_gram.shape[1] ** 2
    )  # (n,), what `style` gives for zero
    return style_objective(layer, target_gram) * torch.where(zero_style > 0, 1 / zero_style, 0)


def _read_at_any_size(
    box: Box,
    x: Tensor,
    layers: Sequence[str],
    batch_size: BatchSize,
    reduce_fn: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Activations, or what `reduce_fn` makes of them, of images of any size. Raises InputError, LayerError."""
    all_layers = Objective(
        lambda acts: _sum_of_mean_activations([acts[a] for a in layers]), frozenset(layers), ", ".join(layers)
    )
    box.check_objective(all_layers, len(x))
    sizes.check_model_accepts_size(box, all_layers, (x.shape[2], x.shape[3]), HINT_FOR_UNSUPPORTED_IMAGE_SIZE)

    def read_reduced_activations_of_rows(rows: slice) -> list[Tensor]:
        with box.isolated(grad=False):
            acts = box.forward(x[rows], layers)
            activations = [_check_has_channels(a, acts[a].to(box.dtype)) for a in layers]
            return activations if reduce_fn is None else [reduce_fn(h) for h in activations]

    parts = zip(
        *map_in_batches(read_reduced_activations_of_rows, len(x), *box.batch_size_and_max_rows(len(x), batch_size)),
        strict=True,
    )
    return {a: torch.cat(h) for a, h in zip(layers, parts, strict=True)}


def _sum_of_mean_activations(activations: Sequence[Tensor]) -> Tensor:
    return torch.stack([h.flatten(1).float().mean(1) for h in activations]).sum(0)


def _check_has_channels(layer: str, h: Tensor) -> Tensor:
    if h.ndim < 2 or not h.is_floating_point():
        raise LayerError(f"{layer} has activations of shape {tuple(h.shape)}, {h.dtype}: no channels to compare")
    return h
