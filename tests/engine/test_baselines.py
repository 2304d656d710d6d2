"""The blur that is a baseline, against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from unboxed.engine.perturb import baselines
from unboxed.engine.perturb.baselines import gaussian_blur


@pytest.mark.parametrize("longest_matrix", [2048, 10])  # by matrices, and by convolution
@pytest.mark.parametrize(("shape", "sigma"), [((2, 3, 12, 20), 1.2), ((1, 1, 9, 9), 0.4), ((3, 2, 5, 40), 8.0)])
def test_gaussian_blur_is_scipys(
    shape: tuple[int, ...], sigma: float, longest_matrix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "MAX_BLUR_MATRIX_SIDE", longest_matrix)
    x = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    radius = max(1, int(np.ceil(3 * sigma)))
    wanted = gaussian_filter(x.numpy(), sigma, mode="nearest", radius=radius, axes=(-2, -1))
    assert np.allclose(gaussian_blur(x, sigma).numpy(), wanted, atol=1e-12)
