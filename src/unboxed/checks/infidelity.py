"""Infidelity and max-sensitivity: does a map predict what perturbations do, and does it keep still under small ones?

Yeh et al. 2019, "On the (In)fidelity and Sensitivity of Explanations", arXiv:1901.09392 (and the authors' code,
`infid_sen_utils.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..box import Box
from ..engine.perturb.baselines import Baseline
from ..engine.perturb.baselines import baseline as baseline_of
from ..errors import InputError
from ..inputs.features import Features
from ..inputs.pixels import Pixels
from ..model.batching import BatchSize
from ..validation import check_float, check_int, check_seed
from .perturbing import (
    Score,
    Target,
    align_maps,
    feature_shape,
    keyed_noise,
    perturbed_scores,
    resolve_score,
    unperturbed_scores,
)

PerturbationKind = Literal["gaussian", "noisy_baseline", "square"]
AttributionKind = Literal["local", "global"]
MAX_SQUARE_FRACTION = 10 / 28  # the largest square of the authors' code, in shorter sides of the image


@dataclass(frozen=True, eq=False)
class Infidelity:
    infidelity: Tensor  # (N,) in the score's unit, squared
    standard_error: Tensor  # (N,) its standard error over the perturbations; of all squares, 0
    scale: Tensor  # (N,) what the maps were multiplied with: 1, or the best factor


def infidelity(
    box: Box,
    x: Any,
    maps: Any,
    target: Target = None,
    *,
    perturbation: PerturbationKind = "gaussian",
    attribution: AttributionKind | None = None,
    fit_scale: bool = False,
    n_samples: int | None = 200,
    sigma: float = 0.2,
    window: int | None = None,
    baseline: Baseline = None,
    score: Score | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Infidelity:
    """E_I[(I^T Phi - (f(x) - f(x - I)))^2], equation 1, for maps Phi; 0 is best.

    `perturbation` is the law of I: "gaussian", noise of standard deviation `sigma`; "noisy_baseline", x minus (the
    baseline plus such noise, made valid); "square", x minus the baseline in a square, drawn evenly from all squares of
    sides 1 to `window` at all places (`n_samples=None`: each of them once). `baseline` is black, or the features' mean.
    `attribution` says what a map's values are: "local", score per unit of input (a gradient); or "global", shares of
    the score (gradient x input, integrated gradients, occlusion), with which a square counts by its binary mask, and
    only a square. It is by default "global" for squares and "local" otherwise. `scaled` multiplies each map by the
    factor that fits best, so that only its shape counts. Draws are keyed by (seed, row, sample). The score is the logit
    of the target, None being the class predicted for x as it is (`score="probability"`, or an objective: that).
    Raises InputError.
    """
    x, seed = box.validate_inputs(x), check_seed(seed)
    is_global = _is_global(perturbation, attribution)
    phi = _maps_for_product(box, x, maps, is_global)
    sampler = _PerturbationSampler(
        box,
        x,
        perturbation,
        check_float("sigma", sigma, above=0),
        baseline_of(box, x, baseline, seed=seed),
        seed,
        _all_squares(box, perturbation, window),
        n_samples is None,
    )
    n_perturbations = len(sampler.squares) if n_samples is None else check_int("n_samples", n_samples, minimum=1)
    if n_samples is None and perturbation != "square":
        raise InputError("n_samples=None, each perturbation once, is for squares; noise wants a number")
    objective, _ = resolve_score(box, x, target, score, "logit", batch_size)

    def perturb(examples: Tensor, samples: Tensor) -> list[Tensor]:
        change, mask = sampler(examples, samples)  # (R, ...)
        weight = mask.to(phi.dtype) if is_global else change.double()
        return [x[examples] - change, (weight * phi[examples]).flatten(1).sum(1)]

    scores_by_sample, predicted = perturbed_scores(
        box, objective, len(x), n_perturbations, perturb, batch_size
    )  # (N, K)
    drops = unperturbed_scores(box, objective, x, batch_size)[:, None] - scores_by_sample
    return _summarize(predicted, drops, fit_scale, is_exact=n_samples is None, dtype=box.dtype)


def _summarize(predicted: Tensor, drops: Tensor, fit_scale: bool, is_exact: bool, dtype: torch.dtype) -> Infidelity:
    scale = torch.ones_like(drops[:, 0])
    if fit_scale:  # the least squares factor; a map that predicts nothing is left as it is
        norm = predicted.square().sum(1)
        scale = torch.where(norm > 0, (predicted * drops).sum(1) / norm.where(norm > 0, torch.ones_like(norm)), scale)
    squares = (scale[:, None] * predicted - drops).square()
    n_perturbations = squares.shape[1]
    standard_error = (
        torch.zeros_like(scale) if is_exact or n_perturbations < 2 else squares.std(1) / n_perturbations**0.5
    )
    return Infidelity(squares.mean(1).to(dtype), standard_error.to(dtype), scale.to(dtype))


def _is_global(perturbation: str, attribution: str | None) -> bool:
    """Whether the maps are shares of the score. Raises InputError."""
    if perturbation not in ("gaussian", "noisy_baseline", "square"):
        raise InputError(f'perturbation is "gaussian", "noisy_baseline" or "square"; got {perturbation!r}')
    if attribution not in (None, "local", "global"):
        raise InputError(f'attribution is "local" (score per unit of input) or "global" (shares); got {attribution!r}')
    if attribution == "global" and perturbation != "square":
        raise InputError("shares of the score say nothing of noise: global attributions want perturbation='square'")
    return perturbation == "square" and attribution != "local"


def _maps_for_product(box: Box, x: Tensor, maps: Any, is_global: bool) -> Tensor:
    """The maps (N, ...) as the product wants them: shares of a pixel's channels together. Raises InputError."""
    phi = align_maps(box, x, maps)
    if is_global:
        return phi.sum(1, keepdim=True) if isinstance(box.inputs, Pixels) else phi
    if phi.shape != x.shape:
        raise InputError(
            f"local attributions have a value for each number of x, shape {tuple(x.shape)}; got {tuple(phi.shape)}"
        )
    return phi


def _all_squares(box: Box, perturbation: str, window: int | None) -> Tensor:
    """Every square (K, 3) as (side, top, left). Raises InputError."""
    if perturbation != "square":
        return torch.empty(0, 3, dtype=torch.long)
    if not isinstance(box.inputs, Pixels):
        raise InputError('squares are for images (Pixels); take perturbation="gaussian" or "noisy_baseline"')
    _, height, width = box.inputs.shape
    shorter = min(height, width)
    largest = max(1, round(MAX_SQUARE_FRACTION * shorter)) if window is None else check_int("window", window, minimum=1)
    if largest > shorter:
        raise InputError(f"window is at most the image's shorter side, {shorter}; got {largest}")
    squares = []
    for side in range(1, largest + 1):
        corners = torch.cartesian_prod(torch.arange(height - side + 1), torch.arange(width - side + 1))
        squares.append(torch.cat([torch.full_like(corners[:, :1], side), corners], 1))
    return torch.cat(squares)


@dataclass(frozen=True)
class _PerturbationSampler:
    """Draws perturbations I of examples."""

    box: Box
    x: Tensor
    kind: PerturbationKind
    sigma: float
    baseline: Tensor
    seed: int
    squares: Tensor
    exhaustive: bool  # every square once, in their order

    def __call__(self, examples: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """I (R, ...), and where it removes something (R, *cells)."""
        x = self.x[examples]
        if self.kind == "square":
            inside = self._square_masks(examples, samples)
            return (x - self.baseline[examples]) * inside, inside
        noise = self.sigma * keyed_noise(torch.randn, x.shape[1:], x, self.seed, examples, samples)
        change = noise if self.kind == "gaussian" else x - self.box.inputs.clip(self.baseline[examples] + noise)
        return change, torch.ones_like(x[:, :1])

    def _square_masks(self, examples: Tensor, samples: Tensor) -> Tensor:
        """Masks (R, 1, H, W) of the squares."""
        index = samples
        if not self.exhaustive:
            u = keyed_noise(torch.rand, (), self.x.new_empty(0, dtype=torch.float64), self.seed, examples, samples)
            index = (u * len(self.squares)).long()
        side, top, left = self.squares.to(self.x.device)[index].T[..., None]  # each (R, 1)
        _, height, width = feature_shape(self.box)
        rows, columns = (torch.arange(k, device=self.x.device)[None] for k in (height, width))
        down = (rows >= top) & (rows < top + side)  # (R, H)
        across = (columns >= left) & (columns < left + side)  # (R, W)
        inside: Tensor = down[:, None, :, None] & across[:, None, None, :]
        return inside


def max_sensitivity(
    box: Box,
    x: Any,
    method: Callable[..., Any],
    target: Target = None,
    *,
    radius: float = 0.02,
    n_samples: int = 10,
    relative: bool = False,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Tensor:
    """max over ||y - x|| <= r of ||Phi(y) - Phi(x)|| (SENS_MAX), (N,): how much a map moves when its input hardly does.

    The largest of `n_samples` draws by (seed, row, sample), so a lower bound. As in the authors' code y is uniform in
    the ball of maximum norm, here made valid (pixels stay in [0, 1], categories as they are), and maps differ by their
    Euclidean norm. `relative` divides it by the norm of Phi(x), where that is not 0. `method(box, x, target)` gives a
    tensor, or a result with `.map`; the target, None being the class predicted for x as it is, is the same for all y.
    It is called with all of x at once, so a method that draws by (seed, row) draws alike each time. Raises InputError.
    """
    x = box.validate_inputs(x)
    radius, n_perturbations = check_float("radius", radius, above=0), check_int("n_samples", n_samples, minimum=1)
    if not callable(method):
        raise InputError(f"method is called as method(box, x, target); got {type(method).__name__}")
    objective, classes = resolve_score(box, x, target, None, "logit", batch_size)
    rows, seed = torch.arange(len(x), device=x.device), check_seed(seed)

    def phi(points: Tensor) -> Tensor:
        maps = method(box, box.restore_structure(points), objective if classes is None else classes)
        return align_maps(box, x, maps).flatten(1)

    original = phi(x.clone())
    largest = torch.zeros_like(original[:, 0])
    for sample in range(n_perturbations):
        noise = 2 * keyed_noise(torch.rand, x.shape[1:], x, seed, rows, torch.full_like(rows, sample)) - 1
        largest = torch.maximum(largest, (phi(_to_valid_input(box, x, x + radius * noise)) - original).norm(dim=1))
    norm = original.norm(dim=1)
    return (largest / norm.where(norm > 0, torch.ones_like(norm)) if relative else largest).to(box.dtype)


def _to_valid_input(box: Box, x: Tensor, y: Tensor) -> Tensor:
    """y, no further from x than it was, as the model's inputs may be."""
    y = box.inputs.clip(y)
    if isinstance(box.inputs, Features) and box.inputs.categories:
        fixed_columns = [name in box.inputs.categories for name in box.inputs.names]
        y = torch.where(torch.tensor(fixed_columns, device=x.device), x, y)
    return y
