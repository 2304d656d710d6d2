"""Optimizers: their formulas, and that rows never mix."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

import unboxed as ub
from models import normal as drawn
from unboxed.engine.optimize.constraints import Linf, ball_constraint
from unboxed.engine.optimize.loop import OptimizationConfig, optimize
from unboxed.engine.optimize.optimizers import NormalizedGradient, PlainAscent
from unboxed.engine.optimize.parameterizations import RawCanvas
from unboxed.objectives import Objective, layer_objective

D = 6
OPTIMIZER_BY_NAME = {"adam": Adam, "sgd": SGD, "normalized": NormalizedGradient}
Rule = Callable[[list[Tensor]], Optimizer]


def bowls(n: int, condition: float = 20.0) -> tuple[Tensor, Tensor]:
    """Curvatures (n, D, D) and minima (n, D) of quadratics (x - m) A (x - m) / 2."""
    q, _ = torch.linalg.qr(drawn(n, D, D))
    return q @ torch.diag(torch.linspace(1, condition, D, dtype=torch.float64)) @ q.mT, drawn(n, D, seed=1)


def descend(rule: Rule, x: Tensor, slope: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    """All points on the way, (steps + 1, N, D)."""
    x = x.clone()
    optimizer, way = rule([x]), [x.clone()]
    for _ in range(steps):
        x.grad = slope(x)
        optimizer.step()
        way.append(x.clone())
    return torch.stack(way)


def quadratic(a: Tensor, m: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.einsum("nij,nj->ni", a, x - m)


def test_normalized_is_its_formula() -> None:
    x, g = drawn(3, 2, 4), drawn(3, 2, 4, seed=1)
    g[1] = 0
    way = descend(partial(NormalizedGradient, lr=0.3), x, lambda x: g, 1)
    want = [x[n] - 0.3 * g[n] / g[n].pow(2).sum().sqrt() for n in (0, 2)]
    assert torch.allclose(way[1][[0, 2]], torch.stack(want))
    assert torch.equal(way[1][1], x[1])


@pytest.mark.parametrize("name", OPTIMIZER_BY_NAME)
def test_rows_never_mix(name: str) -> None:
    """Each row goes the way it goes alone, however large the others' gradients are."""
    a, m = bowls(3)
    a = a * torch.tensor([1.0, 100.0, 0.01])[:, None, None]
    x = drawn(3, D, seed=2)
    rule = partial(OPTIMIZER_BY_NAME[name], lr=0.01)
    together = descend(rule, x, quadratic(a, m), 25)
    for n in range(3):
        alone = descend(rule, x[n : n + 1], quadratic(a[n : n + 1], m[n : n + 1]), 25)
        assert torch.allclose(together[:, n], alone[:, 0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZER_BY_NAME)
def test_rows_that_leave_change_nothing(name: str) -> None:
    """The state of a rule follows its rows: each ends where it ends alone."""
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(16, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)
    ).double()
    with torch.no_grad():
        for p, seed in zip(model.parameters(), range(9), strict=False):
            p.copy_(drawn(*p.shape, seed=seed))
    box = ub.Box(model, ub.Pixels((1, 4, 4)))
    x = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    goals = box(x)[:, 0] + torch.tensor([0.05, 0.4, 0.1, 9.0])
    plan = OptimizationConfig(
        12, partial(OPTIMIZER_BY_NAME[name], lr=0.1 if name == "sgd" else 0.05), stop_when=reached(goals)
    )
    whole = optimize(box, ub.logit(0), RawCanvas(x), plan)
    assert len(whole.steps.unique()) > 1
    for n in range(4):
        alone = OptimizationConfig(plan.steps, plan.optimizer, stop_when=reached(goals[n : n + 1]))
        one = optimize(box, ub.logit(0), RawCanvas(x[n : n + 1]), alone)
        assert torch.allclose(one.input[0], whole.input[n], atol=1e-9)


def reached(goals: Tensor) -> Objective:
    return layer_objective("logits", lambda z: z[:, 0] - goals, "goal", lambda i: reached(goals[i]), len(goals))


def test_plain_steps_are_sgd_ascent_and_leave_the_old_memory_as_it_was() -> None:
    x, g = drawn(3, D), drawn(3, D, seed=1)
    ours, peer = x.clone(), x.clone()
    old, held = ours.detach(), x.clone()
    ours.grad, peer.grad = g, -g
    PlainAscent([ours], lr=0.1).step()
    SGD([peer], lr=0.1).step()
    assert torch.equal(ours, peer)
    assert torch.equal(old, held)
    assert torch.equal(ours.grad, g)


@pytest.mark.parametrize("rule", [PlainAscent, SGD, Adam])
def test_what_was_noted_of_an_input_is_not_moved_by_later_steps(rule: Callable[..., Optimizer]) -> None:
    """Rows that reach `until` at one step of a tenth each and go on are returned as they were there."""
    box = ub.Box(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).double(), ub.Pixels((1, 4, 4)))
    at = torch.tensor([0.1, 0.3, 0.5], dtype=torch.float64)
    met = layer_objective("input", lambda x: 0.05 - (x.flatten(1).mean(1) - at).abs(), "met", n=3)
    plan = OptimizationConfig(7, partial(rule, lr=0.1), stop_when=met, continue_finished=True)
    found = optimize(
        box,
        layer_objective("input", lambda x: x.flatten(1).sum(1), "sum"),
        RawCanvas(torch.zeros(3, 1, 4, 4).double()),
        plan,
    )
    assert found.finished.all()
    torch.testing.assert_close(found.input.flatten(1).mean(1), at, rtol=0, atol=1e-6)


def test_in_linf_the_bounds_are_ball_and_range() -> None:
    """Also of some of the rows."""
    x = torch.rand(5, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    far, ball = x + drawn(5, D), Linf(0.2)
    inside = ball_constraint(ball, x, lambda v: v.clamp(0, 1))
    wanted = ball.project(far, x).clamp(0, 1)
    some = torch.tensor([3, 1])
    assert torch.equal(inside.apply(far), wanted)
    assert torch.equal(inside.rows(some).apply(far[some]), wanted[some])
