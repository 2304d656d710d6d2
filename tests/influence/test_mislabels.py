"""Wrong labels are found, and named; what the methods rank by is what they say."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor

import unboxed as ub
from unboxed.errors import DataError, InputError, LayerError, OutputError
from unboxed.influence import SuspectedMislabels, self_influence, suspected_mislabels
from unboxed.influence.mislabels import VOTE_DISTANCE_SHARPNESS, VOTE_SMOOTHING

WRONG = [3, 50, 141]


@cache
def digits() -> tuple[ub.Box, Tensor, Tensor, Tensor]:
    """The digits model, 200 digits, their labels, and labels of which some are wrong."""
    x, y = ub.data.digits("train").first(200)
    wrong = y.clone()
    wrong[WRONG] = (y[WRONG] + 3) % 10
    return ub.Box(*ub.zoo.load("digits-cnn")), x, y, wrong


@pytest.mark.parametrize("method", ["neighbors", "loss", "self-influence"])
def test_wrong_labels_come_first_with_the_right_ones(method: str) -> None:
    box, x, y, wrong = digits()
    r = suspected_mislabels(box, (x, wrong), method=method)  # type: ignore[arg-type]
    assert sorted(r.top(3).tolist()) == WRONG
    assert torch.equal(r.suggested[WRONG], y[WRONG])
    assert r.n_suspected == int((r.suggested != wrong).sum())
    assert (r.scores[r.order].diff() <= 0).all()
    assert torch.equal(r.train_labels, wrong)


def test_the_vote_is_without_the_example_itself() -> None:
    """A slow vote, in float64: weights exp(-2 d / median d) of the cosine distances to all others."""
    box, x, _, wrong = digits()
    x, wrong = x[:60], wrong[:60]
    r = suspected_mislabels(box, (x, wrong), n_neighbors=5)
    unit = torch.nn.functional.normalize(x.double().flatten(1), dim=1)
    model = box(x).double().log_softmax(1)
    for i in range(60):
        d = [(1 - float(unit[i] @ unit[j]), j) for j in range(60) if j != i]
        nearest = sorted(d)[:5]
        median = nearest[2][0]
        votes = torch.zeros(10, dtype=torch.float64)
        for distance, j in nearest:
            votes[wrong[j]] += math.exp(-VOTE_DISTANCE_SHARPNESS * distance / median)
        votes = (votes / votes.sum() + VOTE_SMOOTHING / 10) / (1 + VOTE_SMOOTHING)
        torch.testing.assert_close(
            r.log_probs[i].double(), (model[i] + votes.log()).log_softmax(0), rtol=1e-4, atol=1e-4
        )


def test_a_model_that_has_learned_wrong_labels_is_outvoted() -> None:
    """Its own loss says nothing of the wrong labels any more."""
    _, x, _, wrong = digits()
    z = 5.0 * torch.nn.functional.one_hot(wrong, 10) + torch.rand(200, 10, generator=torch.Generator().manual_seed(0))
    box = ub.Box(Remembers(x, z), ub.Pixels((1, *x.shape[2:])), outputs="logits")
    assert sorted(suspected_mislabels(box, (x, wrong)).top(3).tolist()) == WRONG
    assert sorted(suspected_mislabels(box, (x, wrong), method="loss").top(3).tolist()) != WRONG


class Remembers(torch.nn.Module):
    """Answers the remembered logits of the nearest remembered image."""

    def __init__(self, x: Tensor, z: Tensor) -> None:
        super().__init__()
        self.x, self.z = x.flatten(1), z

    def forward(self, x: Tensor) -> Tensor:
        weights = (-1e3 * torch.cdist(x.flatten(1), self.x)).softmax(1)
        return weights @ self.z.to(x)


def test_checkpoints_are_averaged() -> None:
    box, x, _, wrong = digits()
    fresh = ub.Box(*ub.zoo.load("digits-cnn", weights=None))
    r = suspected_mislabels(box, (x, wrong), method="loss", checkpoints=[fresh, box])
    want = torch.stack([b(x).double().log_softmax(1) for b in (fresh, box)]).mean(0)
    torch.testing.assert_close(r.log_probs.double(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(r.scores.double(), -want[range(200), wrong], rtol=1e-5, atol=1e-5)


def test_self_influence_is_the_last_layers() -> None:
    box, x, _, wrong = digits()
    r = suspected_mislabels(box, (x[:40], wrong[:40]), method="self-influence")
    torch.testing.assert_close(r.scores, self_influence(box, (x[:40], wrong[:40])).scores)


def test_identical_examples_vote_alike() -> None:
    box, x, y, _ = digits()
    r: SuspectedMislabels = suspected_mislabels(box, (x[:1].repeat(9, 1, 1, 1), y[:1].repeat(9)), n_neighbors=4)
    assert r.scores.isfinite().all()
    assert (r.scores == r.scores[0]).all()


def test_bad_input_is_refused() -> None:
    box, x, y, _ = digits()
    with pytest.raises(DataError, match="no labels"):
        suspected_mislabels(box, x)
    with pytest.raises(InputError, match="k must be at most 9"):
        suspected_mislabels(box, (x[:10], y[:10]))
    with pytest.raises(InputError, match='"neighbors", "loss" or "self-influence"'):
        suspected_mislabels(box, (x, y), method="margin")  # type: ignore[arg-type]
    with pytest.raises(LayerError):
        suspected_mislabels(box, (x, y), layer="nowhere")
    with pytest.raises(InputError, match="checkpoints must be boxes of the model, with its 10 classes"):
        suspected_mislabels(box, (x, y), checkpoints=[])
    regression = ub.Box(box.model, box.inputs, outputs="regression")
    with pytest.raises(OutputError, match="suspected_mislabels"):
        suspected_mislabels(regression, (x, y))
