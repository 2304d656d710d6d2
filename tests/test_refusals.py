"""What can't be done is refused in a sentence, not by whatever breaks first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from unboxed.activations import ablate, put, scale, top_examples
from unboxed.errors import InputError, LayerError
from unboxed.objectives import Objective, channel, cosine, diversity, energy, match, neuron
from unboxed.synthesis import caricature, channels, deepdream, feature, minimal_deactivation


class Rounded(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return (h * 10).long()


class Whole(nn.Module):
    """A model that uses integers on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.q, self.fc = nn.Conv2d(1, 2, 3), Rounded(), nn.Linear(72, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.fc((h + self.q(h)).flatten(1))


@pytest.fixture
def box() -> ub.Box:
    torch.manual_seed(0)
    return ub.Box(Whole().eval(), ub.Pixels((1, 8, 8)))


def images(n: int = 2) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "work",
    [
        lambda b: feature(b, channel("q", 0), steps=2),
        lambda b: channels(b, "q", [0], steps=2),
        lambda b: channels(b, "q", [0], images_per_channel=2, steps=2),
        lambda b: minimal_deactivation(b, images(), channel("q", 0), steps=2),
        lambda b: deepdream(b, images(), "q", steps=2),
        lambda b: caricature(b, images(), "q", steps=2),
    ],
)
def test_a_layer_of_integers_has_no_objective(box: ub.Box, work: Callable[[ub.Box], Any]) -> None:
    with pytest.raises(LayerError, match="q has integer activations, which have no gradient"):
        work(box)


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.complex64])
def test_objectives_want_real_numbers(dtype: torch.dtype) -> None:
    h = torch.ones(2, 3, 4, 4, dtype=dtype)
    made: list[Objective] = [channel("a", 0), neuron("a", 0), energy("a"), diversity("a")]
    for objective in [*made, match("a", torch.ones(1, 3, 4, 4)), cosine("a", torch.ones(1, 3, 4, 4))]:
        with pytest.raises(LayerError, match=r"a has (integer|complex) activations"):
            objective({"a": h})


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (lambda: ablate("a"), "a channel must be a whole number; got 'a'"),  # type: ignore[arg-type]
        (lambda: ablate(1.5), "a channel must be a whole number; got 1.5"),  # type: ignore[arg-type]
        (lambda: ablate([0, "a"]), "a channel must be a whole number; got 'a'"),  # type: ignore[list-item]
        (lambda: ablate(True), "a channel must be a whole number; got True"),
        (lambda: ablate(0, position=3), r"position must be indices such as \(3,\) or \(2, 5\); got 3"),  # type: ignore[arg-type]
        (lambda: ablate(0, position=(1.5, 0)), "a position must be a whole number; got 1.5"),  # type: ignore[arg-type]
        (lambda: scale(0, "x"), "factor must be a number; got 'x'"),  # type: ignore[arg-type]
        (lambda: put(0, "a"), "value must be a number or a tensor; got 'a'"),  # type: ignore[arg-type]
    ],
)
def test_edits(work: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        work()


def test_channels_of_edits_may_be_a_tensor() -> None:
    h = torch.ones(1, 3, 2, 2)
    assert ablate(torch.tensor([0, -1]))(h).sum((2, 3)).tolist() == [[0, 4, 0]]  # type: ignore[arg-type]
    assert ablate((0, 1), position=[0, 0])(h).sum((2, 3)).tolist() == [[3, 3, 4]]  # type: ignore[arg-type]


@pytest.mark.parametrize("units", [[99], 99, [-1], ["a"], []])
def test_units_that_are_not_there(units: Any) -> None:
    entry = awkward.get_model("plain")
    (top,) = top_examples(ub.Box(entry.model, entry.inputs), entry.images(5), "conv1", 2)
    assert top.fetch_examples(entry.images(5), [3]).shape == (1, 2, 1, 8, 8)
    with pytest.raises(InputError, match="unit"):
        top.fetch_examples(entry.images(5), units)


def test_no_channel_is_counted_from_the_end(box: ub.Box) -> None:
    with pytest.raises(InputError, match="0 or more; got -1"):
        channels(box, "conv", [-1], steps=1)


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (0.00105, 1.001, r"from 0.00105 to 1.001: clip them"),
        (-0.0012, 1.0, r"from -0.0012 to 1: clip them"),
        (0.0, 1.0002, r"to 1.0002: clip them"),
        (0.0, 1.7, r"to 1.7: clip them with x.clamp\(0, 1\), or divide them by the largest value"),
        (0.0, 255.0, "8-bit values, divide them by 255"),
        (-2.0, 2.0, "look normalized"),
    ],
)
def test_pixels_out_of_range(low: float, high: float, says: str) -> None:
    x = torch.full((1, 1, 2, 2), 0.5)
    x[0, 0, 0] = torch.tensor([low, high])
    with pytest.raises(InputError, match=says):
        ub.Pixels((1, 2, 2)).check(x)
