"""Words of explanations: what the outputs of a label map are, and the settings of a method."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import unboxed as ub
from language.planted_trigger import random_box
from unboxed.errors import InputError
from unboxed.explaining import partial_settings_text
from unboxed.plots.explanation_sheet import render_explanation_maps
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


def test_of_yes_no_labels_the_likeliest_are_named() -> None:
    box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), ub.Pixels((1, 2, 2)), outputs="multilabel")
    why = ub.explain(box, torch.rand(1, 1, 2, 2), methods=["gradient"])
    assert prediction_sentence(why).startswith("The likeliest labels are ")


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


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.row, self.head = nn.Linear(16, 4), nn.Linear(3, 4), nn.Linear(8, 2)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        h = torch.cat([self.image(image.flatten(1)), self.row(row)], 1).relu()
        return self.head(h)  # type: ignore[no-any-return]


@pytest.mark.parametrize("named", [True, False])
def test_several_inputs_have_maps_of_their_own_and_figures(named: bool) -> None:
    parts: Any = {"image": ub.Pixels((1, 4, 4)), "row": ub.Features(["a", "b", "c"])}
    values: Any = {"image": torch.rand(1, 1, 4, 4), "row": torch.randn(1, 3)}
    box = ub.Box(Two(), ub.MultiInput(parts if named else tuple(parts.values())), outputs="logits")
    x = values if named else tuple(values.values())
    why = ub.explain(box, x, 1, versus=0, methods=["gradient", "integrated_gradients"])
    want = ub.attribution.gradient(box, x, box.objective(1, 1) - box.objective(0, 1))
    assert all(tree_leaves(tree_map(torch.equal, why.maps["gradient"].map, want.map)))
    assert all(
        tree_leaves(tree_map(torch.equal, why.side_maps["1"]["gradient"].map, ub.attribution.gradient(box, x, 1).map))
    )
    assert why.maps["gradient"].columns == want.columns
    assert why.maps["gradient"].unit == want.unit
    (figure,) = ub.plots.figures(why).values()
    one = ub.plots.figures(want)["attribution"]
    assert figure.height > 2 * one.height  # the figure of each method, below one another


def test_a_signal_has_maps_of_its_shape_that_can_be_seen() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 5, padding=2), nn.ReLU(), nn.Flatten(), nn.Linear(96, 2))
    box, x = ub.Box(model, ub.Pixels((2, 32)), outputs="logits"), torch.rand(1, 2, 32)
    why = ub.explain(box, x, 1, methods=["gradient", "grad_cam"])
    assert {n: tuple(m.map.shape) for n, m in why.maps.items()} == {"gradient": (1, 2, 32), "grad_cam": (1, 1, 32)}
    assert torch.equal(why.maps["gradient"].map, ub.attribution.gradient(box, x, 1).map)
    for picture in render_explanation_maps(why).values():
        assert picture.map.shape[0] >= 4  # rows of pixels: not a line


def test_a_text_has_maps_with_its_words_and_a_figure() -> None:
    box, text = random_box(), ["the plot was dull"]
    why = ub.explain(box, text, methods=["gradient", "integrated_gradients"])
    want = ub.attribution.gradient(box, text)
    assert torch.equal(why.maps["gradient"].map, want.map)
    assert why.maps["gradient"].tokens == want.tokens
    (figure,) = ub.plots.figures(why).values()
    assert figure.height > ub.plots.figures(want)["attribution"].height


def test_methods_are_named_or_given() -> None:
    box, x = ub.Box(*ub.zoo.load("digits-cnn")), ub.data.digits("test").first(2)[0]
    for methods in (["gradient", ub.attribution.grad_cam], [partial(ub.attribution.gradient), "Grad-CAM"]):
        assert {*ub.checks.rank_methods(box, x, methods)} == {"gradient", "grad_cam"}
        assert {*ub.explain(box, x[:1], methods=methods).maps} == {"gradient", "grad_cam"}
    for methods in ("gradient", ub.attribution.gradient):
        assert {*ub.explain(box, x[:1], methods=methods).maps} == {"gradient"}
    with pytest.raises(InputError, match="did you mean 'gradient'"):
        ub.checks.rank_methods(box, x, ["gradien"])
    with pytest.raises(InputError, match=r"the method comes second.*compare\(boxes, method, x\)"):
        ub.compare({"a": box}, x, ub.attribution.gradient)  # type: ignore[arg-type]
