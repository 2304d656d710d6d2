"""RISE: its grids, its normalizations, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from unboxed.engine.perturb.masks import rise_masks
from unboxed.errors import InputError

A = ub.attribution


def test_masks_are_keyed_by_their_number() -> None:
    like = torch.zeros(1)
    every = rise_masks(range(6), (9, 12), 3, 0.5, 1, like)
    assert torch.equal(torch.cat([rise_masks(range(k, k + 2), (9, 12), 3, 0.5, 1, like) for k in (0, 2, 4)]), every)
    assert every.shape == (6, 1, 9, 12)
    assert float(every.min()) >= 0
    assert float(every.max()) <= 1
    assert not torch.equal(rise_masks(range(6), (9, 12), 3, 0.5, 2, like), every)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8])
def test_every_pixel_is_kept_as_often(keep: float) -> None:
    mean = rise_masks(range(3000), (8, 8), 3, keep, 0, torch.zeros(1)).mean(0)[0]
    assert float((mean - keep).abs().max()) < 0.05


class Corner(nn.Module):
    """Its score is the brightness of the upper left corner."""

    def forward(self, x: Tensor) -> Tensor:
        y = x[:, :, :2, :2].mean((1, 2, 3))
        return torch.stack([10 * y, 0 * y], 1)


@pytest.mark.parametrize("normalize", ["expectation", "coverage", "difference"])
def test_it_points_where_the_score_is(normalize: Any) -> None:
    box = ub.Box(Corner(), ub.Pixels((1, 12, 12)), outputs="logits")
    found = A.rise(box, torch.ones(1, 1, 12, 12), 0, n_samples=800, cells=4, normalize=normalize, on="score")
    assert found.shape == (1, 1, 12, 12)
    assert int(found.flatten().argmax()) in (0, 1, 12, 13)
    far = found[0, 0, 6:, 6:]
    if normalize == "difference":
        assert float(far.abs().max()) < 0.15 * float(found.max())
    else:
        assert float((far.mean() - 5).abs()) < 0.6  # the mean score: what a mask keeps is not what matters there


def test_a_baseline_in_place_of_black() -> None:
    box = ub.Box(Corner(), ub.Pixels((1, 12, 12)), outputs="logits")
    found = A.rise(
        box, torch.ones(1, 1, 12, 12), 0, n_samples=60, cells=4, baseline="white", normalize="difference", on="score"
    )
    assert float(found.abs().max()) < 1e-5


@pytest.mark.parametrize(
    "bad",
    [{"cells": 9}, {"cells": 0}, {"keep": 0}, {"keep": 1}, {"keep": "half"}, {"n_samples": 0}, {"normalize": "sum"},
     {"on": "logit"}, {"seed": 1.5}],
    ids=str,
)  # fmt: skip
def test_bad_settings(bad: dict[str, Any]) -> None:
    entry = awkward.get_model("plain")
    box = ub.Box(entry.model, entry.inputs)
    with pytest.raises(InputError):
        A.rise(box, entry.images(), 1, **{"n_samples": 4, "cells": 3, **bad})


def test_tables_have_no_grid() -> None:
    box = ub.Box(nn.Linear(3, 2), ub.Features(("a", "b", "c")), outputs="logits")
    with pytest.raises(InputError, match="Pixels"):
        A.rise(box, torch.zeros(1, 3), 0)
