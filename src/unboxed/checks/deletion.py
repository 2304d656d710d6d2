"""Deletion and insertion: how soon does the score fall, or rise, when pixels go, or come, in a map's order?

Petsiuk et al. 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models", arXiv:1806.07421, its causal
metrics (and the authors' code, `evaluation.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..engine.perturb.baselines import Baseline
from ..engine.perturb.baselines import baseline as baseline_of
from ..errors import InputError
from ..inputs.pixels import Pixels
from ..model.batching import BatchSize
from ..validation import check_int, check_seed
from .perturbing import Score, Target, feature_shape, importance, perturbed_scores, rank_descending, resolve_score

DEFAULT_STEPS = 50


@dataclass(frozen=True, eq=False)
class PerturbationCurve:
    """A score while pixels are deleted or inserted, the most important ones first."""

    fractions: Tensor  # (S + 1,) of the pixels changed, from 0 to 1
    curve: Tensor  # (N, S + 1)

    @property
    def auc(self) -> Tensor:
        """The area under each curve (N,) by the trapezoid rule, over fractions: the score's mean along the way."""
        return torch.trapezoid(self.curve.double(), self.fractions.double(), dim=1).to(self.curve.dtype)


def deletion(
    box: Box,
    x: Any,
    maps: Any,
    target: Target = None,
    *,
    score: Score | None = None,
    n_steps: int | None = None,
    baseline: Baseline = None,
    signed: bool = True,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> PerturbationCurve:
    """The score of x while its pixels become those of `baseline`, most important first: a low `.auc` is good.

    `maps` are (N, C or 1, H, W), or (N, F) for features, or a result that holds them. A pixel's importance is its map
    summed over channels with its sign (`signed=False`: by magnitude); all its channels go at once. Equal ones go in an
    order drawn from `seed` for each row, which favors no position. The score is the probability of the target, None
    being the class predicted for x as it is (`score="logit"`, or an objective as target: that). In `n_steps` equal
    steps (by default 50, or one a pixel where there are fewer). `baseline` is black by default; "mean" is what the
    authors' code takes (zero after normalization). Compare with the curve of `random_maps`.
    Raises InputError for maps that don't fit x, OutputError for probabilities of a regression model.
    """
    x, seed = box.validate_inputs(x), check_seed(seed)
    baseline_x = baseline_of(box, x, baseline, seed=seed)
    return _perturbation_curve(box, x, x, baseline_x, maps, target, score, n_steps, signed, seed, batch_size)


def insertion(
    box: Box,
    x: Any,
    maps: Any,
    target: Target = None,
    *,
    score: Score | None = None,
    n_steps: int | None = None,
    baseline: Baseline = None,
    signed: bool = True,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> PerturbationCurve:
    """The score while the pixels of x come back into `baseline`, most important first: a high `.auc` is good.

    `baseline` is by default x blurred, as in the paper (by a tenth of its shorter side, so that little can be read from
    it; the authors' code blurs photos of 224 pixels by 5), or the mean of features. All else is as in `deletion`.
    """
    x, seed = box.validate_inputs(x), check_seed(seed)
    blurred = "blurred" if isinstance(box.inputs, Pixels) else None
    start = baseline_of(box, x, blurred if baseline is None else baseline, seed=seed)
    return _perturbation_curve(box, x, start, x, maps, target, score, n_steps, signed, seed, batch_size)


def _perturbation_curve(
    box: Box, x: Tensor, start: Tensor, end: Tensor, maps: Any, target: Target, score: Score | None,
    n_steps: int | None, signed: bool, seed: int, batch_size: BatchSize,
) -> PerturbationCurve:  # fmt: skip
    rank = rank_descending(importance(box, x, maps, signed=signed), seed)  # (N, P)
    counts = _pixel_counts(rank.shape[1], n_steps).to(x.device)  # (S + 1,)
    objective, _ = resolve_score(box, x, target, score, "probability", batch_size)

    def perturb(examples: Tensor, steps: Tensor) -> list[Tensor]:
        changed = rank[examples] < counts[steps, None]  # (R, P)
        return [torch.where(changed.view(-1, *feature_shape(box)), end[examples], start[examples])]

    (curve,) = perturbed_scores(box, objective, len(x), len(counts), perturb, batch_size)
    return PerturbationCurve((counts / rank.shape[1]).to(box.dtype), curve.to(box.dtype))


def _pixel_counts(pixels: int, n_steps: int | None) -> Tensor:
    """How many pixels are changed after each step, 0 to all of them, (S + 1,). Raises InputError."""
    n_steps = min(DEFAULT_STEPS, pixels) if n_steps is None else check_int("n_steps", n_steps, minimum=1)
    if n_steps > pixels:
        raise InputError(f"n_steps is at most one a pixel or column, {pixels}; got {n_steps}")
    return torch.linspace(0, pixels, n_steps + 1, dtype=torch.float64).round().long()
