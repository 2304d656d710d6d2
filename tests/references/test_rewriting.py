"""Rewriting, ablation and patching against hooks written by hand, one unit at a time; and their exact laws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from unboxed import Features
from unboxed.activations import ablate, ablation, patching, put, rewrite, scale
from unboxed.activations.patching import restored_fraction_of
from unboxed.engine.read.edits import UnitEdit
from unboxed.errors import InputError, LayerError


@pytest.fixture
def model() -> nn.Module:
    return awkward.get_model("plain", torch.float64).model


@pytest.fixture
def box(model: nn.Module) -> ub.Box:
    return ub.Box(model, awkward.GRAY_INPUTS)


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def hooked(model: nn.Module, x: Tensor, layer: str, edit: Any) -> Tensor:
    """The model's output with one layer's output changed by a hook of torch's own."""
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, out: edit(out.clone()))
    try:
        return model(awkward.GRAY_INPUTS.encode(x))
    finally:
        handle.remove()


def set_to(index: Any, value: Any) -> Any:
    def edit(h: Tensor) -> Tensor:
        h[index] = value
        return h

    return edit


HALF = torch.tensor([0, 0.5, 0, 0]).view(1, 4, 1, 1)
EDITS: dict[str, tuple[Any, Any]] = {
    "ablate": (ablate(1), set_to((slice(None), 1), 0)),
    "ablate two": (ablate([0, 3]), set_to((slice(None), [0, 3]), 0)),
    "ablate all": (ablate(), lambda h: h * 0),
    "ablate at a position": (ablate(2, position=(1, 3)), set_to((slice(None), 2, 1, 3), 0)),
    "scale": (scale(2, -3), lambda h: h * torch.tensor([1, 1, -3, 1.0]).view(1, 4, 1, 1)),
    "put a number": (put(1, 0.7), set_to((slice(None), 1), 0.7)),
    "put one map": (put(1, torch.eye(8)[None]), set_to((slice(None), 1), torch.eye(8).double())),
    "scale and shift": (UnitEdit(2.0, 0.5, 1), lambda h: h * torch.tensor([1, 2, 1, 1.0]).view(1, 4, 1, 1) + HALF),
    "a function": (lambda h: h.tanh(), lambda h: h.tanh()),
    "a function in place": (lambda h: h.tanh_(), lambda h: h.tanh()),
    "several": ([scale(0, 2), ablate(1)], lambda h: h * torch.tensor([2, 0, 1, 1.0]).view(1, 4, 1, 1)),
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("size", ["auto", 2])
def test_rewrite_as_by_hand(model: nn.Module, box: ub.Box, name: str, size: Any) -> None:
    ours, by_hand = EDITS[name]
    x = images(5)
    result = rewrite(box, x, {"conv1": ours}, batch_size=size)
    assert torch.allclose(result.logits_before, box(x), atol=1e-12)
    assert torch.allclose(result.logits_after, hooked(model, x, "conv1", by_hand), atol=1e-12)
    assert torch.equal(result.logits_change, result.logits_after - result.logits_before)
    assert result.logits_change.abs().max() > 1e-3


@pytest.mark.parametrize("size", ["auto", 2])
def test_one_value_per_example(model: nn.Module, box: ub.Box, size: Any) -> None:
    x, own = images(5), torch.rand(5, 8, 8).double()
    result = rewrite(box, x, {"conv1": put(2, own)}, batch_size=size)
    assert torch.allclose(result.logits_after, hooked(model, x, "conv1", set_to((slice(None), 2), own)), atol=1e-12)


def test_edits_of_several_layers(model: nn.Module, box: ub.Box) -> None:
    """Also of functional ops and of what a layer receives."""
    x = images(3)
    result = rewrite(box, x, {"conv1": ablate(0), "fc:input": lambda h: h * 2})
    handle = model.fc.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    assert torch.allclose(result.logits_after, hooked(model, x, "conv1", set_to((slice(None), 0), 0)), atol=1e-12)
    handle.remove()


BAD_EDITS: dict[str, tuple[Any, type[Exception]]] = {
    "nothing": ({}, InputError),
    "no mapping": (ablate(1), InputError),
    "no function": ({"conv1": 3}, InputError),
    "an unknown layer": ({"conv9": ablate(1)}, LayerError),
    "a channel too far": ({"conv1": ablate(4)}, InputError),
    "a position outside": ({"conv1": ablate(0, position=(8, 0))}, InputError),
    "a position of too many places": ({"conv1": ablate(0, position=(1, 1, 1))}, InputError),
    "a value that does not fit": ({"conv1": put(0, torch.zeros(1, 7, 7))}, InputError),
    "values for other examples": ({"conv1": put(0, torch.zeros(2, 8, 8))}, InputError),
    "another shape": ({"conv1": lambda h: h[:, :2]}, InputError),
    "nothing given back": ({"conv1": lambda h: None}, InputError),
}


@pytest.mark.parametrize("bad", BAD_EDITS)
def test_bad_edits(box: ub.Box, bad: str) -> None:
    edits, error = BAD_EDITS[bad]
    with pytest.raises(error):
        rewrite(box, images(3), edits)


# -- ablation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["auto", 1, 5])
@pytest.mark.parametrize("layer", ["conv1", "relu2", "fc"])
def test_ablation_as_by_hand(model: nn.Module, box: ub.Box, layer: str, size: Any) -> None:
    """One unit at a time, by a hook."""
    x = images(3)
    y = box.predict(x)
    result = ablation(box, x, layer, batch_size=size)
    assert result.units.tolist() == [0, 1, 2, 3]
    for k in range(4):
        want = hooked(model, x, layer, set_to((slice(None), k), 0))
        assert torch.allclose(result.ablated_logits[:, k], want, atol=1e-12)
        assert torch.allclose(result.ablated_scores[:, k], want.gather(1, y[:, None])[:, 0], atol=1e-12)
    assert torch.allclose(result.original_logits, box(x))
    assert torch.allclose(result.score_change, result.ablated_scores - result.original_logits.gather(1, y[:, None]))


def test_ablation_to_the_mean(model: nn.Module, box: ub.Box) -> None:
    """Over examples and positions; the data are passed over in parts."""
    x, data = images(3), images(7, seed=1)
    result = ablation(box, x, "conv1", [2], ub.channel("conv2", 1), replacement="mean", data=data, batch_size=2)
    mean = box.read(data, ["conv1"])["conv1"][:, 2].mean()
    want = hooked(model, x, "conv1", set_to((slice(None), 2), mean))
    assert torch.allclose(result.ablated_logits[:, 0], want, atol=1e-12)


def test_a_unit_on_a_linear_top_costs_its_weight_times_its_value(box: ub.Box) -> None:
    """Exact: the logit is linear in what `fc` receives."""
    x = images(4)
    result = ablation(box, x, "relu2", target=2)
    h = box.read(x, ["relu2"])["relu2"]  # (N, 4, 4, 4)
    own = (h.flatten(1) * box.model.fc.weight[2].detach()).view(4, 4, -1).sum(2)
    assert torch.allclose(result.score_change, -own, atol=1e-12)


def test_accuracy_under_ablation(box: ub.Box) -> None:
    x = images(6)
    y = box.predict(x)
    whole, each = ablation(box, x, "relu2").accuracy(y)
    assert whole == 1.0
    assert each.shape == (4,)
    assert each.min() < 1


def test_the_default_is_the_last_hidden_layer() -> None:
    box = ub.Box(awkward.get_model("sequential").model, awkward.GRAY_INPUTS)
    assert ablation(box, images(2).float()).layer == "relu2"
    softmax = ub.Box(awkward.get_model("softmax_module").model, awkward.GRAY_INPUTS)
    assert ablation(softmax, images(2).float()).layer == "relu2"


def test_ablation_of_features_and_regression() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1)).double()
    box = ub.Box(model, Features(("a", "b", "c")), outputs="regression")
    x = torch.randn(4, 3).double()
    result = ablation(box, x)
    h = model[:2](x).detach()
    assert result.layer == "1"
    assert torch.allclose(result.score_change, -h * model[2].weight.detach())


@pytest.mark.parametrize("more", [{"replacement": "mean"}, {"replacement": "noise"}])
def test_bad_replacements(box: ub.Box, more: Any) -> None:
    with pytest.raises(InputError):
        ablation(box, images(2), "conv1", **more)


@pytest.mark.parametrize("units", [[4], [-1], [], [1.5], "all"])
def test_bad_units(box: ub.Box, units: Any) -> None:
    with pytest.raises(InputError):
        ablation(box, images(2), "conv1", units)


class Counted(nn.Module):
    """How many rows went through it."""

    rows = 0

    def forward(self, h: Tensor) -> Tensor:
        self.rows += len(h)
        return h


def test_earlier_layers_run_once_per_example() -> None:
    torch.manual_seed(0)
    below, above = Counted(), Counted()
    model = nn.Sequential(below, nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), above, nn.Linear(40, 4)).double()
    box, x = ub.Box(model, awkward.GRAY_INPUTS), images(5)
    below.rows = above.rows = 0
    result = ablation(box, x, "3")
    assert below.rows < 30
    assert above.rows > 200
    assert torch.allclose(result.ablated_logits[:, 7], hooked(model, x, "3", set_to((slice(None), 7), 0)))


class Around(nn.Module):
    """Branches around the layer that grow with it only for a batch of one, or never."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.relu, self.mid, self.top = how, nn.Linear(64, 6), nn.Linear(12 if how == "cat" else 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x, n = x.flatten(1), len(x)
        h = self.mid(x)
        if self.relu == "add":
            h = h + x[:, :6]
        if self.relu == "cat":
            h = torch.cat([h, x[:, :6]], 1)
        if self.relu == "mixing":
            h = h.view(n, -1, 6).mean(1).repeat_interleave(len(h) // n, 0)
        return self.top(h)


@pytest.mark.parametrize("how", ["add", "cat", "mixing"])
@pytest.mark.parametrize("n", [1, 3])
def test_models_whose_batch_can_not_grow(how: str, n: int) -> None:
    """They are run whole instead."""
    model = Around(how).double()
    box, x = ub.Box(model, awkward.GRAY_INPUTS), images(n)
    result = ablation(box, x, "mid")
    for k in range(6):
        assert torch.allclose(result.ablated_logits[:, k], hooked(model, x, "mid", set_to((slice(None), k), 0)))


# -- patching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["auto", 1, 3])
@pytest.mark.parametrize("part", ["layer", "channel", "position"])
def test_patching_as_by_hand(model: nn.Module, box: ub.Box, part: Any, size: Any) -> None:
    clean, corrupted = images(3), images(3, seed=5)
    y = box.predict(clean)
    result = patching(box, clean, corrupted, ["conv1", "relu2"], part=part, batch_size=size)

    def score(z: Tensor) -> Tensor:
        return z.gather(1, y[:, None])[:, 0]

    a, b = score(box(clean)), score(box(corrupted))
    for layer in result.layers:
        h = box.read(clean, [layer.path])[layer.path]
        shape = {"layer": [()], "channel": [(k,) for k in range(4)]}.get(part)
        for at in shape or [(i, j) for i in range(h.shape[2]) for j in range(h.shape[3])]:
            place = (slice(None), *((slice(None), *at) if part == "position" else at))
            want = score(hooked(model, corrupted, layer.path, set_to(place, h[place])))
            assert torch.allclose(layer.score[:, *at], want, atol=1e-12)
            assert torch.allclose(layer.restored_fraction[:, *at], (want - b) / (a - b), atol=1e-9)
    assert torch.allclose(result.clean, a)
    assert torch.allclose(result.corrupted, b)


def test_the_last_layer_restores_all(box: ub.Box) -> None:
    """Exactly; and so does any layer that all of the input passes through."""
    result = patching(box, images(3), images(3, seed=5))
    assert [layer.path for layer in result.layers] == ["conv1", "relu1", "conv2", "relu2", "fc"]
    assert torch.equal(result.layers[-1].restored_fraction, torch.ones(3).double())
    assert torch.allclose(result.matrix, torch.ones(3, 5).double(), atol=1e-12)
    received = patching(box, images(3), images(3, seed=5), ["conv1:input"])
    assert torch.allclose(received.matrix, torch.ones(3, 1).double(), atol=1e-12)


def test_patching_with_itself_restores_nothing(box: ub.Box) -> None:
    for part in ("layer", "channel"):
        result = patching(box, images(3), images(3), part=part)
        assert all(
            torch.equal(layer.restored_fraction, torch.zeros_like(layer.restored_fraction)) for layer in result.layers
        )


def test_scores_that_differ_by_rounding_are_the_same() -> None:
    score, clean = torch.tensor([5.0, 5.0]).double(), torch.tensor([1.0, 1.0]).double()
    share = restored_fraction_of(score, clean, torch.tensor([1 + 1e-15, 1 + 1e-9], dtype=torch.float64))
    assert share[0] == 0
    assert share[1].abs() > 1e6


def test_channels_before_a_linear_layer_add_up(box: ub.Box) -> None:
    """What the channels bring back adds up to 1 where the score is linear in them."""
    result = patching(box, images(3), images(3, seed=5), ["relu2"], part="channel")
    assert torch.allclose(result.layers[0].restored_fraction.sum(1), torch.ones(3).double(), atol=1e-9)


def test_a_residual_branch_alone_restores_a_part() -> None:
    box = ub.Box(awkward.get_model("residual", torch.float64).model, awkward.get_model("residual").inputs)
    x, z = awkward.get_model("residual").images(2).double(), awkward.get_model("residual").images(2, seed=3).double()
    first = patching(box, x, z).matrix[:, 0]
    assert torch.isfinite(first).all()


def test_bad_patching(box: ub.Box) -> None:
    x = images(3)
    with pytest.raises(InputError, match="clean"):
        patching(box, x, x[:2])
    with pytest.raises(InputError, match="part"):
        patching(box, x, x, part="unit")  # type: ignore[arg-type]
    assert [layer.path for layer in patching(box, x, x, "conv1").layers] == ["conv1"]
    with pytest.raises(LayerError, match="positions"):
        patching(box, x, x, ["fc"], part="position")


def test_one_number_per_example_of_as_many_as_columns(model: nn.Module, box: ub.Box) -> None:
    """(N,) must not lie along the last axis."""
    x, own = images(8), torch.rand(8).double()
    result = rewrite(box, x, {"conv1": put(2, own)}, batch_size=3)
    want = set_to((slice(None), 2), own.view(-1, 1, 1))
    assert torch.allclose(result.logits_after, hooked(model, x, "conv1", want), atol=1e-12)
    with pytest.raises(InputError, match="axes"):
        rewrite(box, x, {"conv1": put(2, torch.zeros(8, 8))})


class Branched(nn.Module):
    """The last module before the head is a branch as wide as what the head is given."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.side, self.head = nn.Linear(64, 5), nn.Linear(64, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.head(self.trunk(x) * self.side(x).sigmoid())


def test_a_branch_is_not_the_input_of_the_head() -> None:
    torch.manual_seed(0)
    assert ablation(ub.Box(Branched().eval(), awkward.GRAY_INPUTS), images(2).float()).layer == "head:input"
