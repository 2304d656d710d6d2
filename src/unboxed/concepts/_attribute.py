"""The attribute that a probe reads: its values become classes from 0, with names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..box import Box
from ..engine.read.class_labels import has_class_labels
from ..engine.read.examples import indexed_inputs, labeled_examples
from ..errors import DataError, InputError
from ..inputs.labels import sort_names_naturally

MIN_EXAMPLES_PER_ATTRIBUTE_VALUE = 2  # one to fit, one to test


class ExamplesWithAttribute(NamedTuple):
    """Examples with the class of an attribute each."""

    x: Tensor  # (N, ...)
    y: Tensor  # (N,) from 0, each class with an example
    names: tuple[str, ...]  # (K,) of the classes
    labels: Tensor | None  # (N,) classes of the box, where the attribute is the data's labels


def read_examples_with_attribute(
    box: Box, data: Any, attribute: Any, max_examples: int | None
) -> ExamplesWithAttribute:
    """Examples with the attribute, or where it is None with the data's labels. Raises DataError and InputError."""
    if attribute is not None:
        x, rows = indexed_inputs(box, data, max_examples)
        y, names = _attribute_values_to_classes(_attribute_values_at(attribute, rows, is_cut=max_examples is not None))
        return ExamplesWithAttribute(x, y, names, None)
    if not has_class_labels(box):
        raise InputError("the labels of these data are no classes; give attribute=, a value for each example")
    x, labels = labeled_examples(box, data, max_examples)
    y, names = _attribute_values_to_classes(labels.tolist())
    return ExamplesWithAttribute(x, y, tuple(box.classes[int(name)] for name in names), labels)


def _attribute_values_at(attribute: Any, rows: Tensor, *, is_cut: bool) -> list[Any]:
    """The values (N,) of the examples at these rows of the data."""
    if isinstance(attribute, (str, bytes)) or not hasattr(attribute, "__len__"):
        raise InputError(f"attribute must have a value for each example (N,); got {attribute!r}"[:300])
    values = attribute.tolist() if isinstance(attribute, (Tensor, np.ndarray)) else list(attribute)
    n = int(rows.max()) + 1
    if len(values) < n or (len(values) > n and not is_cut and n == len(rows)):
        raise InputError(f"attribute must have a value for each of the {n} examples; got {len(values)}")
    return [values[i] for i in rows.tolist()]


def _attribute_values_to_classes(values: Sequence[Any]) -> tuple[Tensor, tuple[str, ...]]:
    """The values as classes from 0, and the names of these."""
    texts = [_attribute_value_name(value, i) for i, value in enumerate(values)]
    names = sort_names_naturally(dict.fromkeys(texts))
    if len(names) < 2:
        raise DataError(f"all {len(texts)} examples have the value {names[0]!r}: there is nothing to read")
    if 2 * len(names) > len(texts):
        raise DataError(
            f"the attribute has {len(names)} values in {len(texts)} examples: too few of each; cut numbers into classes"
        )
    if single := [name for name, count in Counter(texts).items() if count < MIN_EXAMPLES_PER_ATTRIBUTE_VALUE]:
        raise DataError(
            f"one example alone has the value {single[0]!r} of the attribute, so that it can't be read of others; "
            "leave it out of the data, or put it with another value"
        )
    number = {name: k for k, name in enumerate(names)}
    return torch.tensor([number[text] for text in texts]), tuple(names)


def _attribute_value_name(value: Any, index: int) -> str:
    """The name of a value. Raises InputError for a missing one, and for numbers that are no classes."""
    is_number = isinstance(value, (float, np.floating))
    if value is None or value == "" or (is_number and value != value):
        raise DataError(f"example {index} has no value of the attribute; leave it out of the data")
    if is_number and value != int(value):
        raise InputError(f"attribute must be classes; example {index} has {value!r}: cut numbers into classes first")
    if isinstance(value, (list, tuple, dict)):
        raise InputError(f"attribute must have one value per example; example {index} has {value!r}"[:300])
    return str(int(value)) if is_number else str(value)
