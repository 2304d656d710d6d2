"""The baseline of a table whose mean is not known, as where the model normalizes; baselines as arrays and Series."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

import unboxed as ub
from unboxed.cards import cards
from unboxed.checks.relevance_gain import fill_fn_by_name
from unboxed.checks.verdict_cache import VerdictCache
from unboxed.engine.perturb.baselines import baseline
from unboxed.errors import InputError
from unboxed.report import report
from unboxed.report.context import ReportContext

NAMES, MEAN, STD = ("a", "b", "c"), torch.tensor([10.0, -200.0, 3.0]), torch.tensor([1.0, 20.0, 0.5])
METHODS = [c for c in cards("attribution") if "baseline" in c.settings and not c.needs]


class Normalizing(nn.Module):
    """A model that normalizes, so that its `Features` have no mean."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers((x - MEAN) / STD)  # type: ignore[no-any-return]


def table() -> tuple[ub.Box, Tensor]:
    torch.manual_seed(0)
    return ub.Box(Normalizing().eval(), ub.Features(NAMES), outputs="logits"), torch.randn(30, 3) * STD + MEAN


@pytest.mark.parametrize("card", METHODS, ids=lambda card: card.key)
def test_methods_take_arrays_lists_and_series(card: Any) -> None:
    pandas = pytest.importorskip("pandas")
    box, x = table()
    mean = x.mean(0)
    shuffled = pandas.Series(mean.tolist(), NAMES)[["c", "a", "b"]]  # by the names of the columns
    forms = [mean.numpy(), mean.numpy().astype(np.float64)[None], mean.tolist(), shuffled, shuffled.to_frame().T]
    want = card.method(box, x[:2], 1, baseline=mean).map
    for form in forms:
        torch.testing.assert_close(card.method(box, x[:2], 1, baseline=form).map, want)


@pytest.mark.parametrize("card", METHODS, ids=lambda card: card.key)
def test_contributions_from_zeros_say_so(card: Any) -> None:
    box, x = table()
    known = ub.Box(box.model, ub.Features(NAMES, mean=0, std=1), outputs="logits")
    assert card.method(box, x[:1], 1).unit.endswith(" (baseline: zeros)")
    units = {card.method(box, x[:1], 1, baseline=x.mean(0)).unit, card.method(known, x[:1], 1).unit}
    assert len(units) == 1
    assert "zeros" not in units.pop()


def test_integrated_gradients_from_a_series_are_captums() -> None:
    pandas = pytest.importorskip("pandas")
    box, x = table()
    frame = pandas.DataFrame(x.numpy(), columns=NAMES)
    ours = ub.attribution.integrated_gradients(box, frame[:4], 1, baseline=frame.mean(), n_steps=64).map
    theirs = IntegratedGradients(box.model).attribute(
        x[:4], x.mean(0, keepdim=True), target=1, n_steps=64, method="riemann_middle"
    )
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-3, atol=1e-4)


def test_what_holds_no_numbers_is_refused() -> None:
    box, x = table()
    for wrong in (["a", "b", "c"], np.array([1.0, np.nan, 2.0]), np.zeros(2), [[1.0], [1.0, 2.0]]):
        with pytest.raises(InputError, match="baseline"):
            ub.attribution.gradient_x_input(box, x, baseline=wrong)


def test_a_mean_that_is_not_known_is_refused_with_a_remedy() -> None:
    box, x = table()
    with pytest.raises(InputError, match=r"baseline=x\.mean\(0\).* Features\(names, mean=\.\.\., std=\.\.\.\)"):
        ub.attribution.integrated_gradients(box, x, baseline="mean")
    zeros = ub.attribution.integrated_gradients(box, x, baseline=0.0)
    assert torch.equal(ub.attribution.integrated_gradients(box, x).map, zeros.map)
    images = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), ub.Pixels((1, 4, 4)), outputs="logits")
    with pytest.raises(InputError, match=r"Pixels\(shape, mean="):
        ub.attribution.integrated_gradients(images, torch.rand(2, 1, 4, 4), baseline="mean")
    known = ub.Box(box.model, ub.Features(NAMES, mean=0, std=1), outputs="logits")  # given as 0: standardized rows
    assert torch.equal(baseline(known, x, "mean"), torch.zeros_like(x))


def test_a_verdict_fills_with_the_mean_of_its_rows() -> None:
    box, x = table()
    examples, removed = torch.arange(30), torch.ones(30, 3, dtype=torch.bool)
    fills = fill_fn_by_name(box, x, 0)
    torch.testing.assert_close(fills["mean"](examples, removed), x.mean(0).expand(30, 3))
    assert set(fill_fn_by_name(box, x[:1], 0)) == {"zeros"}


@pytest.mark.parametrize("multi", [False, True])
def test_a_verdict_on_one_row_removes_columns_to_the_baseline(multi: bool) -> None:
    box, x = table()
    mean: Any = x.mean(0)
    if multi:
        box = ub.Box(
            _Joined(nn.Linear(6, 2)), ub.MultiInput({"image": ub.Features(NAMES), "table": ub.Features(NAMES)})
        )
        x, mean = {"image": x, "table": x}, {"image": mean, "table": mean}
    row = box.restore_structure(box.validate_inputs(x)[:1])
    cache, method = VerdictCache(), ub.attribution.gradient_x_input
    own, given = cache.verdict(box, row, method), cache.verdict(box, row, method, baseline=mean)
    assert [*own.gain_by_fill] == ["zeros"]
    assert [*given.gain_by_fill] == ["baseline"]
    assert own.gain_by_fill["zeros"] != given.gain_by_fill["baseline"]
    assert len(cache.requested) == 2
    assert ub.checks.verdict(box, row, method, baseline=mean).gain_by_fill == given.gain_by_fill
    why = ub.explain(box, row, methods=["gradient", "integrated_gradients"], baseline=mean)
    assert {fill for v in why.verdicts.values() for fill in v.gain_by_fill} == {"baseline"}


def test_images_keep_their_fills_whatever_the_baseline() -> None:
    box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), ub.Pixels((1, 8, 8)), outputs="logits")
    x = torch.rand(1, 1, 8, 8)
    assert [*fill_fn_by_name(box, x, 0, "white")] == [*fill_fn_by_name(box, x, 0)]


def test_a_table_beside_an_image_is_filled_like_that() -> None:
    inputs = ub.MultiInput({"image": ub.Pixels((1, 4, 4), mean=0.5, std=0.5), "table": ub.Features(NAMES)})
    model = nn.Linear(19, 2)
    box = ub.Box(_Joined(model), inputs, outputs="logits")
    x = box.validate_inputs({"image": torch.rand(6, 1, 4, 4), "table": table()[1][:6]})
    filled = fill_fn_by_name(box, x, 0)["mean"](torch.arange(6), torch.ones(6, 19, dtype=torch.bool))
    torch.testing.assert_close(filled, torch.cat([torch.full((16,), 0.5), x[:, 16:].mean(0)]).expand(6, 19))


class _Joined(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        return self.layer(torch.cat([image.flatten(1), table], 1))  # type: ignore[no-any-return]


def test_the_report_explains_from_the_mean_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box, x = table()
    made = report(box, x, tmp_path, sections=["gradients"], quiet=True)
    assert made.failures == {}
    found = json.loads((tmp_path / "report.json").read_text())["findings"]["gradients"]
    assert found["method"] == "integrated_gradients"
    assert "from the mean row" in made.path.read_text(encoding="utf-8")
    rows = x[[example["row"] for example in found["examples"]]]
    want = ub.attribution.integrated_gradients(box, rows, baseline=x.mean(0)).map
    torch.testing.assert_close(torch.tensor(found["contributions"]), want, rtol=1e-3, atol=1e-3)
    cached: list[bool] = []
    real = ReportContext.is_verdict_cached
    monkeypatch.setattr(ReportContext, "is_verdict_cached", lambda *args: cached.append(real(*args)) or cached[-1])
    report(box, x, tmp_path, sections=["gradients"], quiet=True)
    assert cached
    assert all(cached)  # a baseline has a key
