"""Causal units of a generator whose units each draw one quadrant, by construction."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.errors import DataError, InputError
from unboxed.plots import figures

NAMES = ("upper left", "upper right", "lower left", "lower right")


def quadrants(side: int = 8) -> Tensor:
    """(4, H, W) masks."""
    masks, half = torch.zeros(4, side, side), side // 2
    for k in range(4):
        masks[k, (k // 2) * half : (k // 2 + 1) * half, (k % 2) * half : (k % 2 + 1) * half] = 1
    return masks


class Quadrants(nn.Module):
    """Codes (N, 4) to images: unit k of `units` is bright in quadrant k alone; four more units draw nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("masks", torch.cat([quadrants(), quadrants()]))
        self.units = nn.ReLU()
        self.draw = nn.Conv2d(8, 1, 1, bias=False)
        self.draw.weight.data = torch.tensor([1.0] * 4 + [0.0] * 4).view(1, 8, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.draw(self.units(torch.cat([z, z], 1)[:, :, None, None] * self.masks)).clamp(0, 1)  # type: ignore[no-any-return]


def bright_quadrants(images: Tensor) -> Tensor:
    """(4, N, H, W) bright pixels of each quadrant."""
    return torch.stack([(images[:, 0] > 0.5) & mask.bool() for mask in quadrants()])


bright_quadrants.names = NAMES  # type: ignore[attr-defined]


def opened() -> ub.Box:
    return ub.Box(Quadrants(), ub.Features(("a", "b", "c", "d")), outputs="regression")


def codes(n: int = 80) -> Tensor:
    return torch.rand(n, 4, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.6


@pytest.mark.parametrize("search", ["mask", "greedy"])
@pytest.mark.parametrize("concept", [0, "lower right"])
def test_the_unit_that_draws_is_found(search: str, concept: int | str) -> None:
    result = ub.concepts.causal_units(opened(), codes(), concept, "units", bright_quadrants, search=search, n_units=1)
    k = concept if isinstance(concept, int) else NAMES.index(concept)
    assert result.units.tolist() == [k]
    assert result.removed == 1
    assert result.restored > 0.95
    assert max(abs(v) for v in result.side_effects.values()) == 0
    assert float(result.random_removed.mean()) < 0.5
    assert result.verdict == "fail"  # one random unit of eight is the same one in more than 5 %: no level is reached
    assert "is gone" in result.reason


def test_nothing_is_claimed_of_units_that_draw_nothing() -> None:
    box = opened()
    box.model.draw.weight.data[:, 0] = 0  # nobody draws the first quadrant
    with pytest.raises(DataError):
        ub.concepts.causal_units(box, codes(), 0, "units", bright_quadrants)


def test_a_figure_and_the_same_seed() -> None:
    box, z = opened(), codes(40)
    one, other = (ub.concepts.causal_units(box, z, 1, "units", bright_quadrants, n_random=3) for _ in range(2))
    assert one.units.tolist() == other.units.tolist()
    assert figures(one)
    assert one.image().width > 100
    assert one.verdict in ("not tested", "fail")


def test_refusals() -> None:
    box = opened()
    with pytest.raises(InputError, match="upper middle"):
        ub.concepts.causal_units(box, codes(40), "upper middle", "units", bright_quadrants)
    with pytest.raises(InputError, match="needs a generator"):
        plain = ub.Box(*ub.zoo.load("digits-cnn"))
        ub.concepts.causal_units(plain, ub.data.digits("test").first(20).x, 0, "conv1")
