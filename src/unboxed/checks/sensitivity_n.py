"""Sensitivity-n: do the summed attributions of n pixels correlate with what removing them does to the score?

Ancona et al. 2018, "Towards better understanding of gradient-based attribution methods for Deep Neural Networks",
arXiv:1711.06104 (and the authors' code, DeepExplain, `sensitivityn.py`; there all examples share the sets drawn).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..box import Box
from ..engine.perturb.baselines import Baseline
from ..engine.perturb.baselines import baseline as baseline_of
from ..engine.results import ResultMixin
from ..errors import InputError
from ..parameters import BatchSize, InputBatch, Seed, Target
from ..settings import AtLeast, Unit, check_settings
from ..validation import check_int, valid_seed
from .methods import Maps
from .perturbing import (
    ScoreSetting,
    fix_score_and_classes,
    keyed_noise,
    perturbed_scores,
    pixel_importance,
    removal_mask_shape,
    scores_of_unperturbed_inputs,
)

N_DEFAULT_PIXEL_SET_SIZES = 10
MAX_DEFAULT_PIXEL_SET_FRACTION = 0.8  # of the pixels, by default


@dataclass(frozen=True, repr=False, eq=False)
class SensitivityN(ResultMixin):
    """The correlation of summed attributions with score drops, for sets of n pixels; 1 is best."""

    sizes: Tensor  # (S,) how many pixels are removed at once
    correlation: Tensor  # (N, S); NaN where the sums or the drops do not vary

    @property
    def mean(self) -> Tensor:
        """The mean over the examples, (S,), without those that are NaN."""
        return self.correlation.nanmean(0)


def sensitivity_n(
    box: Box,
    x: InputBatch,
    maps: Maps,
    target: Target = None,
    *,
    sizes: Annotated[Sequence[int] | None, Unit("pixels"), "Sizes n of the sets, each 1 or more."] = None,
    n_samples: Annotated[int, AtLeast(2), Unit("sets"), "Number of random sets per size."] = 100,
    baseline: Baseline = None,
    score: ScoreSetting = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> SensitivityN:
    """Pearson's correlation, over random sets of n pixels, of sum_i R_i and S(x) - S(x with the set at the baseline).

    Do the values of a map add up to effects? For maps of contributions; for gradients take `infidelity` with noise, for
    the order of pixels alone `deletion`.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        maps: Attribution maps of x: (N, C, H, W) or (N, 1, H, W), (N, F) for features, or a result. R_i is the sum over
            the channels of a pixel, which are removed together.
        target: The score: a class, one per example (N,), or an objective. None is the class predicted for x.
        sizes: Sizes n of the sets, each 1 or more. None is ten from 1 to 80 % of the pixels, evenly spaced on a
            logarithmic scale.
        n_samples: Number of random sets per size.
        baseline: What x is compared with: a kind, a number, a tensor or an array; None is black for images, for
            features the mean, or zeros where it is not known.
        score: What is measured of the class: its "probability" or its "logit". None is the logit; with an objective as
            `target` it must be None.
        seed: Seed of all random draws: same seed, same result. Sets are keyed by (seed, row, set).
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `SensitivityN`: `sizes` (S,) and `correlation` (N, S).

    Raises:
        InputError: for maps, inputs or settings that do not fit.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(4)
        >>> maps = ub.attribution.gradient_x_input(box, x, y)
        >>> s = ub.checks.sensitivity_n(box, x, maps, y, sizes=[8, 78], n_samples=20)
        >>> s.correlation.shape, bool((s.mean > 0.3).all())
        (torch.Size([4, 2]), True)

    Source:
        Ancona et al. 2018, arXiv:1711.06104, section 4. In the authors' code all examples share the sets.
    """
    check_settings(sensitivity_n, locals())
    x = box.validate_inputs(x)
    relevance = pixel_importance(box, x, maps)  # (N, P)
    n_sets, seed = n_samples, valid_seed(seed)
    n = torch.tensor(_resolve_set_sizes(sizes, relevance.shape[1]), device=x.device)
    baseline_x = baseline_of(box, x, baseline, seed=seed)
    objective, _ = fix_score_and_classes(box, x, target, score, "logit", batch_size)

    def perturb(examples: Tensor, samples: Tensor) -> list[Tensor]:
        order = keyed_noise(torch.rand, relevance.shape[1:], x, seed, examples, samples).argsort(1)  # (R, P)
        chosen = torch.arange(order.shape[1], device=x.device) < n[samples // n_sets, None]  # the first n of each order
        removed = torch.zeros_like(chosen).scatter(1, order, chosen)
        perturbed = torch.where(removed.view(-1, *removal_mask_shape(box)), baseline_x[examples], x[examples])
        return [perturbed, (relevance[examples] * removed).sum(1)]

    perturbed_score, sums = perturbed_scores(box, objective, len(x), len(n) * n_sets, perturb, batch_size)
    drops = scores_of_unperturbed_inputs(box, objective, x, batch_size)[:, None] - perturbed_score
    rounding = 1e-12 * relevance.abs().sum(1), torch.finfo(box.model_dtype).eps * perturbed_score.abs().amax(1)
    shape = len(x), len(n), n_sets
    return SensitivityN(n, _pearson_or_nan_if_constant(sums.view(shape), drops.view(shape), *rounding).to(box.dtype))


def _resolve_set_sizes(sizes: Sequence[int] | None, n_pixels: int) -> list[int]:
    """Raises InputError for a size below 1, or of all pixels: then there is only one set."""
    if sizes is None:
        log_spaced = torch.logspace(
            0,
            math.log10(max(1.0, MAX_DEFAULT_PIXEL_SET_FRACTION * n_pixels)),
            N_DEFAULT_PIXEL_SET_SIZES,
            dtype=torch.float64,
        )
        sizes = sorted({int(n) for n in log_spaced.round()})
    checked = [check_int("a size", n, minimum=1) for n in sizes]
    if not checked or max(checked) >= n_pixels:
        got = f"up to {max(checked)}" if checked else "none"
        raise InputError(
            f"sizes must be between 1 and {n_pixels - 1}: there are {n_pixels} pixels or columns; got {got}"
        )
    return checked


def _pearson_or_nan_if_constant(a: Tensor, b: Tensor, min_std_a: Tensor, min_std_b: Tensor) -> Tensor:
    """The correlation (N, S) of (N, S, K) over K; NaN where either varies less than by its rounding, (N,)."""
    a, b = a - a.mean(2, keepdim=True), b - b.mean(2, keepdim=True)
    std = a.square().mean(2).sqrt(), b.square().mean(2).sqrt()
    correlation = (a * b).mean(2) / (std[0] * std[1])
    is_constant = (std[0] <= min_std_a[:, None]) | (std[1] <= min_std_b[:, None])
    return correlation.clamp(-1, 1).masked_fill(is_constant, torch.nan)
