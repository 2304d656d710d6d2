"""Labels -1 and 1, which other libraries take for two classes: here -1 is no label."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import DataError
from .labels import label_to_text

SIGNED_LABELS_TEXT = (
    "the labels are -1 and 1, and -1 means that an example has no label: use 0 and 1 for the two classes, (y + 1) / 2; "
    "or leave out what has no label"
)
SIGNED_YES_OR_NO_TEXT = "the labels are -1 and 1; a yes or no for each label is 1 or 0: pass (y + 1) / 2"


def refuse_signed_labels(labels: Any, n_classes: int | None = None) -> None:
    """Raise DataError for two classes that are labeled -1 and 1: -1 is no label, so half of them would be left out.

    `n_classes` is the model's number, None where it is unknown. Models of more classes may know a class 1 alone.
    """
    if n_classes not in (None, 2) or labels is None:
        return
    if isinstance(labels, Tensor):
        is_signed = are_signed(labels[~labels.isnan()])
    else:
        is_signed = {label_to_text(k, is_value=True).removeprefix("+") for k in labels} - {""} == {"-1", "1"}
    if is_signed:
        raise DataError(SIGNED_LABELS_TEXT)


def are_signed(values: Tensor) -> bool:
    """Whether values are -1 and 1 alone, and both."""
    values = values.detach().float()  # unsigned ones have no -1
    low, high = (float(values.min()), float(values.max())) if values.numel() else (0.0, 0.0)
    return (low, high) == (-1.0, 1.0) and bool((values.abs() == 1).all())
