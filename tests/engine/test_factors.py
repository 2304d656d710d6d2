"""Factors of features: planted ones are found, and non-negative least squares is the slow method's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

from unboxed.engine.linear.factors import fit_factors, nonnegative_least_squares
from unboxed.engine.linear.sparse_autoencoder import matched_cosines
from unboxed.errors import InputError


def planted(n: int = 1000, k: int = 5, d: int = 20) -> tuple[Tensor, Tensor]:
    """Directions (K, D) and rows that are few of them each, none negative."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.rand(k, d, generator=generator, dtype=torch.float64) ** 4
    amounts = torch.rand(n, k, generator=generator, dtype=torch.float64)
    amounts = amounts * (torch.rand(n, k, generator=generator) < 0.15)
    return directions, amounts @ directions


@pytest.mark.parametrize(("kind", "least"), [("nmf", 0.99), ("ica", 0.9), ("pca", 0.0)])
def test_planted_directions_are_found(kind: str, least: float) -> None:
    directions, h = planted()
    found = fit_factors(h, kind, 5, 0)  # type: ignore[arg-type]
    assert float(matched_cosines(directions, found.directions, signed=False).min()) >= least
    torch.testing.assert_close(found.decode(found.encode(h)), h, rtol=0, atol=0.02)
    again = fit_factors(h, kind, 5, 0)  # type: ignore[arg-type]
    assert torch.equal(found.directions, again.directions)


def test_rare_large_amounts_are_above_zero() -> None:
    _, h = planted()
    for kind in ("ica", "pca"):
        amounts = fit_factors(-h, kind, 4, 0).encode(-h)  # type: ignore[arg-type]
        assert ((amounts - amounts.mean(0)) ** 3).sum(0).min() > 0


@pytest.mark.parametrize("k", [1, 6, 30])  # more than the dimensions, too
def test_nonnegative_least_squares_is_the_slow_one(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    directions = torch.rand(k, 20, generator=generator, dtype=torch.float64)
    h = torch.rand(8, 20, generator=generator, dtype=torch.float64)
    found = nonnegative_least_squares(h, directions, 3000)
    slow = torch.as_tensor(np.array([nnls(directions.T.numpy(), row)[0] for row in h.numpy()]))
    assert float(found.min()) >= 0
    torch.testing.assert_close(found @ directions, slow @ directions, rtol=0, atol=1e-4)
    parts = torch.cat([nonnegative_least_squares(h[i : i + 1], directions, 3000) for i in range(8)])
    torch.testing.assert_close(parts, found)  # each row by itself


def test_what_the_data_do_not_allow() -> None:
    _, h = planted()
    with pytest.raises(InputError, match="'ica' and 'pca' take them"):
        fit_factors(h - 0.1, "nmf", 3, 0)
    with pytest.raises(InputError, match="9 directions are more than the 8 rows"):
        fit_factors(h[:8], "nmf", 9, 0)
    with pytest.raises(InputError, match="more than the 5 in which"):
        fit_factors(h, "pca", 6, 0)
