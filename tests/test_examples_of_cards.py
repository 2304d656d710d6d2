"""A card's example runs on images of any size, and costs no more than a bounded number of rows through the model."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from check_each import check_each
from contracts.common import CARDS
from unboxed.errors import InputError, LayerError

SIZES = [(1, 28, 28), (3, 64, 48)]  # and (1, 8, 8): the contracts' models
MOST = 4000  # rows through the model


class AllConv(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(channels, 6, 3, 2, 1), nn.Conv2d(6, 4, 3, 2, 1)
        self.relu, self.rows = nn.ReLU(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.conv2(self.relu(self.conv1(x))).mean((2, 3))  # type: ignore[no-any-return]


@cache
def opened(shape: tuple[int, int, int]) -> ub.Box:
    return ub.Box(AllConv(shape[0]).eval(), ub.Pixels(shape))


@pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_an_example_runs_on_any_size(shape: tuple[int, int, int]) -> None:
    check_each(sorted(CARDS), partial(check_example, shape))


def check_example(shape: tuple[int, int, int], name: str) -> None:
    card, box = CARDS[name], opened(shape)
    x, model = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)), box.model
    y, model.rows = box.predict(x), 0
    if {"attention", "linear end", "texts"} & {*card.needs}:
        with pytest.raises((LayerError, InputError)):
            card.example(card.method, box, x, y)
        return
    assert card.example(card.method, box, x, y) is not None
    assert model.rows <= MOST


@pytest.mark.parametrize("name", ["kernel_shap", "lime"])
def test_an_example_runs_on_a_table_of_many_columns(name: str) -> None:
    method = getattr(ub.attribution, name)
    box = ub.Box(torch.nn.Linear(60, 3), ub.Features(tuple(f"c{i}" for i in range(60))), outputs="logits")
    x = torch.rand(1, 60)
    assert method.card.example(method, box, x, torch.tensor([0])).shape == x.shape
