"""Interventions on a generator's units, and what becomes of the concepts in its images.

Bau et al. 2019, "GAN Dissection", arXiv:1811.10597, section 3.2: units are forced to zero (ablated) or to a constant
(inserted) at some positions of a layer, and the images are segmented again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..model.batching import BatchSize, map_in_batches
from ._image_source import ImageSource, LayerWithAnchors
from ._segmenting import Segmentation


@dataclass(frozen=True, eq=False)
class Interventions:
    """Codes of a generator with the positions of a layer where its units are changed.

    Attributes:
        source: The generator with its images.
        segmentation: The segmenter.
        layer: The layer whose units are changed.
        x: (N, ...) the codes.
        positions: (N, h, w) bool, where they are changed.
    """

    source: ImageSource
    segmentation: Segmentation
    layer: LayerWithAnchors
    x: Tensor
    positions: Tensor
    batch_size: BatchSize = "auto"

    def rows(self, rows: slice | Tensor) -> Interventions:
        """The same for some of the codes."""
        return replace(self, x=self.x[rows], positions=self.positions[rows])

    def at(self, positions: Tensor) -> Interventions:
        """The same at other positions (N, h, w)."""
        return replace(self, positions=positions)

    def images(self, strength: Tensor | None = None, value: Tensor | None = None) -> Tensor:
        """Images (N, C, H, W) with the units' maps h at the positions moved to a value: (1 - strength) h + strength v.

        Args:
            strength: (U,), or (N, U) per code, in [0, 1]; None changes nothing.
            value: (U,) the constant; None is zero.
        """
        return torch.cat(self._run(strength, value, lambda images: images))

    def areas(self, strength: Tensor | None = None, value: Tensor | None = None) -> Tensor:
        """(N, K) pixels of each concept in the images of `images(strength, value)`."""
        return torch.cat(
            self._run(strength, value, lambda images: self.segmentation.masks(images).sum((2, 3)).T.double().cpu())
        )

    def _run(
        self, strength: Tensor | None, value: Tensor | None, read: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:  # fmt: skip
        box = self.source.box

        def run(rows: slice) -> Tensor:
            edits = {} if strength is None else {self.layer.address: self._edit(rows, strength, value)}
            with box.isolated(grad=False):
                output = box.forward(self.x[rows], ["output"], edits)["output"].to(box.dtype)
            return read(self.source.decoded(output))

        return map_in_batches(run, len(self.x), *box.batch_size_and_max_rows(len(self.x), self.batch_size))

    def _edit(self, rows: slice, strength: Tensor, value: Tensor | None) -> Callable[[Tensor], Tensor]:
        per_code = strength[rows] if strength.ndim == 2 else strength[None]

        def edit(h: Tensor) -> Tensor:  # (n, U, h, w)
            changed = per_code.to(h)[:, :, None, None] * self.positions[rows].to(h)[:, None]
            # a value of infinity times zero would be NaN
            moved = h * (1 - changed)
            return moved if value is None else moved + changed * value.to(h)[:, None, None]

        return edit

    def mean_activation(self) -> Tensor:
        """(U,) each unit's mean at the positions: the constant k of the paper's insertion."""
        box, total = self.source.box, torch.zeros(self.layer.n_units, dtype=torch.float64)

        def run(rows: slice) -> Tensor:
            with box.isolated(grad=False):
                h = box.forward(self.x[rows], [self.layer.address])[self.layer.address].double()
            return (h * self.positions[rows].to(h)[:, None]).sum((0, 2, 3)).cpu()

        parts = map_in_batches(run, len(self.x), *box.batch_size_and_max_rows(len(self.x), self.batch_size))
        return sum(parts, total) / self.positions.sum().clamp_min(1).cpu()


def concept_positions(layer: LayerWithAnchors, masks: Tensor, size: tuple[int, int], min_coverage: float) -> Tensor:
    """(N, h, w) bool: the positions around which masks (N, H, W) cover that share of the image, up to the next ones."""
    (h, w), anchors = layer.grid.size, layer.anchors
    rows, columns = anchors.rows.weights(h, size[0]), anchors.columns.weights(w, size[1])  # (H, h), (W, w)
    covered = rows.T @ masks.to("cpu", torch.float64) @ columns
    around = rows.sum(0)[:, None] * columns.sum(0)
    return covered >= min_coverage * around.clamp_min(1e-12)
