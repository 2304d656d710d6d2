"""Words of explanations: what the outputs of a label map are, and the settings of a method."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import unboxed as ub
from unboxed.explaining import partial_settings_text
from unboxed.report.explanation_page import prediction_sentence


def test_outputs_of_a_label_map_are_means_over_positions() -> None:
    torch.manual_seed(0)
    box = ub.Box(nn.Conv2d(1, 5, 3, padding=1), ub.Pixels((1, 8, 8)), classes=tuple("abcde"), outputs="logits")
    x = torch.rand(1, 1, 8, 8)
    means = box(x).softmax(1).mean((2, 3))[0]
    least = int(means.argmin())
    why = ub.explain(box, x, target=least, methods=["gradient"])
    assert [*why.top_outputs.values()] == pytest.approx(
        [*means.sort(descending=True).values[:3].tolist(), float(means.min())]
    )
    assert prediction_sentence(why).endswith(
        f"{box.classes[least]} (p\u00a0{means.min():.2f}), on average over its positions."
    )


def test_settings_are_no_tests() -> None:
    assert partial_settings_text(partial(ub.attribution.lime, n_samples=100)) == " (with n_samples=100)"
    assert partial_settings_text(ub.attribution.lime) == ""
