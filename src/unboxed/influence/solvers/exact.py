"""The exact solution: H is formed and factored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...engine.example_gradients.curvature import Curvature
from ...engine.example_gradients.parameters import Parameters
from ...errors import InputError
from .indefinite import not_positive_definite_error


@dataclass(frozen=True)
class Exact:
    """Solves (H + damping) s = g by a Cholesky factor of the matrix (P, P).

    For small models, or a few layers of a large one: thousands of parameters, not millions. Its cost hardly depends on
    the number of queries.

    Args:
        max_parameters: Largest number of parameters P for which the matrix is formed: 20,000 take 1.6 GB in float32.

    Raises:
        InputError: for more parameters, and where H + damping is not positive definite.

    Example:
        >>> import unboxed as ub
        >>> ub.influence.Exact()
        Exact(max_parameters=20000)
    """

    max_parameters: int = 20_000

    def __call__(self, curvature: Curvature, vectors: Parameters, damping: float) -> dict[str, Tensor]:
        if curvature.n_parameters > self.max_parameters:
            raise InputError(
                f'solver="exact" forms a matrix of {curvature.n_parameters:,}² values, more than '
                f'max_parameters={self.max_parameters:,} allows; give fewer layers=..., or solver="cg"'
            )
        b = curvature.gradients.flatten(vectors).to(curvature.gradients.box.dtype)  # (K, P)
        matrix = curvature.matrix()
        matrix.diagonal().add_(damping)
        factor, failed_at = torch.linalg.cholesky_ex(matrix)
        if failed_at:
            raise not_positive_definite_error(curvature, damping)
        return curvature.gradients.unflatten(torch.cholesky_solve(b.T, factor).T)
