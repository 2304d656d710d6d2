"""The report's section on error slices and shortcuts."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import unboxed as ub
from models import digits_box
from unboxed.plots import figures
from unboxed.report.groups import SECTION

SLUG = SECTION.slug


def test_a_group_with_errors_is_reported(tmp_path: Path) -> None:
    x, y = ub.data.digits("train").first(160)
    x[:40] = 1 - x[:40]
    written = ub.report(digits_box(), (x, y), tmp_path / "r", sections=[SLUG], quiet=True)
    assert written.failures == {}
    facts = json.loads((tmp_path / "r" / "report.json").read_text())["findings"][SLUG]
    assert facts["slices"]["candidates"][0]["is_significant"]
    found = facts["slices"]["candidates"][0]
    wrong, elsewhere = (f"{100 * found[k]['count'] / found[k]['n']:.0f}%" for k in ("errors", "rest"))
    assert facts["answer"].startswith("It errs more in 1 group of examples that are alike: ")
    assert f"labeled {found['label']} ({wrong} wrong, {elsewhere} elsewhere)" in facts["answer"]
    page = (tmp_path / "r" / "index.html").read_text()
    (group,) = (g for g in facts["slices"]["candidates"] if g["is_significant"])
    sentence = json.loads((tmp_path / "r" / "report.json").read_text())["headline"][-1]
    assert f"of the held-out ones {group['errors']['count'] / group['errors']['n']:.0%} are wrong" in sentence
    assert sentence in page[: page.index('id="groups"')]
    assert "Where it fails" in page
    assert "follow the patch" in page
    assert len(facts["prototypes"]["groups"]) == 2
    assert "Prototypes and criticisms" in page
    assert page.count(">criticism<") == 8


def test_without_labels_there_are_shortcuts_alone(tmp_path: Path) -> None:
    x, _ = ub.data.digits("train").first(110)
    written = ub.report(digits_box(), x, tmp_path / "r", sections=[SLUG], quiet=True)
    assert written.failures == {}
    facts = json.loads((tmp_path / "r" / "report.json").read_text())["findings"][SLUG]
    assert facts["slices"] is None
    assert facts["answer"] == "No small patch of an image decides the answer."


def test_too_few_examples_are_said(tmp_path: Path) -> None:
    x, y = ub.data.digits("train").first(5)
    written = ub.report(digits_box(), (x, y), tmp_path / "r", sections=[SLUG], quiet=True)
    assert written.failures == {}
    assert "Groups of errors need 100 labeled examples" in (tmp_path / "r" / "index.html").read_text()


def test_the_figures_of_each_result() -> None:
    box = digits_box()
    x, y = ub.data.digits("train").first(200)
    x[:50] = 1 - x[:50]
    assert set(figures(ub.concepts.shortcuts(box, x[50:], classes=[3], n_pastes=10))) == {"shortcuts"}
    assert set(figures(ub.concepts.error_slices(box, (x, y)))) == {"errors", "slices"}
    assert set(figures(ub.concepts.prototypes(box, (x, y), classes=[3]))) == {"prototypes"}
    table = ub.Box(torch.nn.Sequential(torch.nn.Linear(2, 2)), ub.Features(("a", "b")), outputs="logits")
    points = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    assert set(figures(ub.concepts.prototypes(table, (points, torch.arange(40) % 2)))) == {"prototypes"}
