"""The answers of models that give several per example: one for each label, or for each position of a label map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..box import Box
from ..engine.intervals import CONFIDENCE_LEVEL, Interval, bootstrap_counts, percentile_interval
from ..engine.read.output_values import IGNORED_POSITION_LABEL

Metric = Callable[[Tensor], Tensor]  # sums of statistics (B, S) -> (B,)
MAX_BOOTSTRAP_GROUPS = 5_000  # of examples that are resampled together, where there are more examples


class PooledAnswers(NamedTuple):
    """All answers of N examples, each a choice of one class."""

    logits: Tensor  # (M, K): of a label, "no" and "yes"
    y: Tensor  # (M,) the correct classes
    example: Tensor  # (M,) whose answer it is
    position: Tensor  # (M,) of the label, or of the position in the flattened map


def pooled_answers(box: Box, logits: Tensor, values: Tensor) -> PooledAnswers:
    """The answers in logits (N, K, ...), given the values that they should have; unlabeled positions are left out."""
    if box.outputs == "multilabel":  # a label that is on has the logit z against 0
        answers, y = torch.stack([torch.zeros_like(logits), logits], -1).flatten(1, -2), values.flatten(1).long()
    else:
        answers, y = logits.flatten(2).movedim(1, 2), values.flatten(1)
    example, position = (y != IGNORED_POSITION_LABEL).nonzero(as_tuple=True)
    return PooledAnswers(answers[example, position], y[example, position], example, position)


def bootstrap_interval_of_sums(statistics: Tensor, metric: Metric, seed: int = 0) -> Interval:
    """A metric of the sum of statistics (N, S), one row per example, with its 95% interval over examples.

    `metric` takes sums (B, S). Examples are resampled as a whole: the answers of one are not independent.
    """
    statistics = statistics.double().cpu()
    n = len(statistics)
    value = float(metric(statistics.sum(0, keepdim=True))[0])
    if n < 2:
        return Interval(value, -torch.inf, torch.inf, n, 1, CONFIDENCE_LEVEL)
    n_groups = min(n, MAX_BOOTSTRAP_GROUPS)
    groups = statistics.new_zeros(n_groups, statistics.shape[1])
    groups.index_add_(0, torch.arange(n) % n_groups, statistics)
    resampled = metric(bootstrap_counts(n_groups, seed, "examples") @ groups)
    interval = percentile_interval(value, resampled[resampled.isfinite()], n_groups, 1, CONFIDENCE_LEVEL)
    return replace(interval, n_examples=n)
