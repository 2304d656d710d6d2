"""Sensitivity-n: do the summed attributions of n pixels say what removing them does to the score?

Ancona et al. 2018, "Towards better understanding of gradient-based attribution methods for Deep Neural Networks",
arXiv:1711.06104 (and the authors' code, DeepExplain, `sensitivityn.py`; there all examples share the sets drawn).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..engine.perturb.baselines import Baseline
from ..engine.perturb.baselines import baseline as baseline_of
from ..errors import InputError
from ..model.batching import BatchSize
from ..validation import check_int, check_seed
from .perturbing import (
    Score,
    Target,
    feature_shape,
    importance,
    keyed_noise,
    perturbed_scores,
    resolve_score,
    unperturbed_scores,
)

N_SIZES = 10
MAX_SIZE_FRACTION = 0.8  # of the pixels, by default


@dataclass(frozen=True, eq=False)
class SensitivityN:
    sizes: Tensor  # (S,) how many pixels are removed at once
    correlation: Tensor  # (N, S); NaN where the sums or the drops don't vary at all

    @property
    def mean(self) -> Tensor:
        """Over the examples, (S,); those without a correlation are left out."""
        return self.correlation.nanmean(0)


def sensitivity_n(
    box: Box,
    x: Any,
    maps: Any,
    target: Target = None,
    *,
    sizes: Sequence[int] | None = None,
    n_samples: int = 100,
    baseline: Baseline = None,
    score: Score | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> SensitivityN:
    """Pearson's correlation, over random sets of n pixels, of sum_i R_i and S(x) - S(x with the set at the baseline).

    1 is best; maps that say nothing get about 0. `sizes` are the n, by default ten from 1 to 80 % of the pixels, evenly
    on a logarithmic scale; for each, `n_samples` sets are drawn by (seed, row, set). A pixel is removed with all its
    channels, and its R_i is the map summed over them. The score is the logit of the target, None being the class
    predicted for x as it is (`score="probability"`, or an objective as target: that). Maps and baseline are as in
    `deletion`. Raises InputError.
    """
    x = box.validate_inputs(x)
    relevance = importance(box, x, maps)  # (N, P)
    n_sets, seed = check_int("n_samples", n_samples, minimum=2), check_seed(seed)
    n = torch.tensor(_check_sizes(sizes, relevance.shape[1]), device=x.device)
    baseline_x = baseline_of(box, x, baseline, seed=seed)
    objective, _ = resolve_score(box, x, target, score, "logit", batch_size)

    def perturb(examples: Tensor, samples: Tensor) -> list[Tensor]:
        order = keyed_noise(torch.rand, relevance.shape[1:], x, seed, examples, samples).argsort(1)  # (R, P)
        chosen = torch.arange(order.shape[1], device=x.device) < n[samples // n_sets, None]  # the first n of each order
        removed = torch.zeros_like(chosen).scatter(1, order, chosen)
        perturbed = torch.where(removed.view(-1, *feature_shape(box)), baseline_x[examples], x[examples])
        return [perturbed, (relevance[examples] * removed).sum(1)]

    perturbed_score, sums = perturbed_scores(box, objective, len(x), len(n) * n_sets, perturb, batch_size)
    drops = unperturbed_scores(box, objective, x, batch_size)[:, None] - perturbed_score
    rounding = 1e-12 * relevance.abs().sum(1), torch.finfo(box.model_dtype).eps * perturbed_score.abs().amax(1)
    shape = len(x), len(n), n_sets
    return SensitivityN(n, _pearson(sums.view(shape), drops.view(shape), *rounding).to(box.dtype))


def _check_sizes(sizes: Sequence[int] | None, pixels: int) -> list[int]:
    """Raises InputError for a size below 1, or of all pixels: then there is but one set."""
    if sizes is None:
        log_spaced = torch.logspace(0, math.log10(max(1.0, MAX_SIZE_FRACTION * pixels)), N_SIZES, dtype=torch.float64)
        sizes = sorted({int(n) for n in log_spaced.round()})
    checked = [check_int("a size", n, minimum=1) for n in sizes]
    if not checked or max(checked) >= pixels:
        got = f"up to {max(checked)}" if checked else "none"
        raise InputError(f"sizes lie between 1 and {pixels - 1}, for there are {pixels} pixels or columns; got {got}")
    return checked


def _pearson(a: Tensor, b: Tensor, min_std_a: Tensor, min_std_b: Tensor) -> Tensor:
    """The correlation (N, S) of (N, S, K) over K; NaN where either varies less than by its rounding, (N,)."""
    a, b = a - a.mean(2, keepdim=True), b - b.mean(2, keepdim=True)
    std = a.square().mean(2).sqrt(), b.square().mean(2).sqrt()
    correlation = (a * b).mean(2) / (std[0] * std[1])
    is_constant = (std[0] <= min_std_a[:, None]) | (std[1] <= min_std_b[:, None])
    return correlation.clamp(-1, 1).masked_fill(is_constant, torch.nan)
