"""The report's section of dreams: what it holds, on models of all kinds, and how it keeps to its budget."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import awkward
import unboxed as ub
import unboxed.report
from contracts.common import make_case
from unboxed.report import dream

report: Any = sys.modules["unboxed.report"]


def page(box: ub.Box, data: Any, out: Path) -> str:
    made = report(box, data, out / "page", sections=[dream.SECTION], quiet=True)
    assert made.failures == {}
    text: str = made.path.read_text(encoding="utf-8")
    return text


def test_early_middle_late_and_the_answer(tmp_path: Path) -> None:
    c = make_case("plain")
    text = page(c.box, (c.x, c.y), tmp_path)
    for words in (
        "DeepDream of relu1",
        "DeepDream of conv2",
        "DeepDream of relu2",
        "DeepDream of the predicted class",
        "correlations off by",
    ):
        assert words in text
    assert "slow" not in text
    assert (tmp_path / "page" / "pictures" / "dreams.png").is_file()


def test_a_large_model_gets_fewer_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dream, "MAX_DREAM_FLOPS", 1.0)
    c = make_case("plain")
    text = page(c.box, (c.x, c.y), tmp_path)
    assert "To save time: " in text
    assert "texture is left out" in text
    assert text.count(", example ") == 2 + text.count("input, example")  # one layer of each of two examples


@pytest.mark.usefixtures("quick_reports")
@pytest.mark.parametrize("model", ["color", "mlp", "transformer", "relu_called_twice", "dict_output", "bfloat16"])
def test_other_models(model: str, tmp_path: Path) -> None:
    c = make_case(model)
    assert "DeepDream of the predicted class" in page(c.box, (c.x, c.y), tmp_path)


def test_numbers_and_tables(tmp_path: Path) -> None:
    number = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), awkward.GRAY_INPUTS, outputs="regression")
    assert "no classes to dream of" in page(number, torch.rand(4, 1, 8, 8), tmp_path / "a")
    table = ub.Box(nn.Linear(2, 3), ub.Features(("a", "b")))
    assert "table of features" in page(table, (torch.zeros(4, 2), torch.zeros(4).long()), tmp_path / "b")
