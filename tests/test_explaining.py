"""Words of explanations: what the outputs of a label map are, and the settings of a method."""

from __future__ import annotations

from functools import partial

import pandas as pd
import pytest
import torch
from torch import nn

import unboxed as ub
from unboxed.errors import InputError
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
    assert partial_settings_text(partial(ub.attribution.lime, baseline=torch.ones(3))) == " (with baseline=values (3,))"


def test_methods_that_take_a_baseline_start_from_the_one_given() -> None:
    torch.manual_seed(0)
    frame = pd.DataFrame(torch.rand(20, 3).numpy() * [1, 10, 100], columns=["a", "b", "c"])
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    box = ub.Box(model, ub.Features(["a", "b", "c"]), outputs="logits")
    x, mean = torch.tensor(frame[:1].to_numpy(), dtype=torch.float32), frame.mean()
    names = ["gradient", "integrated_gradients"]
    why = ub.explain(box, x, 1, methods=names, baseline=mean)
    by_hand = ub.attribution.integrated_gradients(
        box, x, 1, baseline=torch.tensor(mean.to_numpy(), dtype=torch.float32)
    )
    assert torch.equal(why.maps["integrated_gradients"].map, by_hand.map)
    assert "baseline" in why.settings["integrated_gradients"]
    assert not why.settings["gradient"]
    own = ub.explain(box, x, 1, methods=names)
    assert not torch.allclose(own.maps["integrated_gradients"].map, by_hand.map)
    assert torch.equal(own.maps["gradient"].map, why.maps["gradient"].map)
    with pytest.raises(InputError, match=r"a baseline of these inputs has shape .* got \(5,\)"):
        ub.explain(box, x, 1, methods=names, baseline=torch.zeros(5))
    with pytest.raises(InputError, match="none of these methods takes a baseline: gradient"):
        ub.explain(box, x, 1, methods=["gradient"], baseline=mean)
