"""CKA against the published formulas written out, and its exact laws."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from unboxed import Features
from unboxed.activations import cka
from unboxed.activations.cka import centered_gram_matrix, unbiased_hsic
from unboxed.errors import DataError, InputError, UnboxedWarning

XYZ = Features(("x", "y", "z"))


def draws(n: int, k: int, seed: int = 0) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """|Y'X|_F^2 / (|X'X|_F |Y'Y|_F) of centered X, Y: Kornblith et al. 2019, section 3."""
    x, y = x.flatten(1), y.flatten(1)
    x, y = x - x.mean(0), y - y.mean(0)
    return (y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())


def hsic_of_tuples(k: Tensor, m: Tensor) -> float:
    """The U-statistic that HSIC_1 is: means over tuples of different examples (Song et al. 2012, theorem 5)."""
    n = range(len(k))
    two = [float(k[i, j] * m[i, j]) for i, j in itertools.permutations(n, 2)]
    three = [float(k[i, j] * m[i, q]) for i, j, q in itertools.permutations(n, 3)]
    four = [float(k[i, j] * m[q, r]) for i, j, q, r in itertools.permutations(n, 4)]
    return sum(two) / len(two) + sum(four) / len(four) - 2 * sum(three) / len(three)


def two() -> tuple[ub.Box, ub.Box]:
    entry = awkward.get_model("plain", torch.float64)
    torch.manual_seed(7)
    other = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(108, 4)).double().eval()
    return ub.Box(entry.model, awkward.GRAY_INPUTS), ub.Box(other, awkward.GRAY_INPUTS)


def images(n: int) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_biased_estimator_in_one_batch_is_the_published_formula() -> None:
    a, b = two()
    x = images(12)
    result = cka(a, b, x, unbiased=False)
    assert result.layers_a == ("conv1", "relu1", "conv2", "relu2", "fc")
    assert result.layers_b == ("0", "1", "2", "3")
    ha, hb = a.read(x, result.layers_a), b.read(x, result.layers_b)
    want = torch.stack([torch.stack([linear_cka(ha[p], hb[q]) for q in result.layers_b]) for p in result.layers_a])
    assert torch.allclose(result.cka, want, atol=1e-10)
    assert want.std() > 0.01


def test_unbiased_in_minibatches_it_is_the_sum_over_tuples() -> None:
    a, b = two()
    x = images(14)  # 6, 6, and a rest of 2 that is left out
    result = cka(a, b, x, ["relu1", "fc"], ["1"], minibatch_size=6)
    assert (result.n_examples, result.n_minibatches) == (12, 2)
    for i, p in enumerate(("relu1", "fc")):
        sums = torch.zeros(3)
        for part in (x[:6], x[6:12]):
            k, m = a.read(part, [p])[p].flatten(1), b.read(part, ["1"])["1"].flatten(1)
            k, m = k @ k.T, m @ m.T  # not centered
            sums += torch.tensor([hsic_of_tuples(k, m), hsic_of_tuples(k, k), hsic_of_tuples(m, m)])
        assert result.cka[i, 0].item() == pytest.approx(float(sums[0] / (sums[1] * sums[2]).sqrt()), abs=1e-5)


def test_all_pairs_and_row_by_row() -> None:
    k = torch.stack([centered_gram_matrix(draws(9, 4, s)) for s in range(3)])
    assert torch.allclose(unbiased_hsic(k, k).diagonal(), unbiased_hsic(k, k, paired=True))


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("minibatch", [5, 20])
def test_a_model_with_itself_has_the_diagonal_one(unbiased: bool, minibatch: int) -> None:
    """To rounding, for both: numerator and denominator are the same sum. And the matrix is symmetric."""
    a, _ = two()
    values = cka(a, a, images(20), unbiased=unbiased, minibatch_size=minibatch).cka
    assert torch.allclose(values.diagonal(), torch.ones(5).double(), atol=1e-12)
    assert torch.allclose(values, values.T, atol=1e-12)


def test_a_copy_is_equal_to_the_model() -> None:
    a, _ = two()
    again, _ = two()
    assert torch.allclose(cka(a, again, images(12)).cka, cka(a, a, images(12)).cka)


@pytest.mark.parametrize("unbiased", [True, False])
def test_rotation_and_scale_change_nothing_but_an_oblique_map_does(unbiased: bool) -> None:
    q, _ = torch.linalg.qr(draws(3, 3, seed=4))
    rotated, oblique = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
    with torch.no_grad():
        rotated.weight.copy_(-2.5 * q)
        oblique.weight.copy_(torch.diag(torch.tensor([1.0, 0.1, 3.0])))
    x = draws(30, 3)
    plain = ub.Box(nn.Sequential(nn.Identity()), XYZ, outputs="regression")
    boxes = [ub.Box(nn.Sequential(m), XYZ, outputs="regression") for m in (rotated, oblique)]
    same, other = (float(cka(plain, b, x, unbiased=unbiased, minibatch_size=10).cka) for b in boxes)
    assert same == pytest.approx(1, abs=1e-6)
    assert other < 0.9


def test_the_unbiased_one_does_not_grow_with_the_width() -> None:
    """Independent wide features of few examples: nothing in common, but the biased one says nearly the same."""
    noise = [draws(10, 400, s) for s in (1, 2)]
    k = torch.stack([centered_gram_matrix(h) for h in noise])
    both = unbiased_hsic(k, k)
    assert abs(float(both[0, 1] / (both[0, 0] * both[1, 1]).sqrt())) < 0.3
    assert linear_cka(*noise) > 0.8


def test_minibatches_agree_with_all_at_once_in_expectation() -> None:
    """Over many draws the mean of HSIC_1 at 6 examples is that at 60; HSIC_0's is not."""

    def mean(n: int, times: int) -> float:
        result = []
        for s in range(times):
            x = draws(n, 3, seed=1000 + s)
            y = x @ draws(3, 5, seed=9) + draws(n, 5, seed=2000 + s)
            result.append(float(unbiased_hsic(centered_gram_matrix(x)[None], centered_gram_matrix(y)[None])))
        return sum(result) / times

    few, many = mean(6, 2000), mean(60, 200)
    assert few == pytest.approx(many, rel=0.1)


def test_any_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors, pairs, data sets; and layers read in groups where they don't fit at once."""
    a, b = two()
    x = images(12)
    want = cka(a, b, x, minibatch_size=6).cka
    for data in ((x, torch.zeros(12)), torch.utils.data.TensorDataset(x, torch.zeros(12)), list(x)):
        assert torch.equal(cka(a, b, data, minibatch_size=6).cka, want)
    monkeypatch.setattr(sys.modules["unboxed.activations.cka"], "MAX_GROUP_ACTIVATION_BYTES", 1)
    assert torch.equal(cka(a, b, x, minibatch_size=6).cka, want)


def test_a_constant_layer_has_no_similarity() -> None:
    dead = nn.Linear(3, 2).double()
    nn.init.zeros_(dead.weight)
    box = ub.Box(nn.Sequential(nn.Linear(3, 3).double(), dead), XYZ, outputs="regression")
    with pytest.warns(UnboxedWarning, match="undefined"):
        values = cka(box, box, draws(8, 3)).cka
    assert values.isnan().tolist() == [[False, True], [True, True]]


def test_refusals() -> None:
    a, _ = two()
    other = ub.Box(nn.Sequential(nn.Linear(3, 2)), XYZ, outputs="regression")
    with pytest.raises(InputError, match="same"):
        cka(a, other, images(8))
    with pytest.raises(InputError, match="minibatch"):
        cka(a, a, images(8), minibatch_size=3)
    with pytest.raises(InputError, match="minibatch_size must be a whole number, 4 or more"):
        cka(a, a, images(8), minibatch_size=1)
    with pytest.raises(InputError, match="layers_a"):
        cka(a, a, images(8), layers_a=[])
    with pytest.raises(DataError, match="at least 4"):
        cka(a, a, images(3))
    assert cka(a, a, images(8), "conv1", "fc").layers_a == ("conv1",)


@pytest.mark.parametrize("unbiased", [True, False])
def test_the_similarity_of_a_constant_layer_is_nan(unbiased: bool) -> None:
    """However its values are rounded."""
    torch.manual_seed(0)
    first = nn.Linear(3, 7)
    nn.init.zeros_(first.weight)
    box = ub.Box(nn.Sequential(first, nn.Linear(7, 4)), XYZ)
    for n in (5, 11, 37):
        with pytest.warns(UnboxedWarning, match="undefined"):
            assert cka(box, box, draws(n, 3).float(), unbiased=unbiased).cka.isnan().all()
