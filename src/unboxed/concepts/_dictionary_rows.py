"""What a dictionary reads of a layer: rows of some positions to fit and to test, and each feature's top examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from .. import rng
from ..box import Box
from ..engine.linear.sparse_autoencoder import SparseAutoencoder
from ..engine.read.unit_rows import UnitRowLayout
from ..engine.rows import MAX_ROW_MATRIX_VALUES, row_chunks
from ..model.batching import BatchSize


@dataclass(frozen=True, eq=False)
class PositionSample:
    """Examples and how many of a layer's positions of each are taken: so many rows as fit, known before any is read.

    Attributes:
        rows: How the layer's activations become rows.
        examples: (N,) indices of the inputs, in increasing order.
        n_positions: Positions of each example.
    """

    rows: UnitRowLayout
    examples: Tensor
    n_positions: int

    @classmethod
    def of(cls, rows: UnitRowLayout, order: Tensor, max_rows: int) -> Self:
        """All positions of examples in random order; of more than `max_rows` some positions, or the first examples."""
        max_rows = max(1, min(max_rows, MAX_ROW_MATRIX_VALUES // max(1, rows.n_units)))
        examples = order[:max_rows].sort().values
        return cls(rows, examples, min(rows.n_positions, max(1, max_rows // max(1, len(examples)))))

    def __len__(self) -> int:
        return len(self.examples) * self.n_positions

    def read(self, box: Box, x: Tensor, seed: int, batch_size: BatchSize) -> Tensor:
        """The rows (N, p, C); where some positions are left out, each example's are drawn at random."""
        x, n = x[self.examples], len(self.examples)
        if self.n_positions == self.rows.n_positions:
            return self.rows.read(box, x, batch_size)
        generator, of = rng.keyed_generator(rng.CPU, "positions", seed), self.rows.n_positions
        draws = (torch.rand(part.stop - part.start, of, generator=generator) for part in row_chunks(n, of))
        chosen = torch.cat([d.argsort(1)[:, : self.n_positions] for d in draws]).to(x.device)  # (N, p)
        return self.rows.read(box, x, batch_size, lambda h, part: h[torch.arange(len(h))[:, None], chosen[part]])


@dataclass(frozen=True, eq=False)
class TopExamples:
    """The examples with the largest amount of each feature, the largest first; of equals the earlier one."""

    amount: Tensor  # (F, T)
    index: Tensor  # (F, T)

    def updated(self, amounts: Tensor, first: int, n: int) -> TopExamples:
        """With those of the examples from `first` on, whose amounts (M, F) are given."""
        index = torch.arange(first, first + len(amounts), device=amounts.device).expand(amounts.shape[1], -1)
        all_amounts = torch.cat([self.amount, amounts.T], 1)
        order = all_amounts.argsort(dim=1, descending=True, stable=True)[:, :n]
        return TopExamples(all_amounts.gather(1, order), torch.cat([self.index, index], 1).gather(1, order))


def top_examples(
    box: Box, rows: UnitRowLayout, x: Tensor, autoencoder: SparseAutoencoder, n: int, batch_size: BatchSize
) -> TopExamples:
    """The n inputs with the largest amount of each feature, over positions the largest."""
    double = autoencoder.double()
    n_features = len(autoencoder.directions)
    top = TopExamples(
        double.directions.new_empty(n_features, 0),
        torch.empty(n_features, 0, dtype=torch.long, device=double.directions.device),
    )

    def update(h: Tensor, part: slice) -> Tensor:
        nonlocal top
        new = top
        for some in row_chunks(len(h), n_features):
            new = new.updated(double.largest(h[some]), part.start + some.start, n)
        top = new  # at the end: a batch that runs out of memory is read again
        return h.new_empty(0)

    rows.read(box, x, batch_size, update)
    return top
