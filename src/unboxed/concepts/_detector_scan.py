"""Units against concepts: exact thresholds in a first pass over the data, overlaps in a second.

Bau et al. 2017, "Network Dissection: Quantifying Interpretability of Deep Visual Representations", arXiv:1704.05796,
section 2.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TypeVar

import torch
from torch import Tensor

from ..engine.rows import broadcast_rows
from ..model.batching import BatchSize, map_in_batches
from ._image_source import ImageSource, LayerWithAnchors
from ._segmenting import PackedMasks

PartT = TypeVar("PartT")
ROUNDING_TOLERANCE = 1e-6  # of a threshold, by which the interpolation of equal values may miss it
MAX_KEPT_TOP_VALUES = 2**26  # above the units' thresholds, of the views of one pass
MAX_UPSAMPLED_VALUES = 2**24  # of one part; counts up to it are exact in float32


@dataclass(frozen=True, eq=False)
class View:
    """Some units of a layer, or the directions of a rotated basis: rows (U, C) of an orthogonal matrix."""

    layer: LayerWithAnchors
    units: slice
    basis: Tensor | None = None

    @property
    def n_units(self) -> int:
        return int(self.units.stop - self.units.start)

    def maps(self, h: Tensor) -> Tensor:
        """Maps (n, U, h, w) of an activation."""
        maps = self.layer.grid.to_maps(h)
        if self.basis is None:
            return maps[:, self.units]
        return torch.einsum("uc,nchw->nuhw", self.basis[self.units].to(maps), maps)


@dataclass(frozen=True, eq=False)
class UnitScan:
    """What the passes gave for the units U of one layer and the concepts K."""

    iou: Tensor  # (U, K)
    threshold: Tensor  # (U,)
    largest: Tensor  # (N, U) in each example
    is_strict: Tensor  # (U,) whether only what is above the threshold counts


def scan_layers(
    source: ImageSource, x: Tensor, masks: PackedMasks, layers: Sequence[LayerWithAnchors],
    bases: Sequence[Tensor | None],
    quantile: float, batch_size: BatchSize,
) -> list[UnitScan]:  # fmt: skip
    """A scan per layer, of its units, or in the basis (C, C) that is given for it; a layer may come in several."""
    n_kept = n_top_values_to_keep(len(x) * masks.size[0] * masks.size[1], quantile)
    views = [_split_units_into_views(layer, basis, n_kept) for layer, basis in zip(layers, bases, strict=True)]
    groups = _group_views_by_memory(chain(*views), n_kept)
    scans = chain(*(_scan(source, x, masks, group, n_kept, batch_size) for group in groups))
    return [_joined(list(islice(scans, len(of_layer)))) for of_layer in views]


def n_top_values_to_keep(n_values: int, quantile: float) -> int:
    """Values per unit that are kept, of so many: all that lie above the threshold, and the threshold itself."""
    return min(n_values, int(quantile * n_values) + 1)


def _split_units_into_views(layer: LayerWithAnchors, basis: Tensor | None, n_kept: int) -> list[View]:
    size = max(1, MAX_KEPT_TOP_VALUES // n_kept)
    starts = range(0, layer.n_units, size)
    return [View(layer, slice(i, min(i + size, layer.n_units)), basis) for i in starts]


def _group_views_by_memory(views: Iterable[View], n_kept: int) -> list[list[View]]:
    """Views that together keep no more than the limit."""
    groups, room = list[list[View]](), 0
    for view in views:
        if not groups or view.n_units * n_kept > room:
            groups.append([])
            room = MAX_KEPT_TOP_VALUES
        groups[-1].append(view)
        room -= view.n_units * n_kept
    return groups


@dataclass(frozen=True, eq=False)
class _UnitExtremes:
    """Of each unit its largest values, its smallest, and its largest in each example."""

    top: Tensor  # (U, up to n_kept), in no order
    smallest: Tensor  # (U,)
    largest: Tensor  # (n, U)

    @classmethod
    def of(cls, maps: Tensor, n_kept: int) -> _UnitExtremes:
        values = maps.transpose(0, 1).flatten(1)  # (U, n * h * w)
        top = values.topk(min(n_kept, values.shape[1]), dim=1, sorted=False).values
        return cls(top, values.amin(1), maps.amax((2, 3)))

    def merged(self, other: _UnitExtremes, n_kept: int) -> _UnitExtremes:
        top = torch.cat([self.top, other.top], 1)
        top = top.topk(min(n_kept, top.shape[1]), dim=1, sorted=False).values
        smallest = torch.minimum(self.smallest, other.smallest)
        return _UnitExtremes(top, smallest, torch.cat([self.largest, other.largest]))


def _scan(
    source: ImageSource, x: Tensor, masks: PackedMasks, views: Sequence[View], n_kept: int, batch_size: BatchSize
) -> list[UnitScan]:
    values = _read_unit_extremes(source, x, views, masks.size, n_kept, batch_size)
    thresholds = [v.top.amin(1) for v in values]
    strict = [t <= v.smallest for t, v in zip(thresholds, values, strict=True)]
    counts = [torch.zeros(v.n_units, len(masks.areas) + 1, dtype=torch.float64) for v in views]

    def count(i: int, maps: Tensor, rows: slice) -> Tensor:
        upsampled = views[i].layer.anchors.upsample(maps, masks.size)
        inside = above(upsampled, thresholds[i], strict[i])
        return overlaps(inside.flatten(2), masks.rows(rows).to(inside.device)).double().cpu()

    def add(i: int, part: Tensor) -> None:
        counts[i] += part

    _for_each_batch(source, x, views, masks.size[0] * masks.size[1], count, add, batch_size)
    return [
        UnitScan(iou(c[:, 1:], c[:, :1], masks.areas), t.cpu(), v.largest.cpu(), s.cpu())
        for c, t, s, v in zip(counts, thresholds, strict, values, strict=True)
    ]


def _read_unit_extremes(
    source: ImageSource, x: Tensor, views: Sequence[View], size: tuple[int, int], n_kept: int, batch_size: BatchSize
) -> list[_UnitExtremes]:
    """The values of all pixels of all examples, per view."""
    values: list[_UnitExtremes | None] = [None] * len(views)

    def read(i: int, maps: Tensor, rows: slice) -> _UnitExtremes:
        return _UnitExtremes.of(views[i].layer.anchors.upsample(maps, size), n_kept)

    def add(i: int, part: _UnitExtremes) -> None:
        before = values[i]
        values[i] = part if before is None else before.merged(part, n_kept)

    _for_each_batch(source, x, views, size[0] * size[1], read, add, batch_size)
    return [v for v in values if v is not None]


def above(maps: Tensor, threshold: Tensor, is_strict: Tensor) -> Tensor:
    """Masks of maps (N, U, H, W): S >= T of each unit; S > T where T is its smallest value. Up to rounding."""
    level, strict = (broadcast_rows(v, maps[0]) for v in (threshold, is_strict))
    tolerance = ROUNDING_TOLERANCE * level.abs()
    return torch.where(strict, maps > level + tolerance, maps >= level - tolerance)


def overlaps(inside: Tensor, masks: Tensor) -> Tensor:
    """(U, 1 + K): pixels of each unit's mask (n, U, P) and of its intersection with the concepts' (n, K, P)."""
    units = inside.to(torch.float32).transpose(0, 1).flatten(1)  # (U, n * P)
    concepts = masks.to(torch.float32).transpose(0, 1).flatten(1)
    return torch.cat([units.sum(1, keepdim=True), units @ concepts.T], 1)


def iou(intersections: Tensor, unit_areas: Tensor, concept_areas: Tensor) -> Tensor:
    """Intersection over union (U, K); 0 of two empty masks."""
    unions = unit_areas + concept_areas.double() - intersections
    return intersections / unions.clamp_min(1)


def _for_each_batch(
    source: ImageSource, x: Tensor, views: Sequence[View], n_pixels: int,
    read: Callable[[int, Tensor, slice], PartT], add: Callable[[int, PartT], None], batch_size: BatchSize,
) -> None:  # fmt: skip
    """`add(view, read(view, maps (n, U, h, w), rows))` for all batches of x, in their order.

    A batch is added after all of it was read: where memory runs out in between, its halves are read again.
    """
    addresses, box = list(dict.fromkeys(v.layer.address for v in views)), source.box

    def run(rows: slice) -> None:
        with box.isolated(grad=False):
            acts = box.forward(x[rows], addresses)
        parts = list[tuple[int, PartT]]()
        for i, view in enumerate(views):
            maps = view.maps(acts[view.layer.address].to(box.dtype))
            step = max(1, MAX_UPSAMPLED_VALUES // (n_pixels * view.n_units))
            for start in range(0, len(maps), step):
                part = maps[start : start + step]
                parts.append((i, read(i, part, slice(rows.start + start, rows.start + start + len(part)))))
        for i, value in parts:
            add(i, value)

    map_in_batches(run, len(x), *box.batch_size_and_max_rows(len(x), batch_size))


def _joined(scans: Sequence[UnitScan]) -> UnitScan:
    """Of the groups of units of one layer."""
    return UnitScan(
        torch.cat([s.iou for s in scans]), torch.cat([s.threshold for s in scans]),
        torch.cat([s.largest for s in scans], 1), torch.cat([s.is_strict for s in scans]),
    )  # fmt: skip
