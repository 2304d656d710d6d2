"""Standard errors of weighted linear fits on few draws: what leaving one cluster of draws out would change."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST = 0.02  # of itself that a cluster must leave to the others: below, it alone holds up a direction


@dataclass(frozen=True, eq=False)
class Fit:
    """The solution `solve` @ h' (weight response) of a weighted linear fit, on draws in clusters of one or two."""

    h: Tensor  # (K, P)
    weight: Tensor  # (K,)
    response: Tensor  # (K,) what was fitted, less its mean
    residual: Tensor  # (K,)
    solve: Tensor  # (P, P)
    cluster: Tensor  # (K,) in order; -1: listed, without an error of sampling
    intercept: float = 0.0  # what a constant beside h adds to the leverage


def standard_errors(fit: Fit, strata: Tensor | None = None, extra: Tensor | None = None) -> Tensor:
    """Standard errors (P,) of the fit.

    The jackknife over clusters in its closed form (Efron 1979; CR3 of Bell & McCaffrey 2002): each cluster's residuals
    are those of a fit without it, so that a fit that follows its few draws closely does not pass for a sure one. Where
    the others say nothing of what a cluster shows, all of its response counts as residual. `strata` (K,) are groups
    whose numbers of clusters are not left to chance, and so their means are not. `extra` (K, P) is added to the
    gradient.
    """
    drawn = fit.cluster >= 0
    if not bool(drawn.any()):
        return fit.h.new_zeros(fit.h.shape[1])
    at = fit.cluster[drawn]
    beside = torch.arange(len(at)) - torch.searchsorted(at, at)  # the place in its cluster: 0 or 1
    count = int(at.max()) + 1

    def paired(values: Tensor) -> Tensor:
        """(C, 2, ...), times the root of the weights; zero where a cluster has one."""
        rooted = fit.weight[drawn].sqrt().view(-1, *[1] * (values.ndim - 1)) * values[drawn]
        return values.new_zeros(count, 2, *values.shape[1:]).index_put((at, beside), rooted)

    u, root = paired(fit.h), paired(torch.ones_like(fit.weight))
    leverage = u @ fit.solve @ u.mT + fit.intercept * root[:, :, None] * root[:, None]  # (C, 2, 2)
    left, axes = torch.linalg.eigh(torch.eye(2, dtype=u.dtype) - leverage)
    along, all_of_it = ((axes.mT @ paired(h)[:, :, None])[:, :, 0] for h in (fit.residual, fit.response))  # (C, 2)
    without = torch.where(left > LEAST, along / left.clamp(min=LEAST), all_of_it)
    g = (u * (axes @ without[:, :, None])).sum(1)
    if extra is not None:
        g = g.index_add(0, at, extra[drawn])
    of = at.new_zeros(count) if strata is None else strata.new_zeros(count).index_put((at,), strata[drawn])
    return (_spread(g, of) @ fit.solve).square().sum(0).sqrt()


def _spread(g: Tensor, of: Tensor) -> Tensor:
    """g (C, P) less the mean of each row's group, enlarged by what that takes; of a group of one, less that of all."""
    if len(g) == 1:
        return g
    _, at, count = torch.unique(of, return_inverse=True, return_counts=True)
    means = g.new_zeros(len(count), g.shape[1]).index_add_(0, at, g) / count[:, None]
    of_own, n = (count > 1)[at, None], count[at, None].to(g)
    enlarged = torch.where(of_own, n / (n - 1).clamp(min=1), len(g) / max(1, len(g) - 1))
    return (g - torch.where(of_own, means[at], g.mean(0))) * enlarged.sqrt()
