"""Sets of training examples whose removal changes an answer: proved by retraining, smallest along their ranking."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unboxed as ub
from unboxed import rng
from unboxed.engine.unroll.training import Training
from unboxed.errors import InputError, ModelError, OutputError
from unboxed.influence import ModelTraining, Removal, removal
from unboxed.influence.removal import _confirm_sets_by_exact_runs, _smallest_flipping_set_sizes

N, QUERIES = 60, 4
INPUTS = ub.Pixels((1, 4, 4))


def data(n: int = N, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three classes of noisy images, each brighter in rows of its own."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    x = 0.6 * torch.rand(n, 1, 4, 4, generator=generator, dtype=torch.float64)
    x[range(n), 0, y] += 0.15
    return x, y


def training(outputs: Any = None, **settings: Any) -> ModelTraining:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 3)).double()
    settings = {"epochs": 6, "batch_size": 10, "lr": 0.02, **settings}
    return ModelTraining(model, INPUTS, data(), outputs=outputs, **settings)


@cache
def trained() -> tuple[ModelTraining, ub.Box, Tensor]:
    t = training()
    return t, t.box(t.run()), data(QUERIES, seed=1)[0]


@cache
def removed() -> Removal:
    t, box, x = trained()
    return removal(box, x, None, t, max_fraction=0.5, n_controls=2, seed=3)


def retrained(t: ModelTraining, indices: Tensor) -> ub.Box:
    return t.box(t.run(torch.ones(N).index_fill(0, indices, 0)))


def margin(box: ub.Box, x: Tensor, y: Tensor) -> Tensor:
    z = box(x)
    return z.gather(1, y[:, None])[:, 0] - z.scatter(1, y[:, None], -torch.inf).amax(1)


def test_a_flip_is_proved_by_retraining() -> None:
    t, _, x = trained()
    r = removed()
    assert r.flipped.sum() >= 2  # else the test shows nothing
    for q, indices in enumerate(r.sets):
        again = retrained(t, indices)
        assert again.predict(x[q : q + 1]).item() == r.new_answer[q]
        assert (r.new_answer[q] != r.answer[q]) == r.flipped[q]
        torch.testing.assert_close(margin(again, x[q : q + 1], r.answer[q : q + 1]), r.real_margin[q : q + 1])


def test_sets_are_smallest_along_the_ranking() -> None:
    t, _, x = trained()
    r = removed()
    assert (r.size == torch.tensor([len(s) for s in r.sets])).all()
    for q in r.flipped.nonzero().flatten().tolist():
        assert r.sets[q].tolist() == r.influence.top(r.max_size)[q, : r.size[q]].tolist()
        fewer = retrained(t, r.sets[q][:-1])
        assert fewer.predict(x[q : q + 1]).item() == r.answer[q]


def test_margins_are_of_the_logits_and_predicted_by_the_scores() -> None:
    _, box, x = trained()
    r = removed()
    torch.testing.assert_close(r.margin, margin(box, x, r.answer))
    predicted = [r.margin[q] - r.influence.scores[q, s].sum() for q, s in enumerate(r.sets)]
    torch.testing.assert_close(r.predicted_margin, torch.stack(predicted))


def test_controls_are_retrained_without_as_many_random_examples() -> None:
    t, _, x = trained()
    r, generator = removed(), rng.keyed_generator(rng.CPU, "removal's controls", 3)
    assert r.control_margin.shape == r.control_flipped.shape == (QUERIES, 2)
    for q in range(QUERIES):
        for c in range(2):
            indices = torch.randperm(N, generator=generator)[: r.size[q]]
            want = margin(retrained(t, indices), x[q : q + 1], r.answer[q : q + 1])
            torch.testing.assert_close(r.control_margin[q, c], want[0])


def test_what_is_not_found_is_not_reported_as_found() -> None:
    t, box, x = trained()
    surest = removed().margin.argmax()
    r = removal(box, x[surest : surest + 1], None, t, max_fraction=0.0, n_controls=0)
    assert r.max_size == 1
    assert r.size.tolist() == [1]
    assert r.flipped.tolist() == [False]
    assert r.real_margin > 0
    assert torch.equal(r.new_answer, r.answer)
    assert r.control_margin.shape == (1, 0)


def test_memory_bounds_runs_at_once_and_changes_nothing() -> None:
    t, box, x = trained()
    r = removal(box, x, None, t, max_fraction=0.5, n_controls=2, seed=3, max_bytes=30 * t.state_bytes)
    assert [s.tolist() for s in r.sets] == [s.tolist() for s in removed().sets]
    torch.testing.assert_close(r.control_margin, removed().control_margin)


class Threshold:
    """Flips from a size on: for runs at once, and for exact ones."""

    def __init__(self, at_once: int, exact: int) -> None:
        self.at_once, self.exact, self.n_runs = at_once, exact, 0

    def margins(self, queries: Any, removed: Any) -> Tensor:
        self.n_runs += len(removed)
        return torch.tensor([1.0 if len(s) < self.at_once else -1.0 for s in removed])

    def margins_and_answers_of_exact_run(self, queries: Any, removed: Tensor) -> tuple[Tensor, Tensor]:
        flips = len(removed) >= self.exact
        return torch.tensor([-1.0 if flips else 1.0]), torch.tensor([int(flips)])


@pytest.mark.parametrize("wanted", [1, 2, 7, 49, 50])
@pytest.mark.parametrize("guess", [1, 7, 50])
def test_bisection_finds_the_smallest_size(wanted: int, guess: int) -> None:
    fake = Threshold(wanted, wanted)
    found = _smallest_flipping_set_sizes(fake, torch.arange(50)[None], torch.tensor([guess]))  # type: ignore[arg-type]
    assert found.tolist() == [wanted]
    assert fake.n_runs <= 8


def test_a_set_that_the_exact_run_does_not_confirm_grows() -> None:
    order = torch.arange(50)[None]
    sets, margins, answers = _confirm_sets_by_exact_runs(Threshold(10, 12), order, torch.tensor([10]))  # type: ignore[arg-type]
    assert len(sets[0]) == 12
    assert margins < 0
    assert answers.tolist() == [1]
    sets, margins, _ = _confirm_sets_by_exact_runs(Threshold(10, 99), order, torch.tensor([10]))  # type: ignore[arg-type]
    assert len(sets[0]) == 50
    assert margins > 0


def test_a_training_of_ones_own() -> None:
    """Softmax regression by gradient descent, as a pure step; its losses by class come from its query loss alone."""
    x, y = data()
    x = x.flatten(1)

    def loss(state: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(x.flatten(1) @ state["w"], y, reduction="none")

    def step(state: dict[str, Tensor], t: int, weights: Tensor) -> dict[str, Tensor]:
        grad = x.T @ (weights[:, None] * ((x @ state["w"]).softmax(1) - F.one_hot(y, 3))) / N
        return {"w": state["w"] - grad}

    own = Training(step, {"w": torch.zeros(16, 3, dtype=torch.float64)}, [torch.arange(N)] * 30, loss)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False)).double()
    model[1].weight.data = own.run()["w"].T
    queries = data(3, seed=1)[0]
    r = removal(ub.Box(model, INPUTS), queries, None, own, max_fraction=0.6)
    assert r.flipped.any()
    for q, indices in enumerate(r.sets):
        w = own.run(torch.ones(N, dtype=torch.float64).index_fill(0, indices, 0))["w"]
        assert (queries[q].flatten() @ w).argmax() == r.new_answer[q]


def test_losses_by_class_are_those_of_labels() -> None:
    t, box, x = trained()
    state = t.run()
    losses = t.class_losses(state, x, 3)
    torch.testing.assert_close(losses, -box(x).log_softmax(1))
    torch.testing.assert_close(losses, Training.class_losses(t, state, x, 3))


def test_bad_input_is_refused() -> None:
    t, box, x = trained()
    answers = box.predict(x)
    removal(box, x[:1], answers[:1], t, n_controls=0)
    with pytest.raises(InputError, match="not its label"):
        removal(box, x, (answers + 1) % 3, t)
    with pytest.raises(ModelError, match="not what this training gives"):
        removal(box, x, None, training(lr=0.01))
    with pytest.raises(OutputError, match="removal"):
        regression = training(outputs="regression", loss=lambda z, y: z.square().sum(1))
        removal(regression.box(regression.run()), x, None, regression)
    with pytest.raises(InputError, match="max_fraction"):
        removal(box, x, None, t, max_fraction=1.5)


def test_margins_are_of_the_logits_whatever_the_loss() -> None:
    """A loss that weights classes ranks them by other numbers than their logits; the answer does not."""
    class_weights = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    t = training(loss=lambda z, y: F.cross_entropy(z, y, class_weights, reduction="none", label_smoothing=0.1))
    box, x = t.box(t.run()), data(QUERIES, seed=1)[0]
    result = removal(box, x, None, t, max_fraction=0.1, n_controls=0)
    torch.testing.assert_close(result.margin, margin(box, x, box.predict(x)))
    for q, removed in enumerate(result.sets):
        again = retrained(t, removed)
        torch.testing.assert_close(result.real_margin[q : q + 1], margin(again, x[q : q + 1], result.answer[q : q + 1]))
        assert int(again.predict(x[q : q + 1])) == int(result.new_answer[q])
