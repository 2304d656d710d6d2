"""Rank correlations against SciPy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from unboxed.engine.rank_correlation import kendall_tau


@pytest.mark.parametrize("n_levels", [3, 1000])  # with many ties, and with none or few
def test_kendall_tau_is_scipys(n_levels: int) -> None:
    random = np.random.default_rng(0)
    for n in (2, 3, 5, 17):
        a, b = (random.integers(n_levels, size=n).tolist() for _ in range(2))
        wanted = stats.kendalltau(a, b).statistic
        assert kendall_tau(a, b) == pytest.approx(wanted, nan_ok=True)


def test_kendall_tau_of_a_constant_is_undefined() -> None:
    assert math.isnan(kendall_tau([1, 1, 1], [1, 2, 3]))
