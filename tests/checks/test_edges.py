"""Edge control: an edge detector is found out, and what has nothing to do with edges is cleared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from skimage.filters import sobel as sk_sobel
from torch import nn

import awkward
from models import digits
from unboxed import Box, Features, attribution, checks
from unboxed.checks.edges import sobel
from unboxed.errors import InputError


def literal_sobel(image: np.ndarray) -> np.ndarray:
    """Both 3 x 3 kernels over the reflected border, and the root of their mean square."""
    padded = np.pad(image, 1, mode="symmetric")
    kernel = np.outer([1, 2, 1], [1, 0, -1]) / 4
    out = np.empty_like(image)
    for i, j in np.ndindex(image.shape):
        cut = padded[i : i + 3, j : j + 3]
        out[i, j] = np.sqrt(((cut * kernel).sum() ** 2 + (cut * kernel.T).sum() ** 2) / 2)
    return out


def test_edges_are_scikit_images_and_the_literal_ones() -> None:
    x = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for image, found in zip(x.mean(1).numpy(), sobel(x)[:, 0].numpy(), strict=True):
        for want in (sk_sobel(image), literal_sobel(image)):
            stretched = (want - want.min()) / (want.max() - want.min())
            assert found == pytest.approx(stretched, abs=1e-9)


def test_an_edge_detector_is_explained_by_edges_altogether() -> None:
    box, x = digits(4)
    found = checks.edge_control(box, x, lambda box, x, target: -3 * sobel(x))
    for figure in (found.map.absolute, found.map.ssim, found.map.hog):
        assert figure.tolist() == pytest.approx([1] * 4)
    assert found.mean()["absolute"] == pytest.approx(1)
    assert found.mean()["gradient_ssim"] < 0.3


def test_figures_are_of_magnitudes_next_to_the_gradients() -> None:
    box, x = digits(5)
    found = checks.edge_control(box, x, attribution.guided_backprop, 3)
    m, g = (method(box, x, 3).abs() for method in (attribution.guided_backprop, attribution.gradient))
    for i in range(5):
        edges = sk_sobel(x[i, 0].double().numpy()).ravel()
        assert float(found.map.absolute[i]) == pytest.approx(spearmanr(m[i].ravel(), edges)[0], abs=1e-6)
        assert float(found.gradient.absolute[i]) == pytest.approx(spearmanr(g[i].ravel(), edges)[0], abs=1e-6)
    same = checks.edge_control(box, x, attribution.gradient, 3)
    assert torch.equal(same.map.ssim, same.gradient.ssim)
    assert found.edges.shape == (5, 1, 28, 28)


def test_colors_and_unrelated_maps() -> None:
    torch.manual_seed(0)
    box = Box(awkward.PlainCNN(channels=3), awkward.COLOR_INPUTS)
    x = torch.rand(3, 3, 8, 8)
    noise = torch.randn(3, 3, 8, 8)
    found = checks.edge_control(box, x, lambda box, x, target: noise)
    assert found.map.absolute.abs().max() < 0.4
    blank = checks.edge_control(box, torch.full((1, 3, 8, 8), 0.5), attribution.gradient)
    assert blank.map.absolute.isnan().all()  # an image without edges


def test_only_images_have_edges() -> None:
    table = Box(nn.Linear(4, 3), Features(tuple("abcd")))
    method: Any = attribution.gradient
    with pytest.raises(InputError, match="edge control needs a model that takes images"):
        checks.edge_control(table, torch.randn(2, 4), method)
