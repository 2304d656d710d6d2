"""Many linear classifiers of two classes at once, by kernel logistic regression: float64, no random numbers.

All fits share their examples, so that these are multiplied with one another once (the Gram matrix), whatever the number
of features; each fit then costs as much as a system of its own examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_NEWTON_ITERATIONS, MAX_LINE_SEARCH_HALVINGS = 50, 30  # Newton steps; halvings of one that would not lower the loss
TOLERANCE = 1e-9  # of the Newton decrement, in nats
SUFFICIENT_DECREASE, ROUNDING = 1e-4, 1e-14  # of the loss by a step, as a share of what its slope promises
MAX_BATCH_VALUES = 2**18  # of the fits' Gram matrices at a time, which stay in the cache
MIN_CURVATURE = 1e-12  # of an example's loss, so that the bias of separated classes stays determined


@dataclass(frozen=True, eq=False)
class BinaryClassifiers:
    """B classifiers, each of its own m of the M examples.

    Attributes:
        dual: (B, m) the weights (D,) of fit b are the sum of dual[b, i] times the features of its i-th example.
        bias: (B,)
        length: (B,) of the weights.
        held_out: (B, m) the logit of each example by the classifier without it (approximate leave-one-out).
    """

    dual: Tensor
    bias: Tensor
    length: Tensor
    held_out: Tensor


def fit_binary_classifiers(
    gram: Tensor, rows: Tensor, y: Tensor, l2: float, is_used: Tensor | None = None
) -> BinaryClassifiers:  # fmt: skip
    """Fit many classifiers: each minimizes its examples' mean cross-entropy + l2 v / 2 times the squared weights.

    v is the examples' variance, summed over features, so that l2 does not depend on the features' unit. The bias is
    free. It is scikit-learn's `LogisticRegression(C=1 / (l2 v m))`. With fewer examples than features this
    is the cheap way: Newton's method in the space of the examples (Rasmussen & Williams 2006, "Gaussian Processes for
    Machine Learning", algorithm 3.1, here with a bias).

    Args:
        gram: Products (M, M) of the features of all examples, float64.
        rows: (B, m) indices of each fit's examples.
        y: (m,) or (B, m), 1 for the examples of the first class and 0 for the others.
        l2: Penalty, above 0.
        is_used: (B, m) bool: examples that count; None: all of them.

    Returns:
        The classifiers.
    """
    y = y.to(gram).expand(rows.shape)
    is_used = torch.ones_like(rows, dtype=torch.bool) if is_used is None else is_used
    parts = [_fit_batch_of_classifiers(gram, rows[b], y[b], l2, is_used[b]) for b in _iter_batches(*rows.shape)]
    return BinaryClassifiers(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _iter_batches(n_fits: int, size: int) -> Iterator[slice]:
    step = max(1, MAX_BATCH_VALUES // size**2)
    return (slice(i, i + step) for i in range(0, n_fits, step))


def _fit_batch_of_classifiers(gram: Tensor, rows: Tensor, y: Tensor, l2: float, is_used: Tensor) -> tuple[Tensor, ...]:
    """Dual coefficients (B, m), biases (B,), lengths of the weights (B,) and held-out logits (B, m)."""
    share = is_used.to(gram) / is_used.sum(1, keepdim=True).clamp_min(1)  # (B, m) of the mean loss
    k, offset, penalty = _center_and_scale(gram[rows[:, :, None], rows[:, None, :]], share, l2)
    point = _NewtonIterate(torch.zeros_like(y), y.new_zeros(len(y)), torch.zeros_like(y))
    for _ in range(MAX_NEWTON_ITERATIONS):
        gradient, curvature = _loss_derivatives_in_logits(point.f, y, share)
        factor = _cholesky_factor(k, curvature)
        step = _quadratic_minimizer(k, factor, curvature, curvature * point.f - gradient).minus(point)
        slope = (gradient * step.f).sum(1) + (point.a * step.f).sum(1)  # (B,) of the loss along the step
        point = point.plus(step, _step_sizes(point, step, slope, y, share))
        if bool((-slope < TOLERANCE).all()):
            break
    dual = point.a / penalty[:, None]
    length = ((point.a * point.f).sum(1).clamp_min(0) / penalty).sqrt()
    return dual, point.bias - (offset * dual).sum(1), length, _leave_one_out_logits(k, point.f, y, share)


def _center_and_scale(k: Tensor, share: Tensor, l2: float) -> tuple[Tensor, Tensor, Tensor]:
    """The products (B, m, m) of centered features over the penalty, what was taken off, and the penalties (B,)."""
    means = _batched_matvec(k, share)  # (B, m)
    mean = (share * means).sum(1)
    variance = (share * k.diagonal(dim1=1, dim2=2)).sum(1) - mean
    penalty = l2 * torch.where(variance > 0, variance, 1.0)
    centered = k - means[:, :, None] - means[:, None, :] + mean[:, None, None]
    return centered / penalty[:, None, None], means, penalty


class _NewtonIterate(NamedTuple):
    """Classifiers of each fit: `a` is l2 times the dual coefficients, which sum to 0, and f = k a + bias the logits."""

    a: Tensor  # (B, m)
    bias: Tensor  # (B,)
    f: Tensor  # (B, m)

    def minus(self, other: _NewtonIterate) -> _NewtonIterate:
        return _NewtonIterate(self.a - other.a, self.bias - other.bias, self.f - other.f)

    def plus(self, step: _NewtonIterate, t: Tensor) -> _NewtonIterate:
        return _NewtonIterate(self.a + t[:, None] * step.a, self.bias + t * step.bias, self.f + t[:, None] * step.f)

    def loss(self, y: Tensor, share: Tensor) -> Tensor:
        """(B,) the mean cross-entropy and the penalty, which is a (k a) / 2."""
        return (share * (F.softplus(self.f) - y * self.f)).sum(1) + (self.a * self.f).sum(1) / 2


def _batched_matvec(k: Tensor, a: Tensor) -> Tensor:
    product: Tensor = (k @ a[:, :, None])[:, :, 0]
    return product


def _loss_derivatives_in_logits(f: Tensor, y: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Of the mean loss in the logits (B, m): gradient and curvature."""
    p = torch.sigmoid(f)
    return share * (p - y), share * (p * (1 - p)).clamp_min(MIN_CURVATURE)


def _cholesky_factor(k: Tensor, curvature: Tensor) -> Tensor:
    """The Cholesky factor of 1 + W^(1/2) k W^(1/2), (B, m, m)."""
    root = curvature.sqrt()
    b = root[:, :, None] * k * root[:, None, :]
    b.diagonal(dim1=1, dim2=2).add_(1)
    factor: Tensor = torch.linalg.cholesky(b)
    return factor


def _quadratic_minimizer(k: Tensor, factor: Tensor, curvature: Tensor, target: Tensor) -> _NewtonIterate:
    """What minimizes the loss's quadratic: (1 + W k) a = target - W bias, with sum(a) = 0."""
    root = curvature.sqrt()
    right = torch.stack([target, curvature], 2)  # (B, m, 2)
    inner = torch.cholesky_solve(root[:, :, None] * (k @ right), factor)
    u, v = (right - root[:, :, None] * inner).unbind(2)
    bias = u.sum(1) / v.sum(1).clamp_min(torch.finfo(v.dtype).tiny)
    a = u - bias[:, None] * v
    return _NewtonIterate(a, bias, _batched_matvec(k, a) + bias[:, None])


def _step_sizes(point: _NewtonIterate, step: _NewtonIterate, slope: Tensor, y: Tensor, share: Tensor) -> Tensor:
    """(B,) 1, or the first half, quarter, ... that lowers the loss as it should (Armijo)."""
    t, before = torch.ones_like(slope), point.loss(y, share)
    for _ in range(MAX_LINE_SEARCH_HALVINGS):
        is_too_long = point.plus(step, t).loss(y, share) > before + SUFFICIENT_DECREASE * t * slope + ROUNDING
        if not bool(is_too_long.any()):
            break
        t = torch.where(is_too_long, t / 2, t)
    return t


def _leave_one_out_logits(k: Tensor, f: Tensor, y: Tensor, share: Tensor) -> Tensor:
    """(B, m) by the classifier without the example: a Newton step from the fit with it (Rad & Maleki 2020)."""
    gradient, curvature = _loss_derivatives_in_logits(f, y, share)
    root = curvature.sqrt()
    half = torch.linalg.solve_triangular(_cholesky_factor(k, curvature), root[:, :, None] * k, upper=False)
    covariance = k - half.mT @ half  # (B, m, m) of the logits, by the quadratic at the fit, without the bias
    rest = 1 - _batched_matvec(covariance, curvature)
    of_bias = rest.square() / (curvature * rest).sum(1, keepdim=True).clamp_min(MIN_CURVATURE)
    variance = covariance.diagonal(dim1=1, dim2=2) + of_bias
    held_out: Tensor = f + gradient * variance / (1 - curvature * variance).clamp_min(MIN_CURVATURE)
    return held_out
