"""MMD-critic, written from the paper's equations (Kim, Khanna & Koyejo 2016), beside the fast one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unboxed.concepts.prototypes import (
    greedy_criticisms,
    greedy_prototypes,
    median_bandwidth,
    rbf_kernel,
    squared_mmd,
    witness,
)


def j_b(k: Tensor, chosen: list[int]) -> float:
    """Equation 4: 2 / (n |S|) sum k(x_i, y_j) - 1 / |S|^2 sum k(y_i, y_j)."""
    n, m = len(k), len(chosen)
    first = sum(float(k[i, j]) for i in range(n) for j in chosen)
    second = sum(float(k[i, j]) for i in chosen for j in chosen)
    return 2 / (n * m) * first - second / m**2


def literal_prototypes(k: Tensor, n: int) -> list[int]:
    chosen: list[int] = []
    for _ in range(n):
        rest = [j for j in range(len(k)) if j not in chosen]
        chosen.append(max(rest, key=lambda j: j_b(k, [*chosen, j])))
    return chosen


def literal_witness(k: Tensor, chosen: list[int], i: int) -> float:
    """Equation 3, the empirical witness function at x_i."""
    return sum(float(v) for v in k[i]) / len(k) - sum(float(k[i, j]) for j in chosen) / len(chosen)


def literal_criticisms(k: Tensor, prototypes: list[int], n: int) -> list[int]:
    """Greedy maximization of the sum of |witness| plus log det K[C, C]."""
    chosen: list[int] = []

    def value(c: list[int]) -> float:
        return sum(abs(literal_witness(k, prototypes, i)) for i in c) + math.log(float(torch.det(k[c][:, c])))

    for _ in range(n):
        rest = [j for j in range(len(k)) if j not in chosen and j not in prototypes]
        chosen.append(max(rest, key=lambda j: value([*chosen, j])))
    return chosen


@pytest.mark.parametrize("seed", range(4))
def test_prototypes_and_criticisms_are_the_papers(seed: int) -> None:
    h = torch.randn(25, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    k = rbf_kernel(h, median_bandwidth(h))
    expected = literal_prototypes(k, 5)
    assert greedy_prototypes(k, 5).tolist() == expected
    assert greedy_criticisms(k, torch.tensor(expected), 4).tolist() == literal_criticisms(k, expected, 4)
    values = [literal_witness(k, expected, i) for i in range(25)]
    torch.testing.assert_close(witness(k, torch.tensor(expected)), torch.tensor(values, dtype=torch.float64))


def test_the_kernel_and_its_bandwidth() -> None:
    h = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    assert median_bandwidth(h) == 1 / 4  # squared distances 1, 4, 9
    assert rbf_kernel(h, 0.25)[0, 2].item() == pytest.approx(math.exp(-9 / 4))


def test_the_mmd_is_zero_for_all_examples() -> None:
    h = torch.randn(9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    k = rbf_kernel(h, 1.0)
    assert squared_mmd(k, torch.arange(9)) == pytest.approx(0, abs=1e-12)
    assert squared_mmd(k, torch.tensor([0])) == pytest.approx(float(k.mean() - 2 * k[0].mean() + 1))


def test_the_same_example_is_no_criticism_twice() -> None:
    h = torch.tensor([[0.0], [5.0], [5.0], [5.0]], dtype=torch.float64)
    k = rbf_kernel(h, 1.0)
    assert len(greedy_criticisms(k, torch.tensor([0]), 3)) == 1
