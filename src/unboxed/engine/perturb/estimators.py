"""Shapley values from the scores of masks, in double precision, on the CPU, one row at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .masks import SampledMasks, all_subset_masks
from .standard_errors import WeightedFit, standard_errors


def set_rounding_noise_to_zero(changes: Tensor, scores: Tensor, eps: float, dim: int = -1) -> Tensor:
    """Changes of scores, exactly zero where all of those along `dim` are no more than the rounding of the scores."""
    bound = 8 * eps * scores.abs().max()
    return torch.where((changes.abs() <= bound).all(dim, keepdim=True), 0.0, changes)


# -- Shapley values ----------------------------------------------------------------------------------------------------


def exact_shapley(subset_scores: Tensor, eps: float) -> Tensor:
    """Shapley values (A,) of the scores v (2^A,) of all subsets, in the order of `masks.all_subset_masks`.

    Shapley 1953: the mean over all orders of what a segment adds to those before it.
    """
    n_features = len(subset_scores).bit_length() - 1
    if n_features == 0:
        return subset_scores.new_zeros(0)
    subsets = all_subset_masks(n_features)
    subset_index, size = torch.arange(2**n_features), subsets.sum(1)
    weight = torch.tensor(
        [1 / (n_features * math.comb(n_features - 1, s)) for s in range(n_features)], dtype=subset_scores.dtype
    )
    values = []
    for i in range(n_features):
        without = subset_index[~subsets[:, i]]
        added = set_rounding_noise_to_zero(subset_scores[without + 2**i] - subset_scores[without], subset_scores, eps)
        values.append((weight[size[without]] * added).sum())
    return torch.stack(values)


def kernel_shapley(sampled: SampledMasks, y: Tensor, empty_score: float, full_score: float) -> tuple[Tensor, Tensor]:
    """Shapley values (A,) by weighted least squares, and their standard errors; they sum to full_score - empty_score.

    Lundberg & Lee 2017, theorem 2, the constraint eliminated by its Lagrange multiplier (Covert & Lee 2021, eq. 7).
    """
    z, w = sampled.float_masks, sampled.weight[:, None]
    ones = z.new_ones(z.shape[1])
    inverse = torch.linalg.pinv(z.T @ (w * z), hermitian=True)
    row_sums = inverse @ ones
    phi = inverse @ (z.T @ (w[:, 0] * (y - empty_score)))
    phi = phi - row_sums * ((phi.sum() - (full_score - empty_score)) / row_sums.sum())
    project = inverse - row_sums[:, None] * row_sums / row_sums.sum()
    size = z.sum(1).long()
    strata = torch.minimum(size, z.shape[1] - size)  # sizes of a pair are fixed by the design, not random
    # less what follows from the sum of all, which is known
    centered = y - empty_score - z.mean(1) * (full_score - empty_score)
    fit = WeightedFit(z, sampled.weight, centered, y - empty_score - z @ phi, project, sampled.cluster)
    return phi, standard_errors(fit, strata)
