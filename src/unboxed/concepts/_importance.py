"""How much each concept decides: total Sobol indices of the score, and its derivative.

Sobol 1993, total indices by Jansen 1999, "Analysis of variance designs for model output", equation 9 in Fel et al.
2023, "CRAFT", arXiv:2211.10154, section 3.3. Concepts are masked in the layer, so that only what follows it runs again.
Intervals are bootstrapped over masks, too, as Archer, Saltelli & Sobol 1997, "Sensitivity measures, ANOVA-like
techniques and the use of bootstrap", do: all examples share the masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from .. import rng
from ..box import Box
from ..engine.gradients.edited import call_with_edited_activations
from ..engine.gradients.score import score_gradients
from ..engine.intervals import GRADING_LEVEL, Interval, bootstrap_counts, bootstrap_mean_interval, percentile_interval
from ..engine.linear.factors import Factors
from ..engine.read.edited_runs import run_variants
from ..engine.read.unit_rows import UnitRowLayout
from ..model.batching import BatchSize, map_in_batches
from ..model.hooks import Acts, Edit
from ..objectives import Objective

ROUNDING = 1e-6  # of the largest score: one that varies by less does not vary


@dataclass(frozen=True, eq=False)
class ConceptAmounts:
    """The amounts (M, P, K) of each concept in examples x (M, ...), at each position of a layer."""

    box: Box
    layer: UnitRowLayout
    factors: Factors
    x: Tensor
    amounts: Tensor
    batch_size: BatchSize

    def edit(self, examples: Tensor | slice, masks: Tensor) -> Edit:
        """The layer rebuilt from these examples' concepts, each times its mask (R, K)."""

        def rebuild(h: Tensor) -> Tensor:
            return self.layer.activations(self.factors.decode(self.amounts[examples] * masks[:, None]), h)

        return rebuild

    def scores(self, objective: Objective, masks: Tensor) -> Tensor:
        """The score (M, V) of each example under each of the masks (V, K)."""

        def make_edits(examples: Tensor, variants: Tensor) -> Mapping[str, Edit]:
            return {self.layer.address: self.edit(examples, masks[variants])}

        run = run_variants(
            self.box, self.x, objective, make_edits, len(masks), logits=False, batch_size=self.batch_size
        )
        return run.score.double()

    def importance(self, objective: Objective, n_masks: int, seed: int) -> tuple[Interval, ...]:
        """The mean total Sobol index of each of the K concepts, in n_masks (K + 2) evaluations per example."""
        a, b, mixed = sobol_masks(n_masks, self.amounts.shape[-1], seed)
        scores = self.scores(objective, torch.cat([a, b, mixed.flatten(0, 1)]).to(self.amounts)).cpu()
        rest = scores[:, 2 * n_masks :].view(len(scores), n_masks, -1)
        return total_index_intervals(scores[:, :n_masks], scores[:, n_masks : 2 * n_masks], rest, seed)

    def sensitivities(self, objective: Objective) -> Tensor:
        """The derivative (M, K) of the score in each concept's mask, at 1: what a bit more of it would change."""

        def part(rows: slice) -> Tensor:
            with self.box.isolated():
                masks = torch.ones_like(self.amounts[rows, 0]).requires_grad_()
                edits = {self.layer.address: self.edit(rows, masks)}

                def gradient(acts: Acts) -> Tensor:
                    score = objective.rows(rows)(acts)
                    return score_gradients(score, acts, objective, [masks], relu_bypass="no")[0][0]

                return call_with_edited_activations(self.box, self.x[rows], objective.layers, edits, gradient)

        return torch.cat(
            map_in_batches(part, len(self.x), *self.box.batch_size_and_max_rows(len(self.x), self.batch_size))
        )


def sobol_masks(n: int, n_concepts: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two samples of masks A and B (n, K), uniform in [0, 1], and (n, K, K): A with its k-th column from B."""
    engine = SobolEngine(2 * n_concepts, scramble=True, seed=rng.derive_seed("Sobol", seed))  # type: ignore[no-untyped-call]
    draws: Tensor = engine.draw(n, dtype=torch.float64)
    a, b = draws[:, :n_concepts], draws[:, n_concepts:]
    is_swapped = torch.eye(n_concepts, dtype=torch.bool)
    return a, b, torch.where(is_swapped, b[:, None], a[:, None])


def jansen_total_indices(a: Tensor, b: Tensor, mixed: Tensor) -> Tensor:
    """Total indices (M, K) of scores of A (M, n), of B (M, n) and of A with one column from B (M, n, K).

    The mean squared change by a column, halved, as a share of the score's variance; 0 where the score never changes.
    """
    halves, squares = (a[..., None] - mixed).square().mean(1) / 2, _squared_deviations(a, b).mean(1, keepdim=True)
    return _ratio_or_zero(halves, squares)


def total_index_intervals(a: Tensor, b: Tensor, mixed: Tensor, seed: int) -> tuple[Interval, ...]:
    """The mean over M examples of each total index, with its interval over examples and masks.

    Masks count as independent draws; the points of a Sobol sequence, which they are, leave less noise than that.
    """
    (m, n), indices = a.shape, jansen_total_indices(a, b, mixed)  # (M, K)
    if m == 1:  # nothing says how examples differ
        return tuple(bootstrap_mean_interval(h[:, None]) for h in indices.T)
    examples, masks = (bootstrap_counts(size, seed, name) / size for size, name in ((m, "examples"), (n, "masks")))
    squares = masks @ _squared_deviations(a, b).T  # (B, M)
    halves = ((a[..., None] - mixed).square() / 2).unbind(2)  # K of (M, n)
    resampled = [(examples * _ratio_or_zero(masks @ h.T, squares)).sum(1) for h in halves]
    means = indices.mean(0).tolist()
    intervals = [
        percentile_interval(mean, h, min(m, n), n, GRADING_LEVEL) for mean, h in zip(means, resampled, strict=True)
    ]
    return tuple(replace(i, high=max(i.mean, min(i.high, 1.0)), n_examples=m) for i in intervals)  # no index is above 1


def _squared_deviations(a: Tensor, b: Tensor) -> Tensor:
    """(M, n) of both samples from their mean, on average over the two; 0 where the score does not vary."""
    scores = torch.cat([a, b], 1)
    mean, rounding = scores.mean(1, keepdim=True), ROUNDING * scores.abs().amax(1, keepdim=True)
    varies = scores.var(1, correction=0, keepdim=True) > rounding.square()
    return torch.where(varies, ((a - mean).square() + (b - mean).square()) / 2, 0.0)


def _ratio_or_zero(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator.clamp_min(torch.finfo(numerator.dtype).tiny), 0.0)
