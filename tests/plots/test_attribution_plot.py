"""Attribution maps on matplotlib axes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch

from unboxed import plots
from unboxed.errors import InputError
from unboxed.plots import colors
from unboxed.plots.attribution_plot import OVERLAY_COLOR_LEVEL, overlay_map

matplotlib.use("Agg")
from matplotlib import pyplot as plt

KINDS = ("signed", "absolute", "overlay", "mask")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def shown(axes: Any) -> Any:
    return np.asarray(axes.images[0].get_array())


@pytest.mark.parametrize("kind", KINDS)
def test_figure_and_axes(kind: str) -> None:
    x, m = torch.rand(3, 8, 6), torch.randn(3, 8, 6)
    m = m > 0 if kind == "mask" else m
    figure, axes = plots.attribution_plot(m, x, kind=kind, titles="a map")
    assert axes.figure is figure
    assert axes.get_title() == "a map"
    assert shown(axes).shape == (8, 6, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_callers_axes_are_drawn_on(kind: str) -> None:
    mine, (left, right) = plt.subplots(1, 2)
    m = torch.randn(1, 5, 5)
    figure, axes = plots.attribution_plot(m > 0 if kind == "mask" else m, torch.rand(1, 5, 5), kind=kind, ax=right)
    assert figure is mine
    assert axes is right
    assert not left.images


def test_several_maps_share_one_scale() -> None:
    m = torch.zeros(2, 1, 4, 4)
    m[0, 0, 0, 0], m[1, 0, 0, 0] = 1.0, 0.5
    figure, axes = plots.attribution_plot(m, vmax=1.0)
    assert len(axes) == 2
    strong, weak = (shown(a)[0, 0] for a in axes)
    assert (strong == colors.SIGNED_COLORMAP[-1]).all()
    assert (weak != colors.SIGNED_COLORMAP[-1]).any()
    assert any("−1" in t.get_text() for a in figure.axes for t in a.get_xticklabels())  # the range is printed


def test_signed_zero_is_white_and_overlay_shows_the_image_there() -> None:
    m = torch.zeros(1, 2, 2)
    m[0, 0, 0] = 1.0
    x = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]])
    _, plain = plots.attribution_plot(m)
    assert (shown(plain)[1, 1] == 255).all()
    _, over = plots.attribution_plot(m, x, kind="overlay")
    assert (shown(over)[0, 0] == colors.signed_to_rgb(np.array([[OVERLAY_COLOR_LEVEL]]), 1.0)[0, 0]).all()
    assert shown(over)[0, 1].mean() < shown(over)[1, 1].mean()


def test_a_mask_keeps_the_image_where_it_is_true() -> None:
    x = torch.full((1, 2, 2), 0.2)
    mask = torch.tensor([[True, False], [False, False]])
    _, axes = plots.attribution_plot(mask, x, kind="mask")
    assert (shown(axes)[0, 0] == 51).all()
    assert (shown(axes)[1, 1] > 150).all()


@pytest.mark.parametrize(
    "bad",
    [
        lambda: plots.attribution_plot(torch.zeros(3)),
        lambda: plots.attribution_plot(torch.zeros(4, 4), kind="jet"),
        lambda: plots.attribution_plot(torch.zeros(4, 4), kind="overlay"),
        lambda: plots.attribution_plot(torch.rand(1, 4, 4), torch.rand(1, 4, 4), kind="mask"),  # of what is above what?
        lambda: plots.attribution_plot(torch.zeros(1, 4, 4), torch.zeros(1, 5, 5), kind="overlay"),
        lambda: plots.attribution_plot(torch.zeros(2, 1, 4, 4), ax=plt.subplots()[1]),
    ],
)
def test_bad_input(bad: Any) -> None:
    with pytest.raises(InputError):
        bad()


def test_the_color_of_an_overlay_grows_in_proportion_to_the_map() -> None:
    """A map that is laid over by its color and its opacity fades by the square: half of it would be a quarter."""
    gray, m = np.full((1, 3, 3), 128, np.uint8), np.array([[0.0, 0.5, 1.0]])
    none, half, full = overlay_map(gray, m, 1.0).astype(float)[0]
    np.testing.assert_allclose(half - none, (full - none) / 2, atol=1)
