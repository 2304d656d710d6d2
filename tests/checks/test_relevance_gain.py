"""Symmetric relevance gain: its definition written out, and the exact properties that it has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.checks.perturbing import random_maps
from unboxed.checks.relevance_gain import (
    MAX_REMOVAL_STEPS,
    N_PARTS_PER_SHORTER_SIDE_BY_GRID,
    _grid_part_index_of_pixel,
    fill_fn_by_name,
    removal_curves,
)
from unboxed.engine.perturb.baselines import baseline

SIDE = 12  # so that the finer grid has one pixel per cell


def linear(channels: int = 1) -> tuple[ub.Box, Tensor, Tensor]:
    """A model that adds up its pixels by weights of both signs; images; their weights."""
    draw = torch.Generator().manual_seed(0)
    w = torch.randn(1, channels, SIDE, SIDE, generator=draw, dtype=torch.float64)
    evidence = torch.rand(5, channels, SIDE, SIDE, generator=draw, dtype=torch.float64)
    x = 0.5 + 0.5 * w.sign() * evidence * torch.linspace(0.2, 1, 5, dtype=torch.float64).view(-1, 1, 1, 1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(w.numel(), 2, bias=False)).double().eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([w.flatten(), torch.zeros(w.numel())]))
    return ub.Box(model, ub.Pixels((channels, SIDE, SIDE)), outputs="logits"), x, w


def gain(box: ub.Box, x: Tensor, maps: Tensor, signed: bool = True, **more: Any) -> Tensor:
    chosen = more.pop("fill_by_name", None) or fill_fn_by_name(box, x, 0)
    return removal_curves(box, x, maps, ub.logit(0), chosen, signed=signed, seed=0, **more).gain


def score(box: ub.Box, image: Tensor, by: Tensor, removed: Tensor) -> float:
    """The score of one image with some pixels replaced."""
    mask = torch.zeros(SIDE * SIDE, dtype=torch.bool)
    mask[removed] = True
    return float(box(torch.where(mask.view(1, SIDE, SIDE), by, image)[None])[0, 0])


def literal(box: ub.Box, x: Tensor, maps: Tensor, fill: Tensor, parts: Tensor) -> Tensor:
    """The area between the curves of LeRF and MoRF of whole parts, one point after another."""
    areas, ranges, n = [], [], int(parts.max()) + 1
    for image, map_, by in zip(x, maps, fill, strict=True):
        sums = torch.stack([map_.sum(0).flatten()[parts == k].sum() for k in range(n)])
        order = sums.argsort(descending=True)

        def score_without(some: Tensor, image: Tensor = image, by: Tensor = by) -> float:
            return score(box, image, by, torch.isin(parts, some).nonzero().flatten())

        counts = [round(step * n / MAX_REMOVAL_STEPS) for step in range(MAX_REMOVAL_STEPS + 1)]
        morf = torch.tensor([score_without(order[:k]) for k in counts], dtype=torch.float64)
        lerf = torch.tensor([score_without(order[n - k :]) for k in counts], dtype=torch.float64)
        areas.append(torch.trapezoid(lerf - morf, torch.tensor(counts, dtype=torch.float64) / n))
        both = torch.cat([morf, lerf])
        ranges.append(both.max() - both.min())
    return torch.stack(areas) / torch.stack(ranges).maximum(0.05 * torch.stack(ranges).mean())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("grid", range(len(N_PARTS_PER_SHORTER_SIDE_BY_GRID)))
def test_its_definition(channels: int, grid: int) -> None:
    """Also where a grid does not divide the image: what is ranked is what is removed."""
    box, x, w = linear(channels)
    maps, by = w * x, baseline(box, x, "blurred")
    found = gain(box, x, maps, fill_by_name={"blurred": fill_fn_by_name(box, x, 0)["blurred"]})[:, grid]
    parts = _grid_part_index_of_pixel(SIDE, SIDE, N_PARTS_PER_SHORTER_SIDE_BY_GRID[grid])
    assert torch.allclose(found, literal(box, x, maps, by, parts), rtol=0, atol=1e-12)


def test_parts_are_rectangles_that_tile_the_image() -> None:
    for height, width in ((28, 28), (13, 13), (32, 48), (5, 7)):
        for per_side in N_PARTS_PER_SHORTER_SIDE_BY_GRID:
            part = _grid_part_index_of_pixel(height, width, per_side).view(height, width)
            assert part.unique().tolist() == list(range(int(part.max()) + 1))
            for k in part.unique():
                rows, columns = (part == k).nonzero(as_tuple=True)
                area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
                assert int(area) == len(rows)


def test_it_is_at_most_one_also_where_scores_cancel() -> None:
    """Examples whose scores move up and down as everything is removed: their loss cancels, their range does not."""
    box, x, w = linear()
    x = torch.cat([x, 1 - x])
    found = gain(box, x, w * (x - 0.5))
    assert bool(found.isfinite().all())
    assert float(found.abs().amax(0).max()) <= len(x)  # of one example in means of all
    assert bool((found.mean(0) <= 1).all())
    assert bool((found[:, : 2 * len(N_PARTS_PER_SHORTER_SIDE_BY_GRID)].mean(0) > 0.2).all())


def test_the_opposite_map_has_the_opposite_gain() -> None:
    box, x, w = linear()
    assert torch.allclose(gain(box, x, w * x), -gain(box, x, -w * x), rtol=0, atol=1e-9, equal_nan=True)


def test_the_true_order_gains_most_and_a_random_one_nothing() -> None:
    box, x, w = linear()
    blurred, by = {"blurred": fill_fn_by_name(box, x, 0)["blurred"]}, baseline(box, x, "blurred")
    true = gain(box, x, w * (x - by), fill_by_name=blurred)[:, -1]
    random = torch.stack([gain(box, x, random_maps(box, x, seed=k), fill_by_name=blurred)[:, -1] for k in range(100)])
    assert bool((true > random).all())
    assert abs(float(random.mean())) < 4 * float(random.mean(1).std()) / 10


def test_splitting_changes_nothing() -> None:
    box, x, w = linear()
    assert torch.equal(gain(box, x, w * x, batch_size=3).isnan(), gain(box, x, w * x).isnan())
    assert torch.allclose(gain(box, x, w * x, batch_size=3), gain(box, x, w * x), rtol=0, atol=1e-9, equal_nan=True)


def test_magnitudes_rank_by_strength() -> None:
    box, x, w = linear()
    by_magnitude, by_sign = gain(box, x, -(w * x).abs(), signed=False), gain(box, x, (w * x).abs())
    assert torch.allclose(by_magnitude, by_sign, rtol=0, atol=1e-12, equal_nan=True)


def test_a_score_that_removal_does_not_change_has_no_gain() -> None:
    box, x, w = linear()
    with torch.no_grad():
        box.model[1].weight.zero_()
    assert bool(gain(box, x, w * x).isnan().all())


def test_surroundings_are_means_of_what_is_left() -> None:
    box, x, _ = linear()
    fill = fill_fn_by_name(box, x, 0)["surroundings"]
    removed = torch.zeros(2, 1, SIDE, SIDE, dtype=torch.bool)
    removed[0, 0, :6] = True
    removed[1] = True
    values = fill(torch.tensor([0, 3]), removed)
    assert torch.allclose(values[1], x[3].mean().expand_as(x[3]))  # nothing is left: the image's mean
    kept = x[0][:, 6:]
    assert bool((values[0] >= kept.min()).all() & (values[0] <= torch.maximum(kept.max(), x[0].mean())).all())
    flat = torch.full_like(x, 0.3)
    assert torch.allclose(fill_fn_by_name(box, flat, 0)["surroundings"](torch.tensor([0]), removed[:1]), flat[:1])


def test_nearest_is_the_closest_pixel_that_is_left() -> None:
    box, x, _ = linear(channels=2)
    removed = torch.rand(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) < 0.7
    removed[2] = True
    examples = torch.tensor([1, 0, 3])
    values = fill_fn_by_name(box, x, 0)["nearest"](examples, removed)
    grid = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"), -1).flatten(0, 1).double()
    for row in (0, 1):
        known = ~removed[row, 0].flatten()
        distance = torch.cdist(grid, grid[known])  # (P, P known)
        image, found = x[examples[row]].flatten(1), values[row].flatten(1)  # (C, P)
        is_nearest = distance <= distance.min(1, keepdim=True).values + 1e-9
        candidates = image[:, known][:, None, :].expand(-1, SIDE * SIDE, -1)
        matches = (candidates == found[..., None]).all(0)  # (P, P known): all channels of one pixel
        assert bool((matches & is_nearest).any(1).all())
        assert torch.equal(found[:, known], image[:, known])
    assert torch.allclose(values[2], x[3].mean((1, 2), keepdim=True).expand_as(x[3]))  # nothing is left


def test_an_example_that_hardly_changes_has_a_small_gain_not_a_wild_one() -> None:
    box, x, w = linear()
    faint = torch.cat([x, 0.5 + 1e-4 * (x[4:] - 0.5)])  # range 1e-4 of the last one's
    both = gain(box, faint, torch.cat([w * x, w * x[4:]]))
    assert bool((both[5, :6].abs() < 0.05).all())  # of its own fills; another example changes it much
    assert bool((both[4].abs() > 0.2).any())


def test_gain_by_fill_is_the_mean_of_its_grids() -> None:
    box, x, w = linear()
    curves = removal_curves(box, x, w * x, ub.logit(0), fill_fn_by_name(box, x, 0), signed=True, seed=0)
    mean = curves.gain.nanmean(0)
    expected = [float(mean[2 * k : 2 * k + 2].mean()) for k in range(4)]
    assert list(curves.gain_by_fill) == ["blurred", "surroundings", "nearest", "other examples"]
    assert list(curves.gain_by_fill.values()) == pytest.approx(expected, nan_ok=True)


def test_columns_of_a_table() -> None:
    model = nn.Linear(6, 2, bias=False).double().eval()
    with torch.no_grad():
        model.weight.copy_(torch.stack([torch.tensor([3.0, 2, 1, 0, 0, 0]), torch.zeros(6)]))
    box = ub.Box(model, ub.Features(tuple("abcdef")), outputs="logits")
    x = 1 + torch.rand(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = gain(box, x, model.weight[0].detach() * (x - x.mean(0)))
    assert found.shape == (8, 2)  # the mean and other examples
    curves = removal_curves(box, x, x, ub.logit(0), fill_fn_by_name(box, x, 0), signed=True, seed=0)
    assert torch.allclose(curves.fractions[0], torch.linspace(0, 1, 7, dtype=torch.float64))
    assert float(found[:, 0].mean()) > 0.3


def test_one_image_has_no_others() -> None:
    box, x, w = linear()
    assert "other examples" not in fill_fn_by_name(box, x[:1], 0)
    assert gain(box, x[:1], (w * x)[:1]).shape == (1, 3 * len(N_PARTS_PER_SHORTER_SIDE_BY_GRID))
