"""How good outputs that are not one class per example are: errors of numbers, labels that are right, overlap of maps.

Each metric is computed from statistics of each example, so that it has an interval over examples, and so that the
examples of several attacks can be mixed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..box import Box
from ..engine.intervals import CONFIDENCE_LEVEL, Interval, proportion_interval
from ..engine.read.output_values import IGNORED_POSITION_LABEL, predicted_output_values
from .pooled_answers import Metric, bootstrap_interval_of_sums

EXACT_MATCH = "exact match"
ERROR_METRICS = ("MAE", "RMSE")  # the higher the worse; of the others the lower
N_POSITION_STATISTICS = 2  # of a label map: positions, correct positions; then hits and unions by class


def output_statistics(box: Box, logits: Tensor, values: Tensor) -> Tensor:
    """(N, S) of logits or outputs (N, K, ...) given the values that they should have.

    Of numbers: 1, the mean absolute and the mean squared error. Of labels: their number, how many are right, 1, and
    whether all are. Of label maps: positions and correct ones, then for each class the size of the intersection and
    of the union of what is labeled and what is predicted.
    """
    if box.outputs == "regression":
        error = (logits.double() - values.double()).flatten(1)
        return torch.stack([torch.ones_like(error[:, 0]), error.abs().mean(1), error.square().mean(1)], 1)
    predicted = predicted_output_values(box, logits)
    is_right = (predicted == values).flatten(1).double()  # (N, labels or positions)
    if box.outputs == "multilabel":
        one = torch.ones_like(is_right[:, 0])
        return torch.stack([is_right.shape[1] * one, is_right.sum(1), one, is_right.prod(1)], 1)
    return _map_statistics(predicted.flatten(1), values.flatten(1), logits.shape[1])


def _map_statistics(predicted: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """(N, 2 + 2 K) of classes (N, P)."""
    counted = labels != IGNORED_POSITION_LABEL
    hits = _class_counts(labels, counted & (predicted == labels), n_classes)
    either = _class_counts(labels, counted, n_classes) + _class_counts(predicted, counted, n_classes)
    totals = torch.stack([counted.sum(1).double(), hits.sum(1)], 1)
    return torch.cat([totals, hits, either - hits], 1)


def _class_counts(classes: Tensor, mask: Tensor, n_classes: int) -> Tensor:
    """(N, K) how often each class is in classes (N, P) where the mask is True."""
    n = len(classes)
    cell = torch.arange(n, device=classes.device)[:, None] * n_classes + classes
    return torch.bincount(cell[mask], minlength=n * n_classes).view(n, n_classes).double()


def example_errors(box: Box, statistics: Tensor) -> Tensor:
    """(N,) how wrong each example is: its mean squared error, or the share of labels or positions that are wrong."""
    return statistics[:, 2] if box.outputs == "regression" else 1 - statistics[:, 1] / statistics[:, 0]


def output_metrics(box: Box) -> Mapping[str, Metric]:
    """The metrics by name, functions of sums of `output_statistics` (B, S)."""
    if box.outputs == "regression":
        return {"MAE": lambda s: s[:, 1] / s[:, 0], "RMSE": lambda s: (s[:, 2] / s[:, 0]).sqrt()}
    accuracy_name = "label accuracy" if box.outputs == "multilabel" else "pixel accuracy"
    accuracy: dict[str, Metric] = {accuracy_name: lambda s: s[:, 1] / s[:, 0]}
    if box.outputs == "multilabel":
        return accuracy | {EXACT_MATCH: lambda s: s[:, 3] / s[:, 2]}
    return accuracy | {"mean IoU": _mean_iou}


def metric_intervals(box: Box, statistics: Tensor) -> dict[str, Interval]:
    """Each metric with its interval over the examples whose statistics (N, S) these are."""
    intervals = {name: bootstrap_interval_of_sums(statistics, metric) for name, metric in output_metrics(box).items()}
    if box.outputs == "multilabel":  # one yes or no per example, for which the bootstrap is not needed
        intervals[EXACT_MATCH] = proportion_interval(statistics[:, 3] > 0, CONFIDENCE_LEVEL)
    return intervals


def _mean_iou(sums: Tensor) -> Tensor:
    """The mean over the classes that occur, in labels or predictions."""
    hits, unions = sums[:, N_POSITION_STATISTICS:].chunk(2, 1)
    occurs = unions > 0
    return torch.where(occurs, hits / unions.clamp_min(1), 0).sum(1) / occurs.sum(1)
