"""Sketches of gradients: the same from factors as from the gradients themselves; inner products on average."""

from __future__ import annotations

import pytest
import torch

from unboxed.engine.example_gradients.sketch import Sketch
from unboxed.engine.example_gradients.terms import (
    DenseGradients,
    EmbeddingTableGradients,
    OuterProductGradients,
    PerExampleGradients,
)

G = torch.Generator().manual_seed(0)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


TERMS: dict[str, PerExampleGradients] = {
    "one position": OuterProductGradients(randn(3, 1, 12), randn(3, 1, 20)),
    "positions": OuterProductGradients(randn(3, 4, 12), randn(3, 4, 20)),
    "table": EmbeddingTableGradients(randn(3, 4, 20), torch.randint(12, (3, 4), generator=G), 12),
    "dense": DenseGradients(randn(3, 240)),
}


@pytest.mark.parametrize("dim", [7, 16, 33, 500])
@pytest.mark.parametrize("name", TERMS)
def test_factors_and_gradients_have_one_sketch(name: str, dim: int) -> None:
    sketch = Sketch({"w": torch.zeros(12, 20)}, dim, seed=3)
    expected = sketch({"w": DenseGradients(TERMS[name].rows())})
    assert torch.allclose(sketch({"w": TERMS[name]}), expected, rtol=0, atol=1e-12)


def test_it_is_linear_with_signs_of_each_parameter() -> None:
    """Its matrix has one entry of 1 or -1 per parameter."""
    sketch = Sketch({"w": torch.zeros(4, 3, 2), "b": torch.zeros(4)}, 50)
    matrix = sketch({"w": DenseGradients(torch.eye(28)[:, :24]), "b": DenseGradients(torch.eye(28)[:, 24:])})
    assert torch.equal(matrix.abs().sum(1), torch.ones(28))
    assert set(matrix.unique().tolist()) == {-1.0, 0.0, 1.0}


def test_inner_products_are_kept_on_average() -> None:
    g = torch.cat([t.rows() for t in TERMS.values()])
    exact, n = g @ g.T, 200
    sketches = [Sketch({"w": torch.zeros(12, 20)}, 64, seed=k)({"w": DenseGradients(g)}) for k in range(n)]
    estimates = torch.stack([s @ s.T for s in sketches])
    scale = g.norm(dim=1)[:, None] * g.norm(dim=1) / 8  # / sqrt(dim)
    assert ((estimates.mean(0) - exact).abs() < 4 * scale * (3 / n) ** 0.5).all()
    assert (estimates.std(0) < 3 * scale).all()


def test_the_seed_decides() -> None:
    one, two, other = (Sketch({"w": torch.zeros(12, 20)}, 16, seed=k) for k in (1, 1, 2))
    assert torch.equal(one({"w": TERMS["dense"]}), two({"w": TERMS["dense"]}))
    assert not torch.equal(one({"w": TERMS["dense"]}), other({"w": TERMS["dense"]}))
