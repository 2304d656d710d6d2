"""What one value of a map means is on its axis: probability, logit or output, by segment, column or word."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import unboxed as ub
from unboxed.plots.figures import figures
from unboxed.plots.results import attribution as figures_of_attribution

SETTINGS: dict[str, Any] = {"segments": ("squares", 4)}


def image_box(outputs: str) -> ub.Box:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1 if outputs == "regression" else 3))
    return ub.Box(model, ub.Pixels((1, 8, 8)), outputs=outputs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outputs", "method", "kwargs", "unit"),
    [
        ("logits", "lime", {}, "probability added by the segment"),
        ("logits", "lime", {"on": "score"}, "logit added by the segment"),
        ("logits", "lime", {"target": ub.logit(0) - ub.logit(1)}, "logit 0 - logit 1 added by the segment"),
        ("regression", "lime", {}, "output added by the segment"),
        ("logits", "feature_ablation", {}, "logit lost when the segment is removed"),
        ("regression", "feature_ablation", {}, "output lost when the segment is removed"),
        ("logits", "kernel_shap", {}, "share of the logit added by the segment"),
    ],
)
def test_units(outputs: str, method: str, kwargs: dict[str, Any], unit: str) -> None:
    box, x = image_box(outputs), torch.rand(2, 1, 8, 8)
    a = getattr(ub.attribution, method)(box, x, **SETTINGS, **kwargs)
    assert a.unit == unit
    assert "unit" not in a.extras
    assert pickle.loads(pickle.dumps(a)).unit == copy.deepcopy(a).unit == unit


def test_the_unit_is_what_a_value_is() -> None:
    """The probability that is lost without a segment, by running the model without it."""
    box, x = image_box("logits"), torch.rand(1, 1, 8, 8)
    a = ub.attribution.feature_ablation(box, x, 1, **SETTINGS)
    without = x.clone()
    without[..., :4, :4] = 0
    assert float(a[0, 0, 0, 0]) == pytest.approx(float(box(x)[0, 1] - box(without)[0, 1]), abs=1e-6)


def test_columns_of_a_table_have_their_own_word(monkeypatch: pytest.MonkeyPatch) -> None:
    box = ub.Box(nn.Linear(3, 1), ub.Features(("a", "b", "c")), outputs="regression")
    labels = []
    monkeypatch.setattr(
        figures_of_attribution, "contribution_bars", lambda *args, label, **kwargs: labels.append(label) or _blank()
    )
    a = ub.attribution.lime(box, torch.rand(2, 3), n_samples=100)
    figures(a, box)
    figures(ub.attribution.gradient(box, torch.rand(2, 3)), box)
    assert (
        labels
        == ["output added by the column (baseline: zeros)"] * 2
        + ["slope: change of the score per unit of the column (no std or bounds are given)"] * 2
    )


def test_the_color_bar_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    monkeypatch.setattr(
        figures_of_attribution, "contact_sheet", lambda *args, bars, **kwargs: names.append(bars[0].name) or _blank()
    )
    box, x = image_box("logits"), torch.rand(2, 1, 8, 8)
    figures(ub.attribution.lime(box, x, **SETTINGS), box)
    figures(ub.attribution.gradient(box, x), box)
    assert names[0] == "probability added by the segment"
    assert names[1].startswith("red raises the score")


def _blank() -> Any:
    from PIL import Image

    return Image.new("RGB", (10, 10))
