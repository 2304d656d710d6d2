"""Nearest neighbors against their slow twin, which measures every pair, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch import Tensor

from unboxed.activations import TsneMap
from unboxed.engine.read import neighbors
from unboxed.engine.read.embedding import fit_tsne
from unboxed.engine.read.neighbors import nearest_points

DRAW = torch.Generator().manual_seed(0)


def twin(queries: Tensor, points: Tensor, k: int, metric: str, own: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """Every pair by the definition, in double precision; of equal distances the lower index."""
    rows, far = [], []
    for i, q in enumerate(queries.double()):
        result = []
        for j, p in enumerate(points.double()):
            if own is not None and own[i] == j:
                continue
            d = (q - p).norm() if metric == "euclidean" else 1 - (q @ p) / (q.norm() * p.norm()).clamp_min(1e-300)
            result.append((float(d), j))
        result.sort(key=lambda pair: (round(pair[0], 10), pair[1]))
        rows.append([j for _, j in result[:k]])
        far.append([d for d, _ in result[:k]])
    return torch.tensor(rows), torch.tensor(far, dtype=torch.float64)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("chunk", [None, 1, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_as_the_literal_reference(metric: str, chunk: int | None, dtype: torch.dtype) -> None:
    queries = torch.randn(6, 5, generator=DRAW).to(dtype)
    points = torch.randn(40, 5, generator=DRAW).to(dtype)
    points[3], queries[2] = 0, 0
    got = nearest_points(queries, points, 9, metric=metric, chunk_points=chunk)
    indices, distances = twin(queries, points, 9, metric)
    assert torch.equal(got.indices, indices)
    assert got.distances.dtype == dtype
    assert torch.allclose(got.distances.double(), distances, atol=1e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("chunk", [None, 5])
def test_ties_go_to_the_lower_index(metric: str, chunk: int | None) -> None:
    """On a lattice most distances come several times; each point is left out of its own neighbors."""
    points = torch.randint(1, 3, (60, 4), generator=DRAW).float()
    own = list(range(60))
    got = nearest_points(points, points, 12, metric=metric, chunk_points=chunk, exclude=torch.tensor(own))
    indices, distances = twin(points, points, 12, metric, own)
    if metric == "euclidean":
        assert torch.equal(got.indices, indices)
    assert torch.allclose(got.distances.double(), distances, atol=1e-6)
    assert not (got.indices == torch.arange(60)[:, None]).any()


def test_far_from_zero() -> None:
    """|q|^2 + |p|^2 - 2 q.p cancels there; single-precision distances would be noise."""
    points = (1e6 + torch.randint(0, 9, (80, 6), generator=DRAW)).float()
    got = nearest_points(points[:10], points, 6)
    indices, distances = twin(points[:10], points, 6, "euclidean")
    assert torch.equal(got.indices, indices)
    assert torch.allclose(got.distances.double(), distances)


@pytest.mark.parametrize("block", [64, 1000])
def test_in_small_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(700, 8, generator=DRAW)
    want = nearest_points(points, points, 5)
    monkeypatch.setattr(neighbors, "MAX_BLOCK_VALUES", block)
    got = nearest_points(points, points, 5)
    assert torch.equal(got.indices, want.indices)
    assert torch.allclose(got.distances, want.distances)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_as_scikit_learn(metric: str) -> None:
    points, queries = torch.randn(900, 30, generator=DRAW), torch.randn(50, 30, generator=DRAW)
    peer = NearestNeighbors(n_neighbors=7, algorithm="brute", metric=metric).fit(points.double().numpy())
    distances, indices = peer.kneighbors(queries.double().numpy())
    got = nearest_points(queries, points, 7, metric=metric)
    assert np.array_equal(got.indices.numpy(), indices)
    assert np.allclose(got.distances.numpy(), distances, atol=1e-5)


def test_accuracy_as_scikit_learn() -> None:
    """Leave one out: a vote of the k nearest others."""
    points = torch.randn(80, 2, generator=DRAW, dtype=torch.float64)
    y = (points[:, 0] > 0).long() + (torch.rand(80, generator=DRAW) < 0.2).long()
    right = 0
    for i in range(80):
        others = [j for j in range(80) if j != i]
        peer = KNeighborsClassifier(5).fit(points[others].numpy(), y[others].numpy())
        right += int(peer.predict(points[i : i + 1].numpy())[0] == y[i])
    made = TsneMap("input", points, fit_tsne(points.numpy()[:3]))
    assert made.accuracy(y, k=5) == pytest.approx(right / 80)
