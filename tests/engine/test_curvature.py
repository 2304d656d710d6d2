"""Products of the Hessian and of the Gauss-Newton matrix equal torch's own full matrices, in double precision."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import unboxed as ub
from unboxed.engine.example_gradients.curvature import Curvature
from unboxed.engine.example_gradients.gradients import ExampleGradients
from unboxed.engine.example_gradients.spectrum import lanczos, mean_eigenvalue
from unboxed.errors import OutputError
from unboxed.testing.cases import make_case

Kind = Literal["hessian", "gauss_newton"]


def small(n: int = 9) -> tuple[ub.Box, Tensor, Tensor]:
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 3, 3)
    model = nn.Sequential(conv, nn.BatchNorm2d(3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4))
    box = ub.Box(model.double(), ub.Pixels((1, 6, 6)))
    return box, torch.rand(n, 1, 6, 6, dtype=torch.float64), torch.arange(n) % 4


def full_matrix(gradients: ExampleGradients, x: Tensor, y: Tensor, kind: Kind) -> Tensor:
    """(P, P), by torch.autograd.functional, row by row."""
    model, flat = gradients.box.model.eval(), torch.cat([p.flatten() for p in gradients.parameters.values()])

    def outputs(vector: Tensor) -> Tensor:
        parts = {n: p[0] for n, p in gradients.unflatten(vector[None]).items()}
        return functional_call(model, parts, (x,))

    if kind == "hessian":
        return torch.autograd.functional.hessian(lambda v: nn.functional.cross_entropy(outputs(v), y), flat)
    j = torch.autograd.functional.jacobian(outputs, flat)  # (N, K, P)
    p = outputs(flat).softmax(1)
    s = torch.diag_embed(p) - p[:, :, None] * p[:, None]  # the cross-entropy's Hessian in the logits
    return torch.einsum("nkp,nkl,nlq->pq", j, s, j) / len(x)


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("layers", [None, ["5"]])
def test_products_equal_the_full_matrix(kind: Kind, layers: list[str] | None) -> None:
    box, x, y = small()
    gradients = ExampleGradients(box, layers)
    vectors = torch.randn(70, gradients.n_parameters, dtype=torch.float64)  # more than go through a graph at once
    expected = vectors @ full_matrix(gradients, x, y, kind) + 0.3 * vectors
    for batch_size in ("auto", 2):
        curvature = Curvature(gradients, x, y, kind=kind, l2=0.3, batch_size=batch_size)  # type: ignore[arg-type]
        torch.testing.assert_close(curvature.matvec(vectors), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_the_matrix_is_formed(kind: Kind) -> None:
    box, x, y = small()
    gradients = ExampleGradients(box)
    expected = full_matrix(gradients, x, y, kind) + 0.3 * torch.eye(gradients.n_parameters, dtype=torch.float64)
    for batch_size in ("auto", 2):
        curvature = Curvature(gradients, x, y, kind=kind, l2=0.3, batch_size=batch_size)  # type: ignore[arg-type]
        torch.testing.assert_close(curvature.matrix(), expected, rtol=1e-11, atol=1e-12)


def test_lanczos_finds_the_ends_of_the_spectrum_and_probes_its_mean() -> None:
    box, x, y = small()
    curvature = Curvature(ExampleGradients(box), x, y, l2=0.1)
    values, vectors = torch.linalg.eigh(curvature.matrix())
    ritz = lanczos(curvature, 30)
    torch.testing.assert_close(ritz.values[[0, -1]], values[[0, -1]], rtol=1e-6, atol=1e-9)
    assert ritz.smallest_eigenvalue_bound <= values[0] + 1e-9
    torch.testing.assert_close(
        ritz.vectors @ ritz.vectors.T, torch.eye(len(ritz.values), dtype=torch.float64), atol=1e-10, rtol=0
    )
    torch.testing.assert_close((ritz.vectors[-1] @ vectors[:, -1]).abs(), torch.ones((), dtype=torch.float64))
    full = lanczos(curvature, 10_000)  # stops where the space is exhausted: an eigenvalue is found once
    assert (full.values[:, None] - values).abs().amin(1).max() < 1e-9
    assert (full.values - values[:, None]).abs().amin(1).max() < 1e-9
    assert mean_eigenvalue(curvature, 2000) == pytest.approx(float(values.mean()) - 0.1, rel=0.1)


def test_gauss_newton_is_the_hessian_of_a_linear_model() -> None:
    torch.manual_seed(0)
    box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double(), ub.Pixels((1, 6, 6)))
    x, y = torch.rand(5, 1, 6, 6, dtype=torch.float64), torch.arange(5) % 3
    gradients = ExampleGradients(box)
    v = torch.randn(2, gradients.n_parameters, dtype=torch.float64)
    a, b = (Curvature(gradients, x, y, kind=kind).matvec(v) for kind in ("hessian", "gauss_newton"))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_subset_is_the_curvature_of_its_examples() -> None:
    box, x, y = small()
    gradients = ExampleGradients(box)
    whole, v = Curvature(gradients, x, y, l2=0.1), torch.randn(1, gradients.n_parameters, dtype=torch.float64)
    parts = [whole.subset(torch.arange(9) % 3 == k, l2=0).matvec(v) for k in range(3)]
    torch.testing.assert_close(sum(parts) / 3 + 0.1 * v, whole.matvec(v), rtol=1e-12, atol=1e-14)


class NoBatchingRule(torch.autograd.Function):
    """A square whose backward cannot run under vmap."""

    @staticmethod
    def forward(ctx: object, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)  # type: ignore[attr-defined]
        return h * h

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        (h,) = ctx.saved_tensors  # type: ignore[attr-defined]
        if not bool((grad == grad).all()):  # a value is read
            raise ValueError
        return 2 * h * grad


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_ops_without_a_batching_rule_go_one_by_one(kind: Kind) -> None:
    class Net(nn.Module):
        def __init__(self, square: object) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.square = nn.Linear(36, 3), nn.Linear(3, 3), square

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.square(self.a(x.flatten(1))))  # type: ignore[operator]

    found = []
    for square in (NoBatchingRule.apply, torch.square):
        box = ub.Box(Net(square).double(), ub.Pixels((1, 6, 6)))
        x, y = (
            torch.rand(4, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
            torch.arange(4) % 3,
        )
        gradients = ExampleGradients(box)
        v = torch.linspace(-1, 1, 2 * gradients.n_parameters, dtype=torch.float64).reshape(2, -1)
        found.append(Curvature(gradients, x, y, kind=kind).matvec(v))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


def test_fused_attention_has_second_derivatives() -> None:
    c = make_case("attention", torch.float64)
    gradients = ExampleGradients(c.box)
    v = torch.ones(1, gradients.n_parameters, dtype=torch.float64)
    found = Curvature(gradients, c.x, c.y).matvec(v)
    eps = 1e-5
    moved = []
    for sign in (1, -1):
        with torch.no_grad():
            for p in c.box.model.parameters():
                p += sign * eps
        moved.append(torch.cat([g.flatten() for g in ExampleGradients(c.box).mean(c.x, c.y).values()]))
        with torch.no_grad():
            for p in c.box.model.parameters():
                p -= sign * eps
    torch.testing.assert_close(found[0], (moved[0] - moved[1]) / (2 * eps), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["batchnorm_without_statistics", "batch_maximum"])
def test_examples_that_depend_on_one_another_are_refused(name: str) -> None:
    c = make_case(name)
    with pytest.raises(OutputError, match="depend on one another"):
        Curvature(ExampleGradients(c.box), c.x, c.y)


def test_a_reentrant_checkpoint_is_refused() -> None:
    c = make_case("checkpointed_reentrant")
    gradients = ExampleGradients(c.box)
    with pytest.raises(OutputError, match="no second derivatives"):
        Curvature(gradients, c.x, c.y).matvec(torch.ones(1, gradients.n_parameters))
