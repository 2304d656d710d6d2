"""t-SNE maps: what they keep, and what becomes of few, equal, wide and interrupted examples."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from contracts.common import make_case
from unboxed.activations import TsneMaps, tsne
from unboxed.activations.tsne import TsneMap
from unboxed.engine.read import embedding, features
from unboxed.errors import InputError, LayerError


def clustered(n: int = 90, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Images of a few kinds, with noise."""
    draw = torch.Generator().manual_seed(0)
    kinds, y = torch.rand(classes, 1, 8, 8, generator=draw), torch.arange(n) % classes
    return (kinds[y] + 0.1 * torch.rand(n, 1, 8, 8, generator=draw)).clamp(0, 1), y


@pytest.fixture(scope="module")
def made() -> tuple[ub.Box, Tensor, Tensor, TsneMaps]:
    box, (x, y) = make_case("plain").box, clustered()
    return box, x, y, tsne(box, x)


def test_one_map_of_the_input_and_of_each_hidden_layer(made: Any) -> None:
    _, x, y, maps = made
    assert [m.path for m in maps.layers] == ["input", "conv2:input", "fc:input"]
    assert {m.points.shape for m in maps.layers} == {(len(x), 2)}
    assert maps.accuracy(y) == {"input": 1.0, "conv2:input": 1.0, "fc:input": 1.0}
    assert maps["input"] is maps.layers[0]
    mixed = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    assert maps["input"].accuracy(mixed) < 0.6


def test_new_examples_are_near_similar_ones(made: Any) -> None:
    _, x, y, maps = made
    before = maps["fc:input"].points.clone()
    new = (x[:12] + 0.02).clamp(0, 1)
    for path, placed in maps.transform(new).items():
        nearest = torch.cdist(placed, maps[path].points).argmin(1)
        assert torch.equal(y[nearest], y[:12])
    assert torch.equal(maps["fc:input"].points, before)
    assert torch.allclose(maps.transform(new, batch_size=5)["input"], maps.transform(new)["input"], atol=1e-3)


def test_maps_are_deterministic() -> None:
    box, (x, _) = make_case("plain").box, clustered(40)
    first = tsne(box, x)
    np.random.seed(7), random.seed(7), torch.manual_seed(7)
    state = np.random.get_state()[1].copy()
    again = tsne(box, x)
    for a, b in zip(first.layers, again.layers, strict=True):
        assert torch.equal(a.points, b.points)
    assert (np.random.get_state()[1] == state).all()


def test_nothing_depends_on_the_number_of_threads() -> None:
    """Some steps are enough: a sum in another order would show in the first."""
    h = torch.randn(300, 20, generator=torch.Generator().manual_seed(0)).numpy()
    result = []
    for jobs in (1, 2):
        work = embedding.make_unfitted_tsne(300, 30.0, 0)
        work.n_jobs, work.early_exaggeration_iter, work.n_iter = jobs, 3, 3
        result.append(np.array(work.fit(h)))
    assert np.array_equal(*result)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_features_are_the_same_for_any_split(size: int) -> None:
    """The contract of splitting for reading; the points of a map depend on one another."""
    box, (x, _) = make_case("plain", torch.float64).box, clustered(9)
    x = box.validate_inputs(x)
    paths = ["input", "conv2:input", "logits"]
    whole, part = (features.read_features(box, x, paths, batch_size=s, max_features=100) for s in (9, size))
    for path in paths:
        assert torch.allclose(whole[path], part[path], rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 12])
def test_few_points(n: int) -> None:
    c = make_case("plain", n=n)
    maps = tsne(c.box, c.x)
    assert all(m.points.shape == (n, 2) and m.points.isfinite().all() for m in maps.layers)
    assert maps.transform(c.x[:1])["input"].shape == (1, 2)
    if n > 1:
        assert 0 <= maps.layers[0].accuracy(torch.zeros(n, dtype=torch.long)) <= 1


@pytest.mark.parametrize("n", [4, 40])
def test_a_layer_of_one_unit_has_a_map(n: int) -> None:
    """Neighbors on its line are neighbors in the map; new examples find their place."""
    values = np.linspace(0, 1, n)[:, None]
    fitted = embedding.fit_tsne(values)
    gaps = np.linalg.norm(np.diff(fitted.points, axis=0), axis=1)
    assert gaps.max() < np.linalg.norm(np.ptp(fitted.points, axis=0)) / 2
    again = fitted.transform(values)
    assert np.linalg.norm(again - fitted.points, axis=1).max() < 3 * gaps.max()


def test_few_points_are_at_their_principal_components() -> None:
    c = make_case("plain", torch.float64, n=5)
    flat = c.x.flatten(1)
    points = tsne(c.box, c.x, "input").layers[0].points
    u, s, _ = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    assert torch.allclose(points.abs(), (u * s)[:, :2].abs())
    assert torch.allclose(tsne(c.box, c.x, "input").transform(c.x)["input"], points)


def test_equal_examples_have_equal_points() -> None:
    c = make_case("plain")
    maps = tsne(c.box, c.x[:1].repeat(8, 1, 1, 1), "conv1")
    assert (maps.layers[0].points == maps.layers[0].points[0]).all()


def test_named_layers() -> None:
    c = make_case("relu_called_twice", n=4)
    assert [m.path for m in tsne(c.box, c.x, ["relu1#1", "input", "logits"]).layers] == ["relu1#1", "input", "logits"]
    assert [m.path for m in tsne(c.box, c.x, "relu1#0").layers] == ["relu1#0"]
    for bad, error in [([], InputError), (3, LayerError), ("relu", LayerError), (["relu1"], LayerError)]:
        with pytest.raises(error):
            tsne(c.box, c.x, bad)
    for perplexity in (0, 1, -3, float("nan"), "wide"):
        with pytest.raises(InputError):
            tsne(c.box, c.x, perplexity=perplexity)


def test_deep_models_are_sampled_over_their_depth() -> None:
    model = nn.Sequential(nn.Flatten(), *[nn.Linear(4, 4) for _ in range(12)], nn.Linear(4, 2)).eval()
    box = ub.Box(model, ub.Pixels((1, 2, 2)))
    assert features.hidden_layer_input_addresses(box, 4) == ["2:input", "6:input", "9:input", "13:input"]
    assert features.hidden_layer_input_addresses(box, 1) == ["13:input"]


def test_columns_of_a_table_have_equal_weight() -> None:
    """Raw features are compared in units of their standard deviation."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    box = ub.Box(model, ub.Features(("grams", "meters"), mean=(5e4, 0.0), std=(1e4, 1.0)))
    x = torch.tensor([[5e4, 1.0], [6e4, 1.0], [5e4, 0.0]])
    assert features.read_features(box, x, ["input"])["input"].tolist() == [[0, 1], [1, 1], [0, 0]]


def test_a_sketch_keeps_distances() -> None:
    h = torch.randn(30, 20_000, generator=torch.Generator().manual_seed(0))
    far, sketched = torch.pdist(h), torch.pdist(features.count_sketch(h))
    assert ((sketched / far - 1).abs() < 0.1).all()
    assert (sketched != far).all()
    assert torch.equal(features.count_sketch(h[3:5]), features.count_sketch(h)[3:5])


def test_wide_layers_are_sketched_for_new_examples_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SKETCH_SIZE", 32)
    monkeypatch.setattr(features, "MAX_UNSKETCHED_VALUES", 1)
    box, (x, y) = make_case("plain").box, clustered(60)
    maps = tsne(box, x)
    assert maps.layers[1].embedding.components.shape[1] <= 32
    assert maps["fc:input"].accuracy(y) == 1
    assert maps.transform(x[:3])["conv2:input"].shape == (3, 2)


def test_ctrl_c_keeps_the_maps_that_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    c = make_case("plain", n=8)
    whole, left = tsne(c.box, c.x), [2]

    def embed(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return embedding.fit_tsne(*args, **kwargs)

    monkeypatch.setattr(sys.modules["unboxed.activations.tsne"], "fit_tsne", embed)  # the method has its file's name
    got = tsne(c.box, c.x)
    assert got.interrupted
    assert [m.path for m in got.layers] == [m.path for m in whole.layers[:2]]
    assert torch.equal(got.layers[1].points, whole.layers[1].points)
    left[0] = 0
    with pytest.raises(KeyboardInterrupt):
        tsne(c.box, c.x)


def map_of(points: Tensor) -> TsneMap:
    return TsneMap("planned", points, None)  # type: ignore[arg-type]


def test_a_point_is_not_its_own_neighbor() -> None:
    """Pairs of unlike points, far from one another: the nearest is always of the other label."""
    points = torch.tensor([[10.0 * i + j, 0.0] for i in range(8) for j in range(2)])
    y = torch.arange(16) % 2
    assert map_of(points).accuracy(y, k=1) == 0
    assert map_of(points).accuracy(torch.zeros(16, dtype=torch.long), k=1) == 1
    assert map_of(points).accuracy(torch.arange(16) // 2, k=1) == 1


@pytest.mark.parametrize("k", [1, 2, 3, 10, 29, 100])
def test_the_accuracy_of_a_map_is_the_literal_vote(k: int) -> None:
    draw = torch.Generator().manual_seed(k)
    points, y = torch.randn(30, 2, generator=draw), torch.randint(0, 3, (30,), generator=draw)
    right = 0
    for i in range(30):
        others = sorted((j for j in range(30) if j != i), key=lambda j: float((points[i] - points[j]).norm()))
        votes = [sum(int(y[j]) == c for j in others[:k]) for c in range(3)]
        right += votes.index(max(votes)) == int(y[i])
    assert map_of(points).accuracy(y, k) == pytest.approx(right / 30)


def test_labels_and_names_are_checked(made: Any) -> None:
    *_, y, maps = made
    for bad in (y[:-1], y.float(), y[None]):
        with pytest.raises(InputError, match="one class per point"):
            maps.accuracy(bad)
    with pytest.raises(InputError, match="fc:input"):
        maps["fc"]
    with pytest.raises(InputError, match="box"):
        TsneMaps(maps.layers).transform(torch.rand(1, 1, 8, 8))
