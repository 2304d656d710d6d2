"""Rows of a table in the report and in figures: contributions, counterfactuals, units."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.checks.verdict import Verdict
from unboxed.engine.column_units import ColumnChange, column_changes
from unboxed.plots import charts, tables
from unboxed.report import report
from unboxed.report.blocks import Paragraph, SignedBars
from unboxed.report.context import ReportContext
from unboxed.report.render import render_blocks
from unboxed.report.rows import CounterfactualRow, _counterfactual_blocks


def table() -> tuple[ub.Box, Tensor, Tensor]:
    """Two classes by `size` and `weight`; `kind` is a category, `noise` does not matter."""
    torch.manual_seed(0)
    names, std = ("size", "weight", "kind", "noise"), (10.0, 0.1, 1.0, 5.0)
    inputs = ub.Features(names, low=(0, 0, 0, -100), mean=(50, 1, 0, 0), std=std, categories={"kind": (0.0, 1.0)})
    model = nn.Sequential(nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.5, 0.3, 0.0], [-1.0, -0.5, -0.3, 0.0]]))
        model[0].bias.zero_()
    x = inputs.clip(inputs.decode(torch.randn(20, 4)))
    x[:, 2] = torch.tensor([0.0, 1.0]).repeat(10)
    return ub.Box(model, inputs, outputs="logits", classes=["small", "large"]), x, model(inputs.encode(x)).argmax(1)


@pytest.mark.usefixtures("quick_reports")
def test_a_model_that_is_one_layer_has_a_report_without_failures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(30, 3)
    box = ub.Box(nn.Linear(3, 1), ub.Features(["a", "b", "c"]), outputs="binary")
    made = report(box, (x, (x[:, 0] > 0).long()), tmp_path / "report", quiet=True)
    assert made.failures == {}
    assert "This model has no layers inside" in made.path.read_text(encoding="utf-8")


def test_a_morph_of_a_row_moves_columns_alike_and_leaves_categories() -> None:
    box, x, y = table()
    result = ub.synthesis.morph(box, x, 1 - y, confidence=0.8)
    assert result.confidence_reached.all()
    assert torch.equal(box.predict(result.images), 1 - y)
    assert torch.equal(result.images[:, 2:], x[:, 2:])  # the category and the column without weight
    box.inputs.check(result.images)
    change = ((result.images - x) / torch.tensor([10.0, 0.1, 1.0, 5.0]))[:, :2]
    inside = (result.images[:, :2] > 0).all(1)
    assert torch.allclose(change[inside, 0], 2 * change[inside, 1], rtol=1e-3)  # along the gradient in std
    assert torch.allclose(box.probs(result.images), result.probs[-1], atol=1e-5)
    (want,) = torch.autograd.grad(box.model(box.inputs.encode(x.requires_grad_())).gather(1, (1 - y)[:, None]).sum(), x)
    assert torch.allclose(result.initial_gradient, want, rtol=1e-4, atol=1e-6)


def test_the_changes_of_a_row_are_named_and_measured() -> None:
    box, x, _ = table()
    after = x[0] + torch.tensor([5.0, 0.2, 0.0, 0.0])
    changes = column_changes(box.inputs, x[0], after)
    assert [c.name for c in changes] == ["weight", "size"]
    assert [c.change for c in changes] == pytest.approx([2.0, 0.5], rel=1e-4)
    assert changes[0].unit == "standard deviations of its column"
    assert changes[1].text == f"size {float(x[0, 0]):.4g} → {float(after[0]):.4g}"


def test_rows_are_led_past_every_other_class(tmp_path: Path) -> None:
    """A step that raises the logit of class 1 raises that of class 2 more."""
    model = nn.Linear(2, 3).eval()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0], [4.0, 2.0], [8.0, -2.0]]))
        model.bias.copy_(torch.tensor([0.1, 0.0, 0.0]))
    box = ub.Box(model, ub.Features(("a", "b"), low=-5, high=5, mean=(0, 0), std=(1, 1)), outputs="logits")
    x = torch.zeros(4, 2)
    assert not (box.predict(ub.synthesis.morph(box, x, 1).images) == 1).any()
    assert ub.synthesis.morph(box, x, 1, score="log-odds").confidence_reached.all()
    report(box, (x, torch.ones(4).long()), tmp_path, sections=["morphs"], quiet=True)
    finding = json.loads((tmp_path / "report.json").read_text())["findings"]["morphs"]
    assert all(row["reached"] for row in finding["rows"] if row["target"] == "1")
    assert finding["answer"].endswith("; less may do.")


def test_the_report_explains_rows(tmp_path: Path) -> None:
    box, x, y = table()
    y[3] = 1 - y[3]
    made = report(box, (x, y), tmp_path, sections=["gradients", "morphs", "attacks"], quiet=True)
    assert made.failures == {}
    page, facts = made.path.read_text(encoding="utf-8"), json.loads((tmp_path / "report.json").read_text())
    rows = facts["findings"]["morphs"]["rows"]
    assert {c["name"] for row in rows for c in row["changes"]} == {"size", "weight"}
    assert "Integrated gradients: contribution to the logit of small, from the mean row" in page
    assert re.search("Over many rows: the logit of (small|large)<", page)
    assert "standard deviations of its column" in page
    assert (
        "pixel"
        not in page[page.index('id="gradients"') : page.index('class="left-out"') if "left-out" in page else None]
    )
    contributions = torch.tensor(facts["findings"]["gradients"]["contributions"])
    assert torch.equal(contributions[:, 3], torch.zeros(len(contributions)))


def test_rows_are_explained_by_another_method_where_the_default_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, x, y = table()
    real = ReportContext.verdict

    def verdict(self: ReportContext, name: str) -> Verdict:
        found = real(self, name)
        return replace(found, grade="pass" if name == "feature_ablation" else "fail")

    monkeypatch.setattr(ReportContext, "verdict", verdict)
    made = report(box, (x, y), tmp_path, sections=["gradients"], quiet=True)
    assert made.failures == {}
    found = json.loads((tmp_path / "report.json").read_text())["findings"]["gradients"]
    assert found["method"] == "feature_ablation"
    method, row = ub.attribution.feature_ablation, found["examples"][0]["row"]
    want = method(box, x[row : row + 1], int(box.predict(x[row : row + 1]))).map
    assert torch.allclose(torch.tensor(found["contributions"][0]), want[0].cpu(), atol=1e-4)
    assert f"{method.card.name}: contribution to the logit of" in made.path.read_text(encoding="utf-8")


def n_variants(page: str) -> list[int]:
    """How many examples a reader can choose from in each block that follows them."""
    return [len(re.findall('data-example="', block)) for block in page.split('class="per-example"')[1:]]


def test_a_reader_chooses_among_rows_of_a_table(tmp_path: Path) -> None:
    box, x, y = table()
    y[3] = 1 - y[3]
    page = report(box, (x, y), tmp_path, sections=["gradients", "morphs"], quiet=True).path.read_text(encoding="utf-8")
    names = re.findall(r'data-choose="\d+"[^>]*>([^<]*)</button>', page)
    assert names[0] == "Example 3"  # the error
    assert len(set(names)) == len(names) >= 3
    assert n_variants(page) == [len(names)] * 3  # at the top, and in both chapters
    top = page[page.index('<section class="followed"') : page.index('class="chapter"')]
    assert top.count('<figure class="signed-bars') == len(names)  # the contributions of each
    one = report(box, (x[:1], y[:1]), tmp_path / "one", sections=["gradients"], quiet=True)
    assert "data-choose=" not in one.path.read_text(encoding="utf-8")
    overview = report(box, (x, y), tmp_path / "overview", sections=["overview"], quiet=True)  # follows none
    assert "data-choose=" not in overview.path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("k", "classes", "score"),
    [(1, None, "output"), (1, ["price"], "output price"), (2, None, "output (0|1)")],
)
def test_contributions_to_numbers_name_the_output(
    k: int, classes: list[str] | None, score: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    box = ub.Box(nn.Linear(4, k).eval(), table()[0].inputs, outputs="regression", classes=classes)
    page = report(box, table()[1], tmp_path, sections=["gradients"], quiet=True).path.read_text(encoding="utf-8")
    assert re.search(f"Over many rows: the {score}<", page)
    assert re.search(f"Integrated gradients: contribution to the {score}, from the mean row", page)


def test_bars_are_as_long_as_their_numbers_and_on_their_side() -> None:
    bars = SignedBars("t", ("p 0.9", "label a"), [("size = 1", 200.0), ("a <b>", -50.0), ("none", 0.0)], "what")
    html = render_blocks([bars], None)  # type: ignore[arg-type]
    assert re.findall(r'<i class="(\w+)" style="--v: ([\d.]+)"', html) == [
        ("more", "1.0"), ("less", "0.25"), ("more", "0.0"),
    ]  # fmt: skip
    assert re.findall(r'class="number">([^<]*)<', html) == ["+200", "\u221250.0", "+0.00"]
    assert "p 0.9 · label a" in html
    assert "a &lt;b&gt;" in html
    assert SignedBars("", (), [("a", 0.0)], "").largest == 1


def test_figures_of_tables_name_columns_and_summarize_many_rows() -> None:
    box, x, y = table()
    attribution = ub.attribution.integrated_gradients(box, x, y)
    assert set(ub.plots.figures(attribution, box)) == {"attribution", "summary"}
    assert set(ub.plots.figures(ub.attribution.integrated_gradients(box, x[:3], 0), box)) == {"attribution"}
    assert set(ub.plots.figures(ub.synthesis.morph(box, x[:2], 1 - y[:2]), box)) == {"change"}
    assert set(ub.plots.figures(ub.adversarial.pgd(box, x[:3], y[:3], eps=0.5), box)) == {"change"}


def test_the_largest_columns_are_drawn_first(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, list[str]] = {}
    monkeypatch.setattr(tables, "signed_bar_chart", lambda bars, **kw: drawn.update(bars=list(bars), n=kw["n_omitted"]))
    monkeypatch.setattr(tables, "beeswarm_chart", lambda v, x, names, **kw: drawn.update(swarm=list(names)))
    values, names = np.linspace(-2, 1, 15), [f"c{i}" for i in range(15)]
    tables.contribution_bars(values, np.arange(15), names)
    assert drawn["bars"][:2] == ["c0 = 0", "c1 = 1"]
    assert drawn["n"] == 3
    tables.contribution_swarm(np.stack([values, -values]), np.ones((2, 15)), names)
    assert drawn["swarm"][:2] == ["c0", "c1"]


def test_points_of_a_swarm_do_not_overlap_where_they_are_many() -> None:
    offsets = charts._swarm_offsets(np.zeros(21))
    assert len(set(offsets)) == 21
    assert abs(offsets).max() <= 0.45
    assert (charts._swarm_offsets(np.arange(5.0)) == 0).all()


def test_a_table_that_is_cut_says_that_more_columns_change() -> None:
    changes = [ColumnChange(f"column {i}", 0.0, 2.0 - i / 10, 2.0 - i / 10, "") for i in range(7)]
    row = CounterfactualRow("title", 3, "a", "b", True, True, 0.1, 0.9, changes)
    leads = [next(b for b in _counterfactual_blocks(row, n) if isinstance(b, Paragraph)).text for n in (5, 7)]
    assert "with these columns (and 2 others, by less) changed, the probability of b goes" in leads[0]
    assert "with these columns changed, the probability of b goes" in leads[1]
