"""Random projections of per-example gradients to few numbers, without the gradients themselves.

Charikar et al. 2002 (count sketch): each parameter is added to one of `dim` numbers, with a random sign; inner products
are kept on average, with a standard deviation of about |g| |h| / sqrt(dim), two to three times as much where both are a
product of two vectors. The place and the sign of a weight (o, i) are made from those of o and i, so that the sketch of
sum_t d_t a_t^T is a convolution of sketches of d_t and a_t (Pham & Pagh 2013, TensorSketch).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...rng import keyed_generator
from .terms import EmbeddingTableGradients, OuterProductGradients, PerExampleGradients

HashedIndices = tuple[Tensor, Tensor]  # of indices 0, 1, ... of an axis: places (n,), and signs (n,)


class Sketch:
    """The projection to `dim` numbers of gradients with respect to some parameters, the same for the same seed.

    Args:
        parameters: {name: tensor}, of which shapes, dtype and device matter.
        dim: How many numbers.
        seed: Seed of the projection.
    """

    def __init__(self, parameters: Mapping[str, Tensor], dim: int, seed: int = 0) -> None:
        self.dim, self.seed = dim, seed
        # by place, not by name: a compiled model has other names
        self._hashes = {name: self._hashes_of_axes(str(k), p) for k, (name, p) in enumerate(parameters.items())}

    def __call__(self, terms: Mapping[str, PerExampleGradients]) -> Tensor:
        """Sketches (N, dim) of the gradients of N examples."""
        parts = [self._sketch_term(self._hashes[name], term) for name, term in terms.items()]
        return torch.stack(parts).sum(0)

    def _hashes_of_axes(self, key: str, p: Tensor) -> tuple[HashedIndices, HashedIndices]:
        """Of the first axis, and of all others together."""
        n = p.shape[0] if p.ndim else 1
        return self._random_indices_and_signs(f"{key}/0", n, p), self._random_indices_and_signs(
            f"{key}/1", p.numel() // n, p
        )

    def _random_indices_and_signs(self, key: str, n: int, like: Tensor) -> HashedIndices:
        generator = keyed_generator(torch.device("cpu"), "sketch", self.seed, self.dim, key)
        place = torch.randint(self.dim, (n,), generator=generator)
        sign = torch.randint(2, (n,), generator=generator) * 2 - 1
        return place.to(like.device), sign.to(like.device)

    def _sketch_term(self, hashes: tuple[HashedIndices, HashedIndices], term: PerExampleGradients) -> Tensor:
        if isinstance(term, OuterProductGradients) and term.d.shape[1] * self.dim <= term.n_values:
            return self._sketch_outer(hashes, term)
        if isinstance(term, EmbeddingTableGradients):
            return self._sketch_embedding_table(hashes, term)
        g = term.rows()
        (place, sign), (place_of_rest, sign_of_rest) = hashes
        index = (place[:, None] + place_of_rest).flatten() % self.dim  # (P,)
        return self._scatter_add(index.expand_as(g), g * (sign[:, None] * sign_of_rest).flatten())

    def _sketch_outer(self, hashes: tuple[HashedIndices, HashedIndices], term: OuterProductGradients) -> Tensor:
        """Circular convolutions, summed over positions, by the Fourier transform."""
        d, a = (torch.fft.rfft(self._count_sketch(h, v), dim=2) for h, v in zip(hashes, (term.d, term.a), strict=True))
        sketch: Tensor = torch.fft.irfft((d * a).sum(1), n=self.dim, dim=1)
        return sketch

    def _sketch_embedding_table(
        self, hashes: tuple[HashedIndices, HashedIndices], term: EmbeddingTableGradients
    ) -> Tensor:
        (place, sign), (place_of_rest, sign_of_rest) = hashes
        index = (place[term.a][:, :, None] + place_of_rest) % self.dim  # (N, T, D)
        return self._scatter_add(index.flatten(1), (term.d * sign[term.a][:, :, None] * sign_of_rest).flatten(1))

    def _count_sketch(self, axis: HashedIndices, v: Tensor) -> Tensor:
        """Count sketches (N, T, dim) of vectors (N, T, I)."""
        place, sign = axis
        flat = v.flatten(0, 1) * sign
        return self._scatter_add(place.expand_as(flat), flat).view(*v.shape[:2], self.dim)

    def _scatter_add(self, index: Tensor, values: Tensor) -> Tensor:
        return values.new_zeros(len(values), self.dim).scatter_add_(1, index, values)
