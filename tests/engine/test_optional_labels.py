"""Examples with or without labels: the inputs are the same, and labels are None where there are none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import unboxed as ub
from unboxed.cli.parsing import box_with_names_of_data
from unboxed.engine.read.examples import examples_with_optional_labels, first_inputs, labeled_examples
from unboxed.errors import DataError

X, Y = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(6)

UNLABELED: dict[str, Any] = {
    "a tensor": X,
    "a list": list(X),
    "labels of -1": [(x, -1) for x in X],
    "a loader of tensors": DataLoader(list(X), batch_size=4),  # type: ignore[arg-type]
}
LABELED: dict[str, Any] = {
    "tensors": (X, Y),
    "pairs": list(zip(X, Y.tolist(), strict=True)),
    "a loader of pairs": DataLoader(TensorDataset(X, Y), batch_size=4),
}


@pytest.mark.parametrize("kind", UNLABELED)
def test_without_labels(kind: str) -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    x, y = examples_with_optional_labels(box, UNLABELED[kind], 5)
    assert torch.equal(x, X[:5])
    assert y is None
    assert torch.equal(first_inputs(box, UNLABELED[kind]), X)
    with pytest.raises(DataError, match="no labels"):
        labeled_examples(box, UNLABELED[kind])


@pytest.mark.parametrize("kind", LABELED)
def test_with_labels(kind: str) -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    x, y = examples_with_optional_labels(box, LABELED[kind], 5)
    assert y is not None
    assert torch.equal(x, X[:5])
    assert torch.equal(y, Y[:5])
    assert torch.equal(first_inputs(box, LABELED[kind]), X)


def test_classes_of_data_replace_only_numbers() -> None:
    """A model that knows its classes keeps them: the data may have another order."""
    model, inputs = ub.zoo.load("digits-cnn")
    data = ub.data.digits("test")
    named = ub.Box(model, inputs, classes=list("jihgfedcba"))
    assert box_with_names_of_data(named, data) is named
    assert box_with_names_of_data(ub.Box(model, inputs), data).classes == tuple(data.classes)
