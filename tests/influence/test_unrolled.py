"""Unrolled differentiation as people call it: against retraining, resumed, and what it refuses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.errors import InputError, ModelError, UnboxedWarning
from unboxed.influence import ModelTraining, unrolled

N, SHAPE = 40, (1, 4, 4)


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(N, *SHAPE, generator=generator, dtype=torch.float64)
    return x, (x.flatten(1)[:, :3].argmax(1) + (torch.rand(N, generator=generator) < 0.1).long()) % 3


def model(activation: type[nn.Module] = nn.GELU) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), activation(), nn.Linear(12, 3)).double()


def training(**settings: Any) -> ModelTraining:
    return ModelTraining(model(), ub.Pixels(SHAPE), data(), **{"epochs": 6, "batch_size": 10, "lr": 2e-2, **settings})


def opened(run: ModelTraining) -> ub.Box:
    return run.box(run.run())


def test_scores_are_what_leaving_an_example_out_does() -> None:
    """Retraining with a weight of 1 - h in place of 1 changes the loss by h times the score."""
    run, (x, y) = training(), data()
    result = unrolled(opened(run), x[:4], y[:4], run)
    base, h = run.query_loss(run.run(), x[:4], y[:4]), 1e-5
    for example in (0, 7, 23):
        weights = run.example_weights()
        weights[example] -= h
        change = (run.query_loss(run.run(weights), x[:4], y[:4]) - base) / h
        assert torch.allclose(change, result.scores[:, example], rtol=1e-3, atol=1e-7)


def test_what_helped_most_raises_the_loss_when_it_is_left_out() -> None:
    run, (x, y) = training(), data()
    result = unrolled(opened(run), x[:4], y[:4], run)
    base = run.query_loss(run.run(), x[:4], y[:4])
    for index, sign in ((result.top(1), 1), (result.bottom(1), -1)):
        for query, (example,) in enumerate(index.tolist()):
            weights = run.example_weights()
            weights[example] = 0
            assert sign * (run.query_loss(run.run(weights), x[:4], y[:4]) - base)[query] > 0


def test_the_result_says_what_it_is() -> None:
    run, (x, y) = training(), data()
    result = unrolled(opened(run), x[:2], None, run)
    assert (result.truth, result.unit) == ("one run", "nats per example left out")
    assert torch.equal(result.target, opened(run).predict(x[:2]))
    assert torch.equal(result.train_labels, y)
    assert result.smoothness is not None and result.smoothness.is_smooth  # noqa: PT018
    assert "states kept" in result.settings["plan"]
    groups = result.groups()
    assert torch.allclose(groups.sum(1), result.scores.sum(1))


def test_in_passes_and_segments_the_scores_are_the_same() -> None:
    run, (x, y) = training(), data()
    box = opened(run)
    whole = unrolled(box, x[:6], y[:6], run, check_smoothness=False)
    in_parts = unrolled(box, x[:6], y[:6], run, max_bytes=14 * run.state_bytes, check_smoothness=False)
    assert "passes" in in_parts.settings["plan"]
    assert torch.allclose(whole.scores, in_parts.scores, rtol=1e-12, atol=1e-15)
    segments = unrolled(box, x[:6], y[:6], run, store_states=False, check_smoothness=False)
    assert torch.equal(whole.scores, segments.scores)


def test_it_resumes_by_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unboxed.influence import _data  # noqa: F401  (the package is loaded before its module is patched)

    module = __import__("sys").modules["unboxed.influence.unrolled"]
    run, (x, y) = training(), data()
    box, settings = opened(run), {"max_bytes": 14 * run.state_bytes, "check_smoothness": False}
    whole = unrolled(box, x[:6], y[:6], run, **settings)  # type: ignore[arg-type]
    real, calls = module.weight_gradients, list[int]()

    def interrupted(*args: Any) -> Tensor:
        calls.append(len(args[2]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    file = tmp_path / "scores.pt"
    monkeypatch.setattr(module, "weight_gradients", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unrolled(box, x[:6], y[:6], run, checkpoint=file, **settings)  # type: ignore[arg-type]
    done = sum(calls[:1])
    calls[:] = [0, 0]
    resumed = unrolled(box, x[:6], y[:6], run, checkpoint=file, **settings)  # type: ignore[arg-type]
    assert sum(calls) == 6 - done
    assert torch.equal(resumed.scores, whole.scores)
    with pytest.raises(ModelError, match="queries"):
        unrolled(box, x[1:7], y[:6], run, checkpoint=file, **settings)  # type: ignore[arg-type]


def test_a_box_of_another_training_is_refused() -> None:
    run, (x, y) = training(), data()
    with pytest.raises(ModelError, match="not what this training gives"):
        unrolled(opened(training(lr=1e-3)), x[:1], y[:1], run)
    torch.manual_seed(0)
    other = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double(), ub.Pixels(SHAPE))
    with pytest.raises(ModelError, match="not of the training's architecture"):
        unrolled(other, x[:1], y[:1], run)


def test_a_training_that_diverges_is_refused() -> None:
    run, (x, y) = training(optimizer="sgd", lr=1e200, schedule="constant"), data()
    box = ub.Box(model(), ub.Pixels(SHAPE))
    with pytest.raises((InputError, ModelError)):
        unrolled(box, x[:1], y[:1], run)


def test_a_training_that_is_not_smooth_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    module = __import__("sys").modules["unboxed.influence.unrolled"]
    from unboxed.engine.unroll.smoothness import Smoothness

    run, (x, y) = training(), data()
    monkeypatch.setattr(module, "measure_smoothness", lambda *args: Smoothness(torch.full((1,), 0.4)))
    with pytest.warns(UnboxedWarning, match="not smooth"):
        unrolled(opened(run), x[:1], y[:1], run)


def test_it_leaves_the_box_and_the_training_as_they_were() -> None:
    run, (x, y) = training(), data()
    box = opened(run)
    before, start = copy.deepcopy(box.model.state_dict()), {k: h.clone() for k, h in run.start.items()}
    rng_state = torch.get_rng_state()
    unrolled(box, x[:2], y[:2], run)
    assert all(torch.equal(h, before[k]) for k, h in box.model.state_dict().items())
    assert all(torch.equal(h, start[k]) for k, h in run.start.items())
    assert torch.equal(torch.get_rng_state(), rng_state)
