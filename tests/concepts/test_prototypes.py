"""Prototypes represent a class, criticisms are what they leave out; the control says when there is nothing to it."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.concepts import prototypes
from unboxed.concepts.prototypes import rbf_kernel, squared_mmd
from unboxed.errors import DataError, InputError, LayerError


@cache
def digits() -> tuple[ub.Box, Tensor, Tensor]:
    return ub.Box(*ub.zoo.load("digits-cnn")), *ub.data.digits("test").first(300)


@cache
def points() -> tuple[ub.Box, Tensor]:
    """Two tight groups of 20 and 20 points and one outlier, as tables; the model is linear."""
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.zeros(20, 2), torch.full((20, 2), 5.0)]) + 0.05 * torch.randn(40, 2, generator=generator)
    x = torch.cat([x, torch.tensor([[5.0, -5.0]])])
    return ub.Box(nn.Linear(2, 2), ub.Features(("a", "b")), outputs="logits"), x


def test_each_group_has_a_prototype_and_the_outlier_is_the_criticism() -> None:
    box, x = points()
    r = prototypes(box, (x, torch.zeros(41).long()), layer="input", n_prototypes=2, n_criticisms=1, bandwidth=1.0)
    (group,) = r.groups
    assert sorted(int(i) // 20 for i in group.prototypes) == [0, 1]
    assert group.criticisms.tolist() == [40]
    assert float(group.witness[0]) > 0
    assert (r.verdict, group.target, group.n_examples) == ("pass", 0, 41)


def test_prototypes_are_of_their_class() -> None:
    box, x, y = digits()
    r = prototypes(box, (x, y), classes=[3, 8], n_prototypes=4, n_criticisms=2)
    assert [g.target for g in r.groups] == [3, 8]
    for g in r.groups:
        assert (y[g.prototypes] == g.target).all()
        assert not {*g.prototypes.tolist()} & {*g.criticisms.tolist()}
        assert g.as_good_random_sets_fraction <= 0.05
        assert g.examples is not None
        assert torch.equal(g.examples[:4], x[g.prototypes])
    assert r.verdict == "pass"
    assert "random" in r.reason


def test_without_labels_the_predicted_class_counts() -> None:
    box, x, _ = digits()
    r = prototypes(box, x, classes=3, n_prototypes=2)
    assert (box.predict(x[r.groups[0].prototypes]) == 3).all()


def test_where_there_is_nothing_to_choose_the_verdict_says_so() -> None:
    box, x, y = digits()
    r = prototypes(box, (x[:40], y[:40]), n_prototypes=40)
    assert r.verdict == "not tested"
    assert all(g.as_good_random_sets_fraction > 0.05 or len(g.prototypes) == g.n_examples for g in r.groups)


def test_the_chosen_set_in_another_order_is_as_good() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        h = torch.randn(6, 3, generator=generator, dtype=torch.float64)
        kernel, chosen = rbf_kernel(h, 0.3), torch.randperm(6, generator=generator)[:3]
        assert squared_mmd(kernel, chosen) == squared_mmd(kernel, chosen.flip(0))


def test_bad_input_is_refused() -> None:
    box, x, y = digits()
    with pytest.raises(DataError, match="two examples"):
        prototypes(box, (x[:1], y[:1]))
    with pytest.raises(LayerError):
        prototypes(box, (x, y), layer="conv9")
    with pytest.raises(InputError, match="n_prototypes"):
        prototypes(box, (x, y), n_prototypes=0)
    with pytest.raises(InputError):
        prototypes(box, (x, y), classes=11)
