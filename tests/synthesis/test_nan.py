"""A score that is NaN is refused: an image that was optimized for it would show nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.cards import Card, cards
from unboxed.errors import NaNError

MADE_BY_OPTIMIZATION = [c for c in cards() if c.family == "synthesis" or c.method.__name__ == "fooling"]


class Net(nn.Module):
    """Logits that are NaN where the input's mean is above `limit`, and of a layer that is NaN, too."""

    def __init__(self, limit: float = -1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.fc, self.limit = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(4, 3), limit

    def forward(self, x: Tensor) -> Tensor:
        over = x.mean((1, 2, 3), keepdim=True) > self.limit
        return self.fc(self.relu(self.conv(x.where(~over, x * math.nan))).mean((2, 3)))


def open_box(limit: float = -1.0) -> ub.Box:
    return ub.Box(Net(limit), ub.Pixels((1, 12, 12)), outputs="logits")


@pytest.mark.parametrize("card", MADE_BY_OPTIMIZATION, ids=lambda c: c.method.__name__)
def test_a_score_that_is_nan_is_refused(card: Card) -> None:
    with pytest.raises(NaNError, match=r"rows? 0"):
        card.example(card.method, open_box(), torch.rand(2, 1, 12, 12), torch.tensor([1, 2]))


@pytest.mark.parametrize("algorithm", ["evolution", "cppn"])
def test_an_evolution_refuses_it_too(algorithm: str) -> None:
    with pytest.raises(NaNError):
        ub.adversarial.fooling(open_box(), [0], algorithm=algorithm, steps=2)


class Brightness(nn.Module):
    """The logit of class 1 is the mean of the image, until that is above .9: then all are NaN."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3))[:, None]
        return (mean * torch.tensor([0.0, 1.0, 0.0])).where(mean <= 0.9, math.nan)


@pytest.mark.parametrize("batch_size", [2, 1])
@pytest.mark.parametrize(
    "method",
    [
        lambda box, x, n: ub.synthesis.morph(box, x, 1, steps=3, step=0.6, batch_size=n),
        lambda box, x, n: ub.synthesis.deepdream(box, x, ub.logit(1), octaves=1, steps=3, step=0.05, batch_size=n),
    ],
    ids=["morph", "deepdream"],
)
def test_an_image_that_is_optimized_into_nan_is_refused_by_its_row(method: Any, batch_size: int) -> None:
    """Row 1 starts bright, and gets brighter; row 0 stays dark."""
    box = ub.Box(Brightness(), ub.Pixels((1, 12, 12)), outputs="logits")
    x = torch.stack([torch.zeros(1, 12, 12), torch.full((1, 12, 12), 0.85)])
    with pytest.raises(NaNError, match="NaN for the optimized input of row 1:") as caught:
        method(box, x, batch_size)
    assert caught.value.rows == [1]


def test_what_reads_a_layer_before_the_nan_is_made_as_ever() -> None:
    class NaNAtTheEnd(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * math.nan

    box = ub.Box(NaNAtTheEnd(2.0), ub.Pixels((1, 12, 12)), outputs="logits")
    assert ub.synthesis.feature(box, ub.channel("conv", 1), steps=2).scores.isfinite().all()
    with pytest.raises(NaNError):
        ub.synthesis.feature(box, ub.logit(1), steps=2)


def test_the_doctor_says_so() -> None:
    found = ub.doctor(open_box(), max_flops=1e6)
    refused = found.refused
    for card in MADE_BY_OPTIMIZATION:
        assert "the model gives NaN" in refused[card.method.__name__]
