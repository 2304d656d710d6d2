"""The words that people know are taken where their meaning is plain; else an error names the right one."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from functools import wraps
from typing import Any

import numpy as np
import pytest
import torch

import unboxed as ub
from contracts.common import CARDS, REFUSED, call_example, make_case
from unboxed.cards import FAMILIES, cards, find_card
from unboxed.engine.read import activations as reading
from unboxed.errors import InputError, LayerError
from unboxed.robustness import evaluate
from unboxed.spellings import LAYER_SETTING_KINDS
from unboxed.validation import normalized_name

LAYER_METHODS = [n for n, c in CARDS.items() if any(s.kind in LAYER_SETTING_KINDS for s in c.settings.values())]


@pytest.fixture(scope="module")
def box() -> Any:
    return ub.Box(*ub.zoo.load("digits-cnn"))


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return ub.data.digits("test").first(2)[0]


def test_an_alias_means_one_method() -> None:
    words = Counter(normalized_name(w) for c in cards() for w in {c.key, c.name, *c.aliases} if w not in (c.name,))
    words.update(n for c in cards() if (n := normalized_name(c.name)) not in map(normalized_name, (c.key, *c.aliases)))
    assert [word for word, n in words.items() if n > 1] == []


@pytest.mark.parametrize(
    ("word", "key"),
    [("saliency", "gradient"), ("IG", "integrated_gradients"), ("GradCAM", "grad_cam"), ("CW", "carlini_wagner"),
     ("SquareAttack", "square"), ("input_x_gradient", "gradient_x_input"), ("Grad-CAM++", "grad_cam_plus_plus")],
)  # fmt: skip
def test_methods_are_found_by_the_names_of_others(word: str, key: str) -> None:
    assert find_card(word).key == key


def test_families_have_their_methods_by_other_names() -> None:
    from unboxed.attribution import saliency

    assert saliency is ub.attribution.gradient
    assert ub.attribution.ig is ub.attribution.integrated_gradients
    for family in FAMILIES:
        listed = dir(getattr(ub, family))
        assert not {alias for c in cards(family) for alias in c.aliases} & {*listed}
        assert not [name for name in listed if "known" in name or "dir_of" in name]


@pytest.mark.parametrize(
    ("family", "name", "text"),
    [
        ("attribution", "saliancy", "unboxed.attribution has no 'saliancy'; did you mean 'gradient'?"),
        ("attribution", "pgd", "unboxed.attribution has no 'pgd'; did you mean unboxed.adversarial.pgd?"),
        ("adversarial", "robustness", "unboxed.adversarial has no 'robustness'; did you mean unboxed.robustness?"),
        ("", "saliency", "unboxed has no 'saliency'; did you mean unboxed.attribution.gradient?"),
        ("data", "foldr", "unboxed.data has no 'foldr'; did you mean 'folder'?"),
        ("zoo", "loads", "unboxed.zoo has no 'loads'; did you mean 'load'?"),
        ("plots", "deepdream", "unboxed.plots has no 'deepdream'; did you mean unboxed.synthesis.deepdream?"),
        ("loading", "weight", "unboxed.loading has no 'weight'; did you mean 'weights'?"),
        ("training", "trains", "unboxed.training has no 'trains'; did you mean 'train' or 'Trades'?"),
        (
            "objectives",
            "logits",
            "unboxed.objectives has no 'logits'; did you mean 'logit' or 'class_logit' or 'log_odds'?",
        ),
        ("", "Pixel", "unboxed has no 'Pixel'; did you mean 'Pixels'?"),
    ],
)
def test_a_wrong_name_gets_the_right_one(family: str, name: str, text: str) -> None:
    with pytest.raises(AttributeError) as error:
        getattr(getattr(ub, family) if family else ub, name)
    assert str(error.value) == text


@pytest.mark.parametrize(
    ("model", "inputs", "text"),
    [
        (torch.nn.Linear, ub.Pixels((1, 2, 2)), "got the class Linear. make one: Linear("),
        (torch.nn.Linear(4, 2).state_dict(), ub.Pixels((1, 2, 2)), "load them into their model"),
        (ub.Pixels((1, 2, 2)), torch.nn.Linear(4, 2), "the model comes first"),
        ("resnet18", ub.Pixels((1, 2, 2)), "ub.load opens files and names"),
        (torch.nn.Linear(4, 2), (3, 8, 8), "images of this shape are ub.Pixels((3, 8, 8))"),
        (torch.nn.Linear(4, 2), ["age", "height"], "ub.Features(names)"),
        (torch.nn.Linear(4, 2), torch.rand(5, 3, 8, 8), "its images are ub.Pixels((3, 8, 8))"),
    ],
)
def test_what_is_given_in_the_wrong_place_is_told_where_it_goes(model: Any, inputs: Any, text: str) -> None:
    with pytest.raises(InputError) as error:
        ub.Box(model, inputs)
    assert text in str(error.value)


def test_activations_are_compared_by_value(box: Any, x: torch.Tensor) -> None:
    a, b = box.read(x, ["fc1"]), box.read(x, ["fc1"])
    assert a == b
    assert (a != b) is False
    assert a in [b]
    for other in (box.read(x[:1], ["fc1"]), box.read(x, ["fc2"]), box.read(1 - x, ["fc1"]), {}, 3):
        assert a != other
        assert (a == other) is False


def test_layers_name_themselves_in_one_line(box: Any) -> None:
    assert repr(box.layers) == "Layers(10: conv1, relu1, pool1, conv2, relu2, ...)"
    assert str(box.layers).startswith("layer")


@pytest.mark.parametrize("norm", [math.inf, np.inf, torch.inf, "Linf", "L_inf", "L-infinity", "inf"])
def test_the_norm_of_an_attack_by_its_other_names(box: Any, x: torch.Tensor, norm: Any) -> None:
    assert ub.adversarial.fgsm(box, x, [0, 0], eps=0.1, norm=norm).norm == "linf"


@pytest.mark.parametrize(("norm", "name"), [(2, "l2"), (2.0, "l2"), (np.int64(1), "l1"), ("L2", "l2"), ("1", "l1")])
def test_the_order_of_a_norm(box: Any, x: torch.Tensor, norm: Any, name: Any) -> None:
    same = [ub.adversarial.pgd(box, x, [0, 0], eps=0.5, norm=n) for n in (norm, name)]
    assert same[0].norm == name
    assert torch.equal(same[0].images, same[1].images)
    assert (
        evaluate(box, (x, [0, 0]), {"fgsm": ub.adversarial.fgsm}, eps=[0.1], norm=norm, minimal_attack=None).norm
        == name
    )


@pytest.mark.parametrize("norm", ["l3", 3, True, None, "max"])
def test_another_norm_is_refused(box: Any, x: torch.Tensor, norm: Any) -> None:
    with pytest.raises(InputError, match='norm must be "linf", "l2" or "l1"; got'):
        ub.adversarial.pgd(box, x, [0, 0], eps=0.5, norm=norm)


def test_baselines_as_captum_has_it(box: Any, x: torch.Tensor) -> None:
    ig: Any = ub.attribution.integrated_gradients
    expected: Any = ub.attribution.expected_gradients
    assert torch.equal(ig(box, x, 3, baselines=0.5), ig(box, x, 3, baseline=0.5))
    assert len(expected(box, x, 3, baselines=x, n_samples=2)) == 2
    with pytest.raises(InputError, match="baselines= is another name of baseline=; give one of them"):
        ig(box, x, 3, baseline=0, baselines=0)


def _modules_for_addresses(value: Any, modules: dict[str, Any]) -> Any:
    """A layer, or several, with each address that is a module's path replaced by the module."""
    if isinstance(value, (list, tuple)):
        return [_modules_for_addresses(part, modules) for part in value]
    return modules.get(value, value) if isinstance(value, str) else value


@pytest.mark.parametrize("name", LAYER_METHODS)
def test_every_method_with_layers_reads_their_spellings(name: str) -> None:
    assert hasattr(CARDS[name].method, "__wrapped__")


@pytest.mark.parametrize("name", ["maps", "cka", "patching", "deepdream", "inversions", "guided_grad_cam", "tracin"])
def test_methods_take_modules_for_layers(name: str) -> None:
    """Called with the layers of its card's example, or with one of the model's, as addresses and as modules."""
    if (name, "plain") in REFUSED:
        pytest.skip("refuses this model")
    case, card = make_case("plain"), CARDS[name]
    box, modules = case.box, dict(case.box.modules)
    reached: list[Any] = []

    @wraps(card.method)
    def with_modules(*args: Any, **kwargs: Any) -> Any:
        for setting in (s for s in card.settings.values() if s.kind in LAYER_SETTING_KINDS):
            if kwargs.get(setting.name) is not None:
                kwargs[setting.name] = _modules_for_addresses(kwargs[setting.name], modules)
        reached.append(kwargs)
        return card.method(*args, **kwargs)

    by_module = call_example(replace(card, method=with_modules), case)
    assert reached
    assert repr(by_module) == repr(call_example(card, make_case("plain")))
    assert "(in_channels" not in repr(by_module)
    assert box is case.box


def test_layers_by_their_modules(box: Any, x: torch.Tensor) -> None:
    conv2 = box.model.conv2
    assert box.layers.resolve(conv2) == "conv2"
    assert box.layers[conv2].path == "conv2"
    grad_cam: Any = ub.attribution.grad_cam
    assert grad_cam(box, x, layer=box.model.relu2).layer == "relu2"
    assert list(box.read(x, [conv2, "fc1"])) == ["conv2", "fc1"]
    assert list(box.read(x, conv2)) == ["conv2"]
    assert ub.activations.filters(box, box.model.conv1).layer == "conv1"


def test_a_module_of_another_model_is_refused(box: Any, x: torch.Tensor) -> None:
    with pytest.raises(LayerError, match=r"this Conv2d is no module of the model \(of a copy of it\?\); there are"):
        box.read(x, torch.nn.Conv2d(1, 1, 1))
    with pytest.raises(LayerError, match="this module is the whole model"):
        box.read(x, [box.model])
    with pytest.raises(LayerError, match="an objective wants the address of a layer"):
        ub.channel(box.model.conv2, 3)


def test_a_module_that_runs_twice_is_ambiguous() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = torch.nn.Conv2d(1, 1, 3, padding=1), torch.nn.Linear(64, 3)

        def forward(self, h: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.fc(self.conv(self.conv(h)).flatten(1))
            return out

    box: Any = ub.Box(Twice().eval(), ub.Pixels((1, 8, 8)))
    with pytest.raises(LayerError, match="'conv' runs 2 times in one forward pass; say which: conv#0, conv#1"):
        box.layers.resolve(box.model.conv)
    assert list(box.read(box.noise(2))) == ["conv#0", "conv#1", "fc"]


def test_all_layers_are_read_and_show_themselves(box: Any, x: torch.Tensor, tmp_path: Any) -> None:
    acts = box.read(x)
    assert list(acts) == [row.path for row in box.layers.leaves]
    assert torch.equal(acts["conv2"], box.read(x, ["conv2"])["conv2"])
    assert repr(acts).startswith("Activations(10 layers of 2 inputs: conv1 (2, 16, 24, 24), ")
    assert acts.save(tmp_path / "a.png").is_file()
    assert "<img " in acts._repr_html_()


def test_all_layers_of_too_many_inputs_are_refused(
    box: ub.Box, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_BYTES_OF_ALL_LAYERS", 2**10)
    with pytest.raises(InputError, match=r"all layers of 2 inputs take .* GiB: name the layers that you need"):
        box.read(x)
    assert len(box.read(x, ["conv1"])) == 1


def test_a_comparison_shows_itself(box: Any, x: torch.Tensor, tmp_path: Any) -> None:
    other = ub.Box(*ub.zoo.load("digits-cnn", weights=None))
    compared = ub.compare({"trained": box, "untrained": other}, ub.attribution.gradient, x)
    assert repr(compared).startswith("Comparison(2 models: trained: Attribution('Gradient', ")
    assert compared.image().size == ub.plots.compare.side_by_side(compared, x, title="Gradient").size
    for ending in ("png", "html", "json"):
        assert compared.save(tmp_path / f"a.{ending}").is_file()
    statistics = ub.compare({"trained": box, "untrained": other}, ub.activations.statistics, x, layers=["fc1"])
    assert "histograms of untrained" in "".join(ub.plots.figures(statistics))


def test_filters_show_themselves(box: Any) -> None:
    result = ub.activations.filters(box)
    assert repr(result) == "Filters(layer='conv1', type='Conv2d', weights=(16, 1, 5, 5))"
    assert torch.equal(result.weights, box.model.conv1.weight)
    assert len(result) == result.shape[0] == 16


def test_submodules_load_when_they_are_asked_for() -> None:
    assert ub.parameters.__name__ == "unboxed.parameters"
    assert list(itertools.islice((n for n in dir(ub) if n.startswith("_")), 1)) == []
