"""Clusters of similar rows: k-means, the same for the same seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ... import rng

MAX_KMEANS_ITERATIONS = 30


@dataclass(frozen=True, eq=False)
class Clusters:
    """Groups of rows, each with its mean."""

    labels: Tensor  # (N,) the cluster of each row
    centers: Tensor  # (K, D)
    spread: float  # the sum of the squared distances of the rows from their centers


def cluster_rows(h: Tensor, n_clusters: int, seed: int = 0) -> Tensor:
    """The cluster (N,) of each row of h (N, D): see `k_means`."""
    return k_means(h, n_clusters, seed).labels


def k_means(h: Tensor, n_clusters: int, seed: int = 0, n_starts: int = 1) -> Clusters:
    """Lloyd's k-means of rows (N, D) from centers chosen far apart (k-means++): of several starts the tightest."""
    mean = h.mean(0)  # distances are differences of squares
    keys = [(seed,), *((seed, i) for i in range(1, n_starts))]
    runs = [_lloyd(h - mean, n_clusters, *key) for key in keys]
    best = min(runs, key=lambda c: c.spread)
    return replace(best, centers=best.centers + mean)


def _lloyd(h: Tensor, n_clusters: int, *key: int) -> Clusters:
    centers, cluster = _kmeans_plus_plus_centers(h, n_clusters, *key), None
    for _ in range(MAX_KMEANS_ITERATIONS):
        distances = _squared_distances(h, centers)
        nearest = distances.argmin(1)
        if cluster is not None and torch.equal(nearest, cluster):
            break
        cluster = nearest
        counts = cluster.bincount(minlength=len(centers))
        sums = torch.zeros_like(centers).index_add_(0, cluster, h)
        centers = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), centers)
    return Clusters(nearest, centers, float(distances.min(1).values.sum()))


def _kmeans_plus_plus_centers(h: Tensor, n: int, *key: int) -> Tensor:
    """n rows or fewer, each drawn in proportion to its squared distance from those before (Arthur & Vassilvitskii)."""
    draws = torch.rand(n, generator=rng.keyed_generator(rng.CPU, "k-means", *key), dtype=torch.float64)
    chosen = [int(draws[0] * len(h))]
    distance = _squared_distances(h, h[chosen])[:, 0]
    for draw in draws[1:].tolist():
        if not float(distance.max()) > 0:  # no other row differs
            break
        chosen.append(min(int((distance.cumsum(0) < draw * distance.sum()).sum()), len(h) - 1))
        distance = torch.minimum(distance, _squared_distances(h, h[chosen[-1:]])[:, 0])
    return h[chosen]


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) of rows (N, D) and (M, D)."""
    return (a.square().sum(1)[:, None] - 2 * a @ b.T + b.square().sum(1)).clamp_min(0)
