"""A layer's activations as rows, one per example and position, each with the values of all units; and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...box import Box
from ...errors import InputError, LayerError
from ...model.batching import BatchSize, map_in_batches
from .channel_axes import unit_axis


@dataclass(frozen=True)
class UnitRowLayout:
    """How activations (N, ...) of a layer become rows (N, P, C): P positions, 1 of a layer without; C units."""

    address: str
    axis: int  # of the units
    n_positions: int
    n_units: int

    @classmethod
    def of(cls, box: Box, address: str) -> UnitRowLayout:
        """Of the layer at a full address. Raises LayerError where it gives no numbers by example."""
        if not box.has_batch_axis(address):
            raise LayerError(f"{address!r} mixes examples: its first axis is not the batch")
        n = 2 if box.batch_dependent else 1
        h = box.read(box.noise(n), [address])[address]
        if not h.is_floating_point():
            raise LayerError(f"{address!r} has {'complex' if h.is_complex() else 'integer'} activations")
        if h.ndim < 2 or len(h) != n:
            raise LayerError(f"{address!r} gives {tuple(h.shape)} for {n} inputs: its first axis is not the batch")
        axis = unit_axis(box, address, h.ndim)
        n_units = h.shape[axis]
        return cls(address, axis, h[0].numel() // max(1, n_units), n_units)

    def rows(self, h: Tensor) -> Tensor:
        """The rows (N, P, C) of activations (N, ...)."""
        h = h.movedim(self.axis, -1)
        return h.reshape(len(h), -1, h.shape[-1])

    def activations(self, rows: Tensor, like: Tensor) -> Tensor:
        """Activations with the shape, dtype and device of others, of rows (N, P, C)."""
        shape = like.movedim(self.axis, -1).shape
        return rows.reshape(shape).movedim(-1, self.axis).to(like)

    def read(
        self, box: Box, x: Tensor, batch_size: BatchSize, reduce: Callable[[Tensor, slice], Tensor] | None = None
    ) -> Tensor:  # fmt: skip
        """The rows (N, P, C) of validated inputs, in float64, or what `reduce(rows, part)` makes of each batch's.

        Raises InputError for NaN and infinite values.
        """

        def read_part(part: slice) -> Tensor:
            with box.isolated(grad=False):
                rows = self.rows(box.forward(x[part], [self.address])[self.address]).double()
            if not bool(rows.isfinite().all()):
                raise InputError(f"{self.address!r} gives NaN or infinite values for some of these inputs")
            return rows if reduce is None else reduce(rows, part)

        return torch.cat(map_in_batches(read_part, len(x), *box.batch_size_and_max_rows(len(x), batch_size)))

    def read_means(self, box: Box, x: Tensor, batch_size: BatchSize) -> Tensor:
        """The means (N, 1, C) of the rows over positions."""
        return self.read(box, x, batch_size, lambda rows, part: rows.mean(1, keepdim=True))
