"""How much each concept decides: total Sobol indices of the score, and its derivative.

Sobol 1993, total indices by Jansen 1999, "Analysis of variance designs for model output", equation 9 in Fel et al.
2023, "CRAFT", arXiv:2211.10154, section 3.3. Concepts are masked in the layer, so that only what follows it runs again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from .. import rng
from ..box import Box
from ..engine.gradients.edited import forward_then
from ..engine.gradients.score import score_gradients
from ..engine.linear.factors import Factors
from ..engine.read.edited_runs import run_variants
from ..engine.read.unit_rows import UnitRows
from ..model.batching import BatchSize, map_in_batches
from ..model.hooks import Acts, Edit
from ..objectives import Objective

ROUNDING = 1e-6  # of the largest score: one that varies by less does not vary


@dataclass(frozen=True, eq=False)
class ConceptAmounts:
    """The amounts (M, P, K) of each concept in examples x (M, ...), at each position of a layer."""

    box: Box
    layer: UnitRows
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

    def total_indices(self, objective: Objective, n_masks: int, seed: int) -> Tensor:
        """The total Sobol index (M, K) of each concept in each example's score, in n_masks (K + 2) evaluations."""
        a, b, mixed = sobol_masks(n_masks, self.amounts.shape[-1], seed)
        scores = self.scores(objective, torch.cat([a, b, mixed.flatten(0, 1)]).to(self.amounts))
        rest = scores[:, 2 * n_masks :].view(len(scores), n_masks, -1)
        return jansen_total_indices(scores[:, :n_masks], scores[:, n_masks : 2 * n_masks], rest)

    def sensitivities(self, objective: Objective) -> Tensor:
        """The derivative (M, K) of the score in each concept's mask, at 1: what a bit more of it would change."""

        def part(rows: slice) -> Tensor:
            with self.box.isolated():
                masks = torch.ones_like(self.amounts[rows, 0]).requires_grad_()
                edits = {self.layer.address: self.edit(rows, masks)}

                def gradient(acts: Acts) -> Tensor:
                    score = objective.rows(rows)(acts)
                    return score_gradients(score, acts, objective, [masks], relu_bypass="no")[0][0]

                return forward_then(self.box, self.x[rows], objective.layers, edits, gradient)

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
    scores = torch.cat([a, b], 1)
    variance, rounding = scores.var(1, correction=0)[:, None], ROUNDING * scores.abs().amax(1, keepdim=True)
    halves = (a[..., None] - mixed).square().mean(1) / 2
    return torch.where(variance > rounding.square(), halves / variance.clamp_min(torch.finfo(a.dtype).tiny), 0.0)
