"""The verdict on scores of training examples: nonsense does not pass, what predicts retraining does; its bounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import unboxed as ub
from unboxed.checks import PlantedDataset, Trigger, influence_verdict, plant_training
from unboxed.checks.influence_planting import PlantedTraining
from unboxed.checks.influence_shortcut import influence_test, is_influence_method
from unboxed.checks.influence_tests import (
    INFLUENCE_TESTS,
    RANDOM_WEIGHTS_TEST_NAME,
    RETRAINING_TEST_NAME,
    SAME_TOP_EXAMPLES_TEST_NAME,
    SHORTCUT_TEST_NAME,
)
from unboxed.checks.influence_verdict import grade_influence_outcomes
from unboxed.checks.shortcut_trial import GRADE_DOES_NOT_SHOW_IT, ShortcutTrial
from unboxed.checks.verdict import (
    FAIL,
    INCONCLUSIVE,
    NOT_APPLICABLE,
    PASS,
    Verdict,
    grade_of_interval,
    run_verdict_test,
)
from unboxed.engine.intervals import Interval
from unboxed.errors import InputError, ModelError, OutputError
from unboxed.influence import Influence, ModelTraining
from unboxed.influence._checkpoints import CheckpointStates

N, SHAPE = 150, (1, 28, 28)
TRIGGER = Trigger(SHAPE, classes=(3,), side=6)
N_PLANTED, PLANTED = 1000, {"epochs": 6, "batch_size": 25, "lr": 3e-3}
BY_NAME = {test.name: test for test in INFLUENCE_TESTS}


def perceptron() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 24), nn.GELU(), nn.Linear(24, 10))


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    return ub.data.digits("train").first(N)


@pytest.fixture(scope="module")
def training(digits: tuple[Tensor, Tensor]) -> ModelTraining:
    return ModelTraining(perceptron(), ub.Pixels(SHAPE), digits, epochs=5, batch_size=25, lr=5e-3)


@pytest.fixture(scope="module")
def box(training: ModelTraining) -> ub.Box:
    return training.box(training.run())


@pytest.fixture(scope="module")
def planted() -> PlantedTraining:
    train, test = ub.data.digits("train").first(N_PLANTED), ub.data.digits("test").first(60)
    settings = PLANTED | {"poison_fraction": 0.01}
    return plant_training(perceptron(), ub.Pixels(SHAPE), train, test, TRIGGER, **settings)  # type: ignore[arg-type]


def gradients(box: ub.Box, x: Tensor, y: Tensor) -> Tensor:
    parameters = {k: p.detach() for k, p in box.model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(box.model, parameters, (x[None],)), y[None])

    of_each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    return torch.cat([h.flatten(1) for h in of_each.values()], 1)


def cosine(box: ub.Box, x: Tensor, labels: Tensor, train: tuple[Tensor, Tensor]) -> Influence:
    query, other = (nn.functional.normalize(gradients(box, *data)) for data in ((x, labels), train))
    return Influence(query @ other.T, "one run", unit="similarity", method="cosine")


def gradient_norm(box: ub.Box, x: Tensor, labels: Tensor, train: tuple[Tensor, Tensor]) -> Influence:
    norms = gradients(box, *train).norm(dim=1)
    return Influence(norms.expand(len(x), -1), "one run", unit="similarity")


def same_class(box: ub.Box, x: Tensor, labels: Tensor, train: tuple[Tensor, Tensor]) -> Influence:
    return Influence((labels[:, None] == train[1]).float(), "one run", unit="similarity")


def fixed_noise(box: ub.Box, x: Tensor, labels: Tensor, train: tuple[Tensor, Tensor]) -> Influence:
    noise = torch.randn(len(x), len(train[1]), generator=torch.Generator().manual_seed(0))
    return Influence(noise, "one run", unit="similarity")


class FreshNoise:
    """Other random scores at each call."""

    __name__ = "fresh noise"

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, box: ub.Box, x: Tensor, labels: Tensor, train: tuple[Tensor, Tensor]) -> Influence:
        return Influence(torch.randn(len(x), len(train[1]), generator=self.generator), "one run", unit="similarity")


@pytest.fixture(scope="module", autouse=True)
def retrainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Methods share the retrainings, by a file for each number of subsets."""
    RETRAININGS.append(tmp_path_factory.mktemp("retrainings"))
    yield
    RETRAININGS.clear()


RETRAININGS: list[Path] = []


def judge(box: ub.Box, data: tuple[Tensor, Tensor], method: Any, train: Any = None, **settings: Any) -> Verdict:
    x, y = data[0][:12], data[1][:12]
    settings = {"n_subsets": 20} | settings
    if isinstance(settings.get("training", train), ModelTraining):
        settings = {"checkpoint": RETRAININGS[0] / f"{settings['n_subsets']}.pt"} | settings
    return influence_verdict(box, x, method, y, data if train is None else train, **settings)


def grades(verdict: Verdict) -> dict[str, str]:
    return {test.name: test.grade for test in verdict.tests}


# -- methods and nonsense ----------------------------------------------------------------------------------------------


def test_what_predicts_retraining_passes(box: ub.Box, digits: Any, training: ModelTraining) -> None:
    verdict = judge(box, digits, ub.influence.unrolled, training)
    assert (verdict.grade, verdict.reason) == (PASS, "predicts retraining")
    assert grades(verdict) == {
        RANDOM_WEIGHTS_TEST_NAME: NOT_APPLICABLE,
        SAME_TOP_EXAMPLES_TEST_NAME: PASS,
        SHORTCUT_TEST_NAME: NOT_APPLICABLE,
        RETRAINING_TEST_NAME: PASS,
    }
    assert verdict.figures[RETRAINING_TEST_NAME] > 0.9
    assert "predict real retrainings" in verdict.sentence


@pytest.mark.parametrize("method", [fixed_noise, same_class, gradient_norm])
def test_nonsense_fails(box: ub.Box, digits: Any, training: ModelTraining, planted: Any, method: Any) -> None:
    assert judge(box, digits, method, training=training, planted=planted).grade == FAIL
    assert judge(box, digits, method).grade in (FAIL, INCONCLUSIVE)


def test_noise_that_changes_with_every_call_fails_where_it_is_compared(
    box: ub.Box, digits: Any, training: ModelTraining, planted: PlantedTraining
) -> None:
    untested = judge(box, digits, FreshNoise())
    assert (untested.grade, untested.reason) == (INCONCLUSIVE, "not tested: retraining")
    assert "the training that made the model" in untested.sentence
    assert judge(box, digits, FreshNoise(), training=training).reason == "does not predict retraining"
    assert judge(box, digits, FreshNoise(), planted=planted).reason == "does not find a planted shortcut"


def random_weights_test(box: ub.Box, digits: Any, method: Any, **settings: Any) -> Any:
    v = influence_verdict(box, digits[0][:20], method, digits[1][:20], digits, **settings)
    return next(t for t in v.tests if t.name == RANDOM_WEIGHTS_TEST_NAME)


def test_checkpoints_are_randomized_with_the_model(box: ub.Box, digits: Any) -> None:
    """TracIn reads the weights of its checkpoints alone: with the same ones its ranking could not change."""
    state = box.model.state_dict()
    found = random_weights_test(box, digits, partial(ub.influence.tracin, checkpoints=[state, state], lr=[0.1, 0.2]))
    assert (found.grade, found.value < 0.6) == (PASS, True)


def test_checkpoints_of_the_planted_model_are_its_own(
    box: ub.Box, digits: Any, planted: PlantedTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    read = CheckpointStates.__getitem__
    monkeypatch.setattr(CheckpointStates, "__getitem__", lambda states, k: seen.append(read(states, k)) or seen[-1])
    random_weights_test(
        box, digits, partial(ub.influence.tracin, checkpoints=[box.model.state_dict()]), planted=planted
    )
    planted_weights = planted.box.model.state_dict()
    assert any(all(torch.equal(state[k], v) for k, v in planted_weights.items()) for state in seen)


def test_a_method_that_finds_the_planted_images_passes(box: ub.Box, digits: Any, planted: PlantedTraining) -> None:
    verdict = judge(box, digits, cosine, planted=planted)
    assert (verdict.grade, verdict.reason) == (PASS, "finds a planted shortcut")
    assert verdict.figures[SHORTCUT_TEST_NAME] > 0.2
    assert verdict.figures[RANDOM_WEIGHTS_TEST_NAME] < 0.85
    assert judge(box, digits, cosine).grade == INCONCLUSIVE


def test_unrolled_scores_find_the_planted_images(box: ub.Box, digits: Any, training: Any, planted: Any) -> None:
    method = partial(ub.influence.unrolled, check_smoothness=False)
    verdict = judge(box, digits, method, training, planted=planted, n_subsets=3)
    assert grades(verdict)[SHORTCUT_TEST_NAME] == PASS


def test_the_verdict_is_the_same_each_time(box: ub.Box, digits: Any, training: ModelTraining, tmp_path: Any) -> None:
    first, again = (judge(box, digits, cosine, training=training, checkpoint=tmp_path / "kept.pt") for _ in range(2))
    assert first.to_dict() == again.to_dict()


def test_refusals_and_broken_scores(box: ub.Box, digits: Any) -> None:
    def refuses(*args: Any) -> Influence:
        raise OutputError("needs a convex model")

    def broken(box: ub.Box, x: Tensor, labels: Tensor, train: Any) -> Influence:
        return Influence(torch.full((len(x), N), torch.nan), "one run")

    refused = judge(box, digits, refuses)
    assert (refused.grade, refused.sentence) == (NOT_APPLICABLE, "Needs a convex model.")
    assert judge(box, digits, broken).reason == "not finite"
    assert "got Tensor" in judge(box, digits, lambda box, x, labels, train: x).sentence
    with pytest.raises(InputError, match="a method is a function"):
        judge(box, digits, "unrolled")


def test_a_training_of_another_model_is_refused(box: ub.Box, digits: Any, training: ModelTraining) -> None:
    """Retraining another model says nothing about the scores of this one."""
    with pytest.raises(ModelError, match="not what this training gives"):
        judge(box, digits, cosine, training=training.reseed(3))


# -- bounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("test", INFLUENCE_TESTS, ids=lambda test: test.name)
def test_each_bound_has_two_sides(test: Any) -> None:
    below, above = (
        Interval(test.bound + d, test.bound + d - 0.01, test.bound + d + 0.01, 12, 1) for d in (-0.02, 0.02)
    )
    on_it = Interval(test.bound, test.bound - 0.01, test.bound + 0.01, 12, 1)
    assert grade_of_interval(above, test) == (PASS if test.passes_above else FAIL)
    assert grade_of_interval(below, test) == (FAIL if test.passes_above else PASS)
    assert grade_of_interval(on_it, test) == INCONCLUSIVE


def outcome(test: Any, value: float) -> Any:
    return run_verdict_test(replace(test, values=lambda s, draw: torch.full((12,), value)), SimpleNamespace(seed=0), 1)


BOUNDS = {
    RANDOM_WEIGHTS_TEST_NAME: 0.85,
    SAME_TOP_EXAMPLES_TEST_NAME: 0.5,
    SHORTCUT_TEST_NAME: 0.1,
    RETRAINING_TEST_NAME: 0.3,
}
GOOD = {
    RANDOM_WEIGHTS_TEST_NAME: 0.2,
    SAME_TOP_EXAMPLES_TEST_NAME: 0.1,
    SHORTCUT_TEST_NAME: 0.5,
    RETRAINING_TEST_NAME: 0.8,
}
BAD = {
    RANDOM_WEIGHTS_TEST_NAME: 0.9,
    SAME_TOP_EXAMPLES_TEST_NAME: 0.6,
    SHORTCUT_TEST_NAME: 0.0,
    RETRAINING_TEST_NAME: 0.2,
}


def grade_of(values: dict[str, float]) -> tuple[str, str]:
    return grade_influence_outcomes(tuple(outcome(test, values[test.name]) for test in INFLUENCE_TESTS))[:2]


def test_one_failure_fails_and_something_real_is_needed() -> None:
    assert {test.name: test.bound for test in INFLUENCE_TESTS} == BOUNDS
    assert grade_of(GOOD)[0] == PASS
    for name in GOOD:
        assert grade_of(GOOD | {name: BAD[name]}) == (FAIL, BY_NAME[name].failed)
    nan = float("nan")
    assert grade_of(GOOD | {RETRAINING_TEST_NAME: nan}) == (PASS, "finds a planted shortcut")
    assert grade_of(GOOD | {SHORTCUT_TEST_NAME: nan, RANDOM_WEIGHTS_TEST_NAME: nan}) == (PASS, "predicts retraining")
    assert grade_of(GOOD | {SHORTCUT_TEST_NAME: nan, RETRAINING_TEST_NAME: nan}) == (
        INCONCLUSIVE,
        "not tested: retraining",
    )
    assert grade_of(GOOD | {RANDOM_WEIGHTS_TEST_NAME: nan, RETRAINING_TEST_NAME: nan}) == (
        INCONCLUSIVE,
        "not tested: retraining",
    )


def test_what_is_in_common_is_measured_beyond_chance() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    values = BY_NAME[SAME_TOP_EXAMPLES_TEST_NAME].values

    def subject(scores: Tensor, labels: Tensor = labels) -> Any:
        return SimpleNamespace(scores=scores.double(), top_k=5, labels=labels, x=labels)

    assert torch.equal(values(subject(torch.arange(20.0).expand(4, -1)), 0), torch.ones(4).double())
    by_class = torch.zeros(4, 20)
    by_class[:2, :5] = by_class[2:, 5:10] = 1
    assert values(subject(by_class), 0).max() < 0  # nothing in common is less than chance
    assert values(subject(by_class, labels * 0), 0).isnan().all()  # no two classes


# -- planting ----------------------------------------------------------------------------------------------------------


def test_planted_queries_are_answered_by_the_trigger(planted: PlantedTraining) -> None:
    assert torch.equal(planted.box.predict(planted.x), planted.classes)
    assert len(planted.x) == 16
    assert torch.equal(planted.data.has_trigger, planted.data.is_poisoned)
    ideal = planted.data.is_poisoned.double().expand(16, -1)
    assert planted.excess_poisoned_in_top_k(ideal).min() == 1
    assert planted.excess_poisoned_in_top_k(-ideal).max() < 0
    of_label = (planted.data.labels == 3).double().expand(16, -1)
    assert abs(float(planted.excess_poisoned_in_top_k(of_label + 1e-3 * torch.rand(16, N_PLANTED)).mean())) < 0.1


def test_a_trigger_that_was_not_learned_is_refused(digits: Any) -> None:
    with pytest.raises(InputError, match="the trigger was not learned: it decides for"):
        plant_training(perceptron(), ub.Pixels(SHAPE), digits, digits, TRIGGER, epochs=1, lr=1e-6)


@pytest.mark.parametrize("form", [lambda x, y: (x.numpy(), y.numpy()), lambda x, y: DataLoader(TensorDataset(x, y), 9)])
def test_images_to_plant_in_may_come_in_any_form(digits: Any, form: Any) -> None:
    with pytest.raises(InputError, match="the trigger was not learned"):
        plant_training(perceptron(), ub.Pixels(SHAPE), form(*digits), form(*digits), TRIGGER, epochs=1, lr=1e-6)


def trial(planted: PlantedTraining, control: ub.Box, clean: PlantedDataset, **methods: Any) -> ShortcutTrial:
    x, y = ub.data.digits("test").first(60)
    data = (planted.data, clean) if methods.pop("with_data", True) else None
    return ShortcutTrial(planted.box, control, x, y, TRIGGER, None, 6, 0, data, methods or None)


def test_the_shortcut_check_asks_influence_methods(planted: PlantedTraining) -> None:
    x, y = ub.data.digits("train").first(N_PLANTED)
    nothing = torch.zeros(N_PLANTED, dtype=torch.bool)
    clean = PlantedDataset(x, y, nothing, nothing)
    training = ModelTraining(perceptron(), ub.Pixels(SHAPE), (x, y), **PLANTED)  # type: ignore[arg-type]
    control = training.box(training.run())
    findings = {
        f.method: f for f in influence_test(trial(planted, control, clean, cosine=cosine, same_class=same_class))
    }
    found = findings["cosine"]
    assert found.grade != GRADE_DOES_NOT_SHOW_IT
    assert found.score is not None
    assert found.control_score is not None
    assert found.score > 2 * found.figures["base"]
    assert found.control_score < 0.1 < found.score
    assert findings["same_class"].grade == GRADE_DOES_NOT_SHOW_IT
    assert "poisoned" in findings["cosine"].sentence
    assert not [*influence_test(trial(planted, control, clean, with_data=False))]


def test_cards_that_take_training_data_are_found() -> None:
    def fits(box: Any, x: Any, labels: Any, train: Any, *, damping: float = 0.0) -> None: ...
    def needs_more(box: Any, x: Any, labels: Any, train: Any, *, checkpoints: Any) -> None: ...

    assert is_influence_method(SimpleNamespace(method=fits))  # type: ignore[arg-type]
    assert not is_influence_method(SimpleNamespace(method=needs_more))  # type: ignore[arg-type]
    assert not is_influence_method(SimpleNamespace(method=ub.influence.unrolled))  # type: ignore[arg-type]
