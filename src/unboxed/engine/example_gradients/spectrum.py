"""Eigenvalues of a curvature that is known by its products alone: Lanczos iteration, and the trace by random probes.

Lanczos 1950; Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .curvature import Curvature

N_TRACE_PROBES = 16
N_LANCZOS_STEPS = 40
LANCZOS_BREAKDOWN_TOLERANCE = 1e-8  # of the largest coefficient so far: the Krylov space holds nothing more


@dataclass(frozen=True, eq=False)
class RitzPairs:
    """Approximate eigenpairs: values (M,) in ascending order, vectors (M, P), and the norms of their residuals (M,)."""

    values: Tensor
    vectors: Tensor
    residuals: Tensor

    @property
    def smallest_eigenvalue_bound(self) -> float:
        """A careful estimate of the smallest eigenvalue: the smallest Ritz value less its residual."""
        return float(self.values[0] - self.residuals[0])


def lanczos(curvature: Curvature, n_steps: int = N_LANCZOS_STEPS) -> RitzPairs:
    """The eigenpairs of a curvature in the Krylov space of a random vector, reorthogonalized in full."""
    basis, diagonal, off_diagonal = list[Tensor](), list[Tensor](), list[Tensor]()
    v = torch.nn.functional.normalize(random_vectors(curvature, 1, signs=False))  # (1, P)
    for _ in range(min(n_steps, curvature.n_parameters)):
        basis.append(v)
        w, q = curvature.matvec(v), torch.cat(basis)  # (1, P), (m, P)
        diagonal.append((w @ v.T)[0, 0])
        for _ in range(2):  # once more, for what rounding left of the basis
            w = w - (w @ q.T) @ q
        off_diagonal.append(w.norm())
        if off_diagonal[-1] <= LANCZOS_BREAKDOWN_TOLERANCE * torch.stack([*diagonal, *off_diagonal]).abs().max():
            break
        v = w / off_diagonal[-1]
    d, e = torch.stack(diagonal), torch.stack(off_diagonal)
    values, coefficients = torch.linalg.eigh(torch.diag(d) + torch.diag(e[:-1], 1) + torch.diag(e[:-1], -1))
    return RitzPairs(values, coefficients.T @ torch.cat(basis), (e[-1] * coefficients[-1]).abs())


def mean_eigenvalue(curvature: Curvature, n_probes: int = N_TRACE_PROBES) -> float:
    """The trace over the number of parameters, without l2: the mean of v^T H v / P over vectors of random signs."""
    v = random_vectors(curvature, n_probes, signs=True)  # (n, P)
    return float((v * curvature.matvec(v)).mean()) - curvature.l2


def random_vectors(curvature: Curvature, n: int, *, signs: bool) -> Tensor:
    """Vectors (n, P) of random signs, or from a normal distribution, always the same."""
    shape, generator = (n, curvature.n_parameters), curvature.make_seeded_generator()
    draws = torch.randn(shape, generator=generator, device=generator.device, dtype=curvature.gradients.box.dtype)
    return draws.sign() if signs else draws
