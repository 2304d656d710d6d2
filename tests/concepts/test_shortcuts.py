"""A planted mark is found without labels and proved by paste; nothing is claimed of a model without it."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.concepts import shortcuts
from unboxed.concepts._patches import (
    border_mask,
    corner_mask,
    densest_relevance_rectangle,
    paste_donor_patches,
    sample_random_patches,
)
from unboxed.concepts._spectral import n_eigenvalues_below_gap, normalized_laplacian, spectral_clusters
from unboxed.engine.multiple_tests import holm_adjusted
from unboxed.engine.proportion import Proportion
from unboxed.engine.rectangle import Rectangle
from unboxed.errors import InputError, OutputError

MARK = Rectangle(12, 1, 2, 2)


class MarkReader(nn.Module):
    """Two classes by the brightness of the middle, unless the mark is there: then class 1."""

    def __init__(self, reads_mark: bool) -> None:
        super().__init__()
        self.weight = 20.0 if reads_mark else 0.0

    def forward(self, x: Tensor) -> Tensor:
        mark = x[:, 0, MARK.rows, MARK.columns].mean((1, 2))
        middle = x[:, 0, 4:12, 4:12].mean((1, 2))
        score = 4 * middle - 2 + self.weight * mark
        return torch.stack([-score, score], 1)


@cache
def images() -> Tensor:
    """60 images (1, 16, 16) of class 0 and 60 of class 1, of which 40 bear the mark and are dark otherwise."""
    generator = torch.Generator().manual_seed(0)
    x = 0.05 * torch.rand(120, 1, 16, 16, generator=generator)
    x[60:80, :, 4:12, 4:12] += 0.9
    x[80:, :, MARK.rows, MARK.columns] = 1
    return x.clamp(0, 1)


def box(reads_mark: bool) -> ub.Box:
    return ub.Box(MarkReader(reads_mark), ub.Pixels((1, 16, 16)), outputs="logits")


def test_the_mark_is_found_and_proved() -> None:
    r = shortcuts(box(True), images())
    assert r.verdict == "pass"
    for c in r.shortcuts:
        assert c.target == 1
        assert c.patch == MARK
        assert (c.members >= 80).all()
        assert c.test is not None
        assert c.test.with_patch.value == 1
        assert c.test.with_random.value <= 0.05
        assert c.patch_share > 0.9
        assert c.corner_share > 0.9
    assert sum(len(c.members) for c in r.shortcuts) == 40
    assert "2x2 pixels (row 12, column 1) of 1 turns 100%" in r.reason


def test_the_proof_shows_what_was_pasted() -> None:
    r = shortcuts(box(True), images())
    c = r.shortcuts[0]
    assert c.before is not None
    assert c.after is not None
    assert c.answers is not None
    changed = (c.before != c.after).any(1)
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[MARK.rows, MARK.columns] = True
    assert changed[:, inside].all()
    assert not changed[:, ~inside].any()
    assert c.answers.tolist() == [[0, 1]] * 4


def test_nothing_is_claimed_of_a_model_that_does_not_read_it() -> None:
    """The mark is in the images all the same."""
    x = images().clone()
    x[100:, :, 4:12, 4:12] += 0.9
    r = shortcuts(box(False), x.clamp(0, 1))
    assert r.clusters
    assert (r.verdict, r.shortcuts) == ("fail", ())
    assert "no patch decides answers" in r.reason


def test_a_patch_that_random_ones_equal_is_no_shortcut() -> None:
    """The sign test alone decides here: every patch turns every image into class 1."""

    class Anything(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            total = x.flatten(1).sum(1)
            return torch.stack([1e3 * (0.5 - total), 1e3 * (total - 0.5)], 1)

    x = torch.zeros(80, 1, 16, 16)
    x[40:] = 1
    r = shortcuts(ub.Box(Anything(), ub.Pixels((1, 16, 16)), outputs="logits"), x, classes=1)
    assert r.clusters[0].test is not None
    assert r.clusters[0].test.with_patch.value == 1
    assert (r.clusters[0].test.p_value, r.verdict) == (1.0, "fail")


def test_one_class_alone_is_not_tested() -> None:
    r = shortcuts(box(True), images()[:60])
    assert r.verdict == "not tested"
    assert all(c.test is None for c in r.clusters)


def test_few_examples_are_not_clustered() -> None:
    assert shortcuts(box(True), images()[58:62]).clusters == ()


@pytest.mark.parametrize("method", ["integrated_gradients", ub.attribution.gradient_x_input])
def test_any_method_makes_the_maps(method: object) -> None:
    r = shortcuts(box(True), images(), classes=[1], method=method)  # type: ignore[arg-type]
    assert r.verdict == "pass"


def test_bad_input_is_refused() -> None:
    x = images()
    with pytest.raises(InputError, match="there is no method"):
        shortcuts(box(True), x, method="grad_camm")
    with pytest.raises(InputError, match="name of an attribution method"):
        shortcuts(box(True), x, method=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="gives maps"):
        shortcuts(box(True), x, method=lambda box, x, target: x[..., :4])
    table = ub.Box(nn.Linear(2, 2), ub.Features(("a", "b")), outputs="logits")
    with pytest.raises(InputError, match="images"):
        shortcuts(table, torch.rand(20, 2))
    numbers = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(256, 1)), ub.Pixels((1, 16, 16)), outputs="regression")
    with pytest.raises(OutputError, match="shortcuts"):
        shortcuts(numbers, x)


# -- parts -------------------------------------------------------------------------------------------------------------


def test_groups_are_clusters_and_their_number_is_read() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = torch.tensor([[0.0, 0], [10, 0], [0, 10]]).repeat_interleave(torch.tensor([20, 30, 25]), 0)
    labels = spectral_clusters(centers + torch.randn(75, 2, generator=generator), 8, 0)
    assert labels[20:50].unique().tolist() == [0]  # the largest first
    assert labels[50:].unique().tolist() == [1]
    assert labels[:20].unique().tolist() == [2]
    assert spectral_clusters(torch.randn(40, 2, generator=generator), 1, 0).unique().tolist() == [0]


def test_the_laplacian_has_as_many_zeros_as_components() -> None:
    points = torch.cat([torch.randn(20, 2), torch.randn(20, 2) + 100])
    eigenvalues = torch.linalg.eigvalsh(normalized_laplacian(points))
    assert int((eigenvalues < 1e-9).sum()) == 2
    assert n_eigenvalues_below_gap(torch.tensor([0.0, 0.01, 0.5, 0.6, 0.61]), 4) == 2


def test_the_densest_rectangle_is_the_planted_one() -> None:
    relevance = torch.full((28, 28), 0.001)
    relevance[20:23, 3:6] = 1
    assert densest_relevance_rectangle(relevance) == Rectangle(20, 3, 3, 3)
    wide = torch.full((28, 28), 0.001)
    wide[2:4, 10:16] = 1
    assert densest_relevance_rectangle(wide) == Rectangle(2, 10, 2, 6)


def test_random_patches_are_elsewhere() -> None:
    patch = Rectangle(2, 2, 3, 3)
    places = sample_random_patches(200, patch, (9, 9), torch.Generator().manual_seed(0))
    assert not any(p.overlaps(patch) for p in places)
    assert len({*places}) > 20
    x, donor = torch.zeros(1, 1, 9, 9), torch.ones(1, 1, 9, 9)
    assert float(paste_donor_patches(x, donor, [patch]).sum()) == 9
    assert float(x.sum()) == 0


def test_border_and_corners() -> None:
    assert border_mask(16, 16).double().mean().item() == 1 - 12 * 12 / 256
    assert corner_mask(16, 16).sum().item() == 4 * 16


def test_holm() -> None:
    """The example of Holm's step-down: the smallest times 3, the next times 2, never falling."""
    assert holm_adjusted([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm_adjusted([]) == []


def test_the_exact_interval_covers_as_clopper_and_pearson_say() -> None:
    low, high = Proportion(10, 10).clopper_pearson_interval
    assert (low, high) == (pytest.approx(0.025 ** (1 / 10)), 1.0)
    assert Proportion(0, 0).clopper_pearson_interval == (0.0, 1.0)
