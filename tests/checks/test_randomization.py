"""Randomization: which layers are re-initialized and how, that nothing else changes, and how methods respond."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from models import boxed, digits
from unboxed import Box, Features, Pixels, attribution, checks
from unboxed.checks import randomization
from unboxed.checks.edges import sobel
from unboxed.engine import randomized as engine
from unboxed.engine.randomized import (
    ROOT_MODULE_NAME,
    LayerWithWeights,
    layers_with_weights,
    randomize_all_layers,
    randomize_layers,
)
from unboxed.errors import InputError, LayerError, ModelError, UnboxedWarning

FIGURES = ("signed", "absolute", "ssim", "hog")


def edge_detector(box: Box, x: Tensor, target: Any) -> Tensor:
    """An edge detector: a method that never asks the model."""
    return sobel(x).to(x)


def names(box: Box) -> list[str]:
    return [layer.name for layer in layers_with_weights(box)]


# ---- Adebayo et al.'s result, small ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["cascading", "independent"])
def test_the_gradient_changes_and_guided_backprop_stays(mode: Any) -> None:
    box, x = digits(12)
    found = {
        name: randomization(box, x, method, mode=mode).mean()
        for name, method in {
            "gradient": attribution.gradient,
            "guided": attribution.guided_backprop,
            "x input": attribution.gradient_x_input,
        }.items()
    }  # fmt: skip
    for signs in (
        "gradient",
        "x input",
    ):  # one draw of the ten rows of fc2 alone may chance to point along the old ones
        assert found[signs]["signed"][0].abs() < 0.4
        assert found[signs]["signed"][1:].abs().max() < 0.2
    assert found["gradient"]["ssim"][0] < 0.5
    assert found["gradient"]["ssim"][1:].max() < 0.25
    assert found["guided"]["signed"][:2].min() > 0.7  # fc2 and fc1 randomized
    assert found["guided"]["ssim"][:2].min() > 0.5
    assert found["x input"]["absolute"].min() > 0.95
    assert found["x input"]["ssim"].min() > 0.4


@pytest.mark.parametrize("mode", ["cascading", "independent"])
def test_the_other_methods_behave_as_published(mode: Any) -> None:
    box, x = digits(8)
    smooth = partial(attribution.smoothgrad, n_samples=6)
    path = partial(attribution.integrated_gradients, n_steps=8)
    a, b, c = (randomization(box, x, m, mode=mode).mean() for m in (smooth, attribution.grad_cam, path))
    assert a["signed"][1:].abs().max() < 0.2
    assert a["ssim"][1:].max() < 0.35
    assert b["signed"].max() < 0.6
    assert c["signed"][1:].abs().max() < 0.2
    assert c["absolute"].min() > 0.95
    assert c["ssim"].min() > 0.4


@pytest.mark.parametrize("mode", ["cascading", "independent"])
def test_an_edge_detector_never_changes(mode: Any) -> None:
    box, x = digits(4)
    found = randomization(box, x, edge_detector, mode=mode)
    for figure in FIGURES:
        assert torch.allclose(getattr(found, figure), torch.ones(4, 4, dtype=torch.float64))
    assert not found.is_constant.any()
    assert found.same_class.double().mean() < 0.6  # while the model did change
    assert found.weight_change.min() > 0.5


def test_a_randomization_that_randomizes_nothing_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    box, x = digits(3)
    monkeypatch.setattr(engine, "_randomize_module", lambda *args: None)
    with pytest.warns(
        UnboxedWarning, match="have the weights they had, so their steps say nothing: fc2, fc1, conv2, conv1"
    ):
        found = randomization(box, x, attribution.gradient)
    assert found.weight_change.tolist() == [0] * 4
    assert found.same_class.all()
    assert (found.signed > 0.999).all()


# ---- what is re-initialized ------------------------------------------------------------------------------------------


def test_cascading_adds_up_and_independent_takes_one_layer_at_a_time() -> None:
    box, x = boxed("plain")
    y = box.predict(x)
    down = randomization(box, x, attribution.gradient, keep_maps=True, seed=3)
    each = randomization(box, x, attribution.gradient, keep_maps=True, seed=3, mode="independent")
    assert down.layers == each.layers == ("fc", "conv2", "conv1")
    assert down.maps is not None
    assert each.maps is not None
    known = {layer.name: layer for layer in layers_with_weights(box)}
    for i, name in enumerate(down.layers):
        both = (
            randomize_layers(box, [known[n] for n in down.layers[: i + 1]], 3),
            randomize_layers(box, [known[name]], 3),
        )
        for found, other in zip((down, each), both, strict=True):
            assert torch.equal(found.maps[i], attribution.gradient(other, x, y))
        mine, its = box.model.state_dict(), both[1].model.state_dict()
        assert {k for k in mine if not torch.equal(mine[k], its[k])} == {f"{name}.weight", f"{name}.bias"}
    assert torch.equal(down.maps[2], attribution.gradient(randomize_all_layers(box, 3), x, y))
    assert torch.equal(down.signed, torch.stack([checks.map_similarity(down.original, m).signed for m in down.maps]))
    assert not torch.equal(down.signed, randomization(box, x, attribution.gradient, seed=4).signed)


def test_the_target_is_the_class_predicted_at_first() -> None:
    box, x = boxed("plain")
    asked: list[Any] = []

    def method(box: Box, x: Tensor, target: Any) -> Tensor:
        asked.append(target)
        return attribution.gradient(box, x, target)

    found = randomization(box, x, method)
    assert len(asked) == 4
    assert all(torch.equal(y, box.predict(x)) for y in asked)
    assert not found.same_class.all()  # the copies would have named other classes
    asked.clear()
    randomization(box, x, method, ub.logit(2))
    assert all(repr(y) == repr(ub.logit(2)) for y in asked)


def test_results_with_a_map_and_methods_that_write_over_x_are_taken() -> None:
    box, x = boxed("plain")

    class Result:
        def __init__(self, map: Tensor) -> None:
            self.map = map

    def rude(box: Box, x: Tensor, target: Any) -> Any:
        g = attribution.gradient(box, x, target)
        x.zero_()
        return Result(g)

    before = x.clone()
    assert torch.equal(randomization(box, x, rude).signed, randomization(box, x, attribution.gradient).signed)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("batchnorm_in_train_mode", ["fc", "norm", "conv2", "conv1"]),
        ("refuses_train", ["fc", "norm", "conv2", "conv1"]),
        ("weight_normed", ["fc", "conv2", "conv1"]),
        ("spectral_normed", ["fc", "conv2", "conv1"]),
        ("conv_called_twice", ["fc", "conv2", "conv3", "conv1"]),
        ("aliased_modules", ["fc", "conv2", "conv1"]),
        ("frozen", ["fc", "conv2", "conv1"]),
        ("bfloat16", ["fc", "conv2", "conv1"]),
        ("double", ["fc", "conv2", "conv1"]),
        ("lstm", ["fc", "lstm"]),
        ("attention", ["fc", "mixer", "embed", ROOT_MODULE_NAME]),
        ("scripted_part", ["fc", "conv2", ROOT_MODULE_NAME]),
        ("compiled", ["fc", "conv2", "conv1"]),
        ("dict_output", ["fc", "conv2", "conv1"]),
    ],
)
def test_models_that_people_have(name: str, layers: list[str]) -> None:
    """All layers are randomized, from the top down; the model, its flags and the RNGs are as they were."""
    box, x = boxed(name)
    state = {k: v.clone() for k, v in box.model.state_dict().items()}
    flags = [(m.training, [p.requires_grad for p in m.parameters()]) for m in box.model.modules()]
    torch.manual_seed(5)
    rng = torch.get_rng_state()
    found = randomization(box, x, attribution.gradient)
    assert list(found.layers) == layers
    assert found.weight_change.min() > 0.3
    assert found.weight_change.isfinite().all()
    assert found.signed.isfinite().all()
    assert found.signed.shape == (len(layers), 3)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, state[k]) for k, v in box.model.state_dict().items())
    assert [(m.training, [p.requires_grad for p in m.parameters()]) for m in box.model.modules()] == flags


def test_batch_statistics_are_reset() -> None:
    box, _ = boxed("batchnorm")
    norm = randomize_all_layers(box, 0).model.norm
    assert norm.running_mean.tolist() == [0] * 4
    assert norm.running_var.tolist() == [1] * 4
    norm = nn.BatchNorm2d(2, affine=False)
    plain = Box(nn.Sequential(nn.Conv2d(1, 2, 3), norm, nn.Flatten(), nn.Linear(72, 2)).eval(), awkward.GRAY_INPUTS)
    assert names(plain) == ["0", "1", "3"]  # statistics are learned too


def test_normalized_weights_are_new_and_of_the_old_size() -> None:
    box, _ = boxed("weight_normed")
    old, new = (b.model.conv1.weight.detach().flatten() for b in (box, randomize_all_layers(box, 0)))
    assert abs(float(torch.dot(old, new) / (old.norm() * new.norm()))) < 0.6
    assert 0.5 < float(new.norm() / old.norm()) < 2
    box, _ = boxed("spectral_normed")
    other = randomize_all_layers(box, 0)
    other.model.eval()
    assert float(torch.linalg.matrix_norm(other.model.conv2.weight.detach().flatten(1), 2)) == pytest.approx(
        1, abs=0.02
    )


class Odd(nn.Module):
    """Weights of its own, a reset that reaches for others', a head that is not run, a gain without any start."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.head = nn.Conv2d(1, 4, 3), nn.Linear(144, 4), nn.Linear(144, 4)
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, 144))
        self.tied = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def reset_parameters(self) -> None:
        for module in (self.conv, self.fc, self.tied):
            module.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).relu().flatten(1) * self.gain
        return nn.functional.linear(self.fc(h), self.tied.weight) * self.scale


def test_a_layer_draws_its_own_weights_and_no_others() -> None:
    torch.manual_seed(0)
    box = Box(Odd().eval(), awkward.GRAY_INPUTS)
    assert layers_with_weights(box) == (
        LayerWithWeights(ROOT_MODULE_NAME, ("", "tied")),
        LayerWithWeights("conv", ("conv",)),
        LayerWithWeights("fc", ("fc",)),
    )
    whole = randomize_layers(box, layers_with_weights(box)[:1], 0).model.state_dict()
    old = box.model.state_dict()
    assert {k for k in old if not torch.equal(old[k], whole[k])} == {"gain", "tied.weight", "tied.bias"}
    assert abs(float(whole["gain"].mean()) - 1) < 0.1
    assert abs(float(whole["gain"].std() / old["gain"].std()) - 1) < 0.3
    assert float(whole["scale"]) == 2  # one number alone has no spread to draw from


def test_a_layer_is_not_initialized_as_it_was_at_first() -> None:
    """Models are often initialized from small seeds, which are also those of randomization."""
    for seed in range(6):
        torch.manual_seed(seed)
        box = Box(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2)), awkward.GRAY_INPUTS)
        for other in (randomize_all_layers(box, seed), randomize_all_layers(box, 0)):
            assert not torch.equal(other.model[0].weight, box.model[0].weight)


def test_blocks_and_layers_are_taken_as_named() -> None:
    box, x = boxed("transformer")
    with pytest.warns(
        UnboxedWarning, match="say nothing: mixer.layers.0.norm1"
    ):  # a fresh norm is what it would become
        found = randomization(box, x, attribution.gradient, layers=["fc", "mixer.layers.1", "mixer.layers.0.norm1"])
    assert found.layers == ("fc", "mixer.layers.1", "mixer.layers.0.norm1")
    assert found.weight_change[1] > 0.1
    box, x = boxed("plain")
    with pytest.raises(LayerError, match=r"'relu1' has no weights; the layers that do are conv1, conv2, fc"):
        randomization(box, x, attribution.gradient, layers=["relu1"])
    with pytest.raises(LayerError, match="list of names"):
        randomization(box, x, attribution.gradient, layers="fc")
    with pytest.raises(InputError, match="layers must name a layer"):
        randomization(box, x, attribution.gradient, layers=[])


def test_what_cannot_be_done_is_refused() -> None:
    box, x = boxed("plain")
    with pytest.raises(InputError, match='mode must be "cascading"'):
        randomization(box, x, attribution.gradient, mode="both")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="seed"):
        randomization(box, x, attribution.gradient, seed=1.5)
    with pytest.raises(InputError, match=re.escape("a map (1, 1, 8, 8) for 3 inputs")):
        randomization(box, x, lambda box, x, target: x[:1])
    with pytest.raises(InputError, match="wanted a map"):
        randomization(box, x, lambda box, x, target: "a map")
    none, x = boxed("parameterless")
    with pytest.raises(LayerError, match="no layer of this model has weights"):
        randomization(none, x, attribution.gradient)


def test_models_that_cannot_be_copied_are_refused() -> None:
    model = awkward.get_model("plain").model
    model.kept = model.fc.weight * 2  # an activation with its graph is kept as its values
    assert (
        randomization(Box(model, awkward.GRAY_INPUTS), torch.rand(2, 1, 8, 8), attribution.gradient)
        .signed.isfinite()
        .any()
    )
    model.kept = (i for i in range(3))  # which Python does not copy
    with pytest.raises(ModelError, match="this model can't be copied"):
        randomization(Box(model, awkward.GRAY_INPUTS), torch.rand(2, 1, 8, 8), attribution.gradient)


def test_maps_that_become_constant_are_marked() -> None:
    box, x = boxed("plain")
    found = randomization(box, x, lambda b, x, t: attribution.gradient(b, x, t) * float(b is box))
    assert found.is_constant.all()
    assert found.signed.isnan().all()
    assert not randomization(box, x, attribution.gradient).is_constant.any()


def test_several_inputs_and_tables() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 3), nn.Linear(2, 3)

        def forward(self, image: Tensor, row: Tensor) -> Tensor:
            return self.a(image.flatten(1)) * self.b(row)

    torch.manual_seed(0)
    inputs = ub.MultiInput({"image": Pixels((1, 4, 4)), "row": Features(("p", "q"))})
    box = Box(Two(), inputs)
    x = {"image": torch.rand(3, 1, 4, 4), "row": torch.randn(3, 2)}
    found = randomization(box, x, attribution.gradient)
    assert found.layers == ("b", "a")
    assert found.original.shape == (3, 18)
    assert found.signed.isfinite().all()
    assert found.ssim.isnan().all()
    table = Box(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), Features(tuple("abcdef")))
    assert randomization(table, torch.randn(5, 6), attribution.gradient).signed.isfinite().all()


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_shuffled_labels_are_the_same_ones_elsewhere() -> None:
    y = torch.arange(50) % 7
    found = checks.shuffle_labels(y, seed=2)
    assert torch.equal(found.bincount(), y.bincount())
    assert (found == y).double().mean() < 0.5
    assert torch.equal(found, checks.shuffle_labels(y, seed=2))
    assert not torch.equal(found, checks.shuffle_labels(y, seed=3))
    with pytest.raises(InputError, match="labels"):
        checks.shuffle_labels(3)


def test_a_model_trained_on_shuffled_labels_against_one_trained_on_true_labels() -> None:
    taught: list[Tensor] = []

    def fit(y: Tensor) -> Box:
        taught.append(y)
        torch.manual_seed(len(taught))
        return Box(awkward.PlainCNN(), awkward.GRAY_INPUTS)

    y = torch.arange(20) % 4
    true, random = checks.train_twice(fit, y, seed=1)
    assert torch.equal(taught[0], y)
    assert torch.equal(taught[1], checks.shuffle_labels(y, seed=1))
    x = torch.rand(3, 1, 8, 8)
    found = checks.label_randomization(true, random, x, attribution.gradient)
    assert torch.equal(found.true_maps, attribution.gradient(true, x))
    assert torch.equal(found.random_maps, attribution.gradient(random, x, true.predict(x)))
    assert torch.equal(found.hog, checks.map_similarity(found.true_maps, found.random_maps).hog)
    assert (checks.label_randomization(true, true, x, attribution.gradient).signed > 0.999).all()
    with pytest.raises(InputError, match="same model twice"):
        checks.train_twice(lambda y: true, y)
    with pytest.raises(InputError, match="must return a Box"):
        checks.train_twice(lambda y: true.model, y)  # type: ignore[arg-type, return-value]
    other = Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), awkward.GRAY_INPUTS)
    with pytest.raises(InputError, match="the same inputs and outputs"):
        checks.label_randomization(true, other, x, attribution.gradient)
