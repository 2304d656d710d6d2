"""Top examples: ties, NaN, forms of data, dead and mixed units, tokens, Ctrl-C; and projections."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import awkward
import unboxed as ub
from unboxed.activations import projections, receptive_field, statistics, top_examples
from unboxed.errors import DataError, InputError, LayerError


def box_of(name: str, dtype: torch.dtype | None = None) -> tuple[ub.Box, Tensor]:
    entry = awkward.get_model(name, dtype)
    return ub.Box(entry.model, entry.inputs), entry.images(20)


def linear(weight: list[list[float]]) -> ub.Box:
    """A model of one layer on two features: unit c is weight[c] . x."""
    model = nn.Linear(2, len(weight), bias=False)
    model.weight.data = torch.tensor(weight)
    return ub.Box(nn.Sequential(model).eval(), ub.Features(("a", "b")), outputs="regression")


@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_of_equal_examples_the_earlier_ones(size: int) -> None:
    box = linear([[1.0, 0.0], [0.0, 1.0]])
    x = torch.tensor([[1.0, 5.0], [2.0, 5.0], [2.0, 5.0], [0.0, 5.0], [2.0, 5.0]])
    (top,) = top_examples(box, x, "0", 3, batch_size=size)
    assert top.example_index.tolist() == [[1, 2, 4], [0, 1, 2]]
    assert top.dead.tolist() == [False, True]  # the same everywhere


class Logs(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log()  # NaN below zero, minus infinity at zero


@pytest.mark.parametrize("size", [1, 2, 6])
def test_nan_comes_last_and_out_of_the_statistics(size: int) -> None:
    model = nn.Sequential(Logs(), nn.Linear(2, 2)).eval()
    box = ub.Box(model, ub.Features(("a", "b"), low=(-9, -9), high=(9, 9)), outputs="regression")
    x = torch.tensor([[-1.0, 0.0], [1.0, 2.0], [3.0, -1.0], [-1.0, 4.0], [2.0, 0.0]])
    (top,) = top_examples(box, x, "0", 9, features=None, batch_size=size)
    assert top.example_index.tolist() == [[2, 4, 1, 0, 3], [3, 1, 0, 2, 4]]
    assert top.value.isnan().tolist() == [[False] * 3 + [True] * 2, [False] * 3 + [True, False]]
    s = top.statistics
    assert s.n_finite.tolist() == [3, 2]
    torch.testing.assert_close(s.mean.exp(), torch.tensor([6.0 ** (1 / 3), 8.0**0.5]))  # of 3, 2, 1 and of 4, 2
    assert s.counts.sum(1).tolist() == [3, 2]
    assert top.mean_distance.isnan().all()


def test_a_unit_that_is_nan_everywhere() -> None:
    box = linear([[1.0, 0.0], [float("nan"), 0.0]])
    (top,) = top_examples(box, torch.rand(4, 2), "0", 2)
    assert top.example_index[1].tolist() == [0, 1]
    assert top.statistics.n_finite.tolist() == [4, 0]
    assert top.statistics.mean.isnan().tolist() == [False, True]
    assert top.dead.tolist() == [False, False]  # nothing is known of it


def test_fewer_examples_than_asked_for() -> None:
    box, x = box_of("plain")
    (top,) = top_examples(box, x[:3], "conv1", 9)
    assert top.example_index.shape == (4, 3)
    assert top.position.shape == (4, 3, 2)
    assert top_examples(box, x[:1], "conv1", 9)[0].mean_distance.isnan().all()


def test_dead_and_mixed_units() -> None:
    """A unit of one direction has close examples, one of two directions distant ones."""
    box = linear([[1.0, 0.0], [1.0, 1.0], [-1.0, -1.0]])
    angle = torch.linspace(0, torch.pi / 2, 50, dtype=torch.float64).float()
    x = torch.stack([angle.cos(), angle.sin()], 1).repeat(2, 1)
    x[50:] = x[50:].round()  # (1, 0) or (0, 1)
    x[x.sum(1) == 2] = torch.tensor([1.0, 0.0])
    (top,) = top_examples(box, x, "0", 9, features="input")
    assert top.dead.tolist() == [False, False, True]
    assert top.features == "input"
    assert float(top.mean_distance[0]) < 0.01
    assert 0 < top.baseline_distance < 1


def test_several_layers_in_one_pass() -> None:
    box, x = box_of("plain")
    rows: list[int] = []
    box.model.conv1.register_forward_hook(lambda m, args, out: rows.append(len(out)))
    result = top_examples(box, x, ["conv1", "relu2", "fc"], 2, batch_size=8)
    assert rows == [8, 8, 4]
    assert [t.path for t in result] == ["conv1", "relu2", "fc"]
    assert [t.path for t in top_examples(box, x)] == ["conv1", "conv2", "fc"]
    twice, x = box_of("conv_called_twice")
    assert [t.path for t in top_examples(twice, x)] == ["conv1", "conv3#0", "conv3#1", "conv2", "fc"]


def test_tokens_have_their_units_on_the_given_axis() -> None:
    box, x = box_of("transformer")
    (tokens,) = top_examples(box, x, "mixer.layers.0.linear1", 3)
    assert tokens.example_index.shape == (4, 3)  # four tokens
    (features,) = top_examples(box, x, "mixer.layers.0.linear1", 3, axis=-1)
    assert features.example_index.shape == (16, 3)
    assert features.position.shape == (16, 3, 1)
    h = box.read(x, "mixer.layers.0.linear1")["mixer.layers.0.linear1"]  # (N, T, C)
    assert torch.equal(features.example_index[:, 0], h.amax(1).argmax(0))
    field = receptive_field(box, "embed")
    assert field.bounds.shape == (2, 2, 4)


FORMS: dict[str, Any] = {
    "a tensor": lambda x: x,
    "a pair": lambda x: (x, torch.zeros(len(x))),
    "a data set": lambda x: TensorDataset(x),
    "a loader": lambda x: DataLoader(TensorDataset(x), batch_size=6),
    "an iterator": lambda x: iter(x),
    "a generator": lambda x: (row for row in x),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_examples_themselves(form: str) -> None:
    box, x = box_of("plain")
    data = FORMS[form](x)
    (top,) = top_examples(box, data, "conv2", 4, batch_size=3)
    assert torch.equal(top.example_index, top_examples(box, x, "conv2", 4)[0].example_index)
    assert torch.equal(top.fetch_examples(data), x[top.example_index])
    assert torch.equal(top.fetch_examples(data, 2), x[top.example_index[2:3]])
    once = form in ("an iterator", "a generator")
    assert set(top.inputs) == (set(top.example_index.flatten().tolist()) if once else set())


def test_ctrl_c_keeps_the_examples_so_far() -> None:
    box, x = box_of("plain")
    want = top_examples(box, x[:8], "conv1", 3)[0]
    calls: list[int] = []

    def stop(module: nn.Module, args: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    handle = box.model.register_forward_pre_hook(stop)
    got = top_examples(box, x, "conv1", 3, batch_size=4)[0]
    handle.remove()
    assert got.statistics.interrupted
    assert got.statistics.n_examples == 8
    assert torch.equal(got.example_index, want.example_index)
    torch.testing.assert_close(got.statistics.mean, want.statistics.mean)
    calls[:] = [1, 1]
    box.model.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):  # before the first batch there is nothing to keep
        statistics(box, x, "conv1")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"k": 0}, InputError, "k must be"),
        ({"rank_by": "sum"}, InputError, "max"), ({"axis": 0}, LayerError, "axis"),
        ({"axis": 4}, LayerError, "axis"), ({"features": "fc9"}, LayerError, "did you mean"),
        ({"layers": ["conv9"]}, LayerError, "did you mean"), ({"batch_size": 0}, InputError, "batch_size"),
    ],
)  # fmt: skip
def test_bad_settings(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    box, x = box_of("plain")
    with pytest.raises(error, match=message):
        top_examples(box, x, **{"layers": ["conv1"], **settings})


def test_a_field_of_another_type_is_refused() -> None:
    box, x = box_of("plain")
    with pytest.raises(InputError, match="field"):
        projections(box, x, "conv1", 1, field="nonsense")


@pytest.mark.parametrize("method", [top_examples, statistics])
def test_bad_data(method: Any) -> None:
    box, x = box_of("plain")
    for data, error in ((x[:0], DataError), (7, DataError), (x * 255, InputError), (x[:, :, 1:], InputError)):
        with pytest.raises(error):
            method(box, data, "conv1")
    with pytest.raises(InputError, match="histogram_of must be"):
        statistics(box, x, "conv1", histogram_of="sum")


# ---- projections -----------------------------------------------------------------------------------------------------


def test_a_projection_of_one_layer_is_its_filter() -> None:
    """The gradient of a neuron of the first layer is its weights, where the neuron sees."""
    box, x = box_of("plain", torch.float64)
    (top,) = top_examples(box, x, "conv1", 3)
    x = top.fetch_examples(x, 1)[0]
    result = projections(box, x, "conv1", 1, top.position[1])
    assert result.rule == "gradient"
    assert "no" in result.fallback_reason or "none" in result.fallback_reason
    torch.testing.assert_close(result.value, top.value[1])
    padded = torch.nn.functional.pad(box.model.conv1.weight[1, 0], (7, 7, 7, 7)) / 0.5
    for i in range(3):
        p, q = top.position[1, i].tolist()
        torch.testing.assert_close(result.map[i, 0], padded[8 - p : 16 - p, 8 - q : 16 - q])
        assert torch.equal(result.patch(i), result.map[i][..., max(p - 1, 0) : p + 2, max(q - 1, 0) : q + 2])


def test_projections_are_deconvnet_inside_the_field() -> None:
    box, x = box_of("plain")
    units = torch.arange(20) % 4
    result = projections(box, x, "relu2", units)
    assert result.rule == "deconvnet"
    h = box.read(x, "relu2")["relu2"]
    assert torch.equal(result.value, h[torch.arange(20), units].flatten(1).amax(1))
    outside = result.map.clone()
    for i in range(20):
        neuron = ub.neuron("relu2", int(units[i]), *result.position[i].tolist())
        torch.testing.assert_close(result.map[i], ub.attribution.deconvnet(box, x[i : i + 1], neuron)[0])
        top, left, bottom, right = result.bounds[i].tolist()
        outside[i, :, top:bottom, left:right] = 0
    assert not outside.any()


def test_a_model_without_relu_falls_back_to_the_gradient() -> None:
    box, x = box_of("lstm")
    result = projections(box, x[:2], "fc", 0)
    assert torch.equal(projections(box, x[:2], "fc", 0, result.position).map, result.map)
    assert (result.rule, result.position.shape) == ("gradient", (2, 0))
    assert "relu" in result.fallback_reason.lower()


def test_rows_of_features_have_no_patch() -> None:
    result = projections(linear([[1.0, 2.0]]), torch.rand(3, 2), "0", 0)
    assert result.map.tolist() == [[1.0, 2.0]] * 3
    assert result.bounds.shape == (3, 0)


@pytest.mark.parametrize(
    ("unit", "position"),
    [(4, None), (-1, None), (torch.tensor([0, 1]), None), (1.5, None), (0, torch.zeros(20, 1, dtype=torch.long)),
     (0, torch.full((20, 2), 8)), (0, torch.zeros(20, 2))],
)  # fmt: skip
def test_bad_neurons(unit: Any, position: Any) -> None:
    box, x = box_of("plain")
    with pytest.raises(InputError):
        projections(box, x, "conv1", unit, position)


# -- tables of embeddings ----------------------------------------------------------------------------------------------


class Embedded(nn.Module):
    """A row of an embedding, chosen by the prediction, is added; the embedding is the last layer with weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.table = nn.Linear(6, 4), nn.Embedding(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = self.fc(x)
        return z + self.table(z.argmax(1))  # type: ignore[no-any-return]


def _embedded() -> tuple[ub.Box, Tensor]:
    box = ub.Box(Embedded().eval(), ub.Features(tuple("abcdef")))
    return box, torch.randn(12, 6, generator=torch.Generator().manual_seed(1))


def test_the_input_of_an_embedding_is_no_feature() -> None:
    """Its inputs are indices: distances are measured at the last layer whose inputs are features."""
    box, x = _embedded()
    (top,) = top_examples(box, x, "fc", k=3)
    (same,) = top_examples(box, x, "fc", k=3, features="fc:input")
    assert torch.equal(top.mean_distance, same.mean_distance)
    assert top.mean_distance.isfinite().all()


def test_top_examples_of_an_embedding() -> None:
    box, x = _embedded()
    model = box.model
    h = model.table(model.fc(x).argmax(1)).detach()  # (N, 4)
    (top,) = top_examples(box, x, "table", k=3)
    assert torch.equal(top.value, h.topk(3, 0).values.T)
    assert torch.equal(h.gather(0, top.example_index.T).T, top.value)
