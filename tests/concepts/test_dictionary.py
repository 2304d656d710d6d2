"""A dictionary finds what a layer is a sparse sum of, beats its frozen twin where there is something, else fails."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import unboxed as ub
from unboxed.concepts import Dictionary, _dictionary_rows, dictionary
from unboxed.engine import intervals, rows
from unboxed.engine.intervals import Interval
from unboxed.engine.linear import factors, sparse_autoencoder
from unboxed.engine.linear.sparse_autoencoder import matched_cosines
from unboxed.errors import DataError, InputError, LayerError

dictionary_module = importlib.import_module("unboxed.concepts.dictionary")
N_FEATURES, N_UNITS, K = 20, 16, 2
QUICK: dict[str, Any] = {"n_features": 30, "k": K, "n_steps": 300, "n_seeds": 2}


@pytest.fixture(autouse=True, scope="module")
def _quick_nmf() -> Iterator[None]:
    """Amounts of NMF, to which dictionaries are compared, by fewer steps: tests/engine/test_factors.py has all."""
    with pytest.MonkeyPatch.context() as patch:
        few = partial(factors.nonnegative_least_squares, n_steps=30)
        patch.setattr(factors, "nonnegative_least_squares", few)
        yield


@cache
def planted() -> tuple[ub.Box, Tensor, Tensor]:
    """A table's model whose hidden layer is a sum of two of twenty directions; those are returned."""
    generator = torch.Generator().manual_seed(0)
    directions = nn.functional.normalize(torch.randn(N_FEATURES, N_UNITS, generator=generator), dim=1)
    active = torch.rand(1500, N_FEATURES, generator=generator).argsort(1)[:, :K]
    x = torch.zeros(1500, N_FEATURES).scatter(1, active, 0.5 + torch.rand(1500, K, generator=generator))
    model = nn.Sequential(nn.Linear(N_FEATURES, N_UNITS, bias=False), nn.Identity(), nn.Linear(N_UNITS, 3))
    with torch.no_grad():
        model[0].weight.copy_(directions.T)
        model[2].weight.copy_(2 * torch.randn(3, N_UNITS, generator=generator))
        model[2].bias.zero_()
    inputs = ub.Features(tuple(f"f{i}" for i in range(N_FEATURES)))
    return ub.Box(model, inputs, outputs="logits"), x, directions


@cache
def digits() -> tuple[ub.Box, Tensor, Tensor]:
    return ub.Box(*ub.zoo.load("digits-cnn")), *ub.data.digits("train").first(200)


@cache
def found() -> Dictionary:
    box, x, _ = planted()
    return dictionary(box, x, "0", **QUICK)


def test_planted_features_are_recovered() -> None:
    _, _, directions = planted()
    r = found()
    assert float((matched_cosines(directions, r.autoencoder.directions) > 0.9).double().mean()) >= 0.95
    own, frozen = r.scores[:2]
    assert own.explained_variance.mean > 0.9
    assert own.stability is not None
    assert own.stability > 0.75
    assert frozen.stability is not None
    assert frozen.stability < 0.7
    assert r.gap.low > 0.2
    assert (r.verdict, r.layer, r.n_held_out) == ("pass", "0", 300)


def test_top_examples_have_the_feature() -> None:
    _, x, directions = planted()
    r = found()
    cosines = r.autoencoder.directions @ directions.T  # (F, planted)
    for i in range(5):
        planted_index = int(cosines[i].argmax())
        if cosines[i, planted_index] > 0.95:
            assert (x[r.example_index[i], planted_index] > 0.9).all()
    assert (r.example_amount.diff(dim=1) <= 0).all()
    assert (r.strength.diff() <= 0).all()


def test_the_table_is_that_of_the_rebuilt_activations() -> None:
    """Explained variance, active features and the change of the outputs, recomputed by hand for PCA and the mean."""
    box, x, _ = planted()
    r = found()
    pca, mean = r.score("PCA"), r.score("mean")
    assert pca is not None
    assert mean is not None
    assert pca.n_features == N_UNITS
    assert pca.explained_variance.mean == pytest.approx(1)
    assert float(pca.rebuilt.change.max()) < 1e-6
    assert mean.explained_variance.mean == pytest.approx(0, abs=1e-9)
    assert pca.explained_at_k < r.scores[0].explained_variance.mean
    assert r.score("NMF") is None  # the layer has negative activations
    h = box.read(x, "0")["0"].double()
    autoencoder = r.autoencoder.double()
    amounts = autoencoder.encode(h)
    assert int((amounts > 0).sum(1).max()) == K
    torch.testing.assert_close(amounts.square().mean(0).float(), r.strength, rtol=0.15, atol=1e-2)
    error = (autoencoder.decode(amounts) - h).square().sum() / (h - h.mean(0)).square().sum()
    assert 1 - float(error) == pytest.approx(r.scores[0].explained_variance.mean, abs=0.03)


def test_without_structure_the_verdict_is_fail() -> None:
    """Noise with few rows: what is learned by heart does not help on held-out activations."""
    x = torch.randn(150, 64, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Identity(), nn.Linear(64, 3))
    box = ub.Box(model, ub.Features(tuple(map(str, range(64)))), outputs="logits")
    r = dictionary(box, x, "0", n_features=64, k=4, n_steps=100)
    assert r.verdict == "fail"
    assert "may be nothing" in r.reason
    assert r.gap.low < 0


def test_an_interval_that_covers_0_fails() -> None:
    for low, high, verdict in ((0.001, 0.02, "pass"), (-0.001, 0.02, "fail"), (-0.02, -0.01, "fail")):
        assert replace(found(), gap=Interval(0.01, low, high, 100, 2)).verdict == verdict
    box, x, _ = planted()
    few = dictionary(box, x[:30], "0", n_features=4, k=2, n_steps=3, n_seeds=1)
    assert (few.verdict, few.scores[0].stability) == ("not tested", None)
    assert "6 held-out examples are too few" in few.reason


def test_images_with_positions_and_labels() -> None:
    box, x, y = digits()
    r = dictionary(box, (x[:60], y[:60]), "pool2", n_features=32, k=4, n_steps=60, n_seeds=1)
    assert [s.name for s in r.scores] == ["dictionary", "frozen directions", "NMF", "PCA", "mean"]
    assert r.accuracy is not None
    assert r.accuracy > 0.9
    own, frozen, nmf, _, mean = r.scores
    assert own.rebuilt.accuracy is not None
    assert mean.rebuilt.accuracy is not None
    assert own.rebuilt.accuracy > mean.rebuilt.accuracy
    assert float(own.rebuilt.change.mean()) < float(frozen.rebuilt.change.mean())
    assert nmf.explained_variance.mean > 0.9
    images = ub.plots.figures(r, box, data=x)
    assert list(images) == ["features", "dictionary"]
    assert list(ub.plots.figures(r)) == ["dictionary"]


def test_a_feature_is_an_objective() -> None:
    box, x, _ = digits()
    r = dictionary(box, x, "fc2:input", n_features=32, k=4, n_steps=40, n_seeds=1)
    feature = 2
    with box.isolated(grad=False):
        h = box.forward(x[:7], ["fc2:input"])["fc2:input"]
    a = r.autoencoder
    expected = (h - a.offset) @ a.encoder[feature]
    torch.testing.assert_close(r.objective(feature)({"fc2:input": h}), expected, rtol=1e-4, atol=1e-4)
    top = r.example_index[feature, 0]
    score = ub.attribution.gradient(box, x[top : top + 1], r.objective(feature)).score
    torch.testing.assert_close(score, r.example_amount[feature, :1], rtol=1e-4, atol=1e-3)
    with pytest.raises(InputError, match="features 0 to 31; got 32"):
        r.objective(32)


@pytest.mark.parametrize("settings", [{"activation": "batch_top_k"}, {"archetypal": True}], ids=str)
def test_options(settings: dict[str, Any]) -> None:
    box, x, directions = planted()
    r = dictionary(box, x, "0", **QUICK | {"n_seeds": 1} | settings)
    assert r.verdict == "pass"
    recovered = (matched_cosines(directions, r.autoencoder.directions) > 0.9).double().mean()
    assert float(recovered) > (0.5 if "archetypal" in settings else 0.8)
    if "activation" in settings:
        assert r.autoencoder.threshold is not None
        assert r.scores[0].active == pytest.approx(K, abs=0.6)


def test_same_seed_same_dictionary() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    box = ub.Box(model, ub.Features(tuple("abcde")), outputs="logits")
    x = torch.rand(90, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    settings: dict[str, Any] = {"n_features": 8, "k": 2, "n_steps": 20, "n_seeds": 1}
    first, again, other, split = (
        dictionary(box, x, "1", seed=s, batch_size=b, **settings) for s, b in ((1, 64), (1, 64), (2, 64), (1, 7))
    )
    assert first.autoencoder.directions.dtype == torch.float64
    assert torch.equal(first.autoencoder.encoder, again.autoencoder.encoder)
    assert first.scores[0].explained_variance == again.scores[0].explained_variance
    assert not torch.equal(first.autoencoder.encoder, other.autoencoder.encoder)
    torch.testing.assert_close(first.autoencoder.encoder, split.autoencoder.encoder, rtol=1e-9, atol=1e-9)


def test_numbers_have_a_dictionary_too() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1))
    box = ub.Box(model, ub.Features(("a", "b", "c")), outputs="regression")
    r = dictionary(box, torch.rand(80, 3, generator=torch.Generator().manual_seed(0)), n_features=8, n_steps=20)
    assert r.unit == "share of the outputs' variance"
    assert all(s.rebuilt.kept is None for s in r.scores)
    assert list(ub.plots.figures(r, box)) == ["dictionary"]


def positions(n: int = 100) -> tuple[ub.Box, Tensor]:
    """A layer of 6 units at 36 positions, in float64, and n images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3)).double()
    x = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return ub.Box(model, ub.Pixels((1, 6, 6)), outputs="logits"), x


@pytest.mark.parametrize("archetypal", [False, True])
def test_parts_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch, archetypal: bool) -> None:
    """The same dictionary and table, however few rows are encoded at once and however few autoencoders are fitted."""
    box, x = positions(60)
    settings: dict[str, Any] = {"n_features": 10, "k": 2, "n_steps": 5, "n_seeds": 2, "archetypal": archetypal}
    monkeypatch.setattr(intervals, "N_BOOTSTRAP_RESAMPLES", 100)
    full = dictionary(box, x, "1", **settings)
    monkeypatch.setattr(rows, "MAX_ROW_MATRIX_VALUES", 3000)
    parts = dictionary(box, x, "1", **settings)
    for name in ("strength", "frequency", "example_amount"):
        torch.testing.assert_close(getattr(parts, name), getattr(full, name), rtol=1e-9, atol=1e-12)
    assert torch.equal(parts.example_index, full.example_index)
    for a, b in zip(parts.scores, full.scores, strict=True):
        assert a.explained_variance.mean == pytest.approx(b.explained_variance.mean, abs=1e-9)
        assert (a.dead, a.active) == pytest.approx((b.dead, b.active))
        assert a.explained_at_k == pytest.approx(b.explained_at_k, abs=1e-9)
        torch.testing.assert_close(a.rebuilt.change, b.rebuilt.change, rtol=1e-6, atol=1e-9)


class _LargestTensor(TorchDispatchMode):
    """The most values that any tensor of a run has."""

    n_values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            self.n_values = max(self.n_values, t.numel() if isinstance(t, Tensor) else 0)
        return out


def test_no_matrix_is_larger_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more rows than fit, fewer are read; what is made of those that are comes in parts."""
    box, x = positions()
    limit = 12_000  # the activations of all training images have 17,280 values, their amounts 57,600
    for module in (rows, dictionary_module, sparse_autoencoder, _dictionary_rows):
        monkeypatch.setattr(module, "MAX_ROW_MATRIX_VALUES", limit)
    monkeypatch.setattr(intervals, "N_BOOTSTRAP_RESAMPLES", 100)
    with _LargestTensor() as largest:
        r = dictionary(box, x, "1", n_features=20, k=2, n_steps=5, n_seeds=1, batch_size=20)
    assert largest.n_values <= limit
    assert r.n_held_out == 20


def test_the_default_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    box, x = positions()
    monkeypatch.setattr(dictionary_module, "MAX_ROW_MATRIX_VALUES", 6 * 7)
    assert dictionary(box, x, "1", n_steps=1, n_seeds=1).n_features == 7


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "larger than the data": ({"n_features": 161}, InputError, "larger than the 160 rows of activations allow"),
    "k": ({"n_features": 8, "k": 9}, InputError, "k must be 8 or less"),
    "layer": ({"layer": "conv9"}, LayerError, "conv9"),
    "an end": ({"layer": "input"}, LayerError, "is an end of the model"),
    "activation": ({"activation": "relu"}, InputError, "activation must be"),
    "no seeds": ({"n_seeds": 0}, InputError, "n_seeds must be"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused(bad: str) -> None:
    settings, error, words = BAD[bad]
    box, x, _ = digits()
    with pytest.raises(error, match=words):
        dictionary(box, x, **settings)


def test_too_few_examples_are_refused() -> None:
    box, x, _ = digits()
    with pytest.raises(DataError, match="at least 5 examples"):
        dictionary(box, x[:4])
