"""The concepts of digits, on drawn shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import label
from skimage.morphology import skeletonize
from torch import Tensor

import unboxed as ub
from unboxed.concepts.digit_concepts import DIRECTIONS, NAMES, digit_concepts, holes, stroke_ends
from unboxed.errors import InputError


def line(degrees: float) -> Tensor:
    """A thick stroke through the middle, turned counterclockwise from the horizontal."""
    y, x = torch.meshgrid(torch.arange(28.0) - 13.5, torch.arange(28.0) - 13.5, indexing="ij")
    angle = torch.tensor(degrees).deg2rad()
    across, along = x * angle.sin() + y * angle.cos(), x * angle.cos() - y * angle.sin()
    return ((across.abs() < 2) & (along.abs() < 10)).float()[None, None]


def masks(x: Tensor) -> dict[str, Tensor]:
    return dict(zip(NAMES, digit_concepts(x), strict=True))


@pytest.mark.parametrize(
    ("degrees", "name"),
    [(0, "horizontal stroke"), (45, "rising stroke"), (90, "vertical stroke"), (135, "falling stroke"),
     (15, "horizontal stroke"), (100, "vertical stroke")],
)  # fmt: skip
def test_direction_of_a_stroke(degrees: float, name: str) -> None:
    found = masks(line(degrees))
    inner = torch.zeros(1, 28, 28, dtype=torch.bool)
    inner[:, 8:20, 8:20] = True  # the ends of a stroke run across it
    assert (found[name] & inner).sum() > 0.95 * (found["ink"] & inner).sum()


def test_directions_and_quadrants_share_the_ink() -> None:
    x, _ = ub.data.digits("test").first(40)
    found = masks(x)
    for names in (DIRECTIONS, ("upper left", "upper right", "lower left", "lower right")):
        parts = torch.stack([found[name] for name in names]).int().sum(0)
        assert torch.equal(parts, found["ink"].int())
    assert not (found["hole"] & found["ink"]).any()
    assert not (found["stroke end"] & ~found["ink"]).any()


def test_holes_are_the_enclosed_ground() -> None:
    """Against a search for ground that is not connected to the border."""
    x, _ = ub.data.digits("test").first(60)
    ink = (x[:, 0] >= 0.5).numpy()
    for image, hole in zip(ink, holes(ink), strict=True):
        parts, _ = label(~np.pad(image, 1))
        assert (((parts != parts[0, 0]) & ~np.pad(image, 1))[1:-1, 1:-1] == hole).all()
    assert holes(ink).any()


def test_ends_of_strokes() -> None:
    found = masks(line(0))["stroke end"][0]
    assert found[:, :9].any()
    assert found[:, 19:].any()
    assert not found[:, 10:18].any()
    ring = torch.zeros(1, 1, 28, 28)
    ring[..., 6:22, 6:22] = 1
    ring[..., 9:19, 9:19] = 0
    assert not masks(ring)["stroke end"].any()


def test_images_are_thinned_one_by_one() -> None:
    x, _ = ub.data.digits("test").first(20)
    ink = (x[:, 0] >= 0.5).numpy()
    assert (stroke_ends(ink) == np.concatenate([stroke_ends(image[None]) for image in ink])).all()
    assert skeletonize(ink[0]).any()


def test_color_images_count_by_their_mean_and_other_shapes_are_refused() -> None:
    x, _ = ub.data.digits("test").first(3)
    assert torch.equal(digit_concepts(x.expand(-1, 3, -1, -1)), digit_concepts(x))
    with pytest.raises(InputError, match=r"\(N, C, H, W\)"):
        digit_concepts(x[0])


def test_another_size() -> None:
    big = torch.nn.functional.interpolate(line(90), scale_factor=2)
    assert masks(big)["vertical stroke"][0, 20:36, 26:30].all()
