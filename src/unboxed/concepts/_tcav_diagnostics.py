"""What may make concept vectors misleading: the three properties of Nicolson et al., arXiv:2404.03713."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..box import Box
from ..engine.read.position_grids import PositionGrid, grid_of_layer
from ..engine.results import ResultMixin
from ..errors import InputError, LayerError
from ..inputs.pixels import Pixels
from ..model.batching import BatchSize, map_in_batches
from ._example_sets import ExampleSets
from ._layer_features import LayerFeatures
from ._vectors import LayerConceptVectors, fit_layer_vectors

ENTANGLED = 0.5  # cosine of concepts that may stand for one another
N_MOVED_EXAMPLES = 32  # examples whose activations are moved along a vector


@dataclass(frozen=True, eq=False)
class LayerDirections:
    """What the diagnostics need of a layer.

    Attributes:
        layer: The layer.
        vectors: (C, D) the concepts' vectors, of length 1.
        random: (R, D) those of the random sets.
        lengths: (C,) how far the concept's examples are from random ones, along its vector.
        without_positions: (C,) held-out accuracy of vectors that are the same at all positions; None without positions.
    """

    layer: LayerFeatures
    vectors: Tensor
    random: Tensor
    lengths: Tensor
    without_positions: Tensor | None


@dataclass(frozen=True, eq=False, repr=False)
class SpatialDependence(ResultMixin):
    """Where on the image a layer's vectors lie.

    Attributes:
        layer: Its address.
        maps: (C, h, w) share of each vector's squared length at each position.
        distance: (C,) how much of that share is elsewhere than of random vectors', from 0 to 1 (total variation).
        random_distance: (R,) the same of each random vector.
        accuracy: (C,) held-out accuracy of vectors that are the same at all positions.
    """

    layer: str
    maps: Tensor
    distance: Tensor
    random_distance: Tensor
    accuracy: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Diagnostics(ResultMixin):
    """Consistency across layers, entanglement of concepts, and spatial dependence.

    Attributes:
        consistency: (C, L - 1) mean cosine between a concept's vector in a layer and what moving the layer before along
            its own vector changes there; NaN where that changes nothing, as in a layer that runs before.
        entanglement: (L, C, C) cosines between the concepts' vectors.
        spatial: A `SpatialDependence` per layer; None where it has no positions.
    """

    consistency: Tensor
    entanglement: Tensor
    spatial: tuple[SpatialDependence | None, ...]

    def most_entangled(self, k: int) -> tuple[int, int, float] | None:
        """The two concepts whose vectors in a layer are most alike, or opposite, and their cosine; None of one."""
        cosines = self.entanglement[k]
        if len(cosines) < 2:
            return None
        pairs = torch.triu(cosines.abs(), 1)
        a, b = divmod(int(pairs.argmax()), len(pairs))
        return a, b, float(cosines[a, b])


def diagnosis_sentences(d: Diagnostics, concepts: Sequence[str], layers: Sequence[str]) -> list[str]:
    """What the diagnostics say, a sentence each: of the concept, pair or layer where they are worst."""
    sentences = list[str]()
    if not d.consistency.isnan().all():
        c, k = divmod(int(d.consistency.nan_to_num(math.inf).argmin()), d.consistency.shape[1])
        sentences.append(
            f"consistency: moving {layers[k]!r} along {concepts[c]!r} changes {layers[k + 1]!r} along its vector there "
            f"with a mean cosine of {float(d.consistency[c, k]):.2f}, the lowest of all (1: the same concept)"
        )
    pairs = [(pair, k) for k in range(len(layers)) if (pair := d.most_entangled(k)) is not None]
    if pairs:
        (a, b, cosine), k = max(pairs, key=lambda found: abs(found[0][2]))
        meaning = ": what is said of one may be due to the other" * (abs(cosine) >= ENTANGLED)
        sentences.append(
            f"entanglement: most of {concepts[a]!r} and {concepts[b]!r}, a cosine of {cosine:+.2f} in "
            f"{layers[k]!r}{meaning}"
        )
    known = [s for s in d.spatial if s is not None]
    if known:
        s = max(known, key=lambda found: float(found.distance.max()))
        c = int(s.distance.argmax())
        random = float(s.random_distance.mean())
        sentences.append(
            f"spatial dependence: most of {concepts[c]!r} in {s.layer!r}, where {float(s.distance[c]):.0%} of its "
            f"vector is elsewhere than that of random vectors (of one of these {random:.0%}); a vector that is the "
            f"same at all positions tells {float(s.accuracy[c]):.0%} of the examples apart"
        )
    return sentences


def directions(
    box: Box, layer: LayerFeatures, fitted: LayerConceptVectors, sets: ExampleSets, l2: float
) -> LayerDirections:  # fmt: skip
    """What the diagnostics need of a layer, of its vectors."""
    vectors = fitted.vectors(fitted.mean)
    centers = torch.stack([fitted.h[torch.unique(rows)].mean(0) for rows in sets.positives])
    lengths = (centers * vectors).sum(1)
    grid = _grid(box, layer)
    without = None
    if grid is not None:
        means = grid.to_maps(fitted.h.view(-1, *layer.shape)).flatten(2).mean(2)
        without = _accuracy_without_positions(means, sets, l2, layer.address)
    return LayerDirections(layer, vectors, fitted.vectors(fitted.random_mean[max(sets.random)]), lengths, without)


def _accuracy_without_positions(h: Tensor, sets: ExampleSets, l2: float, address: str) -> Tensor:
    """(C,) held-out accuracy of vectors of these features; chance where they are all the same."""
    try:
        return torch.stack([v.accuracy.mean() for v in fit_layer_vectors(h, sets, l2, address, with_random=False).each])
    except LayerError:
        return torch.full((len(sets.positives),), 0.5, dtype=torch.float64)


def _grid(box: Box, layer: LayerFeatures) -> PositionGrid | None:
    """How the vectors lie on the image; None where they do not, or are the same at all positions."""
    if not isinstance(box.inputs, Pixels) or len(layer.shape) < 2 or layer.unit_axis is not None:
        return None
    try:
        return grid_of_layer(box, layer.address, layer.shape)
    except (LayerError, InputError):
        return None


def diagnose(
    box: Box, x: Tensor, layers: Sequence[LayerDirections], dtype: torch.dtype, batch_size: BatchSize
) -> Diagnostics:  # fmt: skip
    """The diagnostics of vectors, on the first of the target's examples x (N, ...)."""
    n = len(layers[0].vectors)
    consistency = [_consistency(box, x[:N_MOVED_EXAMPLES], a, b, batch_size) for a, b in pairwise(layers)]
    return Diagnostics(
        torch.stack(consistency, 1).to(dtype) if consistency else torch.zeros(n, 0, dtype=dtype),
        torch.stack([(d.vectors @ d.vectors.T).clamp(-1, 1) for d in layers]).to(dtype),
        tuple(_spatial_dependence(box, d, dtype) for d in layers),
    )


def _consistency(
    box: Box, x: Tensor, before: LayerDirections, after: LayerDirections, batch_size: BatchSize
) -> Tensor:  # fmt: skip
    """(C,) mean cosine between each vector of the later layer and its change; NaN where nothing changes."""
    steps = before.vectors * before.lengths[:, None]

    def read(rows: slice, step: Tensor | None) -> Tensor:
        def move(h: Tensor) -> Tensor:
            return h if step is None else before.layer.move(h, step)

        with box.isolated(grad=False):
            h = box.forward(x[rows], [after.layer.address], {before.layer.address: move})[after.layer.address]
            return after.layer.read(h).double().cpu()

    def run(step: Tensor | None) -> Tensor:
        return torch.cat(
            map_in_batches(lambda rows: read(rows, step), len(x), *box.batch_size_and_max_rows(len(x), batch_size))
        )

    plain = run(None)
    changes = [run(step) - plain for step in steps]
    cosines = (torch.cosine_similarity(h, v[None].double(), dim=1) for h, v in zip(changes, after.vectors, strict=True))
    means = torch.stack([cosine.mean() for cosine in cosines])
    return means.where(torch.stack([h.any() for h in changes]), math.nan)


def _spatial_dependence(box: Box, d: LayerDirections, dtype: torch.dtype) -> SpatialDependence | None:
    grid = _grid(box, d.layer)
    if grid is None or d.without_positions is None:
        return None
    maps, null = (_squared_length_share_per_position(grid, vectors, d.layer.shape) for vectors in (d.vectors, d.random))
    rest = (null.sum(0) - null) / (len(null) - 1)  # of the other random vectors
    return SpatialDependence(
        d.layer.address, maps.to(dtype), _total_variation_distance(maps, null.mean(0)).to(dtype),
        _total_variation_distance(null, rest).to(dtype), d.without_positions.to(dtype),
    )  # fmt: skip


def _squared_length_share_per_position(grid: PositionGrid, vectors: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(B, h, w) the share of each vector's squared length at each position."""
    squares = grid.to_maps(vectors.view(-1, *shape)).double().square().sum(1)
    return squares / squares.sum((1, 2), keepdim=True).clamp_min(torch.finfo(squares.dtype).tiny)


def _total_variation_distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().sum((1, 2)) / 2
