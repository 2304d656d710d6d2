"""The report of a table without std or bounds: as of the same table with the ranges of its data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.report import report
from unboxed.report.column_ranges import with_ranges_of_rows
from unboxed.report.source import ReportData

NAMES = ("age", "income", "height")
SECTIONS = ["overview", "attacks", "gradients", "morphs", "ranking", "units"]


class Normalizing(nn.Module):
    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.body = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - self.mean) / self.std)  # type: ignore[no-any-return]


def table() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(40, 3) * torch.tensor([10.0, 2e4, 0.1]) + torch.tensor([40.0, 5e4, 1.7])
    model = Normalizing(x.mean(0), x.std(0))
    return model, x, model(x).argmax(1)


@pytest.mark.usefixtures("quick_reports")
def test_it_is_that_of_the_table_with_the_ranges_of_its_data(tmp_path: Path) -> None:
    model, x, y = table()
    found: list[dict[str, Any]] = []
    pages = []
    for name, ends in (("plain", {}), ("ranged", {"low": x.amin(0), "high": x.amax(0)})):
        box = ub.Box(model, ub.Features(NAMES, **ends), outputs="logits")
        made = report(box, (x, y), tmp_path / name, sections=SECTIONS, quiet=True)
        assert made.failures == {}
        found.append(json.loads((tmp_path / name / "report.json").read_text())["findings"])
        pages.append(made.path.read_text(encoding="utf-8"))
    sentence = "changes are shares of each column&#39;s range in these data, and stay in it"
    assert [sentence in page for page in pages] == [True, False]
    overviews = [findings.pop("overview") for findings in found]
    assert found[0] == found[1]
    assert overviews[0] != overviews[1]


def test_only_columns_without_any_unit_get_ranges() -> None:
    model, x, y = table()
    rows = range(40)
    for inputs in (ub.Features(NAMES, std=1), ub.Features(NAMES, low=-1e6, high=1e6), ub.Features(NAMES)):
        box = ub.Box(model, inputs, outputs="logits")
        ranged = with_ranges_of_rows(box, ReportData((x, y), box), rows)
        assert (ranged is box) == (inputs != ub.Features(NAMES))
    few = with_ranges_of_rows(box, ReportData((x, y), box), range(7))
    assert few is box  # of so few a range says little
    half = ub.Box(model, ub.Features(NAMES, low=(0, -torch.inf, 0)), outputs="logits", classes=["a", "b"])
    ranged = with_ranges_of_rows(half, ReportData((x, y), half), rows)
    assert ranged.inputs.low == pytest.approx(x.amin(0).tolist())  # type: ignore[attr-defined]
    assert (ranged.classes, ranged.outputs) == (half.classes, half.outputs)


@pytest.mark.parametrize("named", [True, False])
def test_of_several_inputs_the_tables_get_them(named: bool) -> None:
    parts: Any = {"image": ub.Pixels((1, 2, 2)), "row": ub.Features(NAMES)}
    inputs = ub.MultiInput(parts if named else tuple(parts.values()))

    class Two(nn.Module):
        def forward(self, image: Tensor, row: Tensor) -> Tensor:
            return torch.cat([image.flatten(1), row], 1)[:, :2] * 1.0

    box = ub.Box(Two(), inputs, outputs="logits")
    _, x, _ = table()
    data: Any = {"image": torch.rand(40, 1, 2, 2), "row": x} if named else (torch.rand(40, 1, 2, 2), x)
    ranged = with_ranges_of_rows(box, ReportData((data, torch.zeros(40, dtype=torch.long)), box), range(40))
    (_, image), (_, row) = ranged.inputs.keys_and_parts()  # type: ignore[attr-defined]
    assert image == ub.Pixels((1, 2, 2))
    assert row.high == pytest.approx(x.amax(0).tolist())
