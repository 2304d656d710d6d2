"""Arnoldi: the inverse in the space of the leading eigenvectors.

Schioppa, Zablotskaia, Vilar & Sokolov 2022, "Scaling up influence functions", arXiv:2112.03052.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...engine.example_gradients.curvature import Curvature
from ...engine.example_gradients.parameters import Parameters
from ...engine.example_gradients.spectrum import lanczos
from ...errors import InputError


@dataclass(frozen=True)
class Arnoldi:
    """Inverts H + damping in the space of its leading eigenvectors, and leaves the rest of g out.

    The eigenvectors cost `n_iterations` products with H, whatever the number of queries, so that it pays with many of
    them. What it leaves out are the directions of small curvature, in which a solution would be large: its scores are
    smaller than those of `ConjugateGradient`, and rank examples by the directions that the training data determine
    best: a ranking, no figures. Where a model has more parameters than H has rank, that is all of its null space.

    Args:
        n_iterations: Number of products with H: the dimension of the space that is searched for eigenvectors.
        n_eigenvectors: Number of eigenvectors kept, those of the largest eigenvalues. None keeps all that are positive.

    Raises:
        InputError: where no eigenvalue is positive.

    Example:
        >>> import unboxed as ub
        >>> ub.influence.Arnoldi(n_iterations=50)
        Arnoldi(n_iterations=50, n_eigenvectors=None)

    Source:
        Schioppa et al. 2022, algorithm 1. As H is symmetric, the iteration is Lanczos's, with full
        reorthogonalization.
    """

    is_approximate: ClassVar[bool] = True

    n_iterations: int = 100
    n_eigenvectors: int | None = None

    def __call__(self, curvature: Curvature, vectors: Parameters, damping: float) -> dict[str, Tensor]:
        g = curvature.gradients.flatten(vectors).to(curvature.gradients.box.dtype)  # (K, P)
        ritz = lanczos(curvature, self.n_iterations)
        chosen = (ritz.values + damping > 0).nonzero()[:, 0][-(self.n_eigenvectors or len(ritz.values)) :]
        if not len(chosen):
            raise InputError(f"no eigenvalue of the curvature is positive with damping={damping:g}; give a larger one")
        e = ritz.vectors[chosen]  # (M, P)
        return curvature.gradients.unflatten((g @ e.T / (ritz.values[chosen] + damping)) @ e)
