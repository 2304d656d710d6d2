"""Training examples without a label are left out of influence, and said: classes, numbers, several labels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import unboxed as ub
from unboxed.errors import DataError, UnboxedWarning
from unboxed.influence import gradient_dot

NAMES = tuple("abc")


def opened(outputs: str) -> tuple[ub.Box, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(8, 3)
    n_outputs = {"logits": 4, "regression": 1, "multilabel": 2}[outputs]
    y = {
        "logits": torch.randint(0, 4, (8,)),
        "regression": torch.randn(8, 1),
        "multilabel": torch.randint(0, 2, (8, 2)).float(),
    }[outputs]
    box = ub.Box(nn.Linear(3, n_outputs), ub.Features(NAMES), outputs=outputs)  # type: ignore[arg-type]
    return box, x, y


@pytest.mark.parametrize("form", ["pair", "dataset"])
@pytest.mark.parametrize("outputs", ["logits", "regression", "multilabel"])
def test_examples_without_a_label_are_left_out_and_said(outputs: str, form: str) -> None:
    box, x, y = opened(outputs)
    some = y.clone()
    some[5] = -1 if outputs == "logits" else math.nan
    kept = [0, 1, 2, 3, 4, 6, 7]
    train: Any = (x, some) if form == "pair" else TensorDataset(x, some)
    with pytest.warns(UnboxedWarning, match=r"has no label .* and is left out \(row 5\): results"):
        found = gradient_dot(box, x[:2], y[:2], train)
    assert torch.equal(found.scores, gradient_dot(box, x[:2], y[:2], (x[kept], y[kept])).scores)
    assert torch.equal(found.train_labels.flatten(), y[kept].flatten())


def test_a_list_of_numbers_with_none() -> None:
    box, x, y = opened("regression")
    values = [None if i == 5 else float(v) for i, v in enumerate(y)]
    with pytest.warns(UnboxedWarning, match="1 of 8"):
        found = gradient_dot(box, x[:2], y[:2, 0], (x, values))
    assert found.scores.shape == (2, 7)


def test_no_label_at_all() -> None:
    box, x, y = opened("regression")
    with pytest.raises(DataError, match="no labels; wanted tensors"):
        gradient_dot(box, x[:2], y[:2], (x, torch.full((8, 1), math.nan)))
