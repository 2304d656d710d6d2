"""Planted concepts are found and their importance is right; random weights, and random directions, say nothing."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.concepts import discover
from unboxed.concepts._crops import crop_grid, enlarged_crop
from unboxed.concepts._importance import jansen_total_indices, sobol_masks, total_index_intervals
from unboxed.concepts._rebuild import random_rebuilds
from unboxed.engine.linear.sparse_autoencoder import matched_cosines
from unboxed.engine.randomized import randomize_all_layers
from unboxed.errors import DataError, InputError, LayerError, OutputError

SIDE, N_UNITS = 16, 6
QUICK: dict[str, Any] = {"n_concepts": 3, "n_masks": 16, "n_random": 4}


class Parts(nn.Module):
    """Three colors, each spread over six units; the classes are read from two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.relu = nn.Conv2d(3, N_UNITS, 1, bias=False), nn.ReLU()
        self.head = nn.Linear(N_UNITS, 2)
        with torch.no_grad():
            self.mix.weight.copy_(mixture().T[..., None, None])
            read = torch.linalg.pinv(mixture())  # (units, colors)
            self.head.weight.copy_(40 * torch.stack([read[:, 0], read[:, 1]]))
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.mix(x)).mean((2, 3)))  # type: ignore[no-any-return]


def mixture() -> Tensor:
    """(colors, units), none negative."""
    return torch.rand(3, N_UNITS, generator=torch.Generator().manual_seed(0)) ** 3


@cache
def planted() -> tuple[ub.Box, Tensor, Tensor]:
    """The model with images of a red patch (class 0) or a green one (class 1), and a blue one anywhere."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.zeros(80, 3, SIDE, SIDE), torch.arange(80) % 2
    for i in range(80):
        for color in (int(y[i]), 2):
            a, b = torch.randint(0, SIDE - 4, (2,), generator=generator).tolist()
            x[i, :, a : a + 4, b : b + 4] = 0
            x[i, color, a : a + 4, b : b + 4] = 0.5 + 0.5 * torch.rand(4, 4, generator=generator)
    return ub.Box(Parts(), ub.Pixels((3, SIDE, SIDE))), x, y


@cache
def digits() -> tuple[ub.Box, Tensor, Tensor]:
    return ub.Box(*ub.zoo.load("digits-cnn")), *ub.data.digits("train").first(160)


def test_planted_concepts_are_found() -> None:
    box, x, y = planted()
    r = discover(box, (x, y), "relu", **QUICK)
    found = torch.stack([c.direction for c in r.concepts])
    cosines = matched_cosines(mixture(), found)
    assert float(cosines.min()) > 0.95
    assert (r.factorization, r.layer, r.verdict) == ("nmf", "relu", "pass")
    assert r.faithfulness.explained_variance > 0.95
    assert r.faithfulness.concepts.kept == 1.0
    to_color = (nn.functional.normalize(found, dim=1) @ nn.functional.normalize(mixture(), dim=1).T).argmax(1)
    assert to_color[2] == 2  # blue, which no class is read from, comes last
    assert r.concepts[2].importance.mean < 0.01
    assert min(c.importance.mean for c in r.concepts[:2]) > 0.1


def test_the_crops_have_the_concept() -> None:
    box, x, y = planted()
    r = discover(box, (x, y), "relu", **QUICK)
    red = mixture()[0]
    concept = max(r.concepts, key=lambda c: float(torch.cosine_similarity(c.direction, red, dim=0)))
    assert concept.images is not None
    assert len({*concept.example_index.tolist()}) == len(concept.crops) == len(concept.images) == 8
    assert (y[concept.example_index] == 0).all()
    assert concept.amount.tolist() == sorted(concept.amount.tolist(), reverse=True)
    i = int(concept.example_index[0])
    crop = x[i, :, concept.crops[0].rows, concept.crops[0].columns]
    expected = nn.functional.interpolate(crop[None], (SIDE, SIDE), mode="bilinear")
    torch.testing.assert_close(concept.images[:1], expected)


def test_sobol_indices_are_the_brute_force_ones() -> None:
    """f = 3 a + 2 b + 4 a c + d (not used): total indices in closed form, and on a full grid."""

    def f(m: Tensor) -> Tensor:
        return 3 * m[..., 0] + 2 * m[..., 1] + 4 * m[..., 0] * m[..., 2]

    ticks = (torch.arange(20, dtype=torch.float64) + 0.5) / 20
    grid = f(torch.tensor(list(product(ticks.tolist(), repeat=3)), dtype=torch.float64)).view(20, 20, 20)
    total = grid.var(correction=0)
    brute = [float(grid.var(axis, correction=0).mean() / total) for axis in range(3)]
    a, b, mixed = sobol_masks(2048, 4, 0)
    found = jansen_total_indices(f(a)[None], f(b)[None], f(mixed)[None])[0]
    assert found[:3].tolist() == pytest.approx(brute, abs=0.01)
    assert found[3] == 0
    assert sum(brute) > 1.01  # the interaction is counted for both


@pytest.mark.parametrize("amounts_vary", [False, True])
def test_intervals_of_importance_hold_the_noise_of_the_masks(amounts_vary: bool) -> None:
    """A score sum_k w_k u_k m_k, of which k has the total index (w_k u_k)^2 / sum: in 9 of 10 draws of the masks.

    Where all examples are alike, an interval over examples alone has no width.
    """
    n_concepts, n_examples, n_draws, hits = 8, 32, 30, 0
    weights = torch.linspace(2, 0.2, n_concepts, dtype=torch.float64)

    def amounts(n: int, seed: int) -> Tensor:
        likely = torch.rand(n, n_concepts, generator=torch.Generator().manual_seed(seed)) < 0.5
        return 1 + (likely & amounts_vary).double()

    squares = (weights * amounts(50_000, 999)).square()
    known = (squares / squares.sum(1, keepdim=True)).mean(0).tolist()
    for seed in range(n_draws):
        coefficients = weights * amounts(n_examples, seed)
        a, b, mixed = (torch.einsum("...k,mk->m...", m, coefficients) for m in sobol_masks(32, n_concepts, seed))
        intervals = total_index_intervals(a, b, mixed, seed)
        hits += sum(i.low <= index <= i.high for i, index in zip(intervals, known, strict=True))
    assert 0.85 <= hits / (n_draws * n_concepts) <= 0.99


def test_an_interval_of_importance_has_its_own_mean_and_shrinks_with_masks() -> None:
    weights, widths = torch.tensor([[2.0, 1.0, 0.0], [1.0, 1.0, 0.0]], dtype=torch.float64), []
    for n in (16, 256):
        a, b, mixed = (torch.einsum("...k,mk->m...", m, weights) for m in sobol_masks(n, 3, 1))
        intervals = total_index_intervals(a, b, mixed, 0)
        assert [i.mean for i in intervals] == pytest.approx(jansen_total_indices(a, b, mixed).mean(0).tolist())
        assert (intervals[2].low, intervals[2].high) == (0, 0)  # not used
        assert all((i.n_examples, i.n_draws) == (2, n) for i in intervals)
        (alone,) = total_index_intervals(a[:1], b[:1], mixed[:1, :, :1], 0)
        assert (alone.n_examples, alone.low, alone.high) == (1, -torch.inf, torch.inf)
        same = (h[:1].expand(20, *h.shape[1:]) for h in (a, b, mixed))
        widths.append(max(i.high - i.low for i in total_index_intervals(*same, 0)))
    assert widths[1] < widths[0] / 2


def test_masks_are_uniform_and_swap_one_column() -> None:
    a, b, mixed = sobol_masks(64, 3, 5)
    assert mixed.shape == (64, 3, 3)
    for k in range(3):
        assert torch.equal(mixed[:, k, k], b[:, k])
        others = [j for j in range(3) if j != k]
        assert torch.equal(mixed[:, k, others], a[:, others])
    assert torch.cat([a, b], 1).mean(0).sub(0.5).abs().max() < 0.02
    assert not torch.equal(sobol_masks(64, 3, 6)[0], a)


def test_a_score_that_no_concept_changes_has_no_importance() -> None:
    constant = torch.full((2, 8), 3.0, dtype=torch.float64) + 1e-9 * torch.rand(2, 8, dtype=torch.float64)
    assert jansen_total_indices(constant, constant, constant[..., None].expand(2, 8, 3)).abs().max() == 0


def test_the_importance_is_that_of_the_model_under_masks() -> None:
    """On a layer from which the score is linear in the amounts u: the derivatives are w u, and no weight no index."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]))
        model[2].weight.copy_(torch.tensor([[3.0, 1, 0, 0], [-3, -1, 0, 0]]))
        model[2].bias.zero_()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(60, 3, generator=generator) * (torch.rand(60, 3, generator=generator) < 0.5) + 0.01
    box = ub.Box(model, ub.Features(("a", "b", "c")), outputs="logits")
    r = discover(box, x, "1", n_concepts=3, n_masks=256, n_random=0, factorization="nmf", with_twin=False)
    by_unit = {int(c.direction.argmax()): c for c in r.concepts}
    assert set(by_unit) == {0, 1, 2}
    assert by_unit[0].importance.mean > by_unit[1].importance.mean > by_unit[2].importance.mean
    assert by_unit[2].importance.mean < 0.05
    low, high = by_unit[0].sensitivity.low, by_unit[0].sensitivity.high
    assert low < float(3 * x[:, 0].mean()) < high
    assert abs(by_unit[2].sensitivity.mean) < 0.02


def test_random_weights_say_nothing() -> None:
    box, x, y = digits()
    data = (x[:60], y[:60])
    assert discover(box, data, n_concepts=8, n_masks=2, n_random=4).verdict == "pass"
    untrained = randomize_all_layers(box, 5)
    r = discover(untrained, data, n_concepts=8, n_masks=2, n_random=4)
    assert r.verdict == "fail"
    assert "random directions do as well" in r.reason
    assert r.faithfulness.concepts.kept is not None
    assert r.faithfulness.concepts.kept > 0.8  # the picture alone would look as good


@pytest.mark.parametrize(
    ("settings", "data", "words"),
    [
        ({"with_twin": False}, "both", "not compared with one of random weights"),
        ({"n_random": 0}, "both", "no random directions"),
        ({}, "x", "no labels"),
        ({"n_evaluated": 3}, "both", "3 held-out examples are too few"),
    ],
)
def test_what_was_not_tested_is_said(settings: dict[str, Any], data: str, words: str) -> None:
    box, x, y = planted()
    r = discover(box, x if data == "x" else (x, y), "relu", **QUICK | settings)
    assert r.verdict == "not tested"
    assert words in r.reason


@pytest.mark.parametrize("kind", ["ica", "pca"])
def test_signed_directions(kind: str) -> None:
    box, x, y = digits()
    r = discover(box, (x, y), "fc1", factorization=kind, n_concepts=8, n_masks=4, n_random=4)  # type: ignore[arg-type]
    assert (r.factorization, r.verdict) == (kind, "pass")
    assert any((c.direction < 0).any() for c in r.concepts)
    assert all(c.crops == () for c in r.concepts)
    ev = r.faithfulness.explained_variance
    assert 0.5 < ev < 1
    assert discover(box, (x, y), "fc1", n_concepts=8, n_masks=2, n_random=0).factorization == "ica"


def test_classes_are_by_prediction() -> None:
    box, x, y = digits()
    r = discover(box, (x, y), "fc2:input", classes=[3, "5"], n_concepts=3, n_masks=2, n_random=2)
    shown = torch.cat([c.example_index for c in r.concepts])
    assert set(box.predict(x[shown]).tolist()) <= {3, 5}


def test_a_concept_is_an_objective() -> None:
    box, x, y = planted()
    r = discover(box, (x, y), "relu", **QUICK)
    with box.isolated(grad=False):
        acts = box.forward(x[:5], ["relu"])
    score = r.objective(1)(acts)
    expected = torch.einsum("nchw,c->n", acts["relu"], r.concepts[1].direction) / SIDE**2
    torch.testing.assert_close(score, expected)
    assert ub.attribution.gradient(box, x[:2], r.objective(0)).map.abs().max() > 0


def test_tokens_are_rebuilt_at_their_positions() -> None:
    """Units on the last axis: the rebuilt layer has its axes, and the class token is a position like any other."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.patch, self.mlp, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 12), nn.Linear(12, 3)
            self.act, self.token = nn.ReLU(), nn.Parameter(torch.randn(1, 1, 8))

        def forward(self, x: Tensor) -> Tensor:
            h = self.patch(x).flatten(2).mT
            h = torch.cat([self.token.expand(len(h), 1, 8), h], 1)
            return self.head(self.act(self.mlp(h)).mean(1))  # type: ignore[no-any-return]

    _, x, y = planted()
    box = ub.Box(Tokens().eval(), ub.Pixels((3, SIDE, SIDE)))
    r = discover(box, (x, y), "mlp", factorization="pca", n_concepts=8, n_masks=2, n_random=2)
    assert r.unit_axis == 2
    assert r.faithfulness.explained_variance > 0.95
    assert float(r.faithfulness.concepts.change.mean()) < 0.1 * float(r.faithfulness.ablated.change.mean())
    with pytest.raises(LayerError, match="units on axis 2"):
        r.objective(0)


def test_crops_cover_the_image_and_overlap() -> None:
    crops = crop_grid(28, 20, 0.5)
    assert len(crops) == 9
    assert {(c.height, c.width) for c in crops} == {(14, 10)}
    assert [c.top for c in crops[::3]] == [0, 7, 14]
    covered = torch.zeros(28, 20)
    for c in crops:
        covered[c.rows, c.columns] += 1
    assert covered.min() >= 1
    assert crop_grid(28, 28, 1.0)[0].area == 28 * 28
    x = torch.rand(2, 3, 28, 20)
    assert enlarged_crop(x, crops[4]).shape == x.shape


def test_random_directions_are_a_projection_around_the_mean() -> None:
    mean = torch.arange(6.0).double()
    (rebuild,) = random_rebuilds(mean, 2, 1, 0)
    rows = torch.randn(4, 3, 6, dtype=torch.float64)
    once = rebuild(rows)
    torch.testing.assert_close(rebuild(once), once)
    assert torch.linalg.matrix_rank((once - mean).flatten(0, 1)) == 2
    (everything,) = random_rebuilds(mean, 9, 1, 0)
    torch.testing.assert_close(everything(rows), rows)


def test_same_seed_same_concepts() -> None:
    model, inputs = ub.zoo.load("digits-cnn")
    box, (_, x, y) = ub.Box(model.double(), inputs), digits()
    runs = [discover(box, (x[:60], y[:60]), "fc2:input", seed=s, **QUICK) for s in (3, 3, 4)]
    for key in ("direction", "amount", "example_index"):
        first, again, other = ([getattr(c, key) for c in r.concepts] for r in runs)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert runs[0].concepts[0].importance == runs[1].concepts[0].importance
    assert runs[0].reason == runs[1].reason


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "negative": ({"layer": "fc1", "factorization": "nmf"}, InputError, "'ica' and 'pca' take them"),
    "too many": ({"layer": "fc2:input", "n_concepts": 41}, InputError, "more than the 40 rows"),
    "no positions": ({"layer": "fc1", "crop_size": 0.5}, LayerError, "no positions"),
    "layer": ({"layer": "conv9"}, LayerError, "conv9"),
    "an end": ({"layer": "logits"}, LayerError, "is an end of the model"),
    "crop": ({"crop_size": 1.5}, InputError, "crop_size must be"),
    "class": ({"classes": 12}, InputError, "12"),
    "kind": ({"factorization": "svd"}, InputError, "factorization must be"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused(bad: str) -> None:
    settings, error, words = BAD[bad]
    box, x, y = digits()
    with pytest.raises(error, match=words):
        discover(box, (x[:80], y[:80]), **settings)


def test_too_few_examples_and_other_inputs_are_refused() -> None:
    box, x, y = digits()
    with pytest.raises(DataError, match="at least 4 examples, to find"):
        discover(box, (x[:3], y[:3]))
    with pytest.raises(DataError, match="predicted as these classes"):
        discover(box, (x[:40][y[:40] == 3], y[:40][y[:40] == 3]), classes=5)
    table = ub.Box(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), ub.Features(("a", "b", "c")))
    with pytest.raises(InputError, match="crops are of images"):
        discover(table, torch.rand(20, 3), "1", crop_size=0.5)
    regression = ub.Box(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)), ub.Features(("a", "b", "c")),
                        outputs="regression")  # fmt: skip
    with pytest.raises(OutputError, match="discover"):
        discover(regression, torch.rand(20, 3), "0")
