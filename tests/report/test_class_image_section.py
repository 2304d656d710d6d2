"""Class images of a model of many classes: those of the reader's examples, large, beside the examples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import unboxed as ub
from unboxed.report import class_image_budget, report, synthesis
from unboxed.report.blocks import FigureGrid
from unboxed.report.class_image_budget import PLANS, ClassImagePlan

N_CLASSES = 14


def many_class_box() -> ub.Box:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, N_CLASSES)).eval()
    return ub.Box(model, ub.Pixels((3, 8, 8)))


def test_the_classes_of_the_followed_examples_come_first() -> None:
    predicted = torch.tensor([3, 3, 3, 9, 12, 5])
    survey = SimpleNamespace(
        predicted=predicted, classes=range(N_CLASSES), rows=[*range(6)], confusion=torch.zeros(N_CLASSES, N_CLASSES)
    )
    context = SimpleNamespace(survey=survey, followed_indices=[4, 5, 3])
    assert synthesis._visualized_classes(context, 2) == [5, 12]  # type: ignore[arg-type]
    assert synthesis._visualized_classes(context, 4) == [3, 5, 9, 12]  # type: ignore[arg-type]


def test_a_large_model_shows_few_classes_beside_their_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(PLANS[-1], step_share=0.02, control_step_share=0.02)
    monkeypatch.setattr(class_image_budget, "PLANS", (PLANS[0], plan))
    monkeypatch.setattr(class_image_budget, "MAX_CLASS_IMAGE_FLOPS", 0)
    grids: list[FigureGrid] = []
    best = synthesis.best
    section = replace(synthesis.SECTION, best=lambda finding: grids.extend(best(finding)) or best(finding))  # type: ignore[func-returns-value, arg-type]
    data = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    made = report(many_class_box(), data, tmp_path, sections=["overview", section], quiet=True)
    assert made.failures == {}
    (grid,) = grids
    assert grid.n_together == 2
    assert 2 <= len(grid.figures) <= 2 * plan.n_classes
    for example, image in zip(grid.figures[::2], grid.figures[1::2], strict=True):
        assert f"image of {example.head.removeprefix('predicted ')}" == image.head  # of the class that it is taken for
        assert {example.picture.side, image.picture.side} == {synthesis.LARGE_SIDE_PIXELS}
    page = " ".join(made.path.read_text(encoding="utf-8").split())
    assert "12 more are left out" in page
    assert "2% of the usual steps of the controls and of the images" in page
    assert "How much do the starts differ?" not in page  # there is one
    facts = json.loads((tmp_path / "report.json").read_text())
    assert len(facts["findings"]["class-images"]["differences"]) == plan.n_classes


def test_images_of_large_models_get_all_steps_and_controls_fewer() -> None:
    plan = PLANS[-1]
    assert plan.steps("robust") == ClassImagePlan(1, 1, 1.0, 1.0).steps("robust") > plan.steps("noise")
