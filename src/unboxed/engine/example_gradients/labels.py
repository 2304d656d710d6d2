"""Labeled examples as the loss takes them: classes, or where the outputs are numbers or several labels, values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...box import Box
from ...errors import DataError, InputError
from ...inputs.items import is_shuffling_loader
from ...inputs.signed_labels import SIGNED_YES_OR_NO_TEXT, are_signed
from ..read.class_labels import labels_to_classes
from ..read.examples import (
    LabeledExamples,
    OptionallyLabeledExamples,
    examples_with_unread_labels,
    indexed_examples,
    indexed_labeled_examples,
)


def read_training_examples(box: Box, train: Any) -> tuple[Tensor, Tensor]:
    """As `indexed_training_examples`, the inputs and labels alone."""
    return indexed_training_examples(box, train)[:2]


def indexed_training_examples(box: Box, train: Any, max_examples: int | None = None) -> LabeledExamples:
    """The first training inputs (N, ...), their labels, and their indices in the data.

    Labels are classes (N,); numbers (N, ...) of a regression; (N, K) of several labels. Examples without a label beside
    others with one are left out with a warning. Raises DataError where there are none, or no labels, or their order is
    another in each pass; OutputError for a map of classes.
    """
    check_not_shuffled(train)
    _refuse_label_maps(box)
    if not _may_have_value_labels(box):
        return indexed_labeled_examples(box, train, max_examples)
    x, y, rows = indexed_query_examples(box, train, max_examples)
    if y is None:
        raise DataError("the training examples have no labels; wanted tensors (x, y), or a Dataset of (input, number)")
    return LabeledExamples(x, y, rows)


def indexed_query_examples(box: Box, data: Any, max_examples: int | None = None) -> OptionallyLabeledExamples:
    """As `indexed_training_examples`, of examples that may have no labels."""
    if not _may_have_value_labels(box):
        return indexed_examples(box, data, max_examples)
    x, labels, rows = examples_with_unread_labels(box, data, max_examples)
    if labels is None:
        return OptionallyLabeledExamples(x, None, rows)
    is_value = _are_regression_or_multilabel(box, labels)
    y = (
        _check_value_labels(box, labels, len(x))
        if is_value
        else box.class_labels(labels_to_classes(box, data, labels), len(x))
    )
    return OptionallyLabeledExamples(x, y, rows)


def resolve_query_labels(box: Box, x: Tensor, labels: Any) -> Tensor:
    """The labels whose loss is explained: as given, or the predicted ones. Raises InputError and OutputError."""
    _refuse_label_maps(box)
    if box.outputs == "regression" and labels is None:
        raise InputError("labels are missing: a regression model predicts no class whose loss could be explained")
    if labels is None:
        return box.predict(x) if box.outputs != "multilabel" else (box.probs(x) > 0.5).to(box.dtype)
    return (
        _check_value_labels(box, labels, len(x))
        if _are_regression_or_multilabel(box, labels)
        else box.class_labels(labels, len(x))
    )


def _refuse_label_maps(box: Box) -> None:
    if box.output_map_shape and box.outputs != "regression":
        box.require_class_scores("the influence of training examples (label maps are not supported)")


def check_not_shuffled(train: Any) -> None:
    """Raise DataError for a loader that shuffles: nobody could say which example a score is of."""
    if is_shuffling_loader(train):
        raise DataError(
            "this DataLoader gives its examples in another order at each pass, so that their scores could not be "
            "assigned to them. Give its dataset (loader.dataset), or a loader with shuffle=False"
        )


def _may_have_value_labels(box: Box) -> bool:
    return box.outputs in ("regression", "multilabel")


def _are_regression_or_multilabel(box: Box, labels: Any) -> bool:
    """Whether labels are numbers, or 0 and 1 for each of several labels, and no classes."""
    if box.outputs == "regression":
        return True
    is_list = isinstance(labels, (list, tuple))
    shapes = [getattr(label, "shape", ()) for label in labels] if is_list else [getattr(labels, "shape", ())[1:]]
    return box.outputs == "multilabel" and all(tuple(shape) == (box.n_outputs,) for shape in shapes)


def _check_value_labels(box: Box, labels: Any, n: int) -> Tensor:
    if isinstance(labels, (list, tuple)):
        labels = torch.stack([torch.as_tensor(label, dtype=box.dtype) for label in labels])
    y = torch.as_tensor(labels, dtype=box.dtype, device=box.device)
    if y.ndim == 0 or len(y) != n:
        raise InputError(f"wanted labels of {n} examples; got shape {tuple(y.shape)}")
    if box.outputs == "multilabel" and are_signed(y):
        raise InputError(SIGNED_YES_OR_NO_TEXT)
    if bad := (~y.isfinite().flatten(1 if y.ndim > 1 else 0)).nonzero()[:, 0].tolist():
        raise InputError(f"the label of example {bad[0]} is NaN or infinite")
    return y
