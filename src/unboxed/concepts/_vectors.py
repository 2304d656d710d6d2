"""Concept activation vectors of one layer, many at once, as weightings of the examples that they were fitted to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.linear.binary import fit_binary_classifiers
from ..errors import LayerError
from ._example_sets import ExampleSets, shared_example_mask

ROUNDING = 10  # times the smallest difference of numbers
MAX_GRAM_ROWS_PER_BLOCK = 256  # of the Gram matrix at a time: its other half is not computed
MAX_DENSE_VALUES = 2**23  # of weightings of all examples at a time


@dataclass(frozen=True, eq=False)
class NormalizedVectors:
    """B vectors of length 1, each a weighted sum of m examples' features.

    Attributes:
        rows: (B, m) the examples.
        weights: (B, m)
        accuracy: (B,) held-out share of the examples that the vector's classifier tells apart.
    """

    rows: Tensor
    weights: Tensor
    accuracy: Tensor

    def dense(self, n_examples: int, start: int = 0, stop: int | None = None) -> Tensor:
        """(b, M) weights of all M examples, of the vectors from `start` to `stop`."""
        rows, weights = self.rows[start:stop], self.weights[start:stop]
        return weights.new_zeros(len(rows), n_examples).scatter_add_(1, rows, weights)

    def project(self, products: Tensor) -> Tensor:
        """(N, B) products of anything with the vectors, of its products (N, M) with all examples."""
        m, step = products.shape[1], max(1, MAX_DENSE_VALUES // products.shape[1])
        parts = [products @ self.dense(m, i, i + step).T for i in range(0, len(self.rows), step)]
        return torch.cat(parts, 1)

    def sums(self, group: Tensor, sign: Tensor, n_groups: int, n_examples: int) -> Tensor:
        """(G, M) the weights of all examples in the sum of each group's vectors, with a sign each."""
        sums, step = self.weights.new_zeros(n_groups, n_examples), max(1, MAX_DENSE_VALUES // n_examples)
        for i in range(0, len(self.rows), step):
            dense = self.dense(n_examples, i, i + step) * sign[i : i + step, None]
            sums.index_add_(0, group[i : i + step], dense)
        return sums


@dataclass(frozen=True, eq=False)
class LayerConceptVectors:
    """The vectors of one layer.

    Attributes:
        h: (M, D) features of all examples, less the mean of the random ones.
        gram: (M, M) their products.
        each: Of each concept, its R vectors, one against each set.
        mean: (C, M) weights of the mean of each concept's vectors, of length 1.
        random: {n: vectors of each random set of n examples against each later one}.
        random_mean: {n: (R, M)} weights of each random set's mean vector against the other sets, of length 1.
    """

    h: Tensor
    gram: Tensor
    each: tuple[NormalizedVectors, ...]
    mean: Tensor
    random: Mapping[int, NormalizedVectors]
    random_mean: Mapping[int, Tensor]

    def vectors(self, weights: Tensor) -> Tensor:
        """The vectors (B, D) themselves, of weights (B, M), in the features' dtype."""
        return weights.to(self.h) @ self.h


def fit_layer_vectors(
    h: Tensor, sets: ExampleSets, l2: float, address: str, *, with_random: bool = True
) -> LayerConceptVectors:  # fmt: skip
    """The vectors of a layer's features (M, D). Raises LayerError where these do not differ between the examples.

    Without `with_random` there are none of random sets.
    """
    size = h[sets.random_rows].square().sum(1).mean()
    h = h - h[sets.random_rows].mean(0)
    gram = row_gram_matrix(h)
    if not gram.diagonal()[sets.random_rows].mean() > (ROUNDING * torch.finfo(h.dtype).eps) ** 2 * size:
        raise LayerError(f"{address!r} gives the same activations for all random examples: no vectors to compare with")
    each = tuple(
        _fit(gram, positives, negatives, sets.keys, l2)
        for positives, negatives in zip(sets.positives, sets.negatives, strict=True)
    )
    n_sets, m = len(sets.positives[0]), len(h)
    mean = torch.cat([v.sums(torch.zeros(n_sets, dtype=torch.long), torch.ones(n_sets), 1, m) for v in each])
    compared = sets.random if with_random else {}
    pairs = {n: _fit_set_pairs(gram, rows, sets.keys, l2) for n, rows in compared.items()}
    random_mean = {n: _normalize_weights(_sum_pairs_per_set(v, n_sets, m), gram) for n, v in pairs.items()}
    return LayerConceptVectors(h, gram, each, _normalize_weights(mean, gram), pairs, random_mean)


def row_gram_matrix(h: Tensor) -> Tensor:
    """(M, M) float64 products of rows of h (M, D), computed in its dtype."""
    gram = torch.empty(len(h), len(h), dtype=torch.float64, device=h.device)
    for i in range(0, len(h), MAX_GRAM_ROWS_PER_BLOCK):
        block = (h[i : i + MAX_GRAM_ROWS_PER_BLOCK] @ h[i:].T).double()
        gram[i : i + MAX_GRAM_ROWS_PER_BLOCK, i:], gram[i:, i : i + MAX_GRAM_ROWS_PER_BLOCK] = block, block.T
    return gram


def _fit(gram: Tensor, positives: Tensor, negatives: Tensor, keys: Tensor, l2: float) -> NormalizedVectors:
    """B vectors from the second set of examples to the first, (B, n) each; examples of both are of the first alone."""
    is_used = torch.cat(
        [torch.ones_like(positives, dtype=torch.bool), ~shared_example_mask(keys, negatives, positives)], 1
    )
    return _fit_normalized_vectors(gram, torch.cat([positives, negatives], 1), is_used, positives.shape[1], l2)


def _fit_set_pairs(gram: Tensor, sets: Tensor, keys: Tensor, l2: float) -> NormalizedVectors:
    """The vectors of each of R sets (R, n) against each later one; an example of both is in neither."""
    first, second = _pairs(len(sets))
    both = torch.cat([shared_example_mask(keys, sets[a], sets[b]) for a, b in ((first, second), (second, first))], 1)
    return _fit_normalized_vectors(gram, torch.cat([sets[first], sets[second]], 1), ~both, sets.shape[1], l2)


def _pairs(n_sets: int) -> tuple[Tensor, Tensor]:
    first, second = torch.triu_indices(n_sets, n_sets, 1)
    return first, second


def _fit_normalized_vectors(
    gram: Tensor, rows: Tensor, is_used: Tensor, n_positive: int, l2: float
) -> NormalizedVectors:
    y = (torch.arange(rows.shape[1]) < n_positive).to(gram)
    fitted = fit_binary_classifiers(gram, rows, y, l2, is_used)
    is_right = ((fitted.held_out > 0) == (y > 0)) & is_used
    shortest = torch.finfo(gram.dtype).tiny
    return NormalizedVectors(
        rows,
        fitted.dual / fitted.length.clamp_min(shortest)[:, None],
        is_right.sum(1) / is_used.sum(1).clamp_min(1).to(gram),
    )


def _sum_pairs_per_set(pairs: NormalizedVectors, n_sets: int, n_examples: int) -> Tensor:
    """(R, M) the sum of each set's vectors against all others: those of a pair are opposite."""
    first, second = _pairs(n_sets)
    ones = torch.ones(len(first))
    sums = pairs.sums(first, ones, n_sets, n_examples)
    return sums + pairs.sums(second, -ones, n_sets, n_examples)


def _normalize_weights(weights: Tensor, gram: Tensor) -> Tensor:
    """Weights (B, M) of vectors of length 1; of a vector of length 0 itself."""
    length = ((weights @ gram) * weights).sum(1, keepdim=True).clamp_min(0).sqrt()
    return weights / torch.where(length > 0, length, 1.0)
