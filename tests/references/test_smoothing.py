"""CERTIFY and PREDICT of Cohen et al. 2019 (arXiv:1902.02918, section 3.2), written out sample by sample."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binom
from torch import Tensor

import unboxed as ub
from contracts.common import MethodCase, make_case
from unboxed.rng import sample_generator

K = 4


def sample_under_noise(c: MethodCase, row: int, sigma: float, draws: range, seed: int) -> list[int]:
    """SampleUnderNoise: counts of f(x + N(0, sigma^2 I)), one model call a sample."""
    counts = [0] * K
    for d in draws:
        e = torch.randn(c.x.shape[1:], generator=sample_generator(seed, row, d, torch.device("cpu")), dtype=c.x.dtype)
        z = (c.x[row] + sigma * e)[None]
        counts[int(c.box.model(c.box.inputs.encode(z)).argmax())] += 1
    return counts


def lower_conf_bound(k: int, n: int, alpha: float) -> float:
    """The p at which k or more of n are as rare as alpha, by bisection of the binomial tail."""
    low, high = 0.0, 1.0
    for _ in range(80):
        p = (low + high) / 2
        low, high = (p, high) if binom.sf(k - 1, n, p) < alpha else (low, p)
    return low


def normal_quantile(p: float) -> float:
    low, high = -40.0, 40.0
    for _ in range(100):
        z = (low + high) / 2
        low, high = (z, high) if 0.5 * math.erfc(-z / math.sqrt(2)) < p else (low, z)
    return low


def certify(c: MethodCase, row: int, sigma: float, n0: int, n: int, alpha: float, seed: int) -> tuple[int, float]:
    first = sample_under_noise(c, row, sigma, range(n0), seed)
    top = first.index(max(first))
    hits = sample_under_noise(c, row, sigma, range(n0, n0 + n), seed)[top]
    p = lower_conf_bound(hits, n, alpha) if hits else 0.0
    return (top, sigma * normal_quantile(p)) if p > 0.5 else (-1, 0.0)


def predict(c: MethodCase, row: int, sigma: float, n: int, alpha: float, seed: int) -> int:
    counts = sample_under_noise(c, row, sigma, range(n), seed)
    (a, top), (b, _) = sorted(((k, -i) for i, k in enumerate(counts)), reverse=True)[:2]
    tail = sum(math.comb(a + b, j) for j in range(a, a + b + 1)) / 2 ** (a + b)
    return -top if min(1.0, 2 * tail) <= alpha else -1


@pytest.mark.parametrize("sigma", [0.05, 0.4])
@pytest.mark.parametrize("size", ["auto", 7])
def test_certify(sigma: float, size: int | str) -> None:
    c = make_case("plain", torch.float64, n=6)
    made = ub.robustness.smoothed(c.box, c.x, sigma, n0=9, n=60, alpha=0.02, seed=5, batch_size=size)
    want = [certify(c, i, sigma, 9, 60, 0.02, 5) for i in range(6)]
    assert made.classes.tolist() == [k for k, _ in want]
    assert torch.allclose(made.radius, torch.tensor([r for _, r in want], dtype=torch.float64), atol=1e-9)
    assert len({k for k, _ in want}) > 1


@pytest.mark.parametrize("sigma", [0.05, 0.4])
def test_predict(sigma: float) -> None:
    c = make_case("plain", torch.float64, n=6)
    got: Tensor = ub.robustness.smoothed_predict(c.box, c.x, sigma, n=40, alpha=0.01, seed=5)
    assert got.tolist() == [predict(c, i, sigma, 40, 0.01, 5) for i in range(6)]


def test_the_twin_distinguishes_abstaining_from_predictions() -> None:
    c = make_case("plain", torch.float64, n=6)
    verdicts = [predict(c, i, 0.4, 40, 0.01, 5) for i in range(6)]
    assert -1 in verdicts
    assert max(verdicts) >= 0
