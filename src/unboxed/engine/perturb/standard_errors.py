"""Standard errors of weighted linear fits to few samples: the jackknife over clusters of samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..rows import broadcast_rows

MIN_ONE_MINUS_LEVERAGE = 0.02  # 1 - leverage of a cluster; below, it alone determines a direction


@dataclass(frozen=True, eq=False)
class WeightedFit:
    """The solution `solve` @ h' (weight response) of a weighted linear fit, to samples in clusters of one or two."""

    design: Tensor  # (K, P)
    weight: Tensor  # (K,)
    response: Tensor  # (K,) the fitted values' target, less its mean
    residual: Tensor  # (K,)
    inverse_gram: Tensor  # (P, P)
    cluster: Tensor  # (K,) in order; -1: listed, without sampling error
    intercept_leverage: float = 0.0  # what an intercept adds to the leverage


def standard_errors(fit: WeightedFit, strata: Tensor | None = None, extra_gradient: Tensor | None = None) -> Tensor:
    """Standard errors (P,) of the fit.

    The jackknife over clusters in its closed form (Efron 1979; CR3 of Bell & McCaffrey 2002): each cluster's residuals
    are those of a fit without it, so that a fit that follows its few samples closely does not look certain. Where the
    other clusters do not determine a direction, all of a cluster's response counts as residual. `strata` (K,) are
    groups with fixed numbers of clusters, whose means have no sampling error. `extra_gradient` (K, P) is added to the
    gradient.
    """
    is_sampled = fit.cluster >= 0
    if not bool(is_sampled.any()):
        return fit.design.new_zeros(fit.design.shape[1])
    cluster_index = fit.cluster[is_sampled]
    slot = torch.arange(len(cluster_index)) - torch.searchsorted(cluster_index, cluster_index)  # in its cluster: 0, 1
    n_clusters = int(cluster_index.max()) + 1

    def stack_cluster_pairs(values: Tensor) -> Tensor:
        """(C, 2, ...), times the root of the weights; zero where a cluster has one."""
        rooted = broadcast_rows(fit.weight[is_sampled].sqrt(), values) * values[is_sampled]
        return values.new_zeros(n_clusters, 2, *values.shape[1:]).index_put((cluster_index, slot), rooted)

    u, root = stack_cluster_pairs(fit.design), stack_cluster_pairs(torch.ones_like(fit.weight))
    leverage = u @ fit.inverse_gram @ u.mT + fit.intercept_leverage * root[:, :, None] * root[:, None]  # (C, 2, 2)
    remaining, axes = torch.linalg.eigh(torch.eye(2, dtype=u.dtype) - leverage)
    # (C, 2)
    residual_part, response_part = (
        (axes.mT @ stack_cluster_pairs(h)[:, :, None])[:, :, 0] for h in (fit.residual, fit.response)
    )
    left_out_residual = torch.where(
        remaining > MIN_ONE_MINUS_LEVERAGE, residual_part / remaining.clamp(min=MIN_ONE_MINUS_LEVERAGE), response_part
    )
    gradients = (u * (axes @ left_out_residual[:, :, None])).sum(1)
    if extra_gradient is not None:
        gradients = gradients.index_add(0, cluster_index, extra_gradient[is_sampled])
    stratum = (
        cluster_index.new_zeros(n_clusters)
        if strata is None
        else strata.new_zeros(n_clusters).index_put((cluster_index,), strata[is_sampled])
    )
    return (_center_in_strata(gradients, stratum) @ fit.inverse_gram).square().sum(0).sqrt()


def _center_in_strata(g: Tensor, stratum: Tensor) -> Tensor:
    """g (C, P) less its group's mean, rescaled for the degree of freedom; for a group of one, the overall mean."""
    if len(g) == 1:
        return g
    _, stratum_index, count = torch.unique(stratum, return_inverse=True, return_counts=True)
    means = g.new_zeros(len(count), g.shape[1]).index_add_(0, stratum_index, g) / count[:, None]
    is_shared_stratum, n = (count > 1)[stratum_index, None], count[stratum_index, None].to(g)
    correction = torch.where(is_shared_stratum, n / (n - 1).clamp(min=1), len(g) / max(1, len(g) - 1))
    return (g - torch.where(is_shared_stratum, means[stratum_index], g.mean(0))) * correction.sqrt()
