"""Scores against retraining: the linear datamodeling score and leaving out single examples, against what is exact."""

from __future__ import annotations

import inspect
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.engine.unroll.model_training import shuffled_batch_indices
from unboxed.engine.unroll.training import TrainingState
from unboxed.errors import InputError, ModelError, UnboxedWarning
from unboxed.influence import Influence, ModelTraining, Training
from unboxed.influence.result import mean_over_seeds
from unboxed.influence.validate import LinearDatamodelingScore, leave_one_out, linear_datamodeling_score, pool_scores
from unboxed.influence.validate.subsets import left_out_subset_masks
from unboxed.settings import settings_of

N, Q, LR = 40, 6, 0.1
SMALL: dict[str, Any] = {"fractions": (0.1, 0.5), "n_subsets": 12}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SLOPES, QUERIES = drawn(N, 3, seed=1), drawn(Q, 3, seed=2)


class LinearTraining(Training):
    """Gradient descent on losses that are linear in the parameters, but for a decay: linear in the weights."""

    def __init__(self, seed: int = 0, noise: float = 0.0) -> None:
        slopes = SLOPES + noise * drawn(N, 3, seed=100 + seed)
        order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))

        def step(state: TrainingState, t: int, weights: Tensor) -> TrainingState:
            batch = slopes[order[10 * t : 10 * t + 10]]
            return {"p": 0.9 * state["p"] - LR * (weights[:, None] * batch).mean(0)}

        start = {"p": drawn(3, seed=3 + seed)}
        super().__init__(step, start, list(order.split(10)), lambda state, x, y: x @ state["p"] + y, N)
        self.noise, self.order = noise, order

    def reseed(self, seed: int) -> LinearTraining:
        return LinearTraining(seed % 1000, self.noise)

    @property
    def exact_scores(self) -> Tensor:
        """What leaving an example out adds to the queries' losses: the step that it took, decayed by those after it."""
        decay = torch.empty(N, dtype=torch.float64)
        decay[self.order] = 0.9 ** (3 - torch.arange(N) // 10).double()
        return LR / 10 * (QUERIES @ SLOPES.T) * decay


@pytest.fixture(scope="module")
def training() -> LinearTraining:
    return LinearTraining()


def scores(values: Tensor, **fields: Any) -> Influence:
    return Influence(values, **{"truth": "one run", "method": "exact"} | fields)


def lds(result: Any, training: Training, **settings: Any) -> Any:
    return linear_datamodeling_score(result, training, QUERIES, torch.zeros(Q), **SMALL | settings)


# -- the linear datamodeling score -------------------------------------------------------------------------------------


def test_exact_scores_of_a_linear_training_are_perfect(training: LinearTraining) -> None:
    score = lds(scores(training.exact_scores), training)
    assert torch.allclose(score.correlations, torch.ones(2, Q, 1, dtype=torch.float64))
    assert torch.allclose(score.slopes, torch.ones_like(score.slopes), atol=1e-9)
    assert torch.allclose(score.pooled_slopes, torch.ones_like(score.pooled_slopes), atol=1e-9)
    assert torch.allclose(score.real, score.predicted)
    assert score.noise_to_signal.max() < 1e-3
    doubled = lds(scores(2 * training.exact_scores), training)
    assert torch.allclose(doubled.slopes, torch.full_like(doubled.slopes, 0.5))


def test_random_scores_predict_nothing(training: LinearTraining) -> None:
    score = lds(scores(drawn(Q, N, seed=9)), training, n_subsets=40)
    for interval in score.intervals:
        assert interval.low < 0 < interval.high
    opposite = lds(scores(-training.exact_scores), training)
    assert torch.allclose(opposite.means, -torch.ones(2, dtype=torch.float64))


def test_several_methods_share_the_retrainings(training: LinearTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    n_runs = count_runs(monkeypatch)
    exact, nothing = lds([scores(training.exact_scores), scores(drawn(Q, N))], training)
    assert sum(n_runs) == 1 + 2 * 12 + 5  # with all examples, without the subsets, from moved starts
    assert exact.means[0] > 0.99 > nothing.means[0]


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of trainings of each run."""
    counted, run_many = list[int](), Training.run_many

    def counting(self: Training, weights: Tensor, *args: Any) -> TrainingState:
        counted.append(len(weights))
        return run_many(self, weights, *args)

    monkeypatch.setattr(Training, "run_many", counting)
    return counted


def test_only_nats_have_slopes(training: LinearTraining) -> None:
    score = lds(scores(training.exact_scores, unit="similarity"), training)
    assert score.slopes.isnan().all()
    assert "slope" not in str(score)
    assert score.means.min() > 0.99


def test_memory_is_bounded_and_changes_nothing(training: LinearTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lds(scores(training.exact_scores), training)
    n_runs = count_runs(monkeypatch)
    in_turn = lds(scores(training.exact_scores), training, max_bytes=1)
    assert n_runs[:-1] == [1] * 25
    assert torch.allclose(whole.real, in_turn.real, atol=1e-12)


def test_the_same_seed_gives_the_same_subsets() -> None:
    a, b, c = (left_out_subset_masks(30, (0.1, 0.5), 4, seed) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(a[1], left_out_subset_masks(30, (0.5,), 4, 0)[0])  # whatever other fractions there are
    assert a.sum(2).tolist() == [[3] * 4, [15] * 4]


def test_a_training_that_vmap_cannot_take_runs_in_turn() -> None:
    plain = LinearTraining()

    def step(state: TrainingState, t: int, weights: Tensor) -> TrainingState:
        return plain.step(state, t, weights) if float(weights.sum()) >= 0 else state  # a number: vmap refuses it

    awkward = Training(step, plain.start, plain.batches, plain.query_loss, N)
    real = leave_one_out(awkward, QUERIES, torch.zeros(Q), [0, 5])
    assert torch.allclose(real.changes, plain.exact_scores[:, [0, 5]])


# -- the two truths ----------------------------------------------------------------------------------------------------


def test_the_other_truth_is_refused(training: LinearTraining) -> None:
    mean = scores(training.exact_scores, truth="mean over seeds")
    with pytest.raises(InputError, match=r"estimate 'mean over seeds'.*compared with 'one run'.*allow_other_truth"):
        lds(mean, training, truth="one run")
    with pytest.raises(InputError, match="wanted scores of one truth"):
        lds([mean, scores(training.exact_scores)], training)
    score = lds(mean, training, truth="one run", allow_other_truth=True)
    assert score.truth == "one run"
    real = leave_one_out(training, QUERIES, torch.zeros(Q), [1, 2, 3])
    with pytest.raises(InputError, match="compared with 'one run'"):
        real.agreement(mean)
    assert torch.allclose(real.agreement(mean, allow_other_truth=True).slopes, torch.ones(Q, dtype=torch.float64))


def test_the_mean_over_seeds_has_a_ceiling() -> None:
    quiet, noisy = (LinearTraining(noise=noise) for noise in (0.0, 3.0))
    exact = scores(QUERIES @ SLOPES.T, truth="mean over seeds", unit="similarity")
    score = lds(exact, quiet, n_seeds=4)
    assert score.truth == "mean over seeds"
    assert score.noise_to_signal is None
    assert score.n_seeds == 4
    noisy_score = lds(exact, noisy, n_seeds=4)
    assert score.ceilings.mean() > 0.8 > noisy_score.ceilings.mean() + 0.2
    assert "one real retraining" in str(score)


def test_the_mean_over_seeds_uses_none_of_the_callers_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, training = list[int](), LinearTraining()
    monkeypatch.setattr(training, "reseed", lambda seed: asked.append(seed) or LinearTraining(seed % 1000))
    lds(scores(training.exact_scores, truth="mean over seeds"), training, n_seeds=3)
    assert len(set(asked)) == 3
    assert min(asked) > 1000


def test_a_training_without_other_seeds_has_no_mean(training: LinearTraining) -> None:
    fixed = Training(training.step, training.start, training.batches, training.query_loss, N)
    with pytest.raises(InputError, match=r"give a ModelTraining, or a Training with a method reseed"):
        lds(scores(training.exact_scores, truth="mean over seeds"), fixed)


def test_a_training_that_is_not_smooth_is_warned_of() -> None:
    def chaotic(state: TrainingState, t: int, weights: Tensor) -> TrainingState:
        p = state["p"]
        for _ in range(60):
            p = 3.99 * p * (1 - p)
        return {"p": p - 1e-4 * (weights * SLOPES[:, 0]).mean()}

    training = Training(
        chaotic, {"p": torch.tensor(0.3, dtype=torch.float64)}, [torch.arange(N)], lambda s, x, y: x[:, 0] * s["p"]
    )
    result = scores(QUERIES[:, :1] * SLOPES[:, 0] * 1e-4 / N)
    with pytest.warns(UnboxedWarning, match="not smooth"):
        score = lds(result, training)
    assert score.noise_to_signal.median() > 1


# -- files -------------------------------------------------------------------------------------------------------------


def test_retrainings_are_kept(training: LinearTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "retrained.pt"
    first = lds(scores(training.exact_scores), training, checkpoint=file)
    n_runs = count_runs(monkeypatch)
    again = lds(scores(drawn(Q, N)), training, checkpoint=file)
    assert n_runs == [5]  # the noise alone
    assert torch.equal(first.real, again.real)
    with pytest.raises(ModelError, match="n_subsets was 12, and is now 13"):
        lds(scores(training.exact_scores), training, checkpoint=file, n_subsets=13)
    with pytest.raises(ModelError, match="start differ"):
        lds(scores(training.exact_scores), LinearTraining(1), checkpoint=file)


def test_retraining_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, file, n_left = LinearTraining(), tmp_path / "retrained.pt", [9]
    settings = {"max_bytes": 1, "checkpoint": file, "truth": "mean over seeds", "n_seeds": 2}
    result = scores(training.exact_scores, truth="mean over seeds")
    whole = lds(result, training, **settings | {"checkpoint": None})
    run_many = Training.run_many

    def stopping(self: Training, *args: Any) -> TrainingState:
        n_left[0] -= 1
        if n_left[0] < 0:
            raise KeyboardInterrupt
        return run_many(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "run_many", stopping)
        for n_left[0] in (9, 30):  # in the first seed, then in the second
            with pytest.raises(KeyboardInterrupt):
                lds(result, training, **settings)
    n_runs = count_runs(monkeypatch)
    assert torch.equal(lds(result, training, **settings).real, whole.real)
    assert len(n_runs) == 2 * 25 - 9 - 30


def test_a_file_of_another_learning_rate_is_refused(tmp_path: Path) -> None:
    file, (x, y) = tmp_path / "retrained.pt", (drawn(12, 4).float(), torch.arange(12) % 3)
    slow, fast = (small_training(x, y, lr=lr) for lr in (1e-3, 1e-2))
    leave_one_out(slow, x[:2], y[:2], [0], checkpoint=file)
    with pytest.raises(ModelError, match="query losses after the training"):
        leave_one_out(fast, x[:2], y[:2], [0], checkpoint=file)


def small_training(x: Tensor, y: Tensor, **settings: Any) -> ModelTraining:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)).to(x.dtype)
    inputs = ub.Features(tuple(f"x{i}" for i in range(4)))
    return ModelTraining(
        model, inputs, (x, y), **{"epochs": 3, "batch_size": 4, "seed": 1, "outputs": "logits"} | settings
    )


# -- leaving out one example -------------------------------------------------------------------------------------------


def plain_losses(training: ModelTraining, left_out: int | None, x: Tensor, y: Tensor) -> Tensor:
    """Losses of queries after the same training by `torch.optim`, in a plain loop."""
    model = training.box(training.start).model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    for batch in shuffled_batch_indices(len(training.x), 4, 3, 1):
        losses = nn.functional.cross_entropy(model(training.x[batch]), training.y[batch], reduction="none")
        kept = torch.tensor([float(int(i) != left_out) for i in batch], dtype=torch.float64)
        optimizer.zero_grad()
        ((losses * kept).sum() / len(batch)).backward()
        optimizer.step()
    return nn.functional.cross_entropy(model(x), y, reduction="none").detach()


def test_leaving_one_out_is_a_plain_training_without_it() -> None:
    x, y = drawn(12, 4), torch.arange(12) % 3
    training = small_training(x, y, optimizer="sgd", lr=0.1, momentum=0.5, schedule="constant")
    real = leave_one_out(training, x[:3], y[:3], [0, 7, 11])
    expected = [
        plain_losses(training, i, x[:3], y[:3]) - plain_losses(training, None, x[:3], y[:3]) for i in (0, 7, 11)
    ]
    assert (real.changes - torch.stack(expected, 1)).abs().max() < 1e-10
    assert real.changes.abs().max() > 1e-4
    by_default = leave_one_out(training, x[:3], None, torch.tensor([0]))
    predicted = training.box(training.run()).predict(x[:3])
    assert torch.equal(by_default.losses, leave_one_out(training, x[:3], predicted, [0]).losses)


def test_scores_are_taken_where_examples_are_left_out() -> None:
    x, y = drawn(12, 4), torch.arange(12) % 3
    training = small_training(x, y, optimizer="sgd", lr=0.1)
    weights = torch.ones(12, dtype=torch.float64)
    weights[:6] = 0
    box = training.box(training.run(weights))
    result = ub.influence.unrolled(box, x[:2], y[:2], training, weights=weights)
    added, step = weights.clone(), 1e-4
    added[0] += step
    change = [training.query_loss(training.run(w), x[:2], y[:2]) for w in (added, weights)]
    assert torch.allclose(result.scores[:, 0], (change[1] - change[0]) / step, rtol=1e-2)
    with pytest.raises(ModelError, match="not what this training gives"):
        ub.influence.unrolled(box, x[:2], y[:2], training)
    with pytest.raises(InputError, match=r"wanted weights of the training examples, \(N,\) with N = 12"):
        ub.influence.unrolled(box, x[:2], y[:2], training, weights=weights[:5])


def test_momentum_is_what_was_asked_for_under_a_one_cycle_rate() -> None:
    x, y = drawn(12, 4), torch.arange(12) % 3
    a, b = (small_training(x, y, optimizer="sgd", lr=0.1, momentum=m).run()["parameter.0.weight"] for m in (0.0, 0.9))
    assert (a - b).abs().max() > 1e-3


def test_a_warm_start_goes_on_from_the_final_state(training: LinearTraining) -> None:
    real = leave_one_out(training, QUERIES, torch.zeros(Q), [0, 1], start="warm", n_steps=2)
    state = training.run()
    for k, i in enumerate((0, 1)):
        weights = torch.ones(N, dtype=torch.float64)
        weights[i] = 0
        finals = []
        for w in (weights, None):
            *_, last = training.states(w, state, range(2))
            finals.append(training.query_loss(last, QUERIES, torch.zeros(Q)))
        assert torch.allclose(real.changes[:, k], finals[0] - finals[1], atol=1e-12)
    assert real.n_steps == 2
    in_first_steps = torch.isin(torch.tensor([0, 1]), training.order[:20])
    assert torch.equal((real.changes != 0).any(0), in_first_steps)
    with pytest.raises(InputError, match='n_steps is for start="warm"'):
        leave_one_out(training, QUERIES, torch.zeros(Q), [0], n_steps=2)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_warm_start_is_a_plain_training_from_the_final_weights(optimizer: Any) -> None:
    """Adam's averages, continued under corrections that begin anew, would be too large by far."""
    x, y = drawn(12, 4), torch.arange(12) % 3
    settings = {"optimizer": optimizer, "lr": 0.05, "momentum": 0.9, "schedule": "constant"}
    training = small_training(x, y, **settings)
    real = leave_one_out(training, x[:2], y[:2], [3, 4], start="warm", n_steps=5)
    model = training.box(training.run()).model
    again = ModelTraining(
        model, training.box(training.run()).inputs, (x, y), epochs=3, batch_size=4, seed=1, **settings
    )
    losses = [plain_losses_of_steps(again, 5, i, x[:2], y[:2]) for i in (None, 3, 4)]
    expected = torch.stack([without - losses[0] for without in losses[1:]], 1)
    torch.testing.assert_close(real.changes, expected)


def plain_losses_of_steps(training: ModelTraining, n: int, left_out: int | None, x: Tensor, y: Tensor) -> Tensor:
    weights = training.unit_example_weights()
    if left_out is not None:
        weights[left_out] = 0
    *_, state = training.states(weights, steps=range(n))
    return training.query_loss(state, x, y)


@pytest.mark.parametrize("indices", [[], [N], [-1], [0.5], [[1, 2]], [True]])
def test_indices_are_those_of_examples(training: LinearTraining, indices: Any) -> None:
    with pytest.raises(InputError, match=r"indices are those of training examples"):
        leave_one_out(training, QUERIES, torch.zeros(Q), indices)


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_scores_of_something_else_are_refused(training: LinearTraining) -> None:
    exact = training.exact_scores
    with pytest.raises(InputError, match=r"wanted scores of 6 queries for the training's 40 examples; got .*\(6, 39\)"):
        lds(scores(exact[:, 1:]), training)
    broken = exact.clone()
    broken[0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        lds(scores(broken), training)
    with pytest.raises(InputError, match="leaves out 0 of them"):
        lds(scores(exact), training, fractions=(0.001,))
    with pytest.raises(InputError, match="a fraction must be a number between 0 and 1"):
        lds(scores(exact), training, fractions=(1.0,))
    with pytest.raises(InputError, match="a step function predicts no classes"):
        linear_datamodeling_score(scores(exact), training, QUERIES, None)
    with pytest.raises(InputError, match=r"wanted scores of one truth, one or several; got none"):
        lds([], training)


def test_scores_of_other_labels_or_another_order_are_refused() -> None:
    x, y = drawn(12, 4), torch.arange(12) % 3
    training = small_training(x, y)
    box = training.box(training.run())
    settings: dict[str, Any] = {"fractions": (0.2,), "n_subsets": 3}
    shuffled = ub.influence.gradient_dot(box, x[:4], y[:4], (x.roll(1, 0), y.roll(1, 0)), lr=0.1)
    own = ub.influence.gradient_dot(box, x[:4], y[:4], (x, y), lr=0.1)
    real = leave_one_out(training, x[:4], y[:4], [0, 1])
    real.agreement(own)
    for refused in (lambda: linear_datamodeling_score(shuffled, training, x[:4], y[:4], **settings),
                    lambda: real.agreement(shuffled)):  # fmt: skip
        with pytest.raises(InputError, match="other labels of the training examples"):
            refused()
    with pytest.raises(InputError, match="other labels of the queries"):
        linear_datamodeling_score(own, training, x[:4], y[1:5], **settings)
    with pytest.raises(InputError, match="other labels of the queries"):
        mean_over_seeds([own, replace(own, target=y[1:5])])
    with pytest.raises(InputError, match="other labels of the training examples"):
        mean_over_seeds([own, shuffled])


def test_a_loss_that_is_not_finite_is_refused(training: LinearTraining) -> None:
    labels = torch.zeros(Q)
    labels[4] = torch.inf
    with pytest.raises(InputError, match="the loss of query 4 is not a finite number"):
        linear_datamodeling_score(scores(training.exact_scores), training, QUERIES, labels, **SMALL)


# -- several trainings, and words --------------------------------------------------------------------------------------


def test_trainings_of_several_seeds_are_pooled(training: LinearTraining) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        good, bad = lds([scores(training.exact_scores), scores(drawn(Q, N), method="exact")], training)
    pooled = pool_scores([good, bad])
    assert pooled.correlations.shape == (2, Q, 2)
    assert pooled.means[0] == pytest.approx((good.means[0] + bad.means[0]).item() / 2)
    assert pooled.intervals[0].high - pooled.intervals[0].low > good.intervals[0].high - good.intervals[0].low
    assert pooled.to_dict()["0.1"]["by_training"] == pytest.approx([1, bad.means[0].item()])
    with pytest.raises(InputError, match="2 kinds"):
        pool_scores([good, replace(bad, method="another")])


def test_a_score_is_one_line_or_a_table(training: LinearTraining) -> None:
    score: LinearDatamodelingScore = lds(scores(training.exact_scores), training)
    assert "\n" not in repr(score)
    head, first, second = str(score).splitlines()
    assert head == "exact against one run: 12 subsets, 6 queries"
    assert first.startswith("  10.0% left out: 1.000 [1.000, 1.000], slope 1.00 (median 1.00), noise to signal ")
    assert second.startswith("  50.0% left out: 1.000")


def test_docstrings_teach() -> None:
    for function in (linear_datamodeling_score, leave_one_out, pool_scores):
        doc = function.__doc__ or ""
        assert all(f"\n    {section}:\n" in doc for section in ("Args", "Returns", "Raises", "Example"))
        documented = re.findall(r"^        (\w+): ", doc.split("Returns:")[0], re.MULTILINE)
        assert documented == [*inspect.signature(function).parameters]
        for name, setting in settings_of(function).items():
            assert f"{name}: {setting.help}" in " ".join(doc.split())
