"""Unrolled differentiation as people call it: against retraining, resumed, and what it refuses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.errors import InputError, ModelError, NaNError, UnboxedWarning
from unboxed.influence import ModelTraining, Training, unrolled
from unboxed.influence.validate import leave_one_out

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
        weights = run.unit_example_weights()
        weights[example] -= h
        change = (run.query_loss(run.run(weights), x[:4], y[:4]) - base) / h
        assert torch.allclose(change, result.scores[:, example], rtol=1e-3, atol=1e-7)


def test_what_helped_most_raises_the_loss_when_it_is_left_out() -> None:
    run, (x, y) = training(), data()
    result = unrolled(opened(run), x[:4], y[:4], run)
    base = run.query_loss(run.run(), x[:4], y[:4])
    for index, sign in ((result.top(1), 1), (result.bottom(1), -1)):
        for query, (example,) in enumerate(index.tolist()):
            weights = run.unit_example_weights()
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
    real, calls = module.example_weight_gradients, list[int]()

    def interrupted(*args: Any) -> Tensor:
        calls.append(len(args[2]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    file = tmp_path / "scores.pt"
    monkeypatch.setattr(module, "example_weight_gradients", interrupted)
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


def own_training(step_kind: str) -> Training:
    """Logistic regression by a step of one's own, which misses something."""
    x, y = data()
    batches = [torch.arange(20), torch.arange(20, 40)] * 3

    def loss(p: Tensor, t: int, weights: Tensor) -> Tensor:
        h = x[batches[t]].flatten(1)
        h = nn.functional.dropout(h, 0.3) if step_kind == "dropout" else h
        return (weights * nn.functional.cross_entropy(h @ p, y[batches[t]], reduction="none")).sum() / len(weights)

    def step(state: dict[str, Tensor], t: int, weights: Tensor) -> dict[str, Tensor]:
        if step_kind != "no graph":
            return {"p": state["p"] - 0.3 * torch.func.grad(loss)(state["p"], t, weights)}
        p = state["p"].detach().requires_grad_()
        with torch.enable_grad():
            (g,) = torch.autograd.grad(loss(p, t, weights), p)
        return {"p": state["p"] - 0.3 * g}

    def query_loss(state: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(x.flatten(1) @ state["p"], y, reduction="none")

    return Training(step, {"p": torch.zeros(16, 3, dtype=torch.float64)}, batches, query_loss, N)


def test_a_step_without_a_graph_is_refused() -> None:
    """All its scores would be zero."""
    (x, y), box = data(), ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double(), ub.Pixels(SHAPE))
    assert unrolled(box, x[:2], y[:2], own_training("plain")).scores.abs().max() > 0
    with pytest.raises(InputError, match="create_graph=True"):
        unrolled(box, x[:2], y[:2], own_training("no graph"))


@pytest.mark.parametrize(("cut", "named"), [("state", "'p'"), ("momentum", "'momentum'"), ("output", "'momentum'")])
def test_a_step_that_cuts_its_gradient_is_refused_by_name(cut: str, named: str) -> None:
    """It still depends on the weights of its own examples: scores would miss all later steps."""
    x, y = data()
    batches = [torch.arange(20), torch.arange(20, 40)] * 3

    def loss(p: Tensor, t: int, weights: Tensor) -> Tensor:
        z = x[batches[t]].flatten(1) @ p
        return (weights * nn.functional.cross_entropy(z, y[batches[t]], reduction="none")).sum() / len(weights)

    def step(state: dict[str, Tensor], t: int, weights: Tensor) -> dict[str, Tensor]:
        p = state["p"].detach() if cut == "state" else state["p"]
        momentum = state["momentum"].detach() if cut == "momentum" else state["momentum"]
        momentum = 0.9 * momentum + torch.func.grad(loss)(p, t, weights)
        return {
            "p": p - 0.3 * momentum,
            "momentum": momentum.detach() if cut == "output" else momentum,
            "step": state["step"] + 1,
            "last": p.new_tensor(t),
        }

    zeros = torch.zeros(16, 3, dtype=torch.float64)
    start = {"p": zeros, "momentum": zeros, "step": torch.zeros(()), "last": torch.zeros((), dtype=torch.float64)}
    box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double(), ub.Pixels(SHAPE))

    def query_loss(state: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(x.flatten(1) @ state["p"], y, reduction="none")

    with pytest.raises(InputError, match=f"cuts the gradient of its state's {named}:"):
        unrolled(box, x[:2], y[:2], Training(step, start, batches, query_loss, N))
    cut = "nothing"
    assert unrolled(box, x[:2], y[:2], Training(step, start, batches, query_loss, N)).scores.abs().max() > 0


def test_draws_without_keys_are_refused_by_name() -> None:
    (x, y), box = data(), ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double(), ub.Pixels(SHAPE))
    unkeyed = training(augment=lambda x, generator: x + 0.1 * torch.rand_like(x))
    for run, part in ((own_training("dropout"), "dropout or augmentation"), (unkeyed, "augment")):
        with pytest.raises(InputError, match=f"when it is repeated: {part} draws random numbers without keys"):
            unrolled(box, x[:2], y[:2], run)
        with pytest.raises(InputError, match=f"when it is repeated: {part} draws random numbers without keys"):
            leave_one_out(run, x[:2], y[:2], [0])


class NaNOfOne(nn.Module):
    """Its output is NaN for one of the training images, and gives its weights a gradient of NaN, or none."""

    def __init__(self, spreads: bool) -> None:
        super().__init__()
        self.model, self.value, self.spreads = model(), data()[0][7, 0, 0, 0].item(), spreads

    def forward(self, x: Tensor) -> Tensor:
        is_other = x[:, :1, 0, 0] != self.value
        return self.model(x) / is_other if self.spreads else self.model(x).where(is_other, torch.nan)


def test_a_training_example_without_a_loss_is_named() -> None:
    x, y = data()
    spreading, masked = (
        ModelTraining(NaNOfOne(spreads), ub.Pixels(SHAPE), (x, y), epochs=1, batch_size=8, outputs="logits")
        for spreads in (True, False)
    )
    with pytest.raises(NaNError, match=r"the loss is NaN or infinite for 1 of 40 training examples \(row 7\)"):
        unrolled(opened(spreading), x[:2], y[:2], spreading)
    with pytest.raises(NaNError, match=r"the loss is NaN or infinite for 1 of 40 training examples \(row 7\)"):
        leave_one_out(spreading, x[:2], y[:2], [0])
    with pytest.raises(NaNError, match=r"1 of 40 training examples \(row 7\)"):
        unrolled(opened(masked), x[:2], y[:2], masked)


@pytest.mark.parametrize("outputs", ["regression", "multilabel"])
def test_labels_may_be_values(outputs: Any, tmp_path: Path) -> None:
    x, _ = data()
    y = torch.rand(N, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y = y if outputs == "regression" else (y > 0.5).double()
    run = ModelTraining(model(), ub.Pixels(SHAPE), (x, y), epochs=3, batch_size=10, lr=2e-2, outputs=outputs)
    box, weights, h = opened(run), run.unit_example_weights(), 1e-5
    result = unrolled(box, x[:2], y[:2], run)
    weights[5] -= h
    change = (run.query_loss(run.run(weights), x[:2], y[:2]) - run.query_loss(run.run(), x[:2], y[:2])) / h
    torch.testing.assert_close(change, result.scores[:, 5], rtol=1e-3, atol=1e-7)
    kind = {"regression": nn.functional.mse_loss, "multilabel": nn.functional.binary_cross_entropy_with_logits}[outputs]
    losses = kind(box.model(x[:2]), y[:2], reduction="none").sum(1) / (2 if outputs == "regression" else 1)
    torch.testing.assert_close(leave_one_out(run, x[:2], y[:2], [5]).losses, losses.detach())
    dots = ub.influence.gradient_dot(box, x[:2], y[:2], (x, y)).scores
    store = ub.influence.gradient_store(box, (x, y), tmp_path, dim=None, dtype="float32")
    torch.testing.assert_close(store.scores(x[:2], y[:2]).scores, dots, rtol=1e-4, atol=1e-6)
    assert ub.influence.influence_functions(box, x[:2], y[:2], (x, y), l2=0.1).target is not None
