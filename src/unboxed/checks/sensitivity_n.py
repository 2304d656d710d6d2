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
from ..validation import check_seed, whole
from .perturbing import Score, Target, cells, drawn, fixed, importance, plain, scores

SIZES = 10
LARGEST = 0.8  # of the pixels, by default


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
    x = box.accept(x)
    relevance = importance(box, x, maps)  # (N, P)
    many, seed = whole("n_samples", n_samples, least=2), check_seed(seed)
    n = torch.tensor(_sizes(sizes, relevance.shape[1]), device=x.device)
    gone = baseline_of(box, x, baseline, seed=seed)
    objective, _ = fixed(box, x, target, score, "logit", batch_size)

    def points(examples: Tensor, ways: Tensor) -> list[Tensor]:
        order = drawn(torch.rand, relevance.shape[1:], x, seed, examples, ways).argsort(1)  # (R, P)
        chosen = torch.arange(order.shape[1], device=x.device) < n[ways // many, None]  # the first n of each order
        removed = torch.zeros_like(chosen).scatter(1, order, chosen)
        at = torch.where(removed.view(-1, *cells(box)), gone[examples], x[examples])
        return [at, (relevance[examples] * removed).sum(1)]

    found, sums = scores(box, objective, len(x), len(n) * many, points, batch_size)
    drops = plain(box, objective, x, batch_size)[:, None] - found
    rounding = 1e-12 * relevance.abs().sum(1), torch.finfo(box.model_dtype).eps * found.abs().amax(1)
    shape = len(x), len(n), many
    return SensitivityN(n, _pearson(sums.view(shape), drops.view(shape), *rounding).to(box.dtype))


def _sizes(sizes: Sequence[int] | None, pixels: int) -> list[int]:
    """Raises InputError for a size below 1, or of all pixels: then there is but one set."""
    if sizes is None:
        even = torch.logspace(0, math.log10(max(1.0, LARGEST * pixels)), SIZES, dtype=torch.float64)
        sizes = sorted({int(n) for n in even.round()})
    found = [whole("a size", n, least=1) for n in sizes]
    if not found or max(found) >= pixels:
        got = f"up to {max(found)}" if found else "none"
        raise InputError(f"sizes lie between 1 and {pixels - 1}, for there are {pixels} pixels or columns; got {got}")
    return found


def _pearson(a: Tensor, b: Tensor, least_a: Tensor, least_b: Tensor) -> Tensor:
    """The correlation (N, S) of (N, S, K) over K; NaN where either varies less than by its rounding, (N,)."""
    a, b = a - a.mean(2, keepdim=True), b - b.mean(2, keepdim=True)
    spread = a.square().mean(2).sqrt(), b.square().mean(2).sqrt()
    found = (a * b).mean(2) / (spread[0] * spread[1])
    still = (spread[0] <= least_a[:, None]) | (spread[1] <= least_b[:, None])
    return found.clamp(-1, 1).masked_fill(still, torch.nan)
