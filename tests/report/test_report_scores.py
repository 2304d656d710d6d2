"""How good a model is whose outputs exclude nothing: regression, yes/no labels, label maps."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn import metrics
from torch import Tensor, nn

import unboxed as ub
from unboxed.report import attack_budget, report
from unboxed.report.regression import output_errors
from unboxed.report.score_intervals import mean_absolute_error, mean_average_precision, mean_r2
from unboxed.report.scores import (
    average_precision,
    confused_positions_sentence,
    label_scores,
    position_scores,
)

PIXELS = ub.Pixels((1, 6, 6))


ALL = ("overview", "attacks", "class-images", "morphs")


def written(box: ub.Box, data: Any, out: Path, sections: Sequence[str] = ALL) -> tuple[str, dict[str, Any]]:
    made = report(box, data, out, sections=[*sections], quiet=True)
    assert made.failures == {}
    page = " ".join(made.path.read_text(encoding="utf-8").split())
    return page, json.loads((out / "report.json").read_text(encoding="utf-8"))


def flat(k: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, k)).eval()


def images(n: int = 30) -> Tensor:
    return torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def test_errors_are_those_of_scikit_learn() -> None:
    torch.manual_seed(0)
    true, predicted = torch.randn(50, 3).double(), torch.randn(50, 3).double()
    for k, error in enumerate(output_errors(predicted, true, "abc")):
        t, p = true[:, k].numpy(), predicted[:, k].numpy()
        assert error.name == "abc"[k]
        assert error.mae == pytest.approx(metrics.mean_absolute_error(t, p))
        assert error.rmse == pytest.approx(metrics.root_mean_squared_error(t, p))
        assert error.r2 == pytest.approx(metrics.r2_score(t, p))
    assert math.isnan(output_errors(predicted, torch.ones(50, 3).double(), "abc")[0].r2)


def test_label_scores_are_those_of_scikit_learn() -> None:
    torch.manual_seed(0)
    p, y = (torch.rand(60, 3) * 8).round().double() / 8, torch.randint(0, 2, (60, 3)).double()  # with ties
    for k, score in enumerate(label_scores(p, y, "abc")):
        t, yes = y[:, k].numpy(), (p[:, k] > 0.5).numpy()
        assert score.n_positive == int(t.sum())
        assert score.precision == pytest.approx(metrics.precision_score(t, yes))
        assert score.recall == pytest.approx(metrics.recall_score(t, yes))
        assert score.average_precision == pytest.approx(metrics.average_precision_score(t, p[:, k].numpy()))
    assert math.isnan(average_precision(p[:, 0], torch.zeros(60, dtype=torch.bool)))


def test_position_scores_are_those_of_scikit_learn() -> None:
    confusion = torch.tensor([[5, 1, 0], [2, 8, 0], [0, 0, 0]])
    labels = [i for i in range(3) for j in range(3) for _ in range(int(confusion[i, j]))]
    predicted = [j for i in range(3) for j in range(3) for _ in range(int(confusion[i, j]))]
    scores = position_scores(confusion, "abc")
    want = metrics.jaccard_score(labels, predicted, average=None, labels=[0, 1])
    assert [s.iou for s in scores[:2]] == pytest.approx(list(want))
    assert (scores[0].accuracy, scores[0].n_positions) == (pytest.approx(5 / 6), 6)
    assert math.isnan(scores[2].iou)


@pytest.mark.parametrize("k", [1, 3])
def test_a_regression_is_reported_with_its_errors(k: int, tmp_path: Path) -> None:
    box, x = ub.Box(flat(k), PIXELS, outputs="regression"), images()
    y = box(x) + 0.1 * torch.randn(30, k, generator=torch.Generator().manual_seed(1))
    y[7] += 3
    page, facts = written(box, (x, y if k > 1 else y[:, 0]), tmp_path)
    errors = facts["findings"]["overview"]["output_errors"]
    assert [e["mae"] for e in errors] == pytest.approx((box(x) - y).abs().mean(0).tolist(), rel=1e-5)
    assert facts["title"].startswith("Mean absolute error" if k == 1 else "Mean R²")
    name = "output" if k == 1 else "output 0"
    assert f"predicted against true values of {name}, 30 examples" in page
    assert facts["findings"]["overview"]["lowest_margin"][0] == 7
    assert "Largest errors" in page
    assert f"true value {float(y[7, 0]):.3g}" in page or k > 1
    assert "<span>label" not in page
    assert "needs classes, and a regression model has none" in page  # morphs do
    curve = facts["findings"]["attacks"]["robustness"]["attacked"]["all attacks"]["MAE"]
    mae = facts["findings"]["attacks"]["robustness"]["clean"]["MAE"][0]
    assert mae == pytest.approx(float((box(x) - y).abs().mean()), rel=1e-5)
    assert [mae, *(point[0] for point in curve)] == sorted([mae, *(point[0] for point in curve)])
    assert f"raise the mean absolute error of all 30 examples from {mae:.3g} to {curve[-1][0]:.3g}." in page


def test_yes_no_labels_are_reported_label_by_label(tmp_path: Path) -> None:
    box, x = ub.Box(flat(3), PIXELS, outputs="multilabel", classes=["cat", "dog", "car"]), images()
    y = (box(x) > 0).int()
    y[0] = torch.tensor([1, 1, 0])
    page, facts = written(box, (x, y), tmp_path)
    scores = facts["findings"]["overview"]["label_scores"]
    assert [s["name"] for s in scores] == ["cat", "dog", "car"]
    p = box.probs(x)
    want = metrics.average_precision_score(y[:, 1].numpy(), p[:, 1].numpy())
    assert scores[1]["average_precision"] == pytest.approx(want)
    has = y[facts["findings"]["overview"]["lowest_margin"][0]]
    assert f"label {', '.join(name for name, on in zip(box.classes, has, strict=True) if on) or 'none'}" in page
    robustness = facts["findings"]["attacks"]["robustness"]
    assert robustness["clean"]["exact match"][0] == pytest.approx(((box(x) > 0) == y).all(1).double().mean().item())
    assert "lower the share of labels that are right of all 30 examples from" in page
    assert "class-images" in facts["findings"]
    examples = box.probs(x) > 0.5
    for row, on in enumerate(examples):
        names = ", ".join(name for name, is_on in zip(box.classes, on, strict=True) if is_on) or "none"
        likeliest = box.classes[int(box.probs(x[row : row + 1]).argmax())]
        if f"Example {row}. The model predicts" in page:
            assert f"Example {row}. The model predicts {names}, likeliest: &#34;{likeliest}&#34;, p" in page
    assert page.count("The model predicts") >= 2


def test_label_maps_are_reported_class_by_class(tmp_path: Path) -> None:
    torch.manual_seed(0)
    box, x = ub.Box(nn.Conv2d(1, 3, 3, padding=1).eval(), PIXELS), images()
    y = box.predict(x)
    y[0, 0] = 255  # positions that do not count
    page, facts = written(box, (x, y), tmp_path)
    assert facts["title"] == "100% of positions correct"
    assert sum(s["n_positions"] for s in facts["findings"]["overview"]["position_scores"]) == 30 * 36 - 6
    assert "output=lambda out: out.mean((2, 3))" in page


def test_images_are_ranked_by_the_overlap_with_their_own_label_map(tmp_path: Path) -> None:
    torch.manual_seed(0)
    box, x = ub.Box(nn.Conv2d(1, 3, 3, padding=1).eval(), PIXELS, classes=["sky", "sea", "land"]), images(6)
    predicted = box.predict(x)
    y = torch.where(torch.rand(6, 6, 6) < torch.tensor([0.3, 0, 0.9, 0.1, 0.5, 0])[:, None, None], 2, predicted)
    y[:, 0, 0], y[5] = 255, 255  # positions that do not count; no position of the last image does
    page, facts = written(box, (x, y), tmp_path, ["overview"])
    flat_labels, flat_predicted, counts = y.flatten(1), predicted.flatten(1), y.flatten(1) != 255
    want = [
        metrics.jaccard_score(flat_labels[i][counts[i]], flat_predicted[i][counts[i]], average="macro")
        for i in range(5)
    ]
    order = sorted(range(5), key=lambda i: want[i])
    assert facts["findings"]["overview"]["lowest_margin"] == [*order, 5]
    worst = order[0]
    share = metrics.accuracy_score(flat_labels[worst][counts[worst]], flat_predicted[worst][counts[worst]])
    assert facts["headline"][-1] == (
        f"The worst image is example {worst}: IoU {want[worst]:.2f}, {share:.1%} of positions correct."
    )
    scores = [s for s in facts["findings"]["overview"]["position_scores"] if s["iou"] is not None]
    least = min(scores, key=lambda s: s["iou"])
    assert f'the class with the least is "{least["name"]}" ({least["iou"]:.2f})' in facts["headline"][1]
    wrong = int(((y != predicted) & (y != 255))[worst].sum())
    assert f'alt="errors, example {worst}: {wrong} positions that are wrong"' in page
    assert page.count('alt="labels, example') == 4 + 6  # the worst at once, all below
    assert page.count('alt="prediction, example') == 4 + 6  # none of the followed: no other section shows it
    assert "does not count" in page


def test_the_confusions_of_label_maps_are_those_of_scikit_learn() -> None:
    names = ["sky", "sea", "land"]
    labels, predicted = torch.randint(0, 3, (2, 4000), generator=torch.Generator().manual_seed(0))
    predicted = torch.where(torch.rand(4000) < 0.5, labels, predicted)
    labels, predicted = torch.cat([labels, torch.ones(700, dtype=torch.long)]), torch.cat([predicted, torch.zeros(700)])
    predicted = torch.cat([predicted, torch.ones(500)])
    labels = torch.cat([labels, torch.full((500,), 2)])
    confusion = torch.as_tensor(metrics.confusion_matrix(labels, predicted))
    shares = metrics.confusion_matrix(labels, predicted, normalize="true")
    assert confused_positions_sentence(confusion, names) == (
        f'Its most common confusions: "sea" predicted as "sky" ({shares[1, 0]:.1%} of the positions with that label) '
        f'and "land" predicted as "sea" ({shares[2, 1]:.1%}).'
    )
    confusion[2, 1] = 0
    confusion[0] = torch.tensor([9, 1, 0])
    assert confused_positions_sentence(confusion, names).startswith('Its most common confusion: "sea" predicted as "sk')
    assert confused_positions_sentence(torch.eye(3, dtype=torch.long), names) == ""


def label_maps() -> tuple[ub.Box, Tensor, Tensor]:
    """Images of whose positions many are predicted as another class."""
    torch.manual_seed(0)
    box = ub.Box(nn.Conv2d(1, 3, 3, padding=1).eval(), PIXELS, classes=["none", "high", "low"])
    x = images(8)
    y = box.predict(x)
    return box, x, torch.where(torch.rand(y.shape) < torch.tensor([0.1, 0.5, 0.3])[y], (y + 1) % 3, y)


@pytest.mark.usefixtures("quick_reports")
def test_maps_explain_the_class_that_overlaps_least(tmp_path: Path) -> None:
    box, x, y = label_maps()
    made = report(box, (x, y), tmp_path, sections=["overview", "gradients", "ranking"], quiet=True)
    assert made.failures == {}
    facts = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["findings"]
    iou = metrics.jaccard_score(y.flatten(), box.predict(x).flatten(), average=None)
    name = box.classes[int(iou.argmin())]
    assert {*facts["gradients"]["columns"][0]["targets"]} == {name}
    rows = [e["row"] for group in facts["gradients"]["groups"].values() for e in group]
    want = getattr(ub.attribution, facts["gradients"]["method"])(box, x[rows], name).map.abs().max()
    assert facts["gradients"]["columns"][0]["scale"] <= float(want) + 1e-6
    page = " ".join(unescape(made.path.read_text(encoding="utf-8")).split())
    assert f"why {name}<" in page
    assert not [c for c in box.classes if c != name and f"why {c}<" in page]
    assert f'red raises the score of "{name}", the class with the least overlap, blue lowers it' in page
    assert f'Red: for "{name}", the class with the least overlap, blue' in page


def test_the_colors_and_confusions_of_label_maps_stand_before_the_maps(tmp_path: Path) -> None:
    box, x, y = label_maps()
    page, facts = written(box, (x, y), tmp_path, ["overview"])
    shown = page[page.index('class="best"') :]
    places = [shown.index(mark) for mark in ('class="confusion', "IoU", 'class="color-key"', 'alt="labels, example')]
    assert places[0] < places[2] < places[3]
    shares = metrics.confusion_matrix(y.flatten(), box.predict(x).flatten(), normalize="true")
    cells = re.findall(r'title="(\w+) predicted as (\w+): ([<\d]+%|0)"', shown)[:9]
    assert [(a, b) for a, b, _ in cells] == [(a, b) for a in box.classes for b in box.classes]
    for (_, _, text), share in zip(cells, shares.flatten(), strict=True):
        assert text == (f"{share:.0%}" if share >= 0.005 else "&lt;1%" if share else "0")
    assert facts["findings"]["overview"]["answer"].startswith("Its most common confusion")
    assert "mostly" not in page  # the most frequent class of an image says nothing


def test_label_maps_are_attacked_as_by_evaluate_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attack_budget, "MAX_ATTACKED_EXAMPLES", 4)
    monkeypatch.setattr(attack_budget, "MIN_ATTACKED_EXAMPLES", 1)
    torch.manual_seed(0)
    box, x = ub.Box(nn.Conv2d(1, 3, 3, padding=1).eval(), PIXELS), images(9)
    y = torch.where(torch.rand(9, 6, 6) < 0.2, 1, box.predict(x))
    y[0] = 255  # no position of it counts, so that it cannot be attacked
    page, facts = written(box, (x, y), tmp_path, ["attacks"])
    rows = [1, 3, 5, 7]  # evenly spread over the other eight
    assert facts["findings"]["attacks"]["attacked"] == rows
    eps, attacks = attack_budget.GRAYSCALE_EPS_VALUES, attack_budget.default_output_attacks_in_few_steps()
    found = ub.robustness.evaluate_outputs(box, (x[rows], y[rows]), attacks, eps=eps)
    assert facts["findings"]["attacks"]["robustness"]["attacked"]["all attacks"]["pixel accuracy"] == [
        [i.mean, i.low, i.high] for i in found.attacked["all attacks"]["pixel accuracy"]
    ]
    clean, robust = (f"{100 * i.mean:.1f}%" for i in (found.clean["pixel accuracy"], found.metric("pixel accuracy")))
    assert f"lower the share of positions that are correct of 4 of the 9 examples from {clean} to {robust}." in page


@pytest.mark.parametrize(
    ("outputs", "need"), [("regression", "has none"), ("multilabel", "open one label k by itself")]
)
def test_without_values_the_attacks_say_what_they_need(outputs: Any, need: str, tmp_path: Path) -> None:
    page, facts = written(ub.Box(flat(2), PIXELS, outputs=outputs), images(4), tmp_path, ["overview", "attacks"])
    assert "attacks" not in facts["findings"]
    assert need in page
    assert ", or data that say what the outputs should be: ub.report(box, (x, y), out)." in page


@pytest.mark.parametrize("outputs", ["regression", "multilabel"])
def test_labels_of_another_form_are_left_out(outputs: Any, tmp_path: Path) -> None:
    box = ub.Box(flat(3), PIXELS, outputs=outputs)
    for i, y in enumerate([torch.rand(30, 2), ["a"] * 30, torch.full((30, 3), torch.nan)]):
        data = list(zip(images(), y, strict=True))
        _, facts = written(box, data, tmp_path / str(i), ["overview"])
        assert facts["title"] == "3 outputs"


def test_weighted_scores_are_those_of_the_repeated_examples() -> None:
    torch.manual_seed(0)
    true, predicted = torch.randn(12, 3).double(), torch.randn(12, 3).double()
    p, y = (torch.rand(12, 3) * 4).round().double() / 4, torch.randint(0, 2, (12, 3)).double()  # with ties
    counts = torch.tensor([3, 0, 1, 1, 2, 1, 0, 1, 1, 0, 1, 1])
    rows, weights = torch.arange(12).repeat_interleave(counts), counts.double()[None]
    errors = output_errors(predicted[rows], true[rows], "abc")
    assert float(mean_r2(weights, predicted, true)) == pytest.approx(sum(e.r2 for e in errors) / 3)
    assert float(mean_absolute_error(weights, predicted[:, :1], true[:, :1])) == pytest.approx(errors[0].mae)
    scores = label_scores(p[rows], y[rows], "abc")
    expected = sum(s.average_precision for s in scores) / 3
    assert float(mean_average_precision(weights, p, y)) == pytest.approx(expected)


@pytest.mark.parametrize(("outputs", "k"), [("regression", 1), ("regression", 3), ("multilabel", 3)])
def test_the_score_of_the_title_has_an_interval(outputs: Any, k: int, tmp_path: Path) -> None:
    box, x = ub.Box(flat(k), PIXELS, outputs=outputs), images()
    truth = box(x) + torch.randn(30, k) if outputs == "regression" else (box(x) + torch.randn(30, k) > 0).float()
    page, facts = written(box, (x, truth.detach()), tmp_path, ["overview"])
    name = "mean average precision" if outputs == "multilabel" else "mean absolute error" if k == 1 else "mean R²"
    pattern = rf"; 95% interval of the {name} ([-\d.]+) to ([-\d.]+)\."
    low, high = map(float, re.findall(pattern, page.replace("\u2212", "-"))[0])
    title = float(facts["title"].replace("\u2212", "-").split()[-1])
    assert low < title < high
    few = [report(box, (x[:4], truth[:4].detach()), tmp_path / "few", sections=["overview"], quiet=True).path]
    assert "95% interval" not in few[0].read_text(encoding="utf-8")


def test_the_targets_of_a_table_are_those_of_its_tensors(tmp_path: Path) -> None:
    """A table's numbers are read by the report as the same (x, y) are; so are those of a table of images."""
    x, y = torch.rand(24, 3), torch.rand(24)
    rows = [",".join(f"{float(v):.9g}" for v in (*row, label)) for row, label in zip(x, y, strict=True)]
    (tmp_path / "rows.csv").write_text("a,b,c,progress\n" + "\n".join(rows))
    box = ub.Box(nn.Linear(3, 1), ub.Features(("a", "b", "c")), outputs="regression")
    table = ub.data.table(tmp_path / "rows.csv", box)
    made = [written(box, data, tmp_path / str(i), ["overview"])[1] for i, data in enumerate([table, (x, y)])]
    assert (table.label_name, made[0]["classes"], made[1]["classes"]) == ("progress", ["progress"], ["0"])
    assert made[0]["findings"]["overview"]["output_errors"][0].pop("name") == "progress"
    assert made[1]["findings"]["overview"]["output_errors"][0].pop("name") == "output"
    assert made[0]["findings"]["overview"]["output_errors"] == made[1]["findings"]["overview"]["output_errors"]
    assert made[0]["title"].startswith("Mean absolute error")


def test_the_targets_of_a_table_of_images_are_numbers(tmp_path: Path) -> None:
    ages = [31.5, 7.25, -1.0, 60.0]
    for i in range(4):
        Image.new("L", (6, 6), 60 * i).save(tmp_path / f"{i}.png")
    (tmp_path / "ages.csv").write_text("file,label\n" + "\n".join(f"{i}.png,{age}" for i, age in enumerate(ages)))
    box = ub.Box(flat(1), PIXELS, outputs="regression")
    table = ub.data.table(tmp_path / "ages.csv", box)
    assert [label for _, label in table] == ages
    assert table.tensors().y.tolist() == ages
    _, facts = written(box, table, tmp_path / "out", ["overview"])
    outputs = box(torch.stack([x for x, _ in table]))[:, 0].double()
    error = float((outputs - torch.tensor(ages, dtype=torch.float64)).abs().mean())
    assert facts["findings"]["overview"]["output_errors"][0]["mae"] == pytest.approx(error, rel=1e-6)
