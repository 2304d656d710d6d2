"""Which units of a generator draw a concept: an optimized continuous mask over the units, or one unit after another.

Bau et al. 2019, "GAN Dissection", arXiv:1811.10597, section 3.2, equations 3 to 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import rng
from ._interventions import Interventions

PERTURBATION, START = 0.25, 0.5  # of the mask
LEARNING_RATE, MOMENTS = 0.1, (0.9, 0.99)
ENOUGH_REMOVED_AREA_SHARE = 0.8  # of the concept's pixels: no more units are taken
MAX_UNIT_SHARE = 0.5  # of the layer: more units are no explanation


@dataclass(frozen=True, eq=False)
class Effect:
    """The causal effect of units on a concept, per code, as a share of the concept's mean area.

    Its area with the units inserted (as much as there was, at most), minus that with the units ablated, minus the
    mean change of the concepts that are to stay, as a share of their areas.
    """

    interventions: Interventions
    concept: int
    others: Tensor  # (O,) indices of the concepts that are to stay
    value: Tensor  # (U,) what is inserted
    before: Tensor  # (N, K) areas
    mean_area: Tensor  # (K,)

    def __call__(self, strength: Tensor) -> Tensor:
        """(N,) for strengths (U,) or (N, U)."""
        ablated, inserted = (self.interventions.areas(strength, v) for v in (None, self.value))
        k, mean = self.concept, self.mean_area.clamp_min(1)
        effect = (torch.minimum(inserted[:, k], self.before[:, k]) - ablated[:, k]) / mean[k]
        if not len(self.others):
            return effect
        change = (ablated - self.before)[:, self.others].abs() / mean[self.others]
        return effect - change.mean(1)


def optimize_unit_mask(effect: Effect, n_units: int, steps: int, penalty: float, seed: int) -> Tensor:
    """The mask alpha (U,) in [0, 1] that maximizes the effect minus `penalty` times its norm.

    Its gradient is estimated by simultaneous perturbation (Spall 1992), with a direction of its own for each code, as
    masks of a segmenter need not be differentiable.
    """
    alpha = torch.full((n_units,), START, dtype=torch.float64)
    optimizer = torch.optim.Adam([alpha], LEARNING_RATE, MOMENTS)
    generator = rng.keyed_generator(rng.CPU, "causal units", seed)
    n = len(effect.before)
    for _ in range(steps):
        directions = 2 * torch.randint(2, (n, n_units), generator=generator).double() - 1
        up, down = ((alpha + sign * PERTURBATION * directions).clamp(0, 1) for sign in (1, -1))
        slope = (effect(up) - effect(down)) / (2 * PERTURBATION)  # (N,)
        alpha.grad = penalty * alpha / alpha.norm().clamp_min(1e-12) - (slope[:, None] * directions).mean(0)
        optimizer.step()
        alpha.clamp_(0, 1)
    alpha.grad = None
    return alpha


def greedy_unit_weights(effect: Effect, n_units: int, n_wanted: int) -> Tensor:
    """Weights (U,) of units that are added one after another, each the one with the largest effect then.

    The first has the weight 1, later ones less, the others 0.
    """
    chosen, weights = (torch.zeros(n_units, dtype=torch.float64) for _ in range(2))
    for i in range(n_wanted):
        effects = torch.full((n_units,), -torch.inf, dtype=torch.float64)
        for unit in (chosen == 0).nonzero().flatten().tolist():
            chosen[unit] = 1
            effects[unit] = effect(chosen).mean()
            chosen[unit] = 0
        best = int(effects.argmax())
        chosen[best], weights[best] = 1, 1 - i / n_wanted
    return weights


def n_enough_units(effect: Effect, order: Tensor) -> int:
    """The fewest units, in this order, that remove most of the concept; at most half of the layer.

    Where no number does, the one that removes the most.
    """
    n_units, before = len(effect.value), effect.before[:, effect.concept].sum().clamp_min(1)
    ablated, removed = torch.zeros(n_units, dtype=torch.float64), list[float]()
    for unit in order[: max(1, int(MAX_UNIT_SHARE * n_units))].tolist():
        ablated[unit] = 1
        removed.append(1 - float(effect.interventions.areas(ablated)[:, effect.concept].sum() / before))
        if removed[-1] >= ENOUGH_REMOVED_AREA_SHARE:
            break
    return max(range(len(removed)), key=removed.__getitem__) + 1
