"""What the report says of a regression: a baseline, bias by range, groups with larger errors, the worst rows."""

from __future__ import annotations

import json
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.dummy import DummyRegressor
from sklearn.metrics import mean_absolute_error
from torch import Tensor, nn

import unboxed as ub
from unboxed.report import report
from unboxed.report.regression import error_groups, errors_by_range, output_errors
from unboxed.report.regression_blocks import (
    baseline_sentence,
    bias_sentence,
    condition_text,
    error_group_sentence,
    output_errors_headline,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def doubles(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# -- a baseline --------------------------------------------------------------------------------------------------------


def test_the_baseline_is_the_best_constant() -> None:
    true = doubles(101, 1).exp()
    (e,) = output_errors(true + 0.1, true, ["a"])
    dummy = DummyRegressor(strategy="median").fit(true, true[:, 0])
    assert e.median_mae == pytest.approx(mean_absolute_error(true, dummy.predict(true)))
    assert min(float((true - c).abs().mean()) for c in true[:, 0]) == pytest.approx(e.median_mae)
    assert baseline_sentence(e).startswith(f"Always predicting the median, {e.median:.3g}, would be off by ")
    (worse,) = output_errors(-true, true, ["a"])
    assert baseline_sentence(worse).startswith("It is no better than always predicting the median")


# -- bias by range -----------------------------------------------------------------------------------------------------


def test_ranges_have_the_intervals_of_scipy() -> None:
    values, error = doubles(200), doubles(200, seed=1) * 2 + 0.3
    ranges = errors_by_range(values, error)
    assert [r.n_examples for r in ranges] == [40] * 5
    ordered = values.argsort()
    for i, r in enumerate(ranges):
        rows = ordered[40 * i : 40 * i + 40]
        assert (r.low, r.high) == (float(values[rows].min()), float(values[rows].max()))
        want = stats.ttest_1samp(error[rows].numpy(), 0).confidence_interval(1 - 0.05 / 5)
        assert r.interval == pytest.approx((want.low, want.high))
        assert r.mean_error == pytest.approx(float(error[rows].mean()))


def test_equal_values_are_in_one_range() -> None:
    ranges = errors_by_range(torch.tensor([0.0] * 70 + [1.0] * 30), doubles(100).float())
    assert [(r.low, r.high, r.n_examples) for r in ranges] == [(0, 0, 70), (1, 1, 30)]
    assert errors_by_range(torch.ones(100), doubles(100)) == []
    assert errors_by_range(doubles(19), doubles(19)) == []  # too few


def test_noise_has_no_bias_in_nineteen_of_twenty_reports() -> None:
    found = [any(r.sign for r in errors_by_range(doubles(150, seed=s), doubles(150, seed=-s - 1))) for s in range(400)]
    assert sum(found) / 400 < 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_bias_is_told_by_the_range_of_the_true_value() -> None:
    true, noise = torch.arange(500, dtype=torch.float64)[:, None], 0.01 * doubles(500, 1)
    shift = torch.tensor([38.0, 0, 0, 0, -51]).double()[(true[:, 0] / 100).long()][:, None]
    (e,) = output_errors(true + shift + noise, true, ["progress (mg/dl)"])
    assert bias_sentence(e) == (
        "It predicts progress too high below 100 mg/dl (mean error +38 mg/dl) "
        "and too low above 400 mg/dl (mean error -51 mg/dl)."
    )
    title, sentence = output_errors_headline([e])
    assert title == f"Mean absolute error {e.mae:.3g} mg/dl"
    assert sentence.endswith(bias_sentence(e))
    (everywhere,) = output_errors(true + 3 + noise, true, ["output"])
    assert bias_sentence(everywhere) == "It predicts output too high everywhere (mean error +3)."
    (exact,) = output_errors(true, true, ["output"])
    assert bias_sentence(exact) == ""


def test_a_bias_in_the_middle_has_both_ends() -> None:
    true = torch.arange(500, dtype=torch.float64)[:, None]
    shift = 7.0 * ((true >= 200) & (true < 300)) + 0.01 * doubles(500, 1)
    (e,) = output_errors(true + shift, true, ["age"])
    assert [r.sign for r in e.by_true_value] == [0, 0, 1, 0, 0]
    assert bias_sentence(e) == "It predicts age too high from 200 to 300 (mean error +7)."


# -- groups ------------------------------------------------------------------------------------------------------------


def table(n: int = 600) -> tuple[Tensor, Tensor]:
    """Columns a, b and a category c, and errors that are twice as large where a is above its upper fifth."""
    columns = torch.cat([doubles(n, 2), torch.randint(0, 3, (n, 1), generator=generator(2))], 1)
    error = doubles(n, seed=3) * torch.where(columns[:, 0] > 0.84, 2.0, 1.0)
    return columns, error


def test_a_group_with_larger_errors_is_found_and_tested_on_other_rows() -> None:
    columns, error = table()
    groups = error_groups(columns, "abc", error, error.abs(), 0)
    assert [g.column for g in groups] == ["a"]
    (g,) = groups
    assert g.low == pytest.approx(0.84, abs=0.2)
    assert g.high == float("inf")
    assert condition_text(g) == f"a ≥ {g.low:.4g}"
    assert g.mean_absolute_error > g.others_absolute_error
    order = torch.randperm(600, generator=ub.rng.keyed_generator(ub.rng.CPU, "error groups", 0))
    held_out = order[300:]
    inside = columns[held_out, 0] >= g.low
    a, b = (error.abs()[held_out][m].numpy() for m in (inside, ~inside))
    assert (g.mean_absolute_error, g.others_absolute_error) == pytest.approx((a.mean(), b.mean()))
    intervals = [
        stats.ttest_ind(a, b, equal_var=False).confidence_interval(1 - 0.05 / n_tested) for n_tested in (1, 2, 3)
    ]
    assert any(g.interval == pytest.approx((i.low, i.high)) for i in intervals)
    (e,) = output_errors(error[:, None], torch.zeros(600, 1).double(), ["y (kg)"])
    inside_text, outside_text = (f"{v:.3g} kg" for v in (g.mean_absolute_error, g.others_absolute_error))
    assert error_group_sentence(groups, [e]) == (
        f"It is further off where a ≥ {g.low:.4g}: by {inside_text} on average, elsewhere by {outside_text}."
    )


def test_a_category_is_a_group_by_itself() -> None:
    columns, _ = table()
    error = doubles(600, seed=5) * torch.where(columns[:, 2] == 1, 3.0, 1.0)
    groups = error_groups(columns, "abc", error, error.abs(), 0)
    assert condition_text(groups[0]) == "c = 1"


def test_groups_of_noise_are_found_in_one_of_twenty_reports_at_most() -> None:
    found = 0
    for seed in range(300):
        error = doubles(200, seed=seed).exp()  # skewed, as absolute errors are
        found += bool(error_groups(doubles(200, 6, seed=-seed - 1), "abcdef", error, error, seed))
    assert found / 300 < 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5
    assert error_groups(doubles(90, 2), "ab", doubles(90), doubles(90).abs(), 0) == []  # too few


# -- the page ----------------------------------------------------------------------------------------------------------

NAMES = ("a", "b")


def box_and_frame(target: str = "price (USD)") -> tuple[ub.Box, pd.DataFrame]:
    """A model that pulls to the mean, and is off where b is large."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[70.0, 0.0]]))
        model.bias.fill_(75.0)
    x = torch.rand(400, 2, generator=generator())
    noise = torch.randn(400, generator=generator(1)) * torch.where(x[:, 1] > 0.8, 20.0, 1.0)
    frame = pd.DataFrame(x.numpy(), columns=NAMES)
    frame[target] = (70 + 80 * x[:, 0] + noise).numpy()
    return ub.Box(model.eval(), ub.Features(NAMES), outputs="regression"), frame


def written(box: ub.Box, data: Any, out: Path, sections: tuple[str, ...] = ("overview",)) -> tuple[str, dict[str, Any]]:
    made = report(box, data, out, sections=[*sections], quiet=True)
    assert made.failures == {}
    page = " ".join(unescape(made.path.read_text(encoding="utf-8")).split())
    return page, json.loads((out / "report.json").read_text(encoding="utf-8"))


def test_the_page_says_in_short_what_it_is_bad_at(tmp_path: Path) -> None:
    box, frame = box_and_frame()
    page, facts = written(box, frame, tmp_path, ("overview", "gradients"))
    true = frame["price (USD)"].to_numpy()
    error = box(torch.tensor(frame[[*NAMES]].to_numpy()))[:, 0].double().numpy() - true
    assert facts["title"] == f"Mean absolute error {abs(error).mean():.3g} USD"
    short = " ".join(facts["headline"])
    assert f"Always predicting the median, {np.median(true):.3g} USD, would be off by" in short
    assert "It predicts price too high below " in short
    assert " and too low above " in short
    assert "It is further off where b ≥ 0.8" in short
    overview = facts["findings"]["overview"]
    assert overview["answer"] in short.replace("; R²", "")
    worst = np.argsort(-abs(error))[:12]
    assert [row["example"] for row in overview["largest_errors"]] == [f"example {i}" for i in worst]
    assert [row["error"] for row in overview["largest_errors"]] == pytest.approx(error[worst], rel=1e-5)
    assert f"example {worst[0]}</td>" in page
    assert "contribution to the output price (USD)" in page
    for word in ("label 1", "output 1", "Its label"):
        assert word not in page


def test_the_name_of_the_target_is_that_of_its_column(tmp_path: Path) -> None:
    box, frame = box_and_frame("progress")
    frame.to_csv(tmp_path / "rows.csv", index=False)
    table = ub.data.table(tmp_path / "rows.csv", box)
    x = frame[[*NAMES]]
    forms = [frame, (x, frame["progress"]), (x, frame[["progress"]]), table, table.tensors()]
    for i, data in enumerate(forms):
        assert written(box, data, tmp_path / str(i))[1]["classes"] == ["progress"], i
    named = ub.Box(box.model, box.inputs, classes=["own"], outputs="regression")
    assert written(named, frame, tmp_path / "own")[1]["classes"] == ["own"]
    plain = frame.rename(columns={"progress": "target"})
    assert written(box, plain, tmp_path / "plain")[1]["classes"] == ["0"]  # says nothing


def test_a_reader_chooses_among_the_largest_errors_and_a_typical_one(tmp_path: Path) -> None:
    box, frame = box_and_frame()
    page, facts = written(box, frame, tmp_path, ("overview", "gradients"))
    largest = [row["example"] for row in facts["findings"]["overview"]["largest_errors"]]
    for name in largest[:3]:
        assert f"{name.capitalize()}. The model predicts" in page
    assert page.count("Its error is the largest.") == 1
    assert page.count("Its error is one of the largest.") == 2
    assert page.count("It is a typical example.") == 1


def test_several_outputs_tell_the_bias_of_the_worst(tmp_path: Path) -> None:
    torch.manual_seed(0)
    box = ub.Box(nn.Linear(2, 2).eval(), ub.Features(NAMES), outputs="regression", classes=["u", "v"])
    x = torch.rand(200, 2)
    y = box(x).detach() + 0.01 * torch.randn(200, 2)
    y[:, 1] += 2 * torch.randn(200)
    _, facts = written(box, (x, y), tmp_path)
    assert "Of 2 outputs, v is predicted worst" in facts["headline"][1]
    assert "It predicts v too " in facts["headline"][1]
    assert all(row["error"] is None for row in facts["findings"]["overview"]["largest_errors"])
    page, facts = written(box, (x, y), tmp_path / "why", ("gradients",))
    found = facts["findings"]["gradients"]
    row = found["examples"][0]["row"]
    want = ub.attribution.integrated_gradients(box, x[[row]], 1, baseline=x.mean(0)).map[0]
    assert found["contributions"][0] == pytest.approx(want.tolist(), abs=1e-6)
    assert "Its true values are u " in page
