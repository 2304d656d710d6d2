"""A mask from a map: the object that seeds and colors determine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import unboxed as ub
from unboxed.errors import InputError, UnboxedWarning

SIDE = 24


def scene() -> tuple[Tensor, Tensor, Tensor]:
    """A reddish disc on blue, with noise; a map that lights up some of the disc; and the disc."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    disc = (y - 10) ** 2 + (x - 13) ** 2 < 49
    image = 0.2 * torch.rand(1, 3, SIDE, SIDE, generator=generator)
    image[:, 0] += 0.7 * disc
    image[:, 2] += 0.6 * ~disc
    spot = torch.exp(-((y - 9) ** 2 + (x - 14) ** 2) / 9.0)[None, None]
    return spot * torch.rand(1, 1, SIDE, SIDE, generator=generator), image, disc


def iou(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_the_object_is_found() -> None:
    maps, image, disc = scene()
    mask = ub.attribution.segmentation(maps, image)
    assert mask.shape == (1, SIDE, SIDE)
    assert mask.dtype == torch.bool
    assert iou(mask[0], disc) > 0.95
    assert iou(ub.attribution.segmentation(maps, image, rounds=1)[0], disc) > 0.9
    by_threshold = maps[0, 0] >= maps.quantile(0.95)
    assert iou(by_threshold, disc) < 0.5  # the map alone does not show it: the test can fail


def test_signs_and_channels_do_not_matter() -> None:
    maps, image, _ = scene()
    want = ub.attribution.segmentation(maps, image)
    assert torch.equal(ub.attribution.segmentation(-3 * maps, image), want)
    assert torch.equal(ub.attribution.segmentation(torch.cat([maps, -0.5 * maps, 0 * maps], 1), image), want)


def test_each_image_alone() -> None:
    maps, image, _ = scene()
    both = ub.attribution.segmentation(torch.cat([maps, maps.flip(3)]), torch.cat([image, image.flip(3)]))
    assert torch.equal(both[:1], ub.attribution.segmentation(maps, image))
    assert iou(both[1], both[0].flip(1)) > 0.95


def test_nothing_is_drawn_from_global_generators() -> None:
    import numpy as np

    maps, image, _ = scene()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    want = ub.attribution.segmentation(maps, image)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(ub.attribution.segmentation(maps, image), want)


def test_a_blank_map_points_at_nothing() -> None:
    maps, image, _ = scene()
    with pytest.warns(UnboxedWarning, match="1 of 2"):
        mask = ub.attribution.segmentation(torch.cat([maps, 0 * maps]), torch.cat([image, image]))
    assert mask[0].any()
    assert not mask[1].any()


def test_one_color_alone() -> None:
    """An image without distinct colors keeps its seeds and does not fail."""
    maps, image, _ = scene()
    mask = ub.attribution.segmentation(maps, torch.full_like(image, 0.5))[0]
    assert mask[maps[0, 0] >= maps.quantile(0.95)].all()
    assert not mask[maps[0, 0] <= maps.quantile(0.3)].any()


BAD: dict[str, Any] = {
    "another size": lambda m, x: {"x": x[..., 1:]},
    "another count": lambda m, x: {"x": torch.cat([x, x])},
    "no batch": lambda m, x: {"maps": m[0]},
    "NaN": lambda m, x: {"maps": m / 0 * 0},
    "quantiles that cross": lambda m, x: {"foreground": 0.2, "background": 0.5},
    "a quantile of 2": lambda m, x: {"foreground": 2},
    "no components": lambda m, x: {"components": 0},
    "no rounds": lambda m, x: {"rounds": 0},
    "an array": lambda m, x: {"x": x.numpy()},
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input(bad: str) -> None:
    maps, image, _ = scene()
    with pytest.raises(InputError):
        ub.attribution.segmentation(**{"maps": maps, "x": image, **BAD[bad](maps, image)})
