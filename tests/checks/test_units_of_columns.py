"""What is said of a table does not depend on the units of its columns: slopes are compared per standard deviation."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.checks.methods import compute_map
from unboxed.checks.verdict import Verdict
from unboxed.plots import explanation_sheet
from unboxed.plots.figures import figures
from unboxed.plots.results import attribution as figures_of_attribution
from unboxed.report import report
from unboxed.report.context import ReportContext

NAMES = ("mg", "kg", "year", "ash")
MEAN, STD = torch.tensor([512.0, 2.0, 2000.0, 1.0]), torch.tensor([256, 1 / 8, 16, 1])
SLOPES = ("gradient", "smoothgrad", "guided_backprop", "deconvnet")


def boxes() -> tuple[ub.Box, ub.Box]:
    """The same model on the same rows: in the units of the table, and standardized."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    raw, standard = ub.Features(NAMES, mean=MEAN, std=STD), ub.Features(NAMES, mean=0, std=1)
    return ub.Box(model, raw, outputs="logits"), ub.Box(model, standard, outputs="logits")


def rows(n: int = 8) -> tuple[Tensor, Tensor]:
    """The rows in both units, exactly: eighths of the standard deviations."""
    z = (8 * torch.randn(n, 4, generator=torch.Generator().manual_seed(1))).round() / 8
    return z * STD + MEAN, z


@pytest.mark.parametrize("name", [*SLOPES, "integrated_gradients", "lime"])
def test_verdicts_do_not_depend_on_the_units(name: str) -> None:
    method = getattr(ub.attribution, name)
    raw, standard = (ub.checks.verdict(b, h, method, max_draws=2) for b, h in zip(boxes(), rows(), strict=True))
    assert (raw.grade, raw.reason) == (standard.grade, standard.reason)
    assert raw.figures == pytest.approx(standard.figures, abs=1e-5, nan_ok=True)
    assert raw.gain_by_fill == pytest.approx(standard.gain_by_fill, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "power", "settings"),
    [*((n, 1, {}) for n in SLOPES), *(("smoothgrad", 2, {"kind": kind}) for kind in ("squared", "variance"))],
)
def test_slopes_are_compared_per_standard_deviation(name: str, power: int, settings: dict[str, Any]) -> None:
    (raw, standard), (x, z) = boxes(), rows()
    method = getattr(ub.attribution, name)
    own, wanted = method(raw, x, 1, **settings), method(standard, z, 1, **settings)
    torch.testing.assert_close(own.map * STD**power, wanted.map)  # the result is per unit of the column
    torch.testing.assert_close(own.per_column_scale().map, wanted.map)
    assert own.unit.endswith("per unit of the column")
    assert own.per_column_scale().unit.endswith("per standard deviation of the column")
    assert torch.equal(own.per_column_scale().per_column_scale(), own.per_column_scale())


def test_the_result_is_the_gradient() -> None:
    (box, _), (x, _) = boxes(), rows()
    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(box.model((leaf - MEAN) / STD)[:, 1].sum(), leaf)
    assert torch.equal(ub.attribution.gradient(box, x, 1).map, want)
    assert torch.equal(ub.explain(box, x[:1], 1, methods=["gradient"]).maps["gradient"].map, want[:1])


def test_measures_of_maps_do_not_depend_on_the_units() -> None:
    measured = []
    for box, x in zip(boxes(), rows(), strict=True):
        maps = ub.attribution.gradient(box, x, 1)
        similar = ub.checks.randomization(box, x, ub.attribution.gradient, 1)
        measured.append((
            ub.checks.deletion(box, x, maps, 1).auc,
            ub.checks.sensitivity_n(box, x, maps, 1, sizes=[2], n_samples=20).correlation,
            ub.checks.infidelity(box, x, maps, 1, n_samples=20).infidelity,
            ub.checks.max_sensitivity(box, x, ub.attribution.smoothgrad, 1, n_samples=2),
            similar.absolute,
        ))  # fmt: skip
    torch.testing.assert_close(*measured, rtol=1e-4, atol=1e-5)


def test_ranges_are_scales_too_and_without_any_the_unit_says_so() -> None:
    model, x = boxes()[0].model, rows()[1].clamp(-2, 2)
    ranged = ub.Box(model, ub.Features(NAMES, low=-2, high=(2, 4, 2, 2)), outputs="logits")
    a = ub.attribution.gradient(ranged, x, 0)
    torch.testing.assert_close(a.per_column_scale().map, a.map * torch.tensor([4.0, 6.0, 4.0, 4.0]))
    assert a.per_column_scale().unit.endswith("per range of the column")
    plain = ub.attribution.gradient(ub.Box(model, ub.Features(NAMES), outputs="logits"), x, 0)
    assert torch.equal(plain.per_column_scale().map, plain.map)
    assert plain.per_column_scale().unit.endswith("per unit of the column (no std or bounds are given)")


class ImageAndTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ends = nn.ModuleList([nn.Linear(16, 3), nn.Linear(4, 3)])

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        return self.ends[0](image.flatten(1)) + self.ends[1](table)  # type: ignore[no-any-return]


def test_a_table_beside_an_image_is_compared_like_that() -> None:
    inputs = ub.MultiInput({"image": ub.Pixels((1, 4, 4)), "table": ub.Features(NAMES, mean=MEAN, std=STD)})
    box, x = ub.Box(ImageAndTable(), inputs, outputs="logits"), {"image": torch.rand(8, 1, 4, 4), "table": rows()[0]}
    a = ub.attribution.gradient(box, x, 1)
    scaled = a.per_column_scale()
    torch.testing.assert_close(scaled.map, {"image": a.map["image"], "table": a.map["table"] * STD})
    torch.testing.assert_close(scaled.detach(), box.inputs.pack(scaled.map))
    checked = compute_map(box, ub.attribution.gradient, box.validate_inputs(x), torch.full((8,), 1))
    torch.testing.assert_close(checked, scaled.detach())


@pytest.mark.parametrize("explained", [False, True])
def test_figures_draw_slopes_per_standard_deviation(explained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    (box, _), (x, _) = boxes(), rows()
    module, drawn, real = (explanation_sheet if explained else figures_of_attribution), [], None
    real = module.contribution_bars

    def record(values: Any, *args: Any, label: str, **kwargs: Any) -> Any:
        drawn.append((values, label))
        return real(values, *args, label=label, **kwargs)

    monkeypatch.setattr(module, "contribution_bars", record)
    g = ub.attribution.gradient(box, x[:1], 1)
    figures(ub.explain(box, x[:1], 1, methods=["gradient"]) if explained else g)
    torch.testing.assert_close(drawn[0][0], g.map[0] * STD)
    assert drawn[0][1] == "slope: change of the score per standard deviation of the column"


def test_the_report_draws_slopes_per_standard_deviation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (box, _), (x, _) = boxes(), rows()
    real = ReportContext.verdict

    def verdict(self: ReportContext, name: str) -> Verdict:
        return replace(real(self, name), grade="pass" if name == "gradient" else "fail")

    monkeypatch.setattr(ReportContext, "verdict", verdict)
    made = report(box, x, tmp_path, sections=["gradients"], quiet=True)
    assert made.failures == {}
    page = made.path.read_text(encoding="utf-8")
    assert re.search("Gradient, slope: change of the logit of .* per standard deviation of the column", page)
    found = json.loads((tmp_path / "report.json").read_text())["findings"]["gradients"]
    row = x[found["examples"][0]["row"]][None]
    want = ub.attribution.gradient(box, row, int(box.predict(row))).map[0] * STD
    torch.testing.assert_close(torch.tensor(found["contributions"][0]), want, rtol=1e-3, atol=1e-3)
