"""Correlations: of the values of rows (Pearson) and of their ranks (Spearman); of two orders (Kendall)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation (N,) of a (N, ...) with b; equal values share the mean of their ranks."""
    return pearson(ranks(a), ranks(b))


def ranks(values: Tensor) -> Tensor:
    """Ranks from 1 within each row, (N, D) of (N, ...); ties have the mean of theirs, and rows with a NaN are NaN."""
    values = values.flatten(1)
    ordered, order = values.sort(1)
    is_new = torch.ones_like(order)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    group = is_new.cumsum(1) - 1  # (N, D) which run of equal values
    positions = torch.arange(1, values.shape[1] + 1, dtype=torch.float64, device=values.device).expand(values.shape)
    total = torch.zeros(values.shape, dtype=torch.float64, device=values.device).scatter_add_(1, group, positions)
    count = torch.zeros_like(total).scatter_add_(1, group, torch.ones_like(positions))
    mean = total.gather(1, group) / count.gather(1, group)
    ranked = torch.empty_like(mean).scatter_(1, order, mean)
    return torch.where(values.isfinite().all(1, keepdim=True), ranked, torch.nan)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation (N,) of a (N, ...) with b; NaN where either is constant."""
    a, b = (h.flatten(1).double() for h in (a, b))
    constant = (a == a[:, :1]).all(1) | (b == b[:, :1]).all(1)
    a, b = (h - h.mean(1, keepdim=True) for h in (a, b))
    r = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return torch.where(constant, torch.nan, r.clamp(-1, 1))


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b of two sequences of as many values; NaN where either is constant."""
    x, y = (torch.tensor(h, dtype=torch.float64) for h in (a, b))
    x, y = (torch.sign(h[:, None] - h) for h in (x, y))  # of each pair, which is larger
    return float((x * y).sum() / torch.sqrt(x.abs().sum() * y.abs().sum()))
