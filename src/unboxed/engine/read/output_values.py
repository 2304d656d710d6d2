"""Labels of outputs that are not one class per example: numbers, zeros and ones of several labels, maps of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...box import Box
from ...errors import DataError, InputError
from ...inputs.frames import series_to_array
from ...inputs.signed_labels import SIGNED_YES_OR_NO_TEXT, are_signed
from ...objectives.outputs import class_numbers_text
from .examples import examples_with_unread_labels

IGNORED_POSITION_LABEL = -1  # of a position of a label map that has no class
UNLABELED_POSITION_LABEL = 255  # that label maps have there, as have all numbers below 0


def inputs_and_output_values(box: Box, x: Any, y: Any = None) -> tuple[Tensor, Tensor | None]:
    """Checked inputs (N, ...) and the values of their outputs: y, or else those that come with x, if any.

    Raises InputError.
    """
    if y is not None or isinstance(x, Tensor):
        x = box.validate_inputs(x)
        return x, None if y is None else check_output_values(box, y, len(x))
    return examples_with_output_values(box, x)


def examples_with_output_values(box: Box, data: Any, max_examples: int | None = None) -> tuple[Tensor, Tensor | None]:
    """The first inputs (N, ...) of data, with the values that their outputs should have; None where there are none.

    Raises DataError and InputError.
    """
    x, labels, _ = examples_with_unread_labels(box, data, max_examples)
    return x, None if labels is None else check_output_values(box, labels, len(x))


def indexed_examples_with_output_values(
    box: Box, data: Any, max_examples: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `examples_with_output_values`, with the indices (N,) in the data. Raises DataError for missing labels, too."""
    x, labels, dataset_rows = examples_with_unread_labels(box, data, max_examples)
    if labels is None:
        table = "" if box.output_map_shape else ", or a table with a column for each output, called as it is (classes=)"
        raise DataError(
            f"these examples have no labels; wanted {wanted_values_text(box)} of each: (x, y), a Dataset{table}"
        )
    return x, check_output_values(box, labels, len(x)), dataset_rows


def predicted_output_values(box: Box, logits: Tensor) -> Tensor:
    """What the model says, in the form of `check_output_values`, given its logits or outputs (N, K, ...)."""
    if box.outputs == "regression":
        return logits
    return (logits > 0).to(logits) if box.outputs == "multilabel" else logits.argmax(1)


def check_output_values(box: Box, y: Any, n: int) -> Tensor:
    """The values that the outputs of n examples should have, on the model's device.

    Numbers (n, K, ...) of a regression; zeros and ones (n, K, ...) of several labels; classes (n, ...) of a label map,
    where those below 0 and 255 become `IGNORED_POSITION_LABEL`. Axes of size one may be there or not.

    Raises InputError.
    """
    is_class_map = box.outputs not in ("regression", "multilabel")
    wanted = (n, *box.output_map_shape) if is_class_map else (n, box.n_outputs, *box.output_map_shape)
    values = _to_tensor(y)
    if values.ndim == 0:
        values = values.expand(wanted)
    if values.shape[:1] == wanted[:1] and _long_axes(values.shape) == _long_axes(wanted):
        values = values.reshape(wanted)  # as masks (n, 1, H, W) for (n, H, W)
    if tuple(values.shape) != wanted:
        raise InputError(f"wanted {wanted_values_text(box)} of shape {wanted}; got shape {tuple(values.shape)}")
    if is_class_map:
        return _class_map(values, box)
    values = values.to(box.device, box.dtype)
    if box.outputs == "multilabel" and are_signed(values):
        raise InputError(SIGNED_YES_OR_NO_TEXT)
    if box.outputs == "multilabel" and not bool(((values == 0) | (values == 1)).all()):
        raise InputError(f"wanted {wanted_values_text(box)}; got values from {values.min():g} to {values.max():g}")
    if bad := (~values.isfinite().flatten(1).all(1)).nonzero()[:, 0].tolist():
        raise InputError(f"the value of example {bad[0]} is NaN or infinite")
    return values


def _long_axes(shape: Sequence[int]) -> list[int]:
    """The sizes of the axes of each example, without those of size one."""
    return [size for size in shape[1:] if size != 1]


def wanted_values_text(box: Box) -> str:
    texts = {"regression": "the correct numbers", "multilabel": "a 0 or a 1 for each label"}
    return texts.get(box.outputs, "one class for each position")


def _to_tensor(y: Any) -> Tensor:
    y = series_to_array(y)
    try:
        if isinstance(y, (list, tuple)):
            return torch.stack([torch.as_tensor(value).squeeze() for value in y])  # numbers and arrays of one number
        return y if isinstance(y, Tensor) else torch.as_tensor(y)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"wanted labels as numbers, of one shape for all examples; {error}") from error


def _class_map(values: Tensor, box: Box) -> Tensor:
    if values.is_floating_point() or values.is_complex():
        raise InputError(f"wanted {wanted_values_text(box)}, whole numbers; got {values.dtype}")
    labels = label_map_classes(values.to(box.device, torch.long), box.n_outputs)
    if bad := (labels == IGNORED_POSITION_LABEL).flatten(1).all(1).nonzero()[:, 0].tolist():
        raise InputError(f"example {bad[0]} has no position with a class from 0 to {box.n_outputs - 1}")
    return labels


def label_map_classes(labels: Tensor, n_classes: int) -> Tensor:
    """Label maps (n, ...), int64, with `IGNORED_POSITION_LABEL` where a position has no class: below 0, and 255.

    Raises InputError for other labels above the last class.
    """
    is_class = (labels >= 0) & (labels < n_classes)
    unknown = labels[(labels >= n_classes) & (labels != UNLABELED_POSITION_LABEL)]
    if unknown.numel():
        found = f"{unknown.numel()} positions have labels up to {int(unknown.max())}"
        advice = f"labels count from 0; {UNLABELED_POSITION_LABEL} or a number below 0 is a position without a class"
        raise InputError(f"{class_numbers_text(n_classes)}; in the label maps {found}; {advice}")
    return torch.where(is_class, labels, IGNORED_POSITION_LABEL)
