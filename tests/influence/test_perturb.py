"""Influence of the pixels of a training example: its score and map are those of the solver, parameter by parameter."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import unboxed as ub
from unboxed.influence import influence_functions, perturb
from unboxed.influence._inverse import CurvatureSettings

pytestmark = pytest.mark.filterwarnings("ignore:scores of up to")
ROWS = [1, 2, 3]


@pytest.mark.parametrize("solver", ["cg", "exact", "ekfac", "kfac", "diagonal"])
def test_score_and_map_of_every_solver(solver: str) -> None:
    """Of a model whose parameters a solver groups by kind of layer, and two of which have one shape."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3)).double()
    box = ub.Box(model, ub.Features(tuple("abcde")), outputs="logits")
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 3
    found = perturb(box, x[:3], y[:3], (x, y), ROWS, damping=0.5, solver=solver)
    scores = influence_functions(box, x[:3], y[:3], (x, y), damping=0.5, solver=solver).scores
    torch.testing.assert_close(found.score, scores[range(3), ROWS].to(found.score.dtype), rtol=1e-5, atol=1e-9)

    inverse = CurvatureSettings(solver, "gauss_newton", 0.5, 0.0, None, None, "auto", 0).inverse(box, (x, y))
    solved = inverse.solve_for_loss_gradients(x[:3], y[:3])
    for q, i in enumerate(ROWS):
        example = x[i, None].clone().requires_grad_()
        loss = cross_entropy(model(example), y[i, None])
        grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        names = [name for name, _ in model.named_parameters()]
        products = [(g * solved[name][q]).sum() for name, g in zip(names, grads, strict=True)]
        want = -torch.autograd.grad(torch.stack(products).sum(), example)[0] / len(x)
        torch.testing.assert_close(found.map[q].double().flatten(), want.flatten(), rtol=1e-5, atol=1e-9)
