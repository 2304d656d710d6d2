"""Chapters, and the example that all sections follow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.errors import InputError
from unboxed.report import SECTIONS, report
from unboxed.report.render import RenderedSection, group_into_chapters


def test_sections_of_one_chapter_stand_together() -> None:
    chapters = [section.chapter for section in SECTIONS]
    runs = [c for i, c in enumerate(chapters) if i == 0 or chapters[i - 1] != c]
    assert len(runs) == len(set(runs))
    rendered = [RenderedSection(s.title, s.slug, "x", "An answer.", chapter=s.chapter) for s in SECTIONS]
    assert [group.chapter for group in group_into_chapters(rendered)] == runs
    assert not {s.slug for s in SECTIONS} & {c.slug for c in runs}


@pytest.fixture
def box() -> ub.Box:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    return ub.Box(model, ub.Pixels((1, 8, 8)), outputs="logits")


def data(box: ub.Box) -> tuple[Tensor, Tensor]:
    x = torch.rand(30, 1, 8, 8)
    return x, (box.predict(x) + (torch.arange(30) % 7 == 0).long()) % 3


def test_the_example_that_was_asked_for_is_followed(box: ub.Box, tmp_path: Path) -> None:
    x, y = data(box)
    sections = ["overview", "gradients", "morphs", "attacks", "map"]
    made = report(box, (x, y), tmp_path, sections=sections, example=11, quiet=True, max_examples=10)
    assert made.failures == {}
    page = " ".join(made.path.read_text(encoding="utf-8").split())
    steps = page[page.index('class="steps"') : page.index("</ol>")]
    assert steps.count("<li>") == len(sections)
    assert "Example 11. The model predicts" in page
    assert "It was asked for." in page
    assert "example 11" in steps


def test_an_example_that_is_not_there_is_refused(box: ub.Box, tmp_path: Path) -> None:
    for example in (30, -1, 1.5):
        with pytest.raises(InputError, match="example must be"):
            report(box, data(box), tmp_path / "out", example=example, quiet=True)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
