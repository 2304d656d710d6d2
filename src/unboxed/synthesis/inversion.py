"""Inversion: images with the same activation as an input. What differs among them is what the layer does not represent.

Mahendran & Vedaldi 2015, "Understanding Deep Image Representations by Inverting Them", arXiv:1412.0035.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.optim import Adam

from ..box import Box
from ..cards import card
from ..engine.optimize.colors import Palette, natural_palette, pixel_mean_and_std
from ..engine.optimize.constraints import L2, MIN_DENOMINATOR, Constraint
from ..engine.optimize.loop import OptimizationConfig, OptimizationResult, optimize, retry_on_interrupt
from ..engine.optimize.parameterizations import Canvas, FourierCanvas, RawCanvas
from ..engine.optimize.transforms import random_roll
from ..engine.read.features import resolve_address
from ..engine.read.sizes import require_images
from ..errors import InputError, LayerError
from ..objectives import Objective, alpha_norm, cosine, dot, match, total_variation
from ..parameters import (
    BatchSize,
    FrameInterval,
    InputBatch,
    MaxJitter,
    NStartsPerInput,
    RequiredLayerAddress,
    Seed,
    Steps,
    TotalVariationWeight,
)
from ..rng import normal
from ..settings import Above, AtLeast, AtMost, check_settings
from ..validation import valid_seed
from .generated import GeneratedImages

NO_CONSTRAINT = Constraint()
PIXEL_RANGE_RADIUS = 0.5  # the paper's B: how far a pixel can be from the middle of its range
MAX_SHIFT_INVARIANCE_ERROR = 0.05  # relative error of a layer's activation up to which it is invariant to a shift

DEFAULT_ALPHA_AND_SMOOTH = {
    (False, True): (0.0, 3.0),
    (False, False): (0.0, 3.0),
    (True, True): (1.0, 3.0),
    (True, False): (10.0, 10.0),
}
"""(alpha, smooth) by (Fourier canvas, layer with positions)."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Inversion(GeneratedImages):
    """Images made from the activation of `layer`. `names` are the inputs that were inverted: "example 0" and so on.

    `history` is of the objective under jitter; `scores` are without.
    """

    layer: str  # its address
    source_rows: Tensor  # (M,) the row of x that was inverted; M = N * n_starts
    errors: Tensor  # (M,) |h(z) - h(x)|^2 / |h(x)|^2 of the image itself, without priors and jitter
    cosines: Tensor  # (M,) between h(z) and h(x)
    jitter: int  # pixels


@card(
    name="Inversion",
    aliases=("feature_inversion",),
    source="Mahendran & Vedaldi 2015, arXiv:1412.0035, eq. 1 to 3 and section 3; the prior's weight falls as it goes",
    shows="What the layer still represents of the image: the result gives it (nearly) the same activation.",
    does_not_show="What it makes of that. The prior (smooth, in range) fills in what the layer does not represent.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, x, "logits", steps=3),
    runs=lambda s: s["n_starts"] * (s["steps"] + 2) + 1,
    order=7,
)
def inversion(
    box: Box,
    x: InputBatch,
    layer: RequiredLayerAddress,
    *,
    metric: Annotated[Literal["euclidean", "cosine", "dot"], "Metric in which activations are compared."] = "euclidean",
    canvas: Annotated[Literal["pixels", "fourier"] | None, "Parameterization of the images."] = None,
    smooth: TotalVariationWeight | None = None,
    beta: Annotated[float, Above(0), "Exponent of the total variation."] = 1.0,
    final_prior_scale: Annotated[
        float, Above(0), AtMost(1), "Fraction of their weights that the priors have in the last step."
    ] = 0.01,
    alpha: Annotated[float | None, AtLeast(0), "Weight of the alpha-norm, which keeps pixels in range."] = None,
    jitter: MaxJitter = None,
    steps: Steps = 200,
    n_starts: NStartsPerInput = 1,
    frame_every: FrameInterval = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Inversion:
    """Images, from noise, whose activation in a layer is that of x: what they share is what the layer represents.

    To see what a layer keeps of an image and what it is invariant to (take several starts). For all depths at once use
    `inversions`; for what a layer responds to, exaggerated, `caricature`.

    Args:
        box: The opened model; its inputs must be images.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        layer: Address of the layer, as `box.layers` lists them. Also "input", "logits" or "output".
        metric: Metric in which activations are compared. "euclidean": |h(z) - h(x)|^2 / |h(x)|^2 is minimized;
            "cosine": the cosine is maximized; "dot": <h(z), h(x)> / |h(x)|^2, which has no bound, inside the L2 ball
            around the data's mean color with the radius of the data's standard deviation.
        canvas: Parameterization of the images. None: "fourier" for color images, but not for "dot"; else "pixels".
        smooth: Weight of the total variation, which is kept small. It is a mean over pixels in units of half the range.
            None: 3; for color images from layers without positions, 10.
        beta: Exponent of the total variation. The paper's is 2.
        final_prior_scale: Fraction of their weights that the priors have in the last step. They fall evenly: first
            smooth, then true. 1 keeps them.
        alpha: Weight of the alpha-norm, which keeps pixels in range. Its exponent is 6. None: 0 for "pixels",
            which are clipped; 1 for "fourier"; for color images from layers without positions, 10.
        jitter: Largest random shift of the images in each step. Shifts go around the edges. None: as far as the layer
            is invariant to shifts, up to a relative error of 5 %.
        steps: Number of iterations.
        n_starts: Images per input, each from another random start.
        frame_every: Keep every k-th step's images as frames. None keeps none.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        An `Inversion`: `images` (M, C, H, W) of M = N * n_starts, `source_rows` (M,), `errors` (M,), `cosines` (M,).

    Raises:
        InputError: for inputs that are not images, or settings out of their range.
        LayerError: for an unknown layer, or one with integer activations or without a batch axis.
        NaNError: where the score of an image that it makes is NaN.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> result = ub.synthesis.inversion(box, x, "fc1", steps=2, n_starts=2)
        >>> tuple(result.images.shape), result.source_rows.tolist()
        ((4, 1, 28, 28), [0, 0, 1, 1])

    Source:
        Mahendran & Vedaldi 2015, arXiv:1412.0035, equations 1 to 3 and section 3. Deviations: the weights of the priors
        fall during the run; both are means over pixels, so that one weight serves all sizes; Adam instead of momentum;
        Fourier coefficients for color images.
    """
    check_settings(inversion, locals())
    if metric == "dot" and canvas == "fourier":
        raise InputError('the dot product has no bound, so that its images stay in a ball of pixels: canvas="pixels"')
    require_images(box, "inversion")
    x = box.validate_inputs(x)
    config = _InversionSettings(
        metric, canvas, smooth, beta, final_prior_scale, alpha, jitter, steps, n_starts, frame_every,
        valid_seed(seed), batch_size,
    )  # fmt: skip
    return _invert_layer(box, x, resolve_address(box, layer), config)


@dataclass(frozen=True)
class _InversionSettings:
    """The settings of one inversion."""

    metric: str
    canvas: str | None
    smooth: float | None
    beta: float
    final_prior_scale: float
    alpha: float | None
    jitter: int | None
    steps: int
    n_starts: int
    frame_every: int | None
    seed: int
    batch_size: BatchSize


def _invert_layer(box: Box, x: Tensor, layer: str, config: _InversionSettings) -> Inversion:
    with torch.inference_mode(False):
        source_rows = torch.arange(len(x), device=x.device).repeat_interleave(config.n_starts)
        x_activation = _read_activation(box, x, layer, config.batch_size)  # (N, ...)
        jitter = (
            _largest_invariant_shift(box, x, layer, x_activation, config) if config.jitter is None else config.jitter
        )
        h = x_activation[source_rows]
        result = _optimize_inversion(box, layer, h, torch.empty_like(x[source_rows]), jitter, config)
        images = box.inputs.clip(result.input)
        activation, interrupted = retry_on_interrupt(lambda: _read_activation(box, images, layer, config.batch_size))
        cosines = torch.cosine_similarity(activation.flatten(1), h.flatten(1), dim=1, eps=MIN_DENOMINATOR)
    return Inversion.from_result(
        result,
        box,
        images=box.restore_structure(images),
        source_rows=source_rows,
        errors=_relative_squared_error(activation, h),
        cosines=cosines,
        jitter=jitter,
        interrupted=interrupted or result.interrupted,
        method="Inversion",
        names=tuple(f"example {i}" for i in source_rows.tolist()),
        layer=layer,
    )


def _read_activation(box: Box, x: Tensor, layer: str, batch_size: BatchSize) -> Tensor:
    """(N, ...). Raises LayerError for activations that are not rows of real numbers."""
    box.check_objective(match(layer, torch.empty(1)), len(x))
    h = box.read(x, [layer], batch_size=batch_size)[layer]
    if not h.is_floating_point() or h.ndim < 2:
        raise LayerError(f"{layer} has activations of shape {tuple(h.shape)}, {h.dtype}: nothing to match")
    return h


def _relative_squared_error(activation: Tensor, reference: Tensor) -> Tensor:
    """|activation - reference|^2 / |reference|^2, (N,)."""
    return (activation - reference).flatten(1).pow(2).sum(1) / reference.flatten(1).pow(2).sum(1).clamp_min(
        MIN_DENOMINATOR
    )


# -- the optimization --------------------------------------------------------------------------------------------------


def _optimize_inversion(
    box: Box, layer: str, h: Tensor, like: Tensor, jitter: int, config: _InversionSettings
) -> OptimizationResult:
    color, pixel_std = pixel_mean_and_std(box.inputs)  # type: ignore[arg-type]
    color = color.to(like)
    is_fourier = config.canvas == "fourier" or (config.canvas is None and len(color) == 3 and config.metric != "dot")
    canvas, learning_rate = _make_canvas_and_lr(like, color, is_fourier, config.seed)
    optimization = OptimizationConfig(
        steps=config.steps,
        optimizer=partial(Adam, lr=learning_rate),
        constraint=NO_CONSTRAINT if is_fourier else _pixel_constraint(box, like, color, pixel_std, config.metric),
        transform=random_roll(jitter) if jitter else None,
        anneal_lr=True,
        relu_bypass="all",
        frame_every=config.frame_every,
        seed=config.seed,
        prior=_image_prior_objective(like[0].numel(), DEFAULT_ALPHA_AND_SMOOTH[is_fourier, h.ndim > 2], config),
        final_prior_scale=config.final_prior_scale,
    )
    objective = OBJECTIVE_BY_METRIC[config.metric](layer, h)
    return optimize(box, objective, canvas, optimization, batch_size=config.batch_size)


def _make_canvas_and_lr(like: Tensor, color: Tensor, is_fourier: bool, seed: int) -> tuple[Canvas, float]:
    """A start near the mean color, and its learning rate.

    Drawings are black and white, which the Fourier canvas reaches only in the limit; photos are smooth.
    """
    if is_fourier:
        palette = natural_palette(color) if len(color) == 3 else Palette(color)
        return FourierCanvas.noise(like, seed, palette, frequency_power=1.0), 0.05
    return RawCanvas((color.view(-1, 1, 1) + 0.02 * normal(like, seed)).clamp(0, 1)), 0.3


def _pixel_constraint(box: Box, like: Tensor, color: Tensor, pixel_std: float, metric: str) -> Constraint:
    if metric != "dot":
        return Constraint(project=lambda z, center: box.inputs.clip(z))
    ball = L2(pixel_std * math.sqrt(like[0].numel()))
    mean_color = color.view(-1, 1, 1)
    return Constraint(project=lambda z, center: box.inputs.clip(ball.project(z, mean_color.expand_as(z))))


def _normalized_dot_objective(layer: str, h: Tensor) -> Objective:
    return dot(layer, h) * (1 / h.flatten(1).pow(2).sum(1).clamp_min(MIN_DENOMINATOR))


OBJECTIVE_BY_METRIC: dict[str, Callable[[str, Tensor], Objective]] = {
    "euclidean": partial(match, relative=True),
    "dot": _normalized_dot_objective,
    "cosine": cosine,
}


def _image_prior_objective(n_pixels: int, defaults: tuple[float, float], config: _InversionSettings) -> Objective:
    """Minus alpha R_6 + smooth R_TV, sections 3.1 and 3.2: lambda is one over (pixels * B^exponent)."""
    alpha, smooth = (u if v is None else v for u, v in zip(defaults, (config.alpha, config.smooth), strict=True))
    alpha_term = alpha / (n_pixels * PIXEL_RANGE_RADIUS**6) * alpha_norm(6.0, PIXEL_RANGE_RADIUS)
    smoothness_term = total_variation(config.beta) * (smooth / (n_pixels * PIXEL_RANGE_RADIUS**config.beta))
    prior: Objective = -alpha_term - smoothness_term
    return prior


def _largest_invariant_shift(box: Box, x: Tensor, layer: str, h: Tensor, config: _InversionSettings) -> int:
    """The largest shift, of 1, 2, 4, ... pixels up to an eighth of the side, that the layer is invariant to."""
    max_shift, jitter = min(x.shape[2:]) // 8, 0
    while max(1, 2 * jitter) <= max_shift:
        shift = max(1, 2 * jitter)
        shifted_activation = _read_activation(box, x.roll((shift, shift), (2, 3)), layer, config.batch_size)
        if float(_relative_squared_error(shifted_activation, h).mean()) > MAX_SHIFT_INVARIANCE_ERROR:
            break
        jitter = shift
    return jitter
