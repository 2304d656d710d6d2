"""The report's section on what units detect."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import unboxed as ub
from models import digits_box
from unboxed.report.detectors import SECTION

SLUG = SECTION.slug


def test_units_beside_their_twins(tmp_path: Path) -> None:
    x, y = ub.data.digits("test").first(24)
    written = ub.report(digits_box(), (x, y), tmp_path / "r", sections=[SLUG], quiet=True)
    assert written.failures == {}
    facts = json.loads((tmp_path / "r" / "report.json").read_text())["findings"][SLUG]
    assert facts["n_examples"] == 24
    assert len(facts["layers"]) == 2
    assert facts["verdict"] in ("pass", "fail")
    assert "overlap with a stroke, a hole or a quadrant" in facts["answer"]
    page = (tmp_path / "r" / "index.html").read_text()
    assert "Network dissection" in page
    assert "random directions of the same layer" in page


def test_color_images_and_few_examples_are_said(tmp_path: Path) -> None:
    few = ub.data.digits("test").first(5)
    written = ub.report(digits_box(), few, tmp_path / "r", sections=[SLUG], quiet=True)
    assert written.failures == {}
    assert "Dissection needs at least 20 examples" in (tmp_path / "r" / "index.html").read_text()
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 2))
    color = ub.Box(model, ub.Pixels((3, 8, 8)), outputs="logits")
    written = ub.report(color, torch.rand(30, 3, 8, 8), tmp_path / "c", sections=[SLUG], quiet=True)
    assert written.failures == {}
    assert "Concepts are known for images of one channel" in (tmp_path / "c" / "index.html").read_text()
