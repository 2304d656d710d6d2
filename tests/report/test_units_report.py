"""The figures of units, and the report's section of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import awkward
import unboxed as ub
from unboxed.plots import units
from unboxed.plots.units import PlottedUnit
from unboxed.report import report
from unboxed.report.units import SECTION
from unboxed.report.words import format_number


def unit(**more: Any) -> PlottedUnit:
    patches, maps = np.random.default_rng(0).random((2, 9, 1, 5, 5))
    counts = np.array([0.0, 3, 0, 9, 1, 0])
    given = {"number": 7, "patches": patches, "projections": maps - 0.5, "values": [0.9] * 9, "counts": counts}
    return PlottedUnit(**{**given, "edges": np.arange(7) - 2.0, "value_range": (-0.8, 2.4), **more})


def test_a_patch_that_leaves_the_image_keeps_its_place() -> None:
    picture = np.arange(36.0).reshape(1, 6, 6)
    inside = units.crop_with_padding(picture, (1, 2, 4, 5), (3, 3), (6, 6))
    assert np.array_equal(inside, picture[:, 1:4, 2:5])
    above = units.crop_with_padding(picture, (0, 4, 2, 6), (3, 3), (6, 6))  # cut at the top and on the right
    assert np.isnan(above[0, 0]).all()
    assert np.isnan(above[0, :, 2]).all()
    assert np.array_equal(above[:, 1:, :2], picture[:, 0:2, 4:6])


def test_large_patches_are_shrunk_by_a_whole_factor() -> None:
    picture = np.random.default_rng(0).random((3, 160, 160))
    small = units.crop_with_padding(picture, (0, 0, 150, 150), (150, 150), (160, 160))
    assert small.shape == (3, 50, 50)
    assert small[0, 0, 0] == pytest.approx(picture[0, :3, :3].mean())


def test_the_histogram_has_a_bar_for_each_bin_that_counts() -> None:
    page = units.histogram_image(unit(), (100, 40))
    dark = (page == units.HISTOGRAM_BAR_COLOR).all(2)
    assert [bool(dark[:, x].any()) for x in (5, 40, 60, 90)] == [True, False, True, True]
    assert dark[:, 60].sum() > dark[:, 5].sum() > dark[:, 90].sum()
    assert (page[0, 25] == units.HISTOGRAM_ZERO_LINE_COLOR).all()
    assert units.value_range_text(unit()) == "from -0.8 to 2.4"  # not the edges of the bins
    assert units.value_range_text(unit(value_range=(np.nan, np.nan))) == "no values"


def test_the_range_of_a_unit_ends_at_its_best_example(tmp_path: Path) -> None:
    box, data = ub.Box(*ub.zoo.load("digits-cnn")), ub.data.digits("test").first(60)
    page = made(box, data, tmp_path)
    best = re.findall(r"<span>values ([\d.]+) to", page)
    largest = re.findall(r"<span>from [\d.]+ to ([\d.]+)</span>", page)
    assert len(best) > 3
    assert best == largest


def test_all_projections_share_one_scale() -> None:
    weak, strong = unit(), unit(projections=unit().projections * 10)
    scale = units.back_projection_vmax([weak, strong])
    assert scale == pytest.approx(units.back_projection_vmax([strong]), rel=0.05)
    pale, full = (units.back_projection_grid(u, scale)[..., :3].astype(int) for u in (weak, strong))
    assert np.abs(255 - pale).mean() < np.abs(255 - full).mean()
    sheet = units.units_sheet([weak, unit(projections=None, dead=True)], title="Units")
    assert sheet.width > 500
    assert unit(dead=True).name == "unit 7, dead"


def made(box: ub.Box, data: Any, out: Path) -> str:
    written = report(box, data, out, sections=[SECTION], quiet=True)
    assert written.failures == {}
    return written.path.read_text()


@pytest.mark.parametrize(
    "name", ["plain", "conv_called_twice", "clamped_hidden_layer", "color", "transformer", "lstm", "mlp"]
)
def test_a_section_for_every_kind_of_model(name: str, tmp_path: Path) -> None:
    entry = awkward.get_model(name)
    page = made(ub.Box(entry.model, entry.inputs), (entry.images(16), torch.arange(16) % 4), tmp_path)
    assert "What activates each unit?" in page
    assert "dead (never above zero" in page
    assert "top patches" in page
    assert "examples of " in page
    assert ("by deconvnet" in page) == (name not in ("lstm", "transformer"))


def test_dead_units_are_counted_and_not_shown(tmp_path: Path) -> None:
    entry = awkward.get_model("plain")
    with torch.no_grad():
        entry.model.conv2.bias[1] = -1e4
    page = made(ub.Box(entry.model, entry.inputs), entry.images(30), tmp_path)
    assert "1 of 4 units is dead" in page
    assert ">unit 1<" not in page.split("Layer relu1")[0]
    assert '"dead": 1' in (tmp_path / "report.json").read_text()


def test_rows_of_features_get_a_table(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    page = made(
        ub.Box(model, ub.Features(("height", "width", "age"))), (torch.randn(60, 3), torch.arange(60) % 2), tmp_path
    )
    assert "where it differs most" in page
    assert "height" in page


def test_units_of_a_regression_have_the_mean_of_their_true_values(tmp_path: Path) -> None:
    """Numbers are no classes to be counted."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1)).eval()
    box = ub.Box(model, ub.Features(("age", "height")), classes=["price"], outputs="regression")
    x = torch.randn(30, 2)
    ub.report(box, TensorDataset(x, box(x)), tmp_path, sections=["units"], quiet=True)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    mean = format_number(float(box(x).mean())).replace("-", "\u2212")
    assert f"(all {mean})" in page
    assert "mean price" in page
    assert not re.search(r"examples of [^ ]+ \(\d", page)


def test_a_model_without_units_says_so(tmp_path: Path) -> None:
    entry = awkward.get_model("parameterless")
    assert "has units" in made(ub.Box(entry.model, entry.inputs), entry.images(9), tmp_path)
