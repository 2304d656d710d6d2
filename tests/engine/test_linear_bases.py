"""Principal axes and k-means: the same as scikit-learn's, and what their settings leave out."""

from __future__ import annotations

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor

from unboxed.engine.linear.clusters import cluster_rows, k_means
from unboxed.engine.linear.principal import PrincipalBasis


def rows(n: int, d: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * (1 + torch.arange(d)) + 3


@pytest.mark.parametrize(("n", "d"), [(50, 6), (6, 50)])
def test_axes_are_those_of_a_peer(n: int, d: int) -> None:
    h = rows(n, d)
    basis = PrincipalBasis.fit(h, 3, standardize=False)
    peer = torch.as_tensor(PCA(3).fit(h.numpy()).components_)
    cosines = (basis.axes.flip(1).T * peer).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(basis.axes.T @ basis.axes, torch.eye(3, dtype=torch.float64))


def test_all_axes_with_variance_are_kept() -> None:
    h = rows(30, 4)
    h = torch.cat([h, h[:, :1]], 1)  # of rank 4
    assert [PrincipalBasis.fit(h, n).axes.shape[1] for n in (None, 9, 4, 2)] == [4, 4, 4, 2]


def test_several_starts_find_the_tightest_clusters() -> None:
    h = torch.cat([0.1 * rows(40, 3, seed) + 9 * torch.eye(3)[seed % 3] * (1 + seed // 3) for seed in range(6)])
    spreads = [k_means(h, 6, 0, n_starts=n).spread for n in (1, 3, 10)]
    assert spreads == sorted(spreads, reverse=True)
    found = k_means(h, 6, 0, n_starts=10)
    assert found.spread == pytest.approx(KMeans(6, n_init=10, random_state=0).fit(h.numpy()).inertia_, rel=1e-3)
    for j in range(6):
        torch.testing.assert_close(found.centers[j], h[found.labels == j].mean(0))
    assert torch.equal(cluster_rows(h, 6), k_means(h, 6).labels)
