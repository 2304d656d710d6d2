"""Squares of volumes are cubes and of signals windows: by loops over positions, and on scores of known parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.engine.perturb.segments import feature_groups
from unboxed.errors import InputError


class Score(nn.Module):
    """One number: the sum of weights times values."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(shape, generator=g, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).flatten(1).sum(1, keepdim=True)


def opened(*shape: int) -> tuple[ub.Box, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = 0.1 + 0.9 * torch.rand(2, *shape, generator=g, dtype=torch.float64)
    return ub.Box(Score(shape), ub.Pixels(shape), outputs="regression"), x


def ids_of(box: ub.Box, x: Tensor, segments: Any) -> Tensor:
    groups = feature_groups(box, box.validate_inputs(x), segments)
    return box.restore_structure(groups.ids)[0, 0]


@pytest.mark.parametrize("side", [1, 2, 3, 4])
@pytest.mark.parametrize("axes", [(6, 8, 8), (5, 7, 4), (1, 4, 4)])
def test_squares_of_a_volume_are_cubes(axes: tuple[int, ...], side: int) -> None:
    box, x = opened(2, *axes)
    ids = ids_of(box, x, ("squares", side))
    cubes: dict[int, set[tuple[int, int, int]]] = {}
    for d in range(axes[0]):
        for r in range(axes[1]):
            for c in range(axes[2]):
                cubes.setdefault(int(ids[d, r, c]), set()).add((d // side, r // side, c // side))
    assert all(len(corners) == 1 for corners in cubes.values())  # each segment is in one cube, and each cube in one
    assert len({next(iter(corners)) for corners in cubes.values()}) == len(cubes)
    assert sorted(cubes) == list(range(len(cubes)))


def test_the_side_is_the_same_share_of_the_longest_side() -> None:
    volume, x = opened(1, 14, 21, 7)
    assert ids_of(volume, x, "squares").unique().numel() == 5 * 7 * 3  # of 3 pixels: a seventh of 21
    signal, x = opened(2, 70)
    ids = ids_of(signal, x, "squares")
    assert torch.equal(ids, torch.arange(70) // 10)
    image, x = opened(1, 28, 14)
    assert torch.equal(ids_of(image, x, "squares"), torch.arange(28)[:, None] // 4 * 4 + torch.arange(14) // 4)


@pytest.mark.parametrize("shape", [(2, 6, 8, 8), (2, 24)])
def test_values_of_a_linear_score_are_those_of_each_cube(shape: tuple[int, ...]) -> None:
    """What is lost without a cube is the sum of its weights times its values."""
    box, x = opened(*shape)
    side = 4
    index = torch.stack(torch.meshgrid(*(torch.arange(n) // side for n in shape[1:]), indexing="ij"))
    contributions = (x * box.model.weight.detach()).sum(1)  # type: ignore[operator]
    ablation = ub.attribution.feature_ablation(box, x, segments=("squares", side))
    lime = ub.attribution.lime(box, x, segments=("squares", side), n_samples=200, alpha=0.0)
    shap = ub.attribution.kernel_shap(box, x, segments=("squares", side), n_samples=300)
    assert ablation.shape == (2, 1, *shape[1:])
    for cell in {tuple(v) for v in index.flatten(1).T.tolist()}:
        inside = (index == torch.tensor(cell).view(-1, *[1] * (index.ndim - 1))).all(0)
        want = contributions[:, inside].sum(1)
        for n in range(2):
            assert torch.allclose(ablation.map[n, 0][inside], want[n], atol=1e-9)
            assert torch.allclose(lime.map[n, 0][inside], want[n], atol=1e-6)
            assert float(shap.map[n, :, inside].sum()) == pytest.approx(float(want[n]), abs=1e-6)


def test_what_a_result_says_of_the_segments() -> None:
    box, x = opened(1, 6, 8, 8)
    a = ub.attribution.lime(box, x, segments=("squares", 4), n_samples=100)
    assert a.segments.shape == (2, 6, 8, 8)
    assert torch.equal(a.segments[0], ids_of(box, x, ("squares", 4)))
    assert ub.attribution.positive_segments_mask(a, 2).shape == (2, 6, 8, 8)
    assert torch.equal(a.weights.gather(1, a.segments.flatten(1)).view(2, 6, 8, 8), a.map[:, 0])


@pytest.mark.parametrize("shape", [(2, 6, 8, 8), (3, 24)])
def test_ids_of_ones_own_have_the_shape_of_the_inputs(shape: tuple[int, ...]) -> None:
    box, x = opened(*shape)
    halves = (torch.arange(shape[1]) >= shape[1] // 2).long().view(-1, *[1] * (len(shape) - 2)).expand(shape[1:])
    for ids in (halves, halves.expand(2, 1, *shape[1:])):
        a = ub.attribution.feature_ablation(box, x, segments=ids)
        want = (x * box.model.weight.detach())[0][:, halves == 1].sum()  # type: ignore[operator]
        assert torch.allclose(a.map[0, :, halves == 1], want, atol=1e-9)


@pytest.mark.parametrize("method", ["lime", "kernel_shap", "feature_ablation", "shapley"])
@pytest.mark.parametrize("shape", [(1, 6, 8, 8), (2, 24)])
def test_without_segments_they_are_cubes_too(method: str, shape: tuple[int, ...]) -> None:
    box, x = opened(*shape)
    a = getattr(ub.attribution, method)(box, x)
    assert a.shape == (2, 1, *shape[1:])
    assert a.map[0].unique().numel() > 2


def test_superpixels_are_of_images() -> None:
    box, x = opened(1, 6, 8, 8)
    for segments in ("slic", 20, "quickshift"):
        with pytest.raises(InputError, match='of volumes take segments="squares"'):
            ub.attribution.feature_ablation(box, x, segments=segments)
    with pytest.raises(InputError, match="larger than the images, 6x8x8"):
        ub.attribution.feature_ablation(box, x, segments=("squares", 9))
