"""Planted groups with raised error are found on held-out examples, and none where errors are spread at random."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from scipy.stats import fisher_exact
from torch import Tensor, nn

import unboxed as ub
from unboxed.concepts import error_slices
from unboxed.concepts._scan import WardClusterTree, error_rate_log_likelihood_ratio, find_high_error_groups
from unboxed.engine.linear.principal import PrincipalBasis
from unboxed.errors import DataError, InputError, LayerError, OutputError

N = 400


@cache
def table() -> tuple[ub.Box, Tensor, Tensor]:
    """Points in 5 columns, a group of a tenth apart from the rest, and the group (N,)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 5, generator=generator)
    in_group = torch.arange(N) % 10 == 0
    x[in_group] = 0.3 * x[in_group] + torch.tensor([0.0, 6, 0, 0, 0])
    model = nn.Linear(5, 3)
    with torch.no_grad():
        model.weight.copy_(torch.randn(3, 5, generator=generator))
    return ub.Box(model, ub.Features(tuple("abcde")), outputs="logits"), x, in_group


def labels(rate: Tensor, seed: int = 0) -> Tensor:
    """The model's answers, wrong at a rate per example (N,)."""
    box, x, _ = table()
    wrong = torch.rand(N, generator=torch.Generator().manual_seed(seed)) < rate
    return torch.where(wrong, (box.predict(x) + 1) % 3, box.predict(x))


def test_the_planted_group_is_found() -> None:
    box, x, in_group = table()
    y = labels(torch.where(in_group, 0.6, 0.03))
    r = error_slices(box, (x, y), seed=3)
    best = r.slices[0]
    assert r.verdict == "pass"
    assert float(in_group[best.members].double().mean()) > 0.9
    assert len(best.members) > 0.9 * int(in_group.sum())
    assert best.errors.value > 0.4
    assert best.rest.value < 0.1
    assert best.layer == "input"
    assert "held-out" in r.reason


def test_the_test_is_of_held_out_examples_and_exact() -> None:
    """Half of the examples are tested; the p-value is Fisher's, one-sided, times the number of groups (Holm)."""
    box, x, in_group = table()
    r = error_slices(box, (x, labels(torch.where(in_group, 0.6, 0.03))), max_slices=1)
    (s,) = r.candidates
    assert s.errors.n + s.rest.n == N // 2
    counts = [[s.errors.count, s.errors.n - s.errors.count], [s.rest.count, s.rest.n - s.rest.count]]
    assert s.p_value == pytest.approx(fisher_exact(counts, "greater").pvalue)


def test_errors_at_random_make_no_slice() -> None:
    """Of 40 draws at a level of .05 more than 6 would be a chance of 1 in 300."""
    box, x, _ = table()
    found = [error_slices(box, (x, labels(torch.full((N,), 0.1), seed)), seed=seed).verdict for seed in range(40)]
    assert found.count("pass") <= 6
    assert found.count("fail") > 0  # candidates were tested


def test_a_model_without_errors_has_nothing_to_test() -> None:
    box, x, _ = table()
    r = error_slices(box, (x, box.predict(x)))
    assert (r.verdict, r.candidates, int(r.is_error.sum())) == ("not tested", (), 0)


def test_the_nearest_concept_is_named() -> None:
    box, x, in_group = table()
    y = labels(torch.where(in_group, 0.6, 0.03))
    shift = torch.tensor([0.0, 6, 0, 0, 0])
    given = {"group": torch.randn(20, 5) + shift, "other": torch.randn(20, 5) - shift}
    best = error_slices(box, (x, y), concepts=given).slices[0]
    assert best.concept == "group"
    assert best.concept_cosine > 0.9
    direction = error_slices(box, (x, y), layers="input", concepts={"along": shift, "across": shift.roll(1)}).slices[0]
    assert direction.concept == "along"
    with pytest.raises(InputError, match="direction of concept 'short' has 2 values"):
        error_slices(box, (x, y), layers="input", concepts={"short": torch.ones(2)})


def test_members_are_indices_in_the_data_the_most_typical_first() -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    x, y = ub.data.digits("train").first(400)
    x[:80] = 1 - x[:80]
    r = error_slices(box, (x, y))
    best = r.slices[0]
    assert best.examples is not None
    assert torch.equal(best.examples, x[best.members[:8]])
    assert torch.equal(best.answers[:, 0], y[best.members[:8]])
    assert torch.equal(best.answers[:, 1], box.predict(x[best.members[:8]]))


def test_bad_input_is_refused() -> None:
    box, x, _ = table()
    y = box.predict(x)
    with pytest.raises(DataError, match="at least 8"):
        error_slices(box, (x[:7], y[:7]))
    with pytest.raises(DataError, match="labels"):
        error_slices(box, x)
    with pytest.raises(LayerError):
        error_slices(box, (x, y), layers="conv9")
    with pytest.raises(InputError, match="mapping"):
        error_slices(box, (x, y), concepts={})
    nowhere, longer = torch.full((5,), torch.nan), torch.ones(7)
    with pytest.raises(InputError, match="must be finite"):
        error_slices(box, (x, y), concepts={"a": torch.ones(5), "b": nowhere}, layers="input")
    with pytest.raises(InputError, match="has 7 values"):  # though no group has more errors
        error_slices(box, (x, y), concepts={"a": longer}, layers="input")
    numbers = ub.Box(nn.Linear(5, 1), ub.Features(tuple("abcde")), outputs="regression")
    with pytest.raises(OutputError, match="error_slices"):
        error_slices(numbers, (x, y))


# -- parts -------------------------------------------------------------------------------------------------------------


def test_the_tree_sums_over_its_groups() -> None:
    points = torch.randn(30, 2, generator=torch.Generator().manual_seed(1))
    tree, values = WardClusterTree(points), torch.arange(30.0)
    sums = tree.sum_per_group(values)
    assert len(sums) == 29
    assert tree.members(28).all()
    for group in range(29):
        assert float(sums[group]) == float(values[tree.members(group)].sum())


def test_the_scan_finds_the_group_with_the_errors() -> None:
    points = torch.cat([torch.randn(20, 2), torch.randn(20, 2) + 20, torch.randn(40, 2) - 20])
    is_error = torch.zeros(80, dtype=torch.bool)
    is_error[20:40:2] = True
    ((tree, members),) = find_high_error_groups(
        [WardClusterTree(points[:, :1]), WardClusterTree(points)], is_error, 10, 1, 3.0
    )
    assert tree in (0, 1)
    assert members.nonzero().flatten().tolist() == list(range(20, 40))
    assert find_high_error_groups([WardClusterTree(points)], torch.zeros(80, dtype=torch.bool), 10, 3, 3.0) == []


def test_the_likelihood_ratio() -> None:
    """Literally: log of binomial likelihoods; nothing where the group has fewer errors."""
    value = error_rate_log_likelihood_ratio(torch.tensor([8.0, 1.0]), torch.tensor([10.0, 10.0]), 12.0, 100.0)
    p = torch.distributions.Binomial
    expected = (
        p(10, torch.tensor(0.8)).log_prob(torch.tensor(8.0)) + p(90, torch.tensor(4 / 90)).log_prob(torch.tensor(4.0))
        - p(10, torch.tensor(0.12)).log_prob(torch.tensor(8.0)) - p(90, torch.tensor(0.12)).log_prob(torch.tensor(4.0))
    )  # fmt: skip
    assert float(value[0]) == pytest.approx(float(expected), rel=1e-4)
    assert float(value[1]) == 0


@pytest.mark.parametrize("d", [4, 60])
def test_principal_components_keep_distances(d: int) -> None:
    h = torch.randn(20, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = PrincipalBasis.fit(h, 30, standardize=False)(h)
    torch.testing.assert_close(torch.cdist(z, z), torch.cdist(h, h), rtol=1e-6, atol=1e-6)
