"""Conjugate gradients: an exact solution to a stated tolerance, from products with H alone.

Hestenes & Stiefel 1952; Martens 2010 for curvatures of neural networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...engine.example_gradients.curvature import Curvature
from ...engine.example_gradients.parameters import Parameters
from ...errors import warn
from .indefinite import not_positive_definite_error


@dataclass(frozen=True)
class ConjugateGradient:
    """Solves (H + damping) s = g by conjugate gradients, all g in one batch; those that are done leave it.

    The solver to begin with: it is exact to its tolerance where H + damping is positive definite, and says so where it
    is not. It takes about as many products with H as the square root of the ratio of the largest eigenvalue to the
    smallest: a larger damping makes it faster.

    Args:
        tolerance: Norm of the residual g - (H + damping) s over that of g at which a solution is done. None: the
            2/3rd power of the dtype's precision, 2e-5 in float32 and 4e-11 in float64.
        max_iterations: Largest number of products with H; a warning says what residual remains.

    Raises:
        InputError: where H + damping is not positive definite, with the damping that makes it so.

    Example:
        >>> import unboxed as ub
        >>> ub.influence.ConjugateGradient(tolerance=1e-3)
        ConjugateGradient(tolerance=0.001, max_iterations=1000)

    Source:
        Hestenes & Stiefel 1952, "Methods of conjugate gradients for solving linear systems".
    """

    tolerance: float | None = None
    max_iterations: int = 1000

    def __call__(self, curvature: Curvature, vectors: Parameters, damping: float) -> dict[str, Tensor]:
        b = curvature.gradients.flatten(vectors).to(curvature.gradients.box.dtype)  # (K, P)
        tolerance = torch.finfo(b.dtype).eps ** (2 / 3) if self.tolerance is None else self.tolerance
        s, r = torch.zeros_like(b), b.clone()
        p, squared = r.clone(), _row_dot_products(r, r)
        limit = tolerance**2 * squared
        for _ in range(self.max_iterations):
            active = (squared > limit).nonzero()[:, 0]
            if not len(active):
                break
            direction = p[active]
            product = curvature.matvec(direction) + damping * direction
            bend = _row_dot_products(direction, product)  # p^T (H + damping) p
            if not bool((bend > 0).all()):
                raise not_positive_definite_error(curvature, damping)
            step = (squared[active] / bend)[:, None]
            s[active] += step * direction
            r[active] -= step * product
            before, squared[active] = squared[active], _row_dot_products(r[active], r[active])
            p[active] = r[active] + (squared[active] / before)[:, None] * direction
        if bool((squared > limit).any()):
            worst = float((squared / limit).max().sqrt()) * tolerance
            warn(
                f"conjugate gradients stopped after {self.max_iterations} iterations at a relative residual of "
                f"{worst:.1e}; wanted {tolerance:.1e}. Give a larger damping, or ConjugateGradient(max_iterations=...)"
            )
        return curvature.gradients.unflatten(s)


def _row_dot_products(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (K,) of rows (K, P)."""
    return (a * b).sum(1)
