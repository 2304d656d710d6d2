"""TRAK against its formula with an explicit projection matrix, and the influence function of a logistic regression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.engine.example_gradients.gradients import ExampleGradients
from unboxed.engine.example_gradients.kronecker import fit_fisher
from unboxed.engine.example_gradients.sketch import Sketch
from unboxed.engine.example_gradients.terms import DenseGradients
from unboxed.errors import DataError, InputError, ModelError, OutputError
from unboxed.influence import trak
from unboxed.rng import derive_seed

N, D, K = 40, 4, 3


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y = rand(N, D), torch.arange(N) % K
QUERIES, LABELS = rand(2, D, seed=2), torch.tensor([0, 2])


def make_box(seed: int = 0, n_outputs: int = K, outputs: str = "logits") -> ub.Box:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, n_outputs)).double()
    return ub.Box(model, ub.Features(tuple("abcd")), outputs=outputs)  # type: ignore[arg-type]


def projection_matrix(gradients: ExampleGradients, dim: int, seed: int, index: int) -> Tensor:
    """(P, dim): what becomes of each unit vector."""
    sketch, n = Sketch(gradients.parameters, dim, derive_seed("trak", seed, index)), gradients.n_parameters
    parts = torch.eye(n, dtype=torch.float64).split([p.numel() for p in gradients.parameters.values()], 1)
    return sketch({name: DenseGradients(part) for name, part in zip(gradients.parameters, parts, strict=True)})


def margin_gradient(box: ub.Box, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient (P,) of log(p / (1 - p)) of the class of one example, and p."""
    parameters = [*box.model.parameters()]
    p = box.model(x[None]).softmax(1)[0, y]
    grads = torch.autograd.grad((p / (1 - p)).log(), parameters)
    return torch.cat([g.flatten() for g in grads]), p.detach()


def literal_trak(boxes: list[ub.Box], dim: int, seed: int) -> Tensor:
    """Park et al. 2023, section 3, model by model and pair by pair; times 1 - p of the query."""
    kernels, ones_less_p, query_slopes = list[Tensor](), list[Tensor](), list[Tensor]()
    for index, box in enumerate(boxes):
        found = [margin_gradient(box, x, y) for x, y in zip(X, Y, strict=True)]
        asked = [margin_gradient(box, x, y) for x, y in zip(QUERIES, LABELS, strict=True)]
        p = projection_matrix(ExampleGradients(box), dim, seed, index)
        phi = torch.stack([p.T @ g for g, _ in found])
        inverse = torch.linalg.pinv(phi.T @ phi)  # a count sketch may leave a dimension empty
        kernels.append(torch.stack([torch.stack([(p.T @ g) @ inverse @ row for row in phi]) for g, _ in asked]))
        ones_less_p.append(torch.stack([1 - q for _, q in found]))
        query_slopes.append(torch.stack([1 - q for _, q in asked]))
    scores = torch.stack(kernels).mean(0) * torch.stack(ones_less_p).mean(0)
    return scores * torch.stack(query_slopes).mean(0)[:, None]


@pytest.mark.parametrize("n_models", [1, 3])
def test_it_is_the_papers_formula(n_models: int) -> None:
    boxes = [make_box(seed) for seed in range(n_models)]
    result = trak(boxes[0], QUERIES, LABELS, (X, Y), models=[b.model.state_dict() for b in boxes], dim=10, seed=5)
    torch.testing.assert_close(result.scores, literal_trak(boxes, 10, 5), rtol=1e-9, atol=1e-12)
    assert (result.truth, result.unit) == ("mean over seeds", "nats per example left out, up to a factor")
    assert result.settings == {"models": n_models, "dim": 10, "reweighted": False}


def test_without_models_it_is_the_box() -> None:
    box = make_box()
    alone = trak(box, QUERIES, LABELS, (X, Y), dim=10)
    assert torch.equal(alone.scores, trak(box, QUERIES, LABELS, (X, Y), dim=10, models=[box.model.state_dict()]).scores)
    assert not torch.equal(alone.scores, trak(box, QUERIES, LABELS, (X, Y), dim=10, seed=1).scores)


def test_of_a_logistic_regression_it_is_the_influence_function() -> None:
    """Margins are linear in the parameters: the Newton step of leaving out, in nats, sign included."""
    model = nn.Sequential(nn.Linear(D, 1)).double()
    box = ub.Box(model, ub.Features(tuple("abcd")), outputs="binary")
    y, labels = torch.arange(N) % 2, torch.tensor([0, 1])
    result = trak(box, QUERIES, labels, (X, y), reweighted=True)
    gradients = ExampleGradients(box)
    hessian = fit_fisher(gradients, X, y, approximation="dense", fisher="exact")
    solved = hessian.solve(gradients.unflatten(gradients.matrix(QUERIES, labels)), damping=0.0)
    torch.testing.assert_close(result.scores, gradients.project(solved, X, y) / N, rtol=1e-8, atol=1e-12)
    assert result.unit == "nats per example left out"


def test_a_copy_of_a_query_in_the_training_data_helps_it_most() -> None:
    result = trak(make_box(), X[:3], Y[:3], (X, Y), dim=30)
    assert result.top(1)[:, 0].tolist() == [0, 1, 2]


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "another architecture": (
        lambda: trak(make_box(), QUERIES, LABELS, (X, Y), models=[make_box(n_outputs=5).model.state_dict()]),
        ModelError, "checkpoint 0 is one of another"),
    "no models": (lambda: trak(make_box(), QUERIES, LABELS, (X, Y), models=[]), InputError, "at least one"),
    "no labels": (lambda: trak(make_box(), QUERIES, LABELS, X), DataError, "no labels"),
    "regression": (
        lambda: trak(make_box(outputs="regression"), QUERIES, None, (X, Y)), OutputError, "trak"),
    "many labels": (
        lambda: trak(make_box(outputs="multilabel"), QUERIES, None, (X, Y)), OutputError, "trak"),
    "dimensions": (lambda: trak(make_box(), QUERIES, LABELS, (X, Y), dim=0), InputError, "dim must be"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    run, error, message = BAD[name]
    with pytest.raises(error, match=message):
        run()
