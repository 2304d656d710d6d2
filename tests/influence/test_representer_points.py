"""Representer points and nearest training examples: exact decompositions, and their definitions."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub
from unboxed.errors import InputError, LayerError, OutputError
from unboxed.influence import nearest_training_examples, representer_points
from unboxed.testing.models import GRAY_INPUTS, N_CLASSES, PlainCNN

N = 40


@pytest.fixture
def box() -> ub.Box:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ub.Box(PlainCNN(), GRAY_INPUTS, outputs="logits")


@pytest.fixture
def data() -> Any:
    g = torch.Generator().manual_seed(1)
    y = torch.arange(N) % N_CLASSES
    return torch.rand(3, 1, 8, 8, generator=g), torch.tensor([0, 2, 1]), (torch.rand(N, 1, 8, 8, generator=g), y)


def features(box: ub.Box, x: Tensor) -> Tensor:
    return F.pad(box.read(x, "fc:input")["fc:input"].double(), (0, 1), value=1.0)


@pytest.mark.parametrize(("fit_to", "l2"), [("labels", 0.1), ("model", 0.003), ("labels", 1e-5)])
def test_scores_sum_to_the_logit(box: ub.Box, data: Any, fit_to: Any, l2: float) -> None:
    """The logit is that of a layer fitted independently, by a solver that knows no representer theorem."""
    x, y, (train_x, train_y) = data
    f, q = features(box, train_x), features(box, x)
    targets = box.read(train_x, "logits")["logits"].double().softmax(1)
    targets = F.one_hot(train_y, N_CLASSES).double() if fit_to == "labels" else targets
    weights = torch.zeros(N_CLASSES, f.shape[1], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weights], max_iter=20_000, tolerance_grad=1e-13, tolerance_change=0, history_size=100,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(f @ weights.T, targets) + l2 * weights.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    expected = (q @ weights.detach().T).gather(1, y[:, None])[:, 0]
    result = representer_points(box, x, y, data[2], l2=l2, fit_to=fit_to)
    assert torch.allclose(result.scores.double().sum(1), expected, rtol=1e-5, atol=1e-5)
    assert result.unit == "part of the label's logit"


def test_a_score_is_an_examples_weight_times_its_similarity(box: ub.Box, data: Any) -> None:
    """Fitted to labels, an example of the label's class raises its logit where features agree; another lowers it."""
    x, y, train = data
    result = representer_points(box, x, y, train, l2=0.1, fit_to="labels")
    similarity = features(box, x) @ features(box, train[0]).T
    same = y[:, None] == train[1]
    assert torch.equal(result.scores > 0, same == (similarity > 0))


def test_an_unsolved_problem_is_refused(box: ub.Box, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["unboxed.influence.representer_points"], "MAX_NEWTON_STEPS", 1)
    with pytest.raises(InputError, match="not at its optimum"):
        representer_points(box, *data)


def test_a_model_without_a_linear_end_is_refused(data: Any) -> None:
    conv = nn.Sequential(nn.Conv2d(1, N_CLASSES, 8), nn.Flatten())
    with pytest.raises(LayerError, match=r"the last layer with parameters is 0 \(Conv2d\)"):
        representer_points(ub.Box(conv, GRAY_INPUTS, outputs="logits"), *data)
    two_heads = nn.Sequential(nn.Flatten(), nn.Linear(64, N_CLASSES), nn.Softplus())
    with pytest.raises(LayerError, match="linear layer that gives the logits"):
        representer_points(ub.Box(two_heads, GRAY_INPUTS, outputs="logits"), *data)
    with pytest.raises(OutputError):
        representer_points(
            ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), GRAY_INPUTS, outputs="multilabel"), *data
        )


def test_one_yes_no_output(data: Any) -> None:
    train_x = data[2][0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), GRAY_INPUTS, outputs="binary")
    result = representer_points(box, train_x, 1, (train_x, torch.arange(N) % 2), l2=1e-6)
    predicted = box.predict(train_x)
    assert 0 < predicted.sum() < N
    assert torch.equal(result.scores.sum(1) > 0, predicted == 1)


def test_one_logit_is_that_of_a_layer_of_one_row(data: Any) -> None:
    """Fitted with the given l2 by another solver: its logit z for class 1, and -z for class 0."""
    x, y, (train_x, _) = data
    y, train_y, l2 = y % 2, torch.arange(N) % 2, 0.05
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), GRAY_INPUTS, outputs="binary")
    f, q = (F.pad(box.inputs.encode(h).flatten(1).double(), (0, 1), value=1.0) for h in (train_x, x))
    w = torch.zeros(f.shape[1], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [w], max_iter=5_000, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.binary_cross_entropy_with_logits(f @ w, train_y.double()) + l2 * w.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    alpha = (train_y - torch.sigmoid(f @ w.detach())) / (2 * l2 * N)
    expected = (2 * y[:, None] - 1) * alpha * (q @ f.T)
    result = representer_points(box, x, y, (train_x, train_y), l2=l2, fit_to="labels")
    assert torch.allclose(result.scores.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_nearest_training_examples(box: ub.Box, data: Any, metric: Any) -> None:
    x, y, train = data
    q, f = features(box, x)[:, :-1], features(box, train[0])[:, :-1]
    expected = {
        "dot": q @ f.T, "cosine": F.cosine_similarity(q[:, None], f[None], dim=2),
        "euclidean": 1 / (1 + (q[:, None] - f).norm(dim=2)),
    }[metric]  # fmt: skip
    result = nearest_training_examples(box, x, y, train, metric=metric)
    assert torch.allclose(result.scores.double(), expected, rtol=1e-5)
    signed = nearest_training_examples(box, x, y, train, metric=metric, signed=True).scores
    assert torch.equal(signed, torch.where(y[:, None] == train[1], result.scores, -result.scores))
    itself = nearest_training_examples(box, train[0], train[1], train)
    assert itself.top(1)[:, 0].tolist() == list(range(N))
