"""Infidelity and max-sensitivity: does a map predict the effect of perturbations, and is it stable under small ones?

Yeh et al. 2019, "On the (In)fidelity and Sensitivity of Explanations", arXiv:1901.09392 (and the authors' code,
`infid_sen_utils.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..argument_names import naming_arguments
from ..box import Box
from ..engine.column_units import scale_of_values
from ..engine.perturb.baselines import Baseline
from ..engine.perturb.baselines import baseline as baseline_of
from ..engine.results import ResultMixin
from ..errors import InputError
from ..inputs.features import Features
from ..inputs.pixels import Pixels
from ..parameters import BatchSize, InputBatch, Seed, Target
from ..settings import Above, AtLeast, Unit, check_settings
from ..spellings import taking_other_spellings
from ..validation import valid_seed
from .methods import Maps, TestedMethod
from .perturbing import (
    ScoreSetting,
    align_maps,
    fix_score_and_classes,
    keyed_noise,
    perturbed_scores,
    removal_mask_shape,
    scores_of_unperturbed_inputs,
)

PerturbationKind = Literal["gaussian", "noisy_baseline", "square"]
AttributionKind = Literal["local", "global"]
MAX_PERTURBED_SQUARE_SIDE_FRACTION = 10 / 28  # the largest square of the authors' code, in shorter sides of the image


@dataclass(frozen=True, repr=False, eq=False)
class Infidelity(ResultMixin):
    """The infidelity of maps to the scores of perturbed inputs; 0 is best."""

    infidelity: Tensor  # (N,) in the score's unit, squared
    standard_error: Tensor  # (N,) over the perturbations; 0 where each was taken once
    scale: Tensor  # (N,) what the maps were multiplied by: 1, or the best factor


@taking_other_spellings
@naming_arguments
def infidelity(
    box: Box,
    x: InputBatch,
    maps: Maps,
    target: Target = None,
    *,
    perturbation: Annotated[PerturbationKind, "Distribution of the perturbations I."] = "gaussian",
    attribution: Annotated[AttributionKind | None, "What the values of the maps are."] = None,
    fit_scale: Annotated[bool, "Multiply each map by the factor that fits best: only its shape counts."] = False,
    n_samples: Annotated[int | None, AtLeast(1), Unit("samples"), "Number of random samples."] = 200,
    sigma: Annotated[float, Above(0), Unit("input units"), "Standard deviation of the Gaussian noise."] = 0.2,
    window: Annotated[int | None, AtLeast(1), Unit("pixels"), "Largest side of the squares."] = None,
    baseline: Baseline = None,
    score: ScoreSetting = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Infidelity:
    """E_I[(I^T Phi - (f(x) - f(x - I)))^2] of maps Phi: how well they predict what perturbations I do to the score.

    For maps of gradients take "gaussian" or "noisy_baseline" perturbations, for maps of contributions "square".
    `sensitivity_n` asks the same of random sets of pixels, by correlation.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        maps: Attribution maps of x: (N, C, H, W) or (N, 1, H, W), (N, F) for features, or a result.
        target: The score: a class, one per example (N,), or an objective. None is the class predicted for x.
        perturbation: Distribution of the perturbations I. "gaussian" is noise; "noisy_baseline" x minus (the baseline
            plus noise, clipped to valid inputs); "square" x minus the baseline in a square drawn uniformly from all
            squares of sides 1 to `window`.
        attribution: What the values of the maps are. "local" is score per unit of input (a gradient); "global" shares
            of the score (gradient x input, integrated gradients, occlusion), for squares only, which then count by
            their binary mask. None is "global" for squares and "local" otherwise.
        fit_scale: Multiply each map by the factor that fits best: only its shape counts.
        n_samples: Number of random samples. None takes every square once.
        sigma: Standard deviation of the Gaussian noise. Of tables it is in the units of the columns that attacks take
            (`eps`): standard deviations, or ranges.
        window: Largest side of the squares. None is 10/28 of the shorter side of the image.
        baseline: What x is compared with: a kind, a number, a tensor or an array; None is black for images, for
            features the mean, or zeros where it is not known.
        score: What is measured of the class: its "probability" or its "logit". None is the logit; with an objective as
            `target` it must be None.
        seed: Seed of all random draws: same seed, same result. Draws are keyed by (seed, row, sample).
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        An `Infidelity`: `infidelity` (N,), its `standard_error` (N,) and the `scale` (N,) of the maps.

    Raises:
        InputError: for maps, inputs or settings that do not fit.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(4)
        >>> maps = ub.attribution.gradient_x_input(box, x, y)
        >>> random = ub.checks.random_maps(box, x)
        >>> a, b = (ub.checks.infidelity(box, x, m, y, perturbation="square", fit_scale=True) for m in (maps, random))
        >>> bool(a.infidelity.mean() < b.infidelity.mean())
        True

    Source:
        Yeh et al. 2019, arXiv:1901.09392, equation 1, with the perturbations of section 2.2.
    """
    check_settings(infidelity, locals())
    x, seed = box.validate_inputs(x), valid_seed(seed)
    if attribution == "global" and perturbation != "square":
        raise InputError("global attributions (shares of the score) need perturbation='square'")
    if n_samples is None and perturbation != "square":
        raise InputError("n_samples=None, every perturbation once, is for squares; noise needs a number")
    is_global = perturbation == "square" and attribution != "local"
    phi = _maps_for_dot_product(box, x, maps, is_global)
    sampler = _PerturbationSampler(
        box,
        x,
        perturbation,
        sigma,
        baseline_of(box, x, baseline, seed=seed),
        seed,
        _all_square_positions(box, perturbation, window),
        n_samples is None,
    )
    n_perturbations = len(sampler.squares) if n_samples is None else n_samples
    objective, _ = fix_score_and_classes(box, x, target, score, "logit", batch_size)

    def perturb(examples: Tensor, samples: Tensor) -> list[Tensor]:
        change, mask = sampler(examples, samples)  # (R, ...)
        weight = mask.to(phi.dtype) if is_global else change.double()
        return [x[examples] - change, (weight * phi[examples]).flatten(1).sum(1)]

    scores_by_sample, predicted = perturbed_scores(
        box, objective, len(x), n_perturbations, perturb, batch_size
    )  # (N, K)
    drops = scores_of_unperturbed_inputs(box, objective, x, batch_size)[:, None] - scores_by_sample
    return _infidelity_of_score_drops(predicted, drops, fit_scale, is_exact=n_samples is None, dtype=box.dtype)


def _infidelity_of_score_drops(
    predicted_drops: Tensor, drops: Tensor, fit_scale: bool, is_exact: bool, dtype: torch.dtype
) -> Infidelity:
    scale = torch.ones_like(drops[:, 0])
    if fit_scale:  # the least squares factor; a map that predicts nothing is left as it is
        norm = predicted_drops.square().sum(1)
        scale = torch.where(
            norm > 0, (predicted_drops * drops).sum(1) / norm.where(norm > 0, torch.ones_like(norm)), scale
        )
    squares = (scale[:, None] * predicted_drops - drops).square()
    n_perturbations = squares.shape[1]
    standard_error = (
        torch.zeros_like(scale) if is_exact or n_perturbations < 2 else squares.std(1) / n_perturbations**0.5
    )
    return Infidelity(squares.mean(1).to(dtype), standard_error.to(dtype), scale.to(dtype))


def _maps_for_dot_product(box: Box, x: Tensor, maps: Maps, is_global: bool) -> Tensor:
    """The maps (N, ...) for the product with I: shares are summed over a pixel's channels. Raises InputError."""
    phi = align_maps(box, x, maps, per_column_scale=False)  # slopes are multiplied by changes in the columns' units
    if is_global:
        return phi.sum(1, keepdim=True) if isinstance(box.inputs, Pixels) else phi
    if phi.shape != x.shape:
        raise InputError(
            f"local attributions must have a value for each value of x, shape {tuple(x.shape)}; got {tuple(phi.shape)}"
        )
    return phi


def _all_square_positions(box: Box, perturbation: str, window: int | None) -> Tensor:
    """Every square (K, 3) as (side, top, left). Raises InputError."""
    if perturbation != "square":
        return torch.empty(0, 3, dtype=torch.long)
    if not isinstance(box.inputs, Pixels):
        raise InputError('squares are for images (Pixels); use perturbation="gaussian" or "noisy_baseline"')
    _, height, width = box.inputs.shape
    shorter = min(height, width)
    largest = max(1, round(MAX_PERTURBED_SQUARE_SIDE_FRACTION * shorter)) if window is None else window
    if largest > shorter:
        raise InputError(f"window must be at most the image's shorter side, {shorter}; got {largest}")
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
    exhaustive: bool  # every square once, in order

    def __call__(self, examples: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """I (R, ...), and where it removes something (R, *cells)."""
        x = self.x[examples]
        if self.kind == "square":
            inside = self._square_masks(examples, samples)
            return (x - self.baseline[examples]) * inside, inside
        noise = keyed_noise(torch.randn, x.shape[1:], x, self.seed, examples, samples)
        noise *= self.sigma * scale_of_values(self.box.inputs, x)
        change = noise if self.kind == "gaussian" else x - self.box.inputs.clip(self.baseline[examples] + noise)
        return change, torch.ones_like(x[:, :1])

    def _square_masks(self, examples: Tensor, samples: Tensor) -> Tensor:
        """Masks (R, 1, H, W) of the squares."""
        index = samples
        if not self.exhaustive:
            u = keyed_noise(torch.rand, (), self.x.new_empty(0, dtype=torch.float64), self.seed, examples, samples)
            index = (u * len(self.squares)).long()
        side, top, left = self.squares.to(self.x.device)[index].T[..., None]  # each (R, 1)
        _, height, width = removal_mask_shape(self.box)
        rows, columns = (torch.arange(k, device=self.x.device)[None] for k in (height, width))
        down = (rows >= top) & (rows < top + side)  # (R, H)
        across = (columns >= left) & (columns < left + side)  # (R, W)
        inside: Tensor = down[:, None, :, None] & across[:, None, None, :]
        return inside


def max_sensitivity(
    box: Box,
    x: InputBatch,
    method: TestedMethod,
    target: Target = None,
    *,
    radius: Annotated[float, Above(0), Unit("input units"), "Largest change of a value of x."] = 0.02,
    n_samples: Annotated[int, AtLeast(1), Unit("samples"), "Number of random samples."] = 10,
    relative: Annotated[bool, "Divide by the norm of the map of x, where that is not 0."] = False,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Tensor:
    """max over ||y - x|| <= r of ||Phi(y) - Phi(x)||: how much a map changes under small changes of the input.

    A low value alone is not good: a constant map has 0. Read it beside `infidelity`.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        method: The method to test: a function (box, x, target) that returns a map. It is called with all of x at once,
            so that a method that draws by (seed, row) draws the same each time.
        target: The score: a class, one per example (N,), or an objective. None is the class predicted for x, also for
            all y.
        radius: Largest change of a value of x. Of tables it is in the units of the columns that attacks take (`eps`).
        n_samples: Number of random samples. The result is the largest change among them, a lower bound.
        relative: Divide by the norm of the map of x, where that is not 0.
        seed: Seed of all random draws: same seed, same result. Draws are keyed by (seed, row, sample).
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        SENS_MAX (N,), in units of the map, or a ratio if `relative`.

    Raises:
        InputError: for a method that is not callable, or maps, inputs or settings that do not fit.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> s = ub.checks.max_sensitivity(box, x, ub.attribution.gradient, y, n_samples=3, relative=True)
        >>> s.shape, bool((s > 0).all())
        (torch.Size([2]), True)

    Source:
        Yeh et al. 2019, arXiv:1901.09392, definition 2. As in the authors' code y is uniform in the ball of the maximum
        norm, and maps differ by their Euclidean norm; here y is clipped to valid inputs (pixels stay in [0, 1],
        categories as they are).
    """
    check_settings(max_sensitivity, locals())
    x = box.validate_inputs(x)
    if not callable(method):
        raise InputError(f"method must be callable as method(box, x, target); got {type(method).__name__}")
    objective, classes = fix_score_and_classes(box, x, target, None, "logit", batch_size)
    rows, seed = torch.arange(len(x), device=x.device), valid_seed(seed)

    def compute_aligned_maps(points: Tensor) -> Tensor:
        maps = method(box, box.restore_structure(points), objective if classes is None else classes)
        return align_maps(box, x, maps).flatten(1)

    original, step = compute_aligned_maps(x.clone()), radius * scale_of_values(box.inputs, x)
    largest = torch.zeros_like(original[:, 0])
    for sample in range(n_samples):
        noise = 2 * keyed_noise(torch.rand, x.shape[1:], x, seed, rows, torch.full_like(rows, sample)) - 1
        largest = torch.maximum(
            largest, (compute_aligned_maps(_clip_to_valid(box, x, x + step * noise)) - original).norm(dim=1)
        )
    norm = original.norm(dim=1)
    return (largest / norm.where(norm > 0, torch.ones_like(norm)) if relative else largest).to(box.dtype)


def _clip_to_valid(box: Box, x: Tensor, perturbed: Tensor) -> Tensor:
    """The perturbed x clipped to valid inputs: no further from x, categories unchanged."""
    perturbed = box.inputs.clip(perturbed)
    if isinstance(box.inputs, Features) and box.inputs.categories:
        fixed_columns = [name in box.inputs.categories for name in box.inputs.names]
        perturbed = torch.where(torch.tensor(fixed_columns, device=x.device), x, perturbed)
    return perturbed
