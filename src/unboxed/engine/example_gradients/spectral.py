"""Approximations of a curvature matrix in a form that every function of it can be read from: Q f(eigenvalues) Q^T.

A block is a part of the parameters; between blocks the matrix is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .matrix_layers import MatrixLayer

DAMPING_FRACTION_OF_MEAN_EIGENVALUE = 0.1  # of the mean eigenvalue of a block (Grosse et al. 2023, section 3.1)
VectorsByParameter = Mapping[str, Tensor]  # {parameter name: (K, *shape)}
EigenvalueFn = Callable[[Tensor], Tensor]  # of eigenvalues, elementwise


class CurvatureBlock(Protocol):
    """A symmetric matrix over some parameters, with its eigenvalues and a basis of eigenvectors."""

    @property
    def eigenvalues(self) -> Tensor: ...

    @property
    def parameters(self) -> tuple[str, ...]: ...

    def scale_in_eigenbasis(self, vectors: VectorsByParameter, factors: Tensor) -> dict[str, Tensor]:
        """Q diag(factors) Q^T v, factors shaped like the eigenvalues."""


@dataclass(frozen=True, eq=False)
class KroneckerBlock:
    """Of a matrix layer: eigenvectors are products of those of its output gradients and of its inputs; None: unit
    vectors."""

    layer: MatrixLayer
    eigenvalues: Tensor  # (G, O, I)
    output_basis: Tensor | None = None  # (G, O, O), eigenvectors in columns
    input_basis: Tensor | None = None  # (G, I, I)

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.layer.parameters

    def scale_in_eigenbasis(self, vectors: VectorsByParameter, factors: Tensor) -> dict[str, Tensor]:
        v = self.layer.to_matrices(vectors)  # (K, G, O, I)
        if self.output_basis is None or self.input_basis is None:
            return self.layer.to_vectors(v * factors)
        projected = self.output_basis.mT @ v @ self.input_basis
        return self.layer.to_vectors(self.output_basis @ (projected * factors) @ self.input_basis.mT)


@dataclass(frozen=True, eq=False)
class DiagonalBlock:
    """Of one parameter: its unit vectors."""

    name: str
    eigenvalues: Tensor  # the parameter's shape

    @property
    def parameters(self) -> tuple[str, ...]:
        return (self.name,)

    def scale_in_eigenbasis(self, vectors: VectorsByParameter, factors: Tensor) -> dict[str, Tensor]:
        return {self.name: vectors[self.name] * factors}


@dataclass(frozen=True, eq=False)
class DenseBlock:
    """Of several parameters, side by side: the whole matrix."""

    shapes: Mapping[str, torch.Size]
    eigenvalues: Tensor  # (P,)
    basis: Tensor  # (P, P), eigenvectors in columns

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    def scale_in_eigenbasis(self, vectors: VectorsByParameter, factors: Tensor) -> dict[str, Tensor]:
        v = torch.cat([vectors[name].flatten(1) for name in self.shapes], 1)  # (K, P)
        scaled = ((v @ self.basis) * factors) @ self.basis.T
        parts = torch.split(scaled, [s.numel() for s in self.shapes.values()], 1)
        return {name: h.reshape(-1, *shape) for (name, shape), h in zip(self.shapes.items(), parts, strict=True)}


@dataclass(frozen=True, eq=False)
class SpectralCurvature:
    """A positive semidefinite curvature matrix as blocks whose eigenvectors are known.

    Attributes:
        blocks: The blocks; together they have every parameter once.
        diagonal_parameters: Names of the parameters for which a Kronecker product was asked, and that have a diagonal
            alone: those of normalizations and embeddings, and weights that are used outside their layer.
    """

    blocks: Sequence[CurvatureBlock]
    diagonal_parameters: tuple[str, ...] = ()

    def apply(self, vectors: VectorsByParameter, function: EigenvalueFn) -> dict[str, Tensor]:
        """f(matrix) v for vectors {name: (K, ...)}; f is a function of eigenvalues."""
        return self._scale_blocks(vectors, lambda block: function(block.eigenvalues))

    def solve(
        self, vectors: VectorsByParameter, damping: float | Mapping[str, float] | None = None
    ) -> dict[str, Tensor]:
        """(matrix + damping)^-1 v for vectors {name: (K, ...)}.

        Args:
            vectors: Vectors {name: (K, ...)} over all parameters.
            damping: Added to each eigenvalue: one number, or {parameter: number}, the same in a block. None is a tenth
                of the mean eigenvalue of each block (`damping`). A direction in which both are zero is left out, as in
                a pseudo-inverse.
        """

        def factors(block: CurvatureBlock) -> Tensor:
            added = damping[block.parameters[0]] if isinstance(damping, Mapping) else damping
            return _damped_inverse(block.eigenvalues, added)

        return self._scale_blocks(vectors, factors)

    def damping(self) -> dict[str, float]:
        """{parameter name: what `solve` adds where no damping is given}."""
        return {name: float(default_damping(b.eigenvalues)) for b in self.blocks for name in b.parameters}

    def _scale_blocks(
        self, vectors: VectorsByParameter, factors: Callable[[CurvatureBlock], Tensor]
    ) -> dict[str, Tensor]:
        return {name: h for b in self.blocks for name, h in b.scale_in_eigenbasis(vectors, factors(b)).items()}


def default_damping(eigenvalues: Tensor) -> Tensor:
    """A tenth of their mean (Grosse et al. 2023)."""
    return DAMPING_FRACTION_OF_MEAN_EIGENVALUE * eigenvalues.mean()


def _damped_inverse(eigenvalues: Tensor, damping: float | None) -> Tensor:
    damped = eigenvalues + (default_damping(eigenvalues) if damping is None else damping)
    return torch.where(damped > 0, 1 / damped, torch.zeros_like(damped))
