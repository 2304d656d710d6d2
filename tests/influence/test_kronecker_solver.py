"""Influence functions by K-FAC, EK-FAC and the diagonal: the scores are those of the matrices, damped by layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.engine.example_gradients.gradients import ExampleGradients
from unboxed.engine.example_gradients.kronecker import fit_fisher
from unboxed.errors import InputError
from unboxed.influence import Kronecker, group, influence_functions

pytestmark = pytest.mark.filterwarnings("ignore:scores of up to")


@pytest.fixture
def box() -> ub.Box:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3)).double()
    return ub.Box(model, ub.Features(tuple("abcd")), outputs="logits")


@pytest.fixture
def data() -> Any:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(22, 4, generator=rng, dtype=torch.float64)
    y = torch.arange(22) % 3
    return x[20:], y[20:], (x[:20], y[:20])


@pytest.mark.parametrize("solver", ["ekfac", "kfac", "diagonal"])
@pytest.mark.parametrize(("damping", "l2"), [(None, 0.0), (0.3, 0.0), (None, 0.2)])
def test_scores_are_those_of_the_damped_matrix(box: ub.Box, data: Any, solver: Any, damping: Any, l2: float) -> None:
    x, y, train = data
    result = influence_functions(box, x, y, train, solver=solver, damping=damping, l2=l2)
    gradients = ExampleGradients(box)
    curvature = fit_fisher(gradients, *train, approximation=solver)
    unit = torch.eye(gradients.n_parameters, dtype=torch.float64)
    matrix = gradients.flatten(curvature.apply(gradients.unflatten(unit), lambda e: e))
    added = torch.cat([_added(curvature.damping()[n], p, damping) for n, p in gradients.parameters.items()])
    inverse = torch.linalg.inv(matrix + torch.diag(added + l2))
    expected = gradients.matrix(x, y) @ inverse @ gradients.matrix(*train).T / 20
    torch.testing.assert_close(result.scores, expected, rtol=1e-9, atol=1e-12)
    assert result.settings["damping"] == (curvature.damping() if damping is None else damping)
    assert result.truth == "one run"


def _added(by_layer: float, parameter: Tensor, damping: float | None) -> Tensor:
    return torch.full((parameter.numel(),), by_layer if damping is None else damping, dtype=torch.float64)


def test_the_curvature_is_fitted_once(box: ub.Box, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = list[Any]()
    monkeypatch.setattr(
        "unboxed.influence.solvers.kronecker.fit_fisher", lambda *a, **k: fits.append(a) or fit_fisher(*a, **k)
    )
    group(box, *data, [[0, 1], [2]], solver="ekfac")
    assert len(fits) == 1


def test_the_hessian_has_no_kronecker_factors(box: ub.Box, data: Any) -> None:
    with pytest.raises(InputError, match=r'ekfac approximates the Gauss-Newton matrix.*curvature="gauss_newton"'):
        influence_functions(box, *data, solver="ekfac", curvature="hessian")


def test_its_settings(box: ub.Box, data: Any) -> None:
    exact, sampled = (influence_functions(box, *data, solver=Kronecker(fisher=f)).scores for f in ("exact", "sampled"))  # type: ignore[arg-type]
    assert not torch.allclose(exact, sampled)


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.heads, self.scale = nn.Flatten(), nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)]), 1.0

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.body(x) * self.scale
        return self.heads[0](h) + self.heads[1](h), self.heads[0](h) - 2 * self.heads[1](h)


@pytest.mark.parametrize("change", ["normalization", "output", "attribute"])
def test_a_solver_that_is_used_again_sees_what_no_weight_tells(change: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, y = _Two().double(), torch.arange(20) % 3
        x = torch.rand(20, 1, 2, 2, dtype=torch.float64)
    solver = Kronecker("kfac", fisher="exact")

    def scores(box: ub.Box, solver: Kronecker) -> Tensor:
        return influence_functions(box, x[:2], y[:2], (x, y), solver=solver, damping=0.1).scores

    scores(ub.Box(model, ub.Pixels((1, 2, 2)), outputs="logits", output=0), solver)
    inputs = ub.Pixels((1, 2, 2), mean=0.5, std=0.2) if change == "normalization" else ub.Pixels((1, 2, 2))
    model.scale = 3.0 if change == "attribute" else 1.0
    box = ub.Box(model, inputs, outputs="logits", output=int(change == "output"))
    assert torch.equal(scores(box, solver), scores(box, Kronecker("kfac", fisher="exact")))
