"""How far the score in the page's title may be off on few examples: Wilson's interval of accuracies, else bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..engine.intervals import CONFIDENCE_LEVEL, Interval, bootstrap_counts, percentile_interval
from ..engine.proportion import Proportion
from .words import format_number, format_percent

if TYPE_CHECKING:
    from .survey import Survey

MIN_EXAMPLES_OF_INTERVAL = 5  # of which resamples differ enough
MIN_EXAMPLES_WITHOUT_INTERVAL = 1000  # from which it is narrow, and not printed


def accuracy_interval_text(s: Survey) -> str:
    """The 95 % interval of the accuracy on few examples, after the words that say how many."""
    if len(s.rows) >= MIN_EXAMPLES_WITHOUT_INTERVAL:
        return ""
    correct = Proportion(len(s.rows) - len(s.misclassified), len(s.rows))
    low, high = map(format_percent, correct.wilson_interval)
    return f"; 95% interval of the accuracy {low} to {high}"


def score_interval_text(s: Survey, outputs: str, seed: int) -> str:
    """As that of the accuracy, of another score in the title."""
    if len(s.rows) >= MIN_EXAMPLES_WITHOUT_INTERVAL:
        return ""
    interval = title_score_interval(s, outputs, seed)
    if interval is None:
        return ""
    name = NAME_BY_SCORE[_title_score(s, outputs)]
    return f"; 95% interval of the {name} {format_number(interval.low)} to {format_number(interval.high)}"


def title_score_interval(s: Survey, outputs: str, seed: int) -> Interval | None:
    """The 95 % interval over examples of the score in the title, of models with true values; else None."""
    n = len(s.rows)
    if s.targets is None or n < MIN_EXAMPLES_OF_INTERVAL:
        return None
    score = _title_score(s, outputs)
    weights = torch.cat([torch.ones(1, n, dtype=torch.float64), bootstrap_counts(n, seed, "examples")])
    value, *_ = values = score(weights, s.outputs.double(), s.targets.double())
    resampled = values[1:][values[1:].isfinite()]
    if not math.isfinite(float(value)) or not len(resampled):
        return None
    return percentile_interval(float(value), resampled, n, 1, CONFIDENCE_LEVEL)


def _title_score(s: Survey, outputs: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    if outputs != "regression":
        return mean_average_precision
    return mean_absolute_error if len(s.classes) == 1 else mean_r2


def mean_absolute_error(weights: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    """(B,) of examples that count as often as `weights` (B, n) say, given (n, 1) and (n, 1)."""
    return (weights @ (predicted - true).abs())[:, 0] / weights.sum(1)


def mean_r2(weights: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    """(B,) the mean of the coefficients of determination of outputs that vary, given (n, K) and (n, K)."""
    centered = true - true.mean(0)  # the same variance, without cancellation
    n = weights.sum(1, keepdim=True)
    variance = weights @ centered.square() / n - (weights @ centered / n).square()  # (B, K)
    r2 = 1 - weights @ (predicted - true).square() / n / variance.clamp(min=1e-300)
    return r2.masked_fill(variance <= 0, math.nan).nanmean(1)


def mean_average_precision(weights: Tensor, probs: Tensor, true: Tensor) -> Tensor:
    """(B,) the mean over labels that some example has, given (n, K) and zeros and ones (n, K)."""
    columns = zip(probs.T, true.T, strict=True)
    return torch.stack([_average_precision(weights, p, y) for p, y in columns], 1).nanmean(1)


def _average_precision(weights: Tensor, p: Tensor, is_positive: Tensor) -> Tensor:
    """(B,) as `scores.average_precision`; NaN where no example counts that has the label."""
    order = p.argsort(descending=True, stable=True)
    is_last = torch.cat([p[order][1:] != p[order][:-1], torch.ones(1, dtype=torch.bool)])  # ties share a threshold
    taken = weights[:, order].cumsum(1)[:, is_last]
    hits = (weights[:, order] * is_positive[order]).cumsum(1)[:, is_last]  # (B, thresholds)
    gained = hits.diff(dim=1, prepend=hits.new_zeros(len(hits), 1))
    total = hits[:, -1:]
    precision = hits / taken.clamp(min=1)
    return torch.where(total[:, 0] > 0, (gained * precision).sum(1) / total[:, 0], math.nan)


NAME_BY_SCORE: dict[Callable[[Tensor, Tensor, Tensor], Tensor], str] = {
    mean_absolute_error: "mean absolute error",
    mean_r2: "mean R²",
    mean_average_precision: "mean average precision",
}
