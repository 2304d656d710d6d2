"""SOURCE against trainings that are differentiated step by step, and against its formula with matrix exponentials."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub
from unboxed.engine.example_gradients.gradients import ExampleGradients
from unboxed.engine.example_gradients.kronecker import fit_fisher
from unboxed.errors import DataError, InputError, ModelError, NaNError, OutputError
from unboxed.influence import source

N, D, K = 12, 4, 3
LR, DECAY = 0.2, 0.1


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y_NUMBERS, Y_CLASSES = rand(N, D), rand(N, K, seed=1), torch.arange(N) % K
QUERIES, Q_NUMBERS, Q_CLASSES = rand(2, D, seed=2), rand(2, K, seed=3), torch.tensor([0, 2])


def linear_box(theta: Tensor | None = None, outputs: str = "regression") -> ub.Box:
    """A linear model whose weight and bias are theta (K, D + 1)."""
    theta = rand(K, D + 1, seed=4) if theta is None else theta
    model = nn.Sequential(nn.Linear(D, K)).double()
    with torch.no_grad():
        model[0].weight.copy_(theta[:, :-1])
        model[0].bias.copy_(theta[:, -1])
    return ub.Box(model, ub.Features(tuple("abcd")), outputs=outputs)  # type: ignore[arg-type]


def outputs(theta: Tensor, x: Tensor) -> Tensor:
    return x @ theta[:, :-1].T + theta[:, -1]


def squared_losses(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (outputs(theta, x) - y).square().sum(1)


def descend(theta: Tensor, weights: Tensor, n_steps: int, lr: float, decay: float) -> list[Tensor]:
    """Full-batch gradient descent on the weighted mean loss, differentiable in the weights: all states."""
    states = [theta.requires_grad_()]
    for _ in range(n_steps):
        loss = (weights * squared_losses(states[-1], X, Y_NUMBERS)).mean() + decay / 2 * states[-1].square().sum()
        (g,) = torch.autograd.grad(loss, states[-1], create_graph=True)
        states.append(states[-1] - lr * g)
    return states


def unrolled(theta: Tensor, n_steps: int, lr: float = LR, decay: float = 0.0) -> tuple[Tensor, list[Tensor]]:
    """What weight 1 -> 0 does to the queries' losses to first order (2, N), and the states of the training."""
    weights = torch.ones(N, dtype=torch.float64, requires_grad=True)
    states = descend(theta, weights, n_steps, lr, decay)
    losses = squared_losses(states[-1], QUERIES, Q_NUMBERS)
    scores = [-torch.autograd.grad(loss, weights, retain_graph=True)[0] for loss in losses]
    return torch.stack(scores), [s.detach() for s in states]


def exact_source(states: list[Tensor], checkpoints: list[Tensor], **settings: Any) -> Tensor:
    """SOURCE with the whole Gauss-Newton matrix, which is the Hessian of this model."""
    settings = {"approximation": "dense", "fisher": "exact", "decay": "geometric", **settings}
    boxes = [linear_box(theta).model.state_dict() for theta in checkpoints]
    return source(
        linear_box(states[-1]), QUERIES, Q_NUMBERS, (X, Y_NUMBERS), checkpoints=boxes, **settings
    ).scores  # fmt: skip


@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_a_segment_per_step_is_the_unrolled_training(decay: float) -> None:
    expected, states = unrolled(rand(K, D + 1, seed=4), 7, decay=decay)
    found = exact_source(states, states[:-1], lr=LR, n_steps=7, segments=7, weight_decay=decay)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_a_stationary_segment_is_the_unrolled_training() -> None:
    """At the optimum of the mean loss, descent stays where it is: one checkpoint has all gradients of the way."""
    inputs = torch.cat([X, torch.ones(N, 1).double()], 1)
    optimum = torch.linalg.lstsq(inputs, Y_NUMBERS).solution.T.contiguous()
    expected, states = unrolled(optimum, 50)
    assert float((states[-1] - states[0]).abs().max()) < 1e-12
    found = exact_source(states, states[-1:], lr=LR, n_steps=50, segments=1)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
    split = exact_source(states, states[:3], lr=[LR] * 3, n_steps=[10, 30, 10], segments=3)
    torch.testing.assert_close(split, expected, rtol=1e-8, atol=1e-12)


def test_exponentials_are_the_limit_of_small_steps() -> None:
    def error(n_steps: int) -> float:
        expected, states = unrolled(rand(K, D + 1, seed=4), n_steps, lr=1 / n_steps)
        found = exact_source(
            states, states[:-1], lr=1 / n_steps, n_steps=n_steps, segments=n_steps, decay="exponential"
        )
        return float((found - expected).norm() / expected.norm())

    coarse, fine = error(8), error(16)
    assert 0 < fine < 0.6 * coarse < 0.1


def test_a_long_training_is_an_influence_function() -> None:
    box = linear_box(outputs="logits")
    train = X, Y_CLASSES
    states = [box.model.state_dict()]
    result = source(box, QUERIES, Q_CLASSES, train, checkpoints=states, lr=1.0, n_steps=10**6, segments=1,
                    weight_decay=DECAY, approximation="ekfac")  # fmt: skip
    gradients = ExampleGradients(box)
    g = gradients.unflatten(gradients.matrix(QUERIES, Q_CLASSES))
    solved = fit_fisher(gradients, X, Y_CLASSES).solve(g, damping=DECAY)
    torch.testing.assert_close(result.scores, gradients.project(solved, X, Y_CLASSES) / N)


@pytest.mark.parametrize("approximation", ["ekfac", "kfac", "diagonal"])
def test_the_formula_with_matrix_exponentials(approximation: Any) -> None:
    """sum_l (prod_{k > l} exp(-lr_k K_k H_k)) (1 - exp(-lr_l K_l H_l)) H_l^-1 g_l / N, with matrices."""
    thetas, rates, steps = [rand(K, D + 1, seed=s) for s in (5, 6, 7, 8)], [0.3, 0.1], [20, 40]
    boxes = [linear_box(theta, "logits") for theta in thetas]
    states = [box.model.state_dict() for box in boxes]
    result = source(
        boxes[-1], QUERIES, Q_CLASSES, (X, Y_CLASSES), checkpoints=states, lr=rates, n_steps=steps, segments=2,
        weight_decay=DECAY, approximation=approximation,
    )  # fmt: skip
    gradients = [ExampleGradients(box) for box in boxes]
    unit = torch.eye(gradients[0].n_parameters, dtype=torch.float64)
    total, carried = torch.zeros(len(unit), N).double(), unit
    for part, lr, k in ((gradients[2:], rates[1], steps[1]), (gradients[:2], rates[0], steps[0])):
        curvature = fit_fisher(part, X, Y_CLASSES, approximation=approximation)
        h = gradients[0].flatten(curvature.apply(gradients[0].unflatten(unit), lambda e: e)) + DECAY * unit
        mean = torch.stack([g.matrix(X, Y_CLASSES) for g in part]).mean(0).T  # (P, N)
        remains = torch.matrix_exp(-lr * k * h)
        total += carried @ (unit - remains) @ torch.linalg.inv(h) @ mean
        carried = carried @ remains
    expected = gradients[-1].matrix(QUERIES, Q_CLASSES) @ total / N
    torch.testing.assert_close(result.scores, expected, rtol=1e-8, atol=1e-12)


def test_without_curvature_it_is_the_sum_of_gradient_products() -> None:
    """Where the curvature is zero, K steps add up to lr K times the gradient: TracIn."""
    box = linear_box(outputs="logits")
    result = source(box, QUERIES, Q_CLASSES, (X, Y_CLASSES), checkpoints=[box.model.state_dict()], lr=1e-9, n_steps=10,
                    segments=1)  # fmt: skip
    gradients = ExampleGradients(box)
    expected = 1e-8 * gradients.dot(QUERIES, Q_CLASSES, X, Y_CLASSES) / N
    torch.testing.assert_close(result.scores, expected, rtol=1e-6, atol=0)


# -- states and bad input ----------------------------------------------------------------------------------------------


def call(**settings: Any) -> ub.influence.Influence:
    box = linear_box(outputs="logits")
    settings = {"checkpoints": [box.model.state_dict()], "lr": 0.1, "n_steps": 10, "segments": 1, **settings}
    train = settings.pop("train", (X, Y_CLASSES))
    return source(box, QUERIES, Q_CLASSES, train, **settings)


def test_all_forms_of_checkpoints_are_one(tmp_path: Path) -> None:
    other = linear_box(rand(K, D + 1, seed=9), "logits")
    torch.save(other.model.state_dict(), tmp_path / "state.pt")
    forms = [other.model.state_dict(), tmp_path / "state.pt", str(tmp_path / "state.pt")]
    results = [call(checkpoints=[form]) for form in forms]
    assert all(torch.equal(r.scores, results[0].scores) for r in results)
    assert not torch.equal(results[0].scores, call().scores)
    assert results[0].truth == "mean over seeds"
    assert results[0].settings == {
        "checkpoints": 1, "segments": 1, "lr": 0.1, "n_steps": 10, "weight_decay": 0.0, "curvature": "ekfac",
        "fisher": "sampled", "decay": "exponential",
    }  # fmt: skip


def segmentation() -> ub.influence.Influence:
    model = nn.Conv2d(1, 3, 3, padding=1)
    box, x = ub.Box(model, ub.Pixels((1, 8, 8)), outputs="logits"), torch.rand(3, 1, 8, 8)
    y, states = torch.arange(3), [model.state_dict()]
    return source(box, x, y, (x, y), checkpoints=states, lr=0.1, n_steps=3, segments=1)


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "another architecture": (
        lambda: call(checkpoints=[nn.Sequential(nn.Linear(D, K + 1)).state_dict()]), ModelError, "checkpoint 0 is one"),
    "too few checkpoints": (lambda: call(segments=3), InputError, "there are 1 checkpoints; wanted at least one"),
    "none": (lambda: call(checkpoints=[]), InputError, "at least one"),
    "one state, not in a list": (lambda: call(checkpoints=linear_box().model.state_dict()), InputError, "a list of"),
    "rates": (lambda: call(lr=[0.1, 0.2]), InputError, "lr must be a number, or one for each of the 1 segments; got 2"),
    "rate": (lambda: call(lr=-1.0), InputError, "lr must be"),
    "steps": (lambda: call(n_steps=0), InputError, "n_steps must be"),
    "a class per position": (segmentation, OutputError, "one row of class scores per example"),
    "no labels": (lambda: call(train=X), DataError, "no labels"),
    "a loss that is not a number": (
        lambda: call(loss=lambda z, y: F.cross_entropy(z, y, reduction="none") / (z[:, 0] < 9), fisher="empirical",
                     train=(torch.cat([X, 99 * torch.ones(1, D).double()]), torch.cat([Y_CLASSES, Q_CLASSES[:1]]))),
        NaNError, "row 12"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    run, error, message = BAD[name]
    with pytest.raises(error, match=message):
        run()
