"""Images of channels beside the examples: what is said of channels below zero on average, and of dead ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unboxed as ub
from unboxed.report import channels as section
from unboxed.report.context import ReportContext
from unboxed.report.source import ReportData
from unboxed.report.survey import collect_outputs_and_labels


class BeforeItsRelu(nn.Module):
    """Channel 0 is above 0 at bright pixels but below it on average, 1 everywhere above, 2 nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 1), nn.Linear(3, 2)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([2.0, 1.0, 1.0])[:, None, None, None])
            self.conv.bias.copy_(torch.tensor([-1.5, 0.5, -3.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x)).mean((2, 3)))  # type: ignore[no-any-return]


def test_a_channel_is_dead_where_no_position_is_above_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(section, "CHANNEL_PLANS", ((3, 0, 4),))
    box = ub.Box(BeforeItsRelu(), ub.Pixels((1, 8, 8)), outputs="logits")
    x = torch.linspace(0, 1, 6 * 64).view(64, 6).T.reshape(6, 1, 8, 8)
    source = ReportData((x, torch.tensor([0, 1] * 3)), box)
    context = ReportContext(box, source, collect_outputs_and_labels(box, source, None), judge=box)
    finding = section.find(context)
    ((_, found),) = finding.layers.items()
    assert found.dead_channels == [2]
    assert found.times_best_example.isnan().tolist() == [True, False, True]
    texts = [section._comparison_text(found, i) for i in range(3)]
    assert texts[0] == f"{'above' if found.is_above_best_example[0] else 'below'} the best example"
    assert texts[1].endswith("× the best example")
    assert texts[2] == "no example activates\u00a0it"
    assert " of 2 generated images" in finding.answer
    cautions = [block.text for block in section.show(finding) if isinstance(block, section.Caution)]
    assert "No example activates channel 2: its image shows little." in cautions


def test_pages_without_any_live_channel_say_so() -> None:
    none: Any = SimpleNamespace(best_examples={}, times_best_example=torch.tensor([torch.nan]))
    assert "nothing to compare" in section._check_against_best_examples([none]).text
