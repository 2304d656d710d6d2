"""What the methods of influence are given by mistake: taken where its meaning is plain, else refused in a sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.errors import InputError, UnboxedError
from unboxed.influence import Influence, ModelTraining, source, suspected_mislabels, tracin, trak, unrolled
from unboxed.influence.validate import leave_one_out, linear_datamodeling_score

INPUTS = ub.Features(tuple("abcd"))
N = 30


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(x)


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


@pytest.fixture
def box(model: nn.Module) -> ub.Box:
    return ub.Box(model, INPUTS, outputs="logits")


@pytest.fixture
def train() -> tuple[Tensor, Tensor]:
    return torch.randn(N, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64), torch.arange(N) % 3


@pytest.fixture
def training(model: nn.Module, train: Any) -> ModelTraining:
    return ModelTraining(model, INPUTS, train, epochs=2, batch_size=8, lr=0.1, outputs="logits")


def scores_of(method: Any, box: ub.Box, train: Any, checkpoints: Any) -> Any:
    args = (box, train[0][:2], train[1][:2], train)
    if method is source:
        return source(*args, checkpoints=checkpoints, lr=0.1, n_steps=20, segments=1).scores
    if method is trak:
        return trak(*args, models=checkpoints, dim=8).scores
    return tracin(*args, checkpoints=checkpoints).scores


@pytest.mark.parametrize("method", [tracin, source, trak])
def test_checkpoints_may_be_boxes_modules_and_come_one_by_one(method: Any, box: ub.Box, train: Any) -> None:
    states = [box.model.state_dict()] * 2
    expected = scores_of(method, box, train, states)
    for given in ([box, box], [box.model, box.model], (state for state in states)):
        assert torch.equal(scores_of(method, box, train, given), expected)


@pytest.mark.parametrize("method", [tracin, source, trak])
def test_what_is_no_list_of_checkpoints_is_refused(method: Any, box: ub.Box, train: Any) -> None:
    name = "models" if method is trak else "checkpoints"
    given: Any
    for given in ([] if method is trak else None, box, box.model, box.model.state_dict(), 3):
        with pytest.raises(InputError, match=f"{name} must be a list of state dicts or of paths"):
            scores_of(method, box, train, given)
    with pytest.raises(InputError, match=f"{name} must be state dicts, .*; got int as the one of index 0"):
        scores_of(method, box, train, [3])


def test_checkpoints_of_mislabels_are_boxes(box: ub.Box, train: Any) -> None:
    given: Any
    for given in (box, [box.model.state_dict()], [box.model], 3):
        with pytest.raises(InputError, match=r"checkpoints must be boxes of the model.*with_model"):
            suspected_mislabels(box, train, checkpoints=given)


def test_source_wants_a_step_for_each_segment(box: ub.Box, train: Any) -> None:
    args = (box, train[0][:2], train[1][:2], train)
    with pytest.raises(InputError, match=r"n_steps must be 3 or more, .*; got 2"):
        source(*args, checkpoints=[box] * 3, lr=0.1, n_steps=2, segments=3)


def test_weights_of_a_training_may_be_a_list(training: ModelTraining, train: Any) -> None:
    box, queries = training.box(training.run([1.0] * N)), (train[0][:2], train[1][:2])
    expected = unrolled(box, *queries, training, weights=torch.ones(N), check_smoothness=False).scores
    assert torch.equal(unrolled(box, *queries, training, weights=[1.0] * N, check_smoothness=False).scores, expected)
    for wrong in ([1.0] * (N - 1), ["a"] * N):
        with pytest.raises(InputError, match="wanted weights of the training examples"):
            unrolled(box, *queries, training, weights=wrong, check_smoothness=False)  # type: ignore[arg-type]


def test_a_box_is_no_training(box: ub.Box, train: Any) -> None:
    x, y = train[0][:2], train[1][:2]
    result: Any = Influence(torch.zeros(2, N), "one run")
    for call in (
        lambda: unrolled(box, x, y, box),  # type: ignore[arg-type]
        lambda: leave_one_out(box, x, y, [0]),  # type: ignore[arg-type]
        lambda: linear_datamodeling_score(result, box, x, y),  # type: ignore[call-overload]
        lambda: ub.influence.removal(box, x, y, box),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError, match=r"training must be the training that made the model.*; got Box"):
            call()


def test_one_fraction_is_taken_and_none_refused(training: ModelTraining, train: Any) -> None:
    x, y = train[0][:2], train[1][:2]
    result = unrolled(training.box(training.run()), x, y, training, check_smoothness=False)
    one, listed = (
        linear_datamodeling_score(result, training, x, y, fractions=given, n_subsets=4) for given in (0.1, [0.1])
    )
    assert one.fractions == (0.1,)
    assert torch.equal(one.correlations, listed.correlations)
    wrong: Any
    for wrong in ([], "0.1", None):
        with pytest.raises(InputError, match="fraction"):
            linear_datamodeling_score(result, training, x, y, fractions=wrong, n_subsets=4)


@pytest.mark.parametrize("setting", ["weight_decay", "momentum"])
def test_negative_settings_of_an_optimizer_are_refused(setting: str, model: nn.Module, train: Any) -> None:
    args: dict[str, Any] = {"epochs": 1, "optimizer": "sgd", setting: -1}
    with pytest.raises(InputError, match=f"{setting} must be a number, 0 or more; got -1"):
        ModelTraining(model, INPUTS, train, **args)


def test_groups_may_be_a_list() -> None:
    result = Influence(torch.tensor([[1.0, 2.0, 4.0]]), "one run")
    assert result.groups([0, 1, 0]).tolist() == [[5.0, 2.0]]
    for wrong in ([0, 1], [0.5, 1.0, 0.0], ["a", "b", "c"], [True, False, True], [-1, 0, 0], None):
        with pytest.raises(InputError, match="one whole number per training example"):
            result.groups(wrong)  # type: ignore[arg-type]


def test_a_training_takes_the_output_that_is_meant(train: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TwoOutputs().double()
    with pytest.raises(UnboxedError, match="output="):
        ModelTraining(model, INPUTS, train, epochs=1, outputs="logits")
    training = ModelTraining(model, INPUTS, train, epochs=1, outputs="logits", output=1)
    trained = training.box(training.run())
    before, after = model.state_dict(), trained.model.state_dict()
    assert torch.equal(trained(train[0]), trained.model(train[0])[1])
    assert torch.equal(before["first.weight"], after["first.weight"])
    assert not torch.equal(before["second.weight"], after["second.weight"])
    assert training.reseed(1).n_steps == training.n_steps


def test_label_maps_are_refused() -> None:
    box, x, y = ub.Box(nn.Conv2d(3, 4, 1), ub.Pixels((3, 5, 5))), torch.rand(4, 3, 5, 5), torch.zeros(4, 5, 5).long()
    for method in (ub.influence.influence_functions, ub.influence.gradient_dot):
        with pytest.raises(UnboxedError, match=r"label maps are not supported.*mean\(\(2, 3\)\)"):
            method(box, x[:2], y[:2], (x, y))
