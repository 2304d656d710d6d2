"""KernelSHAP and exact Shapley values: their masks, their errors, their limits."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from unboxed.cards import cards
from unboxed.engine.perturb.masks import shapley_mask_pairs
from unboxed.errors import InputError, UnboxedWarning

A = ub.attribution


def table(columns: int = 12, seed: int = 2) -> tuple[ub.Box, Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(columns, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    inputs = ub.Features(tuple(f"c{i}" for i in range(columns)))
    return ub.Box(model.double().eval(), inputs, outputs="logits"), 2 * torch.randn(3, columns).double()


@pytest.mark.parametrize("n", [48, 100, 400])
def test_values_sum_exactly(n: int) -> None:
    box, x = table()
    found = A.kernel_shap(box, x, 1, n_samples=n)
    assert torch.allclose(found.values.sum(1), found.score - found.baseline_score, atol=1e-10)
    assert torch.allclose(found.score, box(x)[:, 1])
    assert torch.allclose(found.baseline_score, box(torch.zeros_like(x))[:, 1])


def test_more_draws_are_nearer() -> None:
    box, x = table()
    exact = A.shapley(box, x, 1).values
    off = [float((A.kernel_shap(box, x, 1, n_samples=n).values - exact).pow(2).mean()) for n in (48, 200, 1000)]
    assert off[0] > 2 * off[1] > 4 * off[2]
    assert torch.allclose(A.kernel_shap(box, x, 1, n_samples=4096).values, exact, atol=1e-10)


def test_standard_errors_are_true() -> None:
    box, x = table()
    each = [A.kernel_shap(box, x[:1], 1, n_samples=200, seed=seed) for seed in range(60)]
    found = torch.stack([e.values[0] for e in each]).std(0)
    said = torch.stack([e.standard_error[0] for e in each]).square().mean(0).sqrt()
    assert 0.65 < float((said / found).median()) < 1.6
    exact = A.shapley(box, x[:1], 1).values[0]
    off = torch.stack([e.values[0] for e in each]).mean(0) - exact
    assert float((off.abs() / (found / 60**0.5)).max()) < 5


@pytest.mark.parametrize("n", [30, 36, 48, 120, 600])
def test_intervals_cover(n: int) -> None:
    """1.96 standard errors hold the exact values nine times in ten or more; nor are they vast."""
    box, x = table()
    want = A.shapley(box, x[:1], 1).values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnboxedWarning)
        each = [A.kernel_shap(box, x[:1], 1, n_samples=n, seed=seed) for seed in range(25)]
    off, error = torch.cat([e.values for e in each]) - want, torch.cat([e.standard_error for e in each])
    assert float((off.abs() <= 1.96 * error).double().mean()) >= 0.9
    assert float(error.square().mean().sqrt()) < (2 if n >= 48 else 6) * float(off.square().mean().sqrt())


def test_few_samples_are_warned_of() -> None:
    box, x = table()
    with pytest.warns(UnboxedWarning, match="n_samples=47 are few for 12 segments .* 48 or more") as met:
        A.kernel_shap(box, x, 1, n_samples=47)
    assert met[0].filename == __file__
    A.kernel_shap(box, x, 1, n_samples=48)


@pytest.mark.parametrize("method", [A.lime, A.kernel_shap])
def test_examples_have_enough_samples(method: Any) -> None:
    """On the images of the zoo that are cut into most squares; warnings are errors here."""
    entry = awkward.get_model("non_square")
    own = next(c for c in cards() if c.method is method)
    own.example(method, ub.Box(entry.model, entry.inputs), entry.images(2), 1)


def test_an_image_with_a_table() -> None:
    """By default the image is cut into squares and each column is a feature, few enough to be exact."""

    torch.manual_seed(0)

    class Both(nn.Module):
        def forward(self, image: Tensor, row: Tensor) -> Tensor:
            y = image[:, 0, :4].sum((1, 2)) + row[:, 0] * row[:, 1]
            return torch.stack([y, -y], 1)

    for columns, count in ((4, 9 + 4), (9, 4 + 9), (14, 1 + 14)):
        names = tuple(f"c{i}" for i in range(columns))
        inputs = ub.MultiInput({"image": ub.Pixels((1, 16, 16)), "row": ub.Features(names)})
        box = ub.Box(Both(), inputs, outputs="regression")
        x = {"image": torch.rand(1, 1, 16, 16), "row": torch.rand(1, columns) + 0.1}
        found = A.shapley(box, x, 0)
        assert found.values.shape == (1, count)
        assert torch.allclose(found.values.sum(1), found.score - found.baseline_score, atol=1e-4)
        assert set(found.map) == {"image", "row"}
        for method in (A.lime, A.kernel_shap):
            assert set(method(box, x, 0, n_samples=200).map) == {"image", "row"}
    with pytest.raises(InputError, match="one setting each"):
        A.shapley(box, x, 0, segments={"image": ("squares", 4), "row": torch.arange(14)})


def test_pairs_cancel_interactions_of_two_features() -> None:
    """A score with products of two features: any draw of pairs gives the exact values."""

    class Twos(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x @ x.new_tensor([1.0, -2, 3, 0.5, 0, 1, 2, -1]) + 2 * x[:, 0] * x[:, 3] - 5 * x[:, 2] * x[:, 7]
            return torch.stack([y, -y], 1)

    box = ub.Box(Twos(), ub.Features(tuple("abcdefgh")), outputs="regression")
    x = torch.rand(2, 8) + 0.5
    found = A.kernel_shap(box, x, 0, n_samples=40)
    assert torch.allclose(found.values, A.shapley(box, x, 0).values, atol=1e-4)
    assert float(found.standard_error.max()) < 1e-4


@pytest.mark.parametrize(("a", "n"), [(5, 20), (8, 50), (12, 100), (12, 400), (30, 200), (60, 300), (7, 126)])
def test_masks_come_in_pairs_within_the_budget(a: int, n: int) -> None:
    draws = shapley_mask_pairs(a, n, seed=1)
    assert len(draws.masks) <= len(draws.mask_index) <= n
    rows = {tuple(row.tolist()) for row in draws.masks}
    assert all(tuple(not v for v in row) in rows for row in rows)
    assert int(draws.masks.sum(1).min()) > 0
    assert int(draws.masks.sum(1).max()) < a
    total = sum(1 / (s * (a - s)) for s in range(1, a))
    assert torch.allclose(draws.weight.sum(), torch.tensor(total).double())


def test_columns_that_are_the_baseline_get_zero() -> None:
    box, x = table(20)
    x[:, :12] = 0
    found = A.kernel_shap(box, x, 1, n_samples=2**8)  # the others' subsets are all run
    assert torch.equal(found.values[:, :12], torch.zeros(3, 12).double())
    assert torch.allclose(found.values, A.shapley(box, x, 1).values)
    assert float(found.standard_error.max()) == 0


def test_too_many_features() -> None:
    box, x = table(20)
    with pytest.raises(InputError, match="kernel_shap"):
        A.shapley(box, x, 1)
    with pytest.raises(InputError, match="42 or more"):
        A.kernel_shap(box, x, 1, n_samples=41)
    with pytest.warns(UnboxedWarning, match="few"):
        assert A.kernel_shap(box, x, 1, n_samples=42).values.shape == (3, 20)


def test_every_number_is_the_baseline() -> None:
    box, x = table(6)
    for found in (A.shapley(box, torch.zeros_like(x), 1), A.kernel_shap(box, torch.zeros_like(x), 1)):
        assert torch.equal(found.values, torch.zeros(3, 6).double())
        assert torch.equal(found.score, found.baseline_score)


@pytest.mark.parametrize("bad", [{"n_samples": 1}, {"n_samples": 30.0}, {"seed": 1.5}, {"seed": "x"}], ids=str)
def test_bad_settings(bad: dict[str, Any]) -> None:
    entry = awkward.get_model("plain")
    box = ub.Box(entry.model, entry.inputs)
    with pytest.raises(InputError):
        A.kernel_shap(box, entry.images(), 1, **{"segments": ("squares", 4), "n_samples": 40, **bad})
