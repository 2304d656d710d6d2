"""t-SNE by openTSNE, and new points placed into a fitted embedding."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...model import state

Array = npt.NDArray[Any]

MIN_TSNE_POINTS = 6  # points; fewer have a perplexity below 2, and get their first two principal components instead
MAX_PCA_COMPONENTS = 50  # of more features
SINGLE_THREAD_BELOW_POINTS = 4_000  # points; with fewer, several threads are slower than one
MAX_EXACT_NEIGHBOR_POINTS = 20_000  # points; the neighbors of more are approximate


@dataclass(frozen=True)
class FittedTSNE:
    """A fitted embedding of N points. `components`: principal components of the features, (N, at most 50)."""

    points: Array  # (N, 2)
    components: Array
    pca: Any  # a fitted PCA, or None where there were no more than 50 features
    tsne_embedding: Any  # openTSNE's embedding, or None where there were too few points

    def transform(self, features: Array) -> Array:
        """The positions (M, 2) of new features (M, D) in the fitted embedding, which does not change."""
        features = _with_two_columns(features)
        components = features if self.pca is None else self.pca.transform(features)
        if self.tsne_embedding is None:
            return _first_two_components(self.components, components)
        perplexity = min(5.0, (len(self.points) - 1) / 3)
        return np.asarray(self.tsne_embedding.transform(components, perplexity=perplexity), dtype=np.float64)


def fit_tsne(features: Array, *, perplexity: float = 30.0, seed: int = 0) -> FittedTSNE:
    """t-SNE of features (N, D), initialized by their principal components; the perplexity is at most (N - 1) / 3."""
    features = _with_two_columns(features)
    if (
        len(features) < MIN_TSNE_POINTS or np.ptp(features, axis=0).max() <= 1e-6 * np.abs(features).max()
    ):  # few, or all equal
        return FittedTSNE(_first_two_components(features, features), features, None, None)
    components, pca = pca_features_and_model(features)
    tsne_embedding = make_unfitted_tsne(len(features), perplexity, seed).fit(components)
    return FittedTSNE(np.array(tsne_embedding, dtype=np.float64), components, pca, tsne_embedding)


def make_unfitted_tsne(n_points: int, perplexity: float, seed: int) -> Any:
    """openTSNE's t-SNE for n points. Exact neighbors make the result the same for any number of threads."""
    with _isolating_global_rng():
        from openTSNE import TSNE  # type: ignore[import-untyped, unused-ignore]

    return TSNE(
        perplexity=min(perplexity, (n_points - 1) / 3),
        initialization="pca",
        neighbors="exact" if n_points <= MAX_EXACT_NEIGHBOR_POINTS else "approx",
        n_jobs=torch.get_num_threads() if SINGLE_THREAD_BELOW_POINTS < n_points <= MAX_EXACT_NEIGHBOR_POINTS else 1,
        random_state=seed,
    )


def pca_features_and_model(features: Array) -> tuple[Array, Any]:
    """At most 50 principal components of features (N, D), and the PCA, if there are more features than that."""
    if features.shape[1] <= MAX_PCA_COMPONENTS:
        return features, None
    with _isolating_global_rng():
        from sklearn.decomposition import PCA

    pca = PCA(min(MAX_PCA_COMPONENTS, len(features)), random_state=0)
    return pca.fit_transform(features), pca


def _with_two_columns(features: Array) -> Array:
    """Features (N, D), a single one with zeros beside it: distances stay, and there is a plane to begin in."""
    return features if features.shape[1] > 1 else np.pad(features, ((0, 0), (0, 1)))


def _isolating_global_rng() -> AbstractContextManager[None]:
    """Imports inside may not change the global generators, from which openTSNE's dependencies draw."""
    return state.forking_rngs_with_lock(0, torch.device("cpu"))


def _first_two_components(reference: Array, rows: Array) -> Array:
    """The first two principal components of a few points; a single point, or equal ones, are at zero."""
    mean = reference.mean(0)
    axes = np.linalg.svd(reference - mean, full_matrices=False)[2][:2]  # (2, D) or fewer
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])
    projected = (rows - mean) @ (axes * signs[:, None]).T
    return np.pad(projected, ((0, 0), (0, 2 - projected.shape[1]))).astype(np.float64)
