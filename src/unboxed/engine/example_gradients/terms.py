"""Gradients of a batch of examples with respect to one parameter, in the form in which they cost the least.

A layer that multiplies its inputs a by weights (O, I) has the gradient sum_t d_t a_t^T over its positions t, where d is
the gradient of the loss with respect to the layer's output: inner products of such gradients follow from a and d, and
the gradients (O, I) themselves are never held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Protocol, TypeVar

import torch
from torch import Tensor

MAX_GRADIENT_BLOCK_BYTES = 2**26  # of what is computed of gradients at a time, besides the factors themselves
T = TypeVar("T", bound="_FactoredGradients")


class PerExampleGradients(Protocol):
    """Gradients of N examples' losses with respect to one parameter of P values."""

    @property
    def bytes_per_example(self) -> int:
        """Memory per example, with what `dot` and `project` make of it."""

    def rows(self) -> Tensor:
        """The gradients (N, P) themselves."""

    def dot(self, other: PerExampleGradients) -> Tensor:
        """Inner products (N, M) with the gradients of other examples."""

    def project(self, vectors: Tensor) -> Tensor:
        """Inner products (K, N) with vectors (K, ...) of the parameter's shape."""

    def squared_norms(self) -> Tensor:
        """(N,)"""


@dataclass(frozen=True, eq=False)
class DenseGradients:
    """Gradients that are held as they are."""

    g: Tensor  # (N, P)

    @property
    def bytes_per_example(self) -> int:
        return self.g.shape[1] * self.g.itemsize

    def rows(self) -> Tensor:
        return self.g

    def dot(self, other: PerExampleGradients) -> Tensor:
        return self.g @ other.rows().T

    def project(self, vectors: Tensor) -> Tensor:
        return vectors.flatten(1) @ self.g.T

    def squared_norms(self) -> Tensor:
        return self.g.square().sum(1)


@dataclass(frozen=True, eq=False)
class _FactoredGradients:
    """Gradients sum_t d_t a_t^T, held as d (N, T, O) and a: positions t are those of a layer, and its calls."""

    d: Tensor  # (N, T, O)
    a: Tensor  # (N, T, I), or indices (N, T)

    @property
    def n_inputs(self) -> int:
        raise NotImplementedError

    @property
    def n_values(self) -> int:
        return self.d.shape[2] * self.n_inputs

    @property
    def bytes_per_example(self) -> int:
        t = self.d.shape[1]
        return self.d.itemsize * (self.d[0].numel() + self.a[0].numel() + (self.n_values if t > 1 else 0))

    def rows(self) -> Tensor:
        raise NotImplementedError

    def input_inner_products(self, other: _FactoredGradients) -> Tensor:
        """Inner products (N T, M U) of the inputs at all positions."""
        raise NotImplementedError

    def dot(self, other: PerExampleGradients) -> Tensor:
        """By the products of all pairs of positions, or by the gradients themselves where these cost less."""
        if not isinstance(other, type(self)):
            return DenseGradients(self.rows()).dot(other)
        (n, t, _), (m, u, _), width = self.d.shape, other.d.shape, self.d.shape[2] + self.n_inputs
        by_pairs, by_rows = n * m * t * u * width, (n * t + m * u + n * m) * self.n_values
        if by_pairs <= by_rows:
            return torch.cat([self._sum_position_products(part) for part in other.split_examples(2 * n * t * u)], 1)
        left = self.rows()
        return torch.cat([left @ part.rows().T for part in other.split_examples(self.n_values)], 1)

    def _sum_position_products(self, other: _FactoredGradients) -> Tensor:
        pairs = (self.d.flatten(0, 1) @ other.d.flatten(0, 1).T).mul_(self.input_inner_products(other))
        return pairs.view(len(self.d), self.d.shape[1], len(other.d), other.d.shape[1]).sum((1, 3))

    def project(self, vectors: Tensor) -> Tensor:
        v = vectors.flatten(1)
        return torch.cat([v @ part.rows().T for part in self.split_examples(self.n_values)], 1)

    def squared_norms(self) -> Tensor:
        return torch.cat([part.rows().square().sum(1) for part in self.split_examples(self.n_values)])

    def split_examples(self: T, values_per_row: int) -> Iterator[T]:
        """Parts of the examples, so that `values_per_row` of each make a block of bounded memory."""
        size = max(1, MAX_GRADIENT_BLOCK_BYTES // max(1, values_per_row * self.d.itemsize))
        for start in range(0, len(self.d), size):
            rows = slice(start, start + size)
            yield replace(self, d=self.d[rows], a=self.a[rows])


@dataclass(frozen=True, eq=False)
class OuterProductGradients(_FactoredGradients):
    """Gradients of weights (O, I) that multiply inputs: a (N, T, I)."""

    @property
    def n_inputs(self) -> int:
        return self.a.shape[2]

    def rows(self) -> Tensor:
        return (self.d.mT @ self.a).flatten(1)

    def input_inner_products(self, other: _FactoredGradients) -> Tensor:
        return self.a.flatten(0, 1) @ other.a.flatten(0, 1).T

    def project(self, vectors: Tensor) -> Tensor:
        """sum_t d_t^T V a_t; with one position without the gradients themselves."""
        if self.d.shape[1] > 1:
            return super().project(vectors)
        k, o = len(vectors), self.d.shape[2]
        h = self.a[:, 0] @ vectors.reshape(k * o, -1).T  # (N, K O)
        return torch.einsum("nko,no->kn", h.view(-1, k, o), self.d[:, 0])

    def squared_norms(self) -> Tensor:
        return ((self.d @ self.d.mT) * (self.a @ self.a.mT)).sum(
            (1, 2)
        )  # T (O + I) is below O I: see `to_dense_if_smaller`


@dataclass(frozen=True, eq=False)
class EmbeddingTableGradients(_FactoredGradients):
    """Gradients of a table (V, D) from which rows are taken: a holds their indices (N, T), d is (N, T, D)."""

    table_rows: int

    @property
    def n_inputs(self) -> int:
        return self.table_rows

    def rows(self) -> Tensor:
        index = self.a[:, :, None].expand_as(self.d)
        return self.d.new_zeros(len(self.d), self.table_rows, self.d.shape[2]).scatter_add_(1, index, self.d).flatten(1)

    def input_inner_products(self, other: _FactoredGradients) -> Tensor:
        return (self.a.flatten()[:, None] == other.a.flatten()).to(self.d)


def to_dense_if_smaller(term: PerExampleGradients) -> PerExampleGradients:
    """The gradients themselves where they take no more memory than their factors."""
    if isinstance(term, _FactoredGradients) and term.d[0].numel() + term.a[0].numel() >= term.n_values:
        return DenseGradients(term.rows())
    return term


def sum_gradients_of_parameter_uses(terms: Sequence[PerExampleGradients]) -> PerExampleGradients:
    """The gradients of a parameter that is used several times: uses of one kind are more positions of one layer."""
    return to_dense_if_smaller(reduce(_add_gradients, terms))


def _add_gradients(x: PerExampleGradients, y: PerExampleGradients) -> PerExampleGradients:
    if isinstance(x, EmbeddingTableGradients) and isinstance(y, EmbeddingTableGradients):
        return EmbeddingTableGradients(torch.cat([x.d, y.d], 1), torch.cat([x.a, y.a], 1), x.table_rows)
    if isinstance(x, OuterProductGradients) and isinstance(y, OuterProductGradients):
        return OuterProductGradients(torch.cat([x.d, y.d], 1), torch.cat([x.a, y.a], 1))
    return DenseGradients(x.rows() + y.rows())
