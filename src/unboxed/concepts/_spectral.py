"""Spectral clustering with the number of clusters read from the spectrum.

von Luxburg 2007, "A Tutorial on Spectral Clustering", arXiv:0711.0189: the graph of nearest neighbors, the symmetric
Laplacian (section 5, Ng et al.) and the eigengap (section 8.3).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..engine.linear.clusters import k_means

N_K_MEANS_STARTS = 10  # of k-means
# Neighbors of an example: this times log n, so that the graph of one cluster is connected
NEIGHBORS_PER_LOG_EXAMPLES = 2.0


def spectral_clusters(points: Tensor, max_clusters: int, seed: int) -> Tensor:
    """The cluster (N,) of each of the points (N, D), the largest being 0."""
    eigenvalues, vectors = torch.linalg.eigh(normalized_laplacian(points))
    n_clusters = n_eigenvalues_below_gap(eigenvalues, min(max_clusters, len(points) - 1))
    if n_clusters == 1:
        return torch.zeros(len(points), dtype=torch.long)
    rows = torch.nn.functional.normalize(vectors[:, :n_clusters], dim=1)
    return _renumber_clusters_by_size(k_means(rows, n_clusters, seed, N_K_MEANS_STARTS).labels)


def normalized_laplacian(points: Tensor) -> Tensor:
    """I - D^-1/2 A D^-1/2 (N, N) in float64, A being 1 for neighbors of each other and 1/2 for neighbors one way."""
    n = len(points)
    n_neighbors = min(n - 1, max(2, round(NEIGHBORS_PER_LOG_EXAMPLES * math.log(n))))
    distances = torch.cdist(points.double(), points.double()).fill_diagonal_(math.inf)
    nearest = distances.topk(n_neighbors, largest=False).indices
    affinity = torch.zeros(n, n, dtype=torch.float64).scatter_(1, nearest, 1.0)
    affinity = (affinity + affinity.T) / 2
    scale = affinity.sum(1).rsqrt()
    return torch.eye(n, dtype=torch.float64) - scale[:, None] * affinity * scale


def n_eigenvalues_below_gap(eigenvalues: Tensor, max_clusters: int) -> int:
    """How many eigenvalues, of an ascending row, lie below the largest gap among the first."""
    gaps = eigenvalues[: max_clusters + 1].diff()
    return int(gaps.argmax()) + 1 if len(gaps) else 1


def _renumber_clusters_by_size(labels: Tensor) -> Tensor:
    """The same clusters, numbered by size."""
    order = labels.bincount().argsort(descending=True, stable=True)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))[labels]
