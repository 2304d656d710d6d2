"""The four figures that compare maps against scipy's, scikit-image's and literal ones, and at their edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, rankdata, spearmanr
from skimage.feature import hog as sk_hog
from skimage.metrics import structural_similarity
from torch import Tensor

from unboxed.checks import map_similarity
from unboxed.checks.similarity import (
    MapSimilarity,
    hog,
    map_magnitudes,
    rescale_to_unit_range,
    ssim,
)
from unboxed.engine.rank_correlation import pearson, ranks, spearman
from unboxed.errors import InputError


def draw(*shape: int, seed: int = 0, tied: bool = False) -> Tensor:
    h = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (2 * h).round() if tied else h


def literal_ranks(row: list[float]) -> list[float]:
    """1 + how many are smaller, and for equal ones the mean of the ranks that they take together."""
    return [sum(v < u for v in row) + (sum(v == u for v in row) + 1) / 2 for u in row]


def literal_spearman(a: list[float], b: list[float]) -> float:
    """The covariance of ranks over the product of their standard deviations."""
    ra, rb = literal_ranks(a), literal_ranks(b)
    ma, mb = sum(ra) / len(ra), sum(rb) / len(rb)
    cov = sum((u - ma) * (v - mb) for u, v in zip(ra, rb, strict=True))
    return cov / math.sqrt(sum((u - ma) ** 2 for u in ra) * sum((v - mb) ** 2 for v in rb))


@pytest.mark.parametrize("tied", [False, True])
def test_ranks_and_spearman_are_the_literal_ones_and_scipys(tied: bool) -> None:
    a, b = draw(4, 2, 5, 5, tied=tied), draw(4, 2, 5, 5, seed=1, tied=tied)
    b = b + a
    assert ranks(a).tolist() == [literal_ranks(r) for r in a.flatten(1).tolist()]
    assert ranks(a).tolist() == [rankdata(r).tolist() for r in a.flatten(1).numpy()]
    pairs = list(zip(a.flatten(1), b.flatten(1), strict=True))
    want = [literal_spearman(p.tolist(), q.tolist()) for p, q in pairs]
    assert spearman(a, b).tolist() == pytest.approx(want, abs=1e-12)
    assert spearman(a, b).tolist() == pytest.approx([spearmanr(p, q)[0] for p, q in pairs], abs=1e-12)
    assert all(0.2 < v < 0.95 for v in want)


def test_ssim_is_scikit_images_with_the_papers_window() -> None:
    for size in ((28, 28), (11, 30)):
        a, b = alike(size)
        said = {"data_range": 1, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        want = [structural_similarity(p, q, **said) for p, q in zip(a.numpy(), b.numpy(), strict=True)]
        assert ssim(a, b).tolist() == pytest.approx(want, abs=1e-10)


def alike(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    a, b = draw(3, *size).sigmoid(), draw(3, *size, seed=1).sigmoid()
    return a, 0.6 * a + 0.4 * b


def literal_ssim(p: np.ndarray, q: np.ndarray) -> float:
    """Equation 13 in every window that is within the image, then the mean."""
    radius = min(5, (min(p.shape) - 1) // 2)
    at = np.arange(-radius, radius + 1)
    w = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    w, side = w / w.sum(), 2 * radius + 1
    places = [(i, j) for i in range(p.shape[0] - side + 1) for j in range(p.shape[1] - side + 1)]
    cuts = [(p[i : i + side, j : j + side], q[i : i + side, j : j + side]) for i, j in places]
    return float(np.mean([equation_13(w, u, v) for u, v in cuts]))


def equation_13(w: np.ndarray, p: np.ndarray, q: np.ndarray) -> float:
    mp, mq = (w * p).sum(), (w * q).sum()
    vp, vq, cov = (w * (p - mp) ** 2).sum(), (w * (q - mq) ** 2).sum(), (w * (p - mp) * (q - mq)).sum()
    c1, c2 = 0.01**2, 0.03**2
    return float((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))


@pytest.mark.parametrize("size", [(14, 12), (8, 8), (3, 4)])
def test_ssim_is_the_literal_one_in_small_images_too(size: tuple[int, int]) -> None:
    a, b = alike(size)
    want = [literal_ssim(p, q) for p, q in zip(a.numpy(), b.numpy(), strict=True)]
    assert ssim(a, b).tolist() == pytest.approx(want, abs=1e-12)
    assert all(0.2 < v < 0.98 for v in want)


@pytest.mark.parametrize(("size", "cell"), [((28, 28), 4), ((8, 8), 2), ((60, 40), 5), ((224, 224), 16)])
def test_hog_is_the_correlation_of_scikit_images_features(size: tuple[int, int], cell: int) -> None:
    a, b = draw(2, *size).abs(), draw(2, *size, seed=1).abs()
    b = b + a
    fa, fb = ([sk_hog(i, 9, (cell, cell), (3, 3)) for i in h.numpy()] for h in (a, b))
    assert hog(a, b).tolist() == pytest.approx([pearsonr(p, q)[0] for p, q in zip(fa, fb, strict=True)], abs=1e-10)


def test_colors_are_compared_by_position_and_all_figures_follow() -> None:
    a, b = draw(3, 3, 12, 12), draw(3, 3, 12, 12, seed=1)
    found = map_similarity(a, b)
    assert torch.allclose(found.signed, spearman(a.sum(1), b.sum(1)))
    assert torch.allclose(found.absolute, spearman(a.abs().sum(1), b.abs().sum(1)))
    pa, pb = rescale_to_unit_range(map_magnitudes(a)), rescale_to_unit_range(map_magnitudes(b))
    assert (float(pa.min()), float(pa.max())) == (0, 1)
    assert torch.equal(found.ssim, ssim(pa, pb))
    assert torch.equal(found.hog, hog(pa, pb))
    one = map_similarity(a, b.mean(1, keepdim=True))  # a map of one channel stands beside one of three
    assert torch.allclose(one.signed, found.signed)


def test_a_map_is_like_itself_and_like_no_other_sign() -> None:
    a = draw(2, 1, 28, 28)
    same, turned = map_similarity(a, 3 * a), map_similarity(a, -a)
    for figure in ("signed", "absolute", "ssim", "hog"):
        assert getattr(same, figure).tolist() == pytest.approx([1, 1])
    assert turned.signed.tolist() == pytest.approx([-1, -1])
    assert turned.absolute.tolist() == pytest.approx([1, 1])


def test_each_row_is_by_itself() -> None:
    a, b = draw(5, 1, 9, 9, tied=True), draw(5, 1, 9, 9, seed=3, tied=True)
    whole = map_similarity(a, b)
    for i in range(5):
        one = map_similarity(a[i : i + 1], b[i : i + 1])
        for figure, value in vars(one).items():
            assert float(value) == pytest.approx(float(getattr(whole, figure)[i]), abs=1e-12)


def figures(s: MapSimilarity, row: int) -> list[bool]:
    return [bool(getattr(s, f)[row].isnan()) for f in ("signed", "absolute", "ssim", "hog")]


def test_maps_without_a_pattern_have_no_figures_and_no_map_is_refused() -> None:
    a = draw(5, 1, 14, 14)
    b = a.clone()
    b[0], b[1], b[2], b[3, 0, 2, 2] = 0, 0.1, a[2].sign(), torch.nan
    found = map_similarity(a, b)
    assert figures(found, 0) == figures(found, 1) == figures(found, 3) == [True] * 4
    assert figures(found, 2) == [False, True, True, True]  # signs alone: their magnitudes are the same everywhere
    assert figures(found, 4) == [False] * 4
    assert float(found.mean()["hog"]) == pytest.approx(1)
    rows = map_similarity(draw(2, 6), draw(2, 6, seed=1))  # a table's rows rank, but are no images
    assert figures(rows, 0) == [False, False, True, True]
    assert figures(map_similarity(draw(1, 1, 2, 2), draw(1, 1, 2, 2, seed=1)), 0) == [False, False, True, True]
    assert math.isnan(float(pearson(torch.ones(1, 3), draw(1, 3))))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 5)),
        (torch.zeros(2, 1, 4, 4), torch.zeros(3, 1, 4, 4)),
        (torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 4)),
        (torch.zeros(4), torch.zeros(4)),
        ("map", torch.zeros(4)),
    ],
)
def test_what_are_no_two_maps_is_refused(a: Tensor, b: Tensor) -> None:
    with pytest.raises(InputError, match=r"map"):
        map_similarity(a, b)
