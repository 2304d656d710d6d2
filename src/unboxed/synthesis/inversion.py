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
from ..engine.optimize.ascent import Ascent, Climb, ascend, finished
from ..engine.optimize.colors import Palette, natural, statistics
from ..engine.optimize.constraints import L2, TINY, Constraint
from ..engine.optimize.parameterizations import Canvas, Fourier, Raw
from ..engine.optimize.transforms import roll
from ..engine.read.sizes import images_only
from ..errors import InputError, LayerError
from ..model.batching import BatchSize
from ..objectives import MODEL_ENDS, Objective, alpha_norm, cosine, dot, match, total_variation
from ..rng import normal
from ..validation import check_seed, check_float, check_int

FREE = Constraint()
HALF = 0.5  # the paper's B: how far a pixel can lie from the middle of its range
TOLERATED = 0.05  # relative error up to which a layer may take a shifted image for the same


WEIGHTS = {(False, True): (0.0, 3.0), (False, False): (0.0, 3.0), (True, True): (1.0, 3.0), (True, False): (10.0, 10.0)}
"""(alpha, smooth) by (Fourier canvas, layer with positions)."""


@dataclass(frozen=True, eq=False)
class Inversion:
    """Images drawn from one layer's activation. Row m tells of input `source[m]`."""

    path: str  # the layer
    images: Tensor  # (M, C, H, W), M = N * starts
    source: Tensor  # (M,) the row of x that was inverted
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
    fall: float = 0.01,
    alpha: float | None = None,
    jitter: int | None = None,
    steps: int = 200,
    starts: int = 1,
    every: int | None = None,
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
    plan = _Plan(
        objective, canvas, _weight("smooth", smooth), check_float("beta", beta, above=0),
        check_float("fall", fall, above=0, maximum=1), _weight("alpha", alpha),
        jitter if jitter is None else check_int("jitter", jitter), check_int("steps", steps), check_int("starts", starts, minimum=1),
        every, check_seed(seed), batch_size,
    )  # fmt: skip
    images_only(box, "inversion")
    x = box.validate_inputs(x)
    plan.check()
    return _inverted(box, x, address(box, layer), plan)


@dataclass(frozen=True)
class _Plan:
    """The settings of one inversion."""

    objective: str
    canvas: str | None
    smooth: float | None
    beta: float
    fall: float
    alpha: float | None
    jitter: int | None
    steps: int
    starts: int
    every: int | None
    seed: int
    batch_size: BatchSize

    def check(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InputError(f"objective is one of {', '.join(OBJECTIVES)}; got {self.objective!r}")
        if self.canvas not in (None, "pixels", "fourier"):
            raise InputError(f'canvas is "pixels" or "fourier"; got {self.canvas!r}')
        if self.objective == "dot" and self.canvas == "fourier":
            raise InputError('the dot product has no bound, so it is climbed in a ball of pixels: canvas="pixels"')


def _inverted(box: Box, x: Tensor, path: str, plan: _Plan) -> Inversion:
    with torch.inference_mode(False):
        source = torch.arange(len(x), device=x.device).repeat_interleave(plan.starts)
        wanted = _activation(box, x, path, plan.batch_size)  # (N, ...)
        jitter = _tolerated(box, x, path, wanted, plan) if plan.jitter is None else plan.jitter
        h = wanted[source]
        climb = _climbed(box, path, h, torch.empty_like(x[source]), jitter, plan)
        images = box.inputs.clip(climb.input)
        now, stopped = finished(lambda: _activation(box, images, path, plan.batch_size))
        flat = torch.cosine_similarity(now.flatten(1), h.flatten(1), dim=1, eps=TINY)
    stopped |= climb.interrupted
    c = climb
    return Inversion(
        path, images, source, _error(now, h), flat, c.score, c.history, c.frames, c.before_clamp, jitter, stopped
    )


def address(box: Box, text: str) -> str:
    return text if isinstance(text, str) and text in MODEL_ENDS else box.layers.resolve(text)


def _activation(box: Box, x: Tensor, path: str, batch_size: BatchSize) -> Tensor:
    """(N, ...). Raises LayerError where there are no rows of numbers to match."""
    box.check_objective(match(path, torch.empty(1)), len(x))
    h = box.read(x, [path], batch_size=batch_size)[path]
    if not h.is_floating_point() or h.ndim < 2:
        raise LayerError(f"{path} gives {tuple(h.shape)} {h.dtype} for a batch: nothing to match")
    return h


def _error(now: Tensor, h: Tensor) -> Tensor:
    """|now - h|^2 / |h|^2, (N,)."""
    return (now - h).flatten(1).pow(2).sum(1) / h.flatten(1).pow(2).sum(1).clamp_min(TINY)


# -- the climb ----------------------------------------------------------------


def _climbed(box: Box, path: str, h: Tensor, like: Tensor, jitter: int, plan: _Plan) -> Climb:
    color, spread = statistics(box.inputs)  # type: ignore[arg-type]
    color = color.to(like)
    fourier = plan.canvas == "fourier" or (plan.canvas is None and len(color) == 3 and plan.objective != "dot")
    canvas, rate = _canvas(like, color, fourier, plan.seed)
    climbed = Ascent(
        steps=plan.steps,
        optimizer=partial(Adam, lr=rate),
        constraint=FREE if fourier else _bounds(box, like, color, spread, plan.objective),
        transform=roll(jitter) if jitter else None,
        anneal=True,
        unclamp="all",
        every=plan.every,
        seed=plan.seed,
        prior=_prior(like[0].numel(), WEIGHTS[fourier, h.ndim > 2], plan),
        fade=plan.fall,
    )
    return ascend(box, OBJECTIVES[plan.objective](path, h), canvas, climbed, batch_size=plan.batch_size)


def _canvas(like: Tensor, color: Tensor, fourier: bool, seed: int) -> tuple[Canvas, float]:
    """A start near the mean color, and how fast it may change.

    Drawings are black and white, which the Fourier canvas reaches only in the limit; photos are smooth.
    """
    if fourier:
        return Fourier.noise(like, seed, natural(color) if len(color) == 3 else Palette(color), power=1.0), 0.05
    return Raw((color.view(-1, 1, 1) + 0.02 * normal(like, seed)).clamp(0, 1)), 0.3


def _bounds(box: Box, like: Tensor, color: Tensor, spread: float, objective: str) -> Constraint:
    if objective != "dot":
        return Constraint(project=lambda z, centre: box.inputs.clip(z))
    ball = L2(spread * math.sqrt(like[0].numel()))
    middle = color.view(-1, 1, 1)
    return Constraint(project=lambda z, centre: box.inputs.clip(ball.project(z, middle.expand_as(z))))


def _along(path: str, h: Tensor) -> Objective:
    return dot(path, h) * (1 / h.flatten(1).pow(2).sum(1).clamp_min(TINY))


OBJECTIVES: dict[str, Callable[[str, Tensor], Objective]] = {
    "distance": partial(match, relative=True),
    "dot": _along,
    "cosine": cosine,
}


def _weight(name: str, value: float | None) -> float | None:
    return None if value is None else check_float(name, value, minimum=0)


def _prior(pixels: int, usual: tuple[float, float], plan: _Plan) -> Objective:
    """Minus alpha R_6 + smooth R_TV, sections 3.1 and 3.2: lambda is one over (pixels * B^exponent)."""
    alpha, smooth = (u if v is None else v for u, v in zip(usual, (plan.alpha, plan.smooth), strict=True))
    size = alpha / (pixels * HALF**6) * alpha_norm(6.0, HALF)
    rough = total_variation(plan.beta) * (smooth / (pixels * HALF**plan.beta))
    prior: Objective = -size - rough
    return prior


def _tolerated(box: Box, x: Tensor, path: str, h: Tensor, plan: _Plan) -> int:
    """The largest shift, of 1, 2, 4, ... pixels up to an eighth of the side, that the layer takes for no change."""
    most, jitter = min(x.shape[2:]) // 8, 0
    while max(1, 2 * jitter) <= most:
        trial = max(1, 2 * jitter)
        now = _activation(box, x.roll((trial, trial), (2, 3)), path, plan.batch_size)
        if float(_error(now, h).mean()) > TOLERATED:
            break
        jitter = trial
    return jitter
