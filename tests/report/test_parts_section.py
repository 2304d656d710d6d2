"""The report's section on discovered concepts and dictionaries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import unboxed as ub
from models import digits_box
from unboxed.report import parts
from unboxed.report.parts import SECTION

SLUG = SECTION.slug


@pytest.mark.usefixtures("quick_reports")
def test_concepts_and_features_are_shown_with_their_controls(tmp_path: Path) -> None:
    written = ub.report(digits_box(), ub.data.digits("test"), tmp_path / "r", sections=[SLUG], quiet=True,
                        max_examples=120)  # fmt: skip
    assert written.failures == {}
    facts = json.loads((tmp_path / "r" / "report.json").read_text())["findings"][SLUG]
    assert len(facts["concepts"]["concepts"]) == parts.N_CONCEPTS
    assert facts["concepts"]["twin"] is not None
    assert [s["name"] for s in facts["dictionary"]["scores"]][:2] == ["dictionary", "frozen directions"]
    assert [r.split(":")[0] for r in facts["reasons"]] == ["pass", "pass"]
    assert "drawings" not in facts
    page = (tmp_path / "r" / "index.html").read_text()
    for words in ("concepts, with random weights", "frozen directions", "image that feature 0 responds to most"):
        assert words in page


@pytest.mark.usefixtures("quick_reports")
def test_a_table_has_both_without_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    box = ub.Box(model, ub.Features(tuple("abcdef")), outputs="logits")
    x = torch.rand(90, 6, generator=torch.Generator().manual_seed(0))
    written = ub.report(box, (x, (x[:, 0] > 0.5).long()), tmp_path / "r", sections=[SLUG], quiet=True)
    assert written.failures == {}
    page = (tmp_path / "r" / "index.html").read_text()
    assert "importance of concept 0 as a bar" in page
    assert "frozen directions" in page


@pytest.mark.parametrize(("n", "words"), [(20, "need at least 40 examples"), (60, "no hidden layer")])
def test_what_does_not_apply_is_said(n: int, words: str, tmp_path: Path) -> None:
    box = ub.Box(nn.Sequential(nn.Linear(3, 2)), ub.Features(("a", "b", "c")), outputs="logits")
    x = torch.rand(n, 3, generator=torch.Generator().manual_seed(0))
    written = ub.report(box, (x, torch.arange(n) % 2), tmp_path / "r", sections=[SLUG], quiet=True)
    assert written.failures == {}
    assert words in (tmp_path / "r" / "index.html").read_text()
