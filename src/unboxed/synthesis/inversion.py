"""Inversion: which images give the same activations? What differs among them is what the layer has forgotten."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.optim import Adam

from ..box import Box
from ..cards import card
from ..engine.optimize.colors import Palette, natural_palette, pixel_statistics
from ..engine.optimize.constraints import L2, TINY, Constraint
from ..engine.optimize.loop import OptimizationConfig, OptimizationResult, optimize, retry_on_interrupt
from ..engine.optimize.parameterizations import Canvas, FourierCanvas, RawCanvas
from ..engine.optimize.transforms import random_roll
from ..engine.read.sizes import require_images
from ..errors import InputError, LayerError
from ..model.batching import BatchSize
from ..objectives import MODEL_ENDS, Objective, alpha_norm, cosine, dot, match, total_variation
from ..rng import normal
from ..validation import check_float, check_int, check_seed

NO_CONSTRAINT = Constraint()
HALF_PIXEL_RANGE = 0.5  # the paper's B: how far a pixel can lie from the middle of its range
MAX_JITTER_ERROR = 0.05  # relative error up to which a layer may take a shifted image for the same


PRIOR_WEIGHTS = {
    (False, True): (0.0, 3.0),
    (False, False): (0.0, 3.0),
    (True, True): (1.0, 3.0),
    (True, False): (10.0, 10.0),
}
"""(alpha, smooth) by (Fourier canvas, layer with positions)."""


@dataclass(frozen=True, eq=False)
class Inversion:
    """Images drawn from one layer's activation. Row m tells of input `source[m]`."""

    path: str  # the layer
    images: Tensor  # (M, C, H, W), M = N * starts
    source_rows: Tensor  # (M,) the row of x that was inverted
    errors: Tensor  # (M,) |Phi(z) - Phi_0|^2 / |Phi_0|^2 of the image itself: no priors, no jitter
    cosines: Tensor  # (M,) between Phi(z) and Phi_0
    scores: Tensor  # (M,) of the objective
    history: Tensor  # (T, M) of the objective under jitter, the start's first
    frames: Tensor | None  # (T, M, C, H, W)
    before_clamp: Tensor  # (M,) bool: somewhere the gradient was zero, and was taken before a clamp
    jitter: int  # pixels
    interrupted: bool


@card(
    name="Inversion",
    source="Mahendran & Vedaldi 2015, arXiv:1412.0035, eq. 1 to 3 and section 3; the prior's weight falls as it goes",
    shows="What the layer still knows of the image: the drawing gives it (nearly) the same activation.",
    does_not_show="What it makes of that. Where the layer has forgotten, the prior (smooth, in range) has filled in.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, x, "logits", steps=3),
)
def inversion(
    box: Box,
    x: Tensor,
    layer: str,
    *,
    objective: str = "distance",
    canvas: str | None = None,
    smooth: float | None = None,
    beta: float = 1.0,
    final_prior_scale: float = 0.01,
    alpha: float | None = None,
    jitter: int | None = None,
    steps: int = 200,
    starts: int = 1,
    frame_every: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Inversion:
    """Draw images z from noise with Phi(z) near Phi(x), Phi what `layer` gives ("logits" and "output" too).

    Descends |Phi(z) - Phi_0|^2 / |Phi_0|^2 + alpha R_6(z) + smooth R_TV(z), both regularizers as means over the pixels
    in units of half the range, so that one weight serves all sizes (R_TV has the exponent `beta`; the paper's is 2).
    Both weights fall to the share `fall` on the way: smooth first, then true. By default `smooth` is 3; `alpha`, which
    keeps pixels off the ends of the range, is 1, or 0 on the canvas "pixels", where the range holds them; and both are
    10 for a color image from a layer without positions, which asks for little.
    Other objectives: "cosine", and "dot", <Phi(z), Phi_0> / |Phi_0|^2 inside the L2 ball of the data's own spread
    around its mean color, for it has no bound. `canvas` is "pixels" or "fourier" (the default for color images, but not
    for "dot"). `jitter`, in pixels, is by default as far as the layer itself takes shifted images for the same (5 %).
    `starts` images from other noise for each x. Raises InputError, LayerError.
    """
    config = _InversionConfig(
        objective,
        canvas,
        _check_weight("smooth", smooth),
        check_float("beta", beta, above=0),
        check_float("final_prior_scale", final_prior_scale, above=0, maximum=1),
        _check_weight("alpha", alpha),
        jitter if jitter is None else check_int("jitter", jitter),
        check_int("steps", steps),
        check_int("starts", starts, minimum=1),
        frame_every,
        check_seed(seed),
        batch_size,
    )
    require_images(box, "inversion")
    x = box.validate_inputs(x)
    config.check()
    return _invert(box, x, resolve_address(box, layer), config)


@dataclass(frozen=True)
class _InversionConfig:
    """The settings of one inversion."""

    objective: str
    canvas: str | None
    smooth: float | None
    beta: float
    final_prior_scale: float
    alpha: float | None
    jitter: int | None
    steps: int
    starts: int
    frame_every: int | None
    seed: int
    batch_size: BatchSize

    def check(self) -> None:
        if self.objective not in OBJECTIVE_BY_NAME:
            raise InputError(f"objective is one of {', '.join(OBJECTIVE_BY_NAME)}; got {self.objective!r}")
        if self.canvas not in (None, "pixels", "fourier"):
            raise InputError(f'canvas is "pixels" or "fourier"; got {self.canvas!r}')
        if self.objective == "dot" and self.canvas == "fourier":
            raise InputError('the dot product has no bound, so it is climbed in a ball of pixels: canvas="pixels"')


def _invert(box: Box, x: Tensor, path: str, config: _InversionConfig) -> Inversion:
    with torch.inference_mode(False):
        source_rows = torch.arange(len(x), device=x.device).repeat_interleave(config.starts)
        target_activation = _read_activation(box, x, path, config.batch_size)  # (N, ...)
        jitter = _tolerated_jitter(box, x, path, target_activation, config) if config.jitter is None else config.jitter
        h = target_activation[source_rows]
        result = _optimize(box, path, h, torch.empty_like(x[source_rows]), jitter, config)
        images = box.inputs.clip(result.input)
        activation, interrupted = retry_on_interrupt(lambda: _read_activation(box, images, path, config.batch_size))
        cosines = torch.cosine_similarity(activation.flatten(1), h.flatten(1), dim=1, eps=TINY)
    interrupted |= result.interrupted
    r = result
    return Inversion(
        path,
        images,
        source_rows,
        _relative_error(activation, h),
        cosines,
        r.score,
        r.history,
        r.frames,
        r.before_clamp,
        jitter,
        interrupted,
    )


def resolve_address(box: Box, name: str) -> str:
    return name if isinstance(name, str) and name in MODEL_ENDS else box.layers.resolve(name)


def _read_activation(box: Box, x: Tensor, path: str, batch_size: BatchSize) -> Tensor:
    """(N, ...). Raises LayerError where there are no rows of numbers to match."""
    box.check_objective(match(path, torch.empty(1)), len(x))
    h = box.read(x, [path], batch_size=batch_size)[path]
    if not h.is_floating_point() or h.ndim < 2:
        raise LayerError(f"{path} gives {tuple(h.shape)} {h.dtype} for a batch: nothing to match")
    return h


def _relative_error(activation: Tensor, reference: Tensor) -> Tensor:
    """|now - h|^2 / |h|^2, (N,)."""
    return (activation - reference).flatten(1).pow(2).sum(1) / reference.flatten(1).pow(2).sum(1).clamp_min(TINY)


# -- the climb ----------------------------------------------------------------


def _optimize(
    box: Box, path: str, h: Tensor, like: Tensor, jitter: int, config: _InversionConfig
) -> OptimizationResult:
    color, pixel_std = pixel_statistics(box.inputs)  # type: ignore[arg-type]
    color = color.to(like)
    is_fourier = config.canvas == "fourier" or (config.canvas is None and len(color) == 3 and config.objective != "dot")
    canvas, learning_rate = _make_canvas(like, color, is_fourier, config.seed)
    optimization = OptimizationConfig(
        steps=config.steps,
        optimizer=partial(Adam, lr=learning_rate),
        constraint=NO_CONSTRAINT if is_fourier else _pixel_constraint(box, like, color, pixel_std, config.objective),
        transform=random_roll(jitter) if jitter else None,
        anneal_lr=True,
        relu_bypass="all",
        frame_every=config.frame_every,
        seed=config.seed,
        prior=_image_prior(like[0].numel(), PRIOR_WEIGHTS[is_fourier, h.ndim > 2], config),
        final_prior_scale=config.final_prior_scale,
    )
    return optimize(
        box, OBJECTIVE_BY_NAME[config.objective](path, h), canvas, optimization, batch_size=config.batch_size
    )


def _make_canvas(like: Tensor, color: Tensor, is_fourier: bool, seed: int) -> tuple[Canvas, float]:
    """A start near the mean color, and how fast it may change.

    Drawings are black and white, which the Fourier canvas reaches only in the limit; photos are smooth.
    """
    if is_fourier:
        return FourierCanvas.noise(
            like, seed, natural_palette(color) if len(color) == 3 else Palette(color), frequency_power=1.0
        ), 0.05
    return RawCanvas((color.view(-1, 1, 1) + 0.02 * normal(like, seed)).clamp(0, 1)), 0.3


def _pixel_constraint(box: Box, like: Tensor, color: Tensor, pixel_std: float, objective: str) -> Constraint:
    if objective != "dot":
        return Constraint(project=lambda z, center: box.inputs.clip(z))
    ball = L2(pixel_std * math.sqrt(like[0].numel()))
    mean_color = color.view(-1, 1, 1)
    return Constraint(project=lambda z, center: box.inputs.clip(ball.project(z, mean_color.expand_as(z))))


def _normalized_dot(path: str, h: Tensor) -> Objective:
    return dot(path, h) * (1 / h.flatten(1).pow(2).sum(1).clamp_min(TINY))


OBJECTIVE_BY_NAME: dict[str, Callable[[str, Tensor], Objective]] = {
    "distance": partial(match, relative=True),
    "dot": _normalized_dot,
    "cosine": cosine,
}


def _check_weight(name: str, value: float | None) -> float | None:
    return None if value is None else check_float(name, value, minimum=0)


def _image_prior(n_pixels: int, defaults: tuple[float, float], config: _InversionConfig) -> Objective:
    """Minus alpha R_6 + smooth R_TV, sections 3.1 and 3.2: lambda is one over (pixels * B^exponent)."""
    alpha, smooth = (u if v is None else v for u, v in zip(defaults, (config.alpha, config.smooth), strict=True))
    alpha_term = alpha / (n_pixels * HALF_PIXEL_RANGE**6) * alpha_norm(6.0, HALF_PIXEL_RANGE)
    smoothness_term = total_variation(config.beta) * (smooth / (n_pixels * HALF_PIXEL_RANGE**config.beta))
    prior: Objective = -alpha_term - smoothness_term
    return prior


def _tolerated_jitter(box: Box, x: Tensor, path: str, h: Tensor, config: _InversionConfig) -> int:
    """The largest shift, of 1, 2, 4, ... pixels up to an eighth of the side, that the layer takes for no change."""
    max_shift, jitter = min(x.shape[2:]) // 8, 0
    while max(1, 2 * jitter) <= max_shift:
        shift = max(1, 2 * jitter)
        shifted_activation = _read_activation(box, x.roll((shift, shift), (2, 3)), path, config.batch_size)
        if float(_relative_error(shifted_activation, h).mean()) > MAX_JITTER_ERROR:
            break
        jitter = shift
    return jitter
