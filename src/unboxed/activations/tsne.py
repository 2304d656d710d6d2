"""t-SNE maps: the examples as points in the plane, near to one another where a layer holds them to be alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read import features
from ..engine.read.embedding import Embedding, fit_tsne
from ..engine.read.neighbors import nearest_points
from ..errors import InputError
from ..model.batching import BatchSize
from ..validation import check_float, check_int

N_DEFAULT_LAYERS = 4  # hidden layers that are mapped when none is named


@dataclass(frozen=True, eq=False)
class TsneMap:
    path: str  # its address; "input" is the example itself
    points: Tensor  # (N, 2)
    embedding: Embedding = field(repr=False)

    def accuracy(self, y: Tensor | Sequence[int], k: int = 10) -> float:
        """The share of points whose k nearest in the map, itself left out, mostly bear its label in y (N,)."""
        y = torch.as_tensor(y, device=self.points.device)
        if y.shape != self.points.shape[:1] or y.is_floating_point() or y.is_complex():
            raise InputError(f"wanted one label a point, ({len(self.points)},) whole numbers; got {tuple(y.shape)}")
        k = min(check_int("k", k, minimum=1), len(y) - 1)
        if k < 1:
            raise InputError("a map of one point has no neighbors; map more examples")
        return _knn_accuracy(self.points, y.long(), k)


@dataclass(frozen=True)
class TsneMaps:
    """A map a layer of the same N examples."""

    layers: tuple[TsneMap, ...]
    interrupted: bool = False
    _box: Box | None = field(default=None, repr=False)

    def __getitem__(self, path: str) -> TsneMap:
        """The map of a layer. Raises InputError where it has none."""
        for layer in self.layers:
            if layer.path == path:
                return layer
        raise InputError(f"there is no map of {path!r}; there are {', '.join(m.path for m in self.layers)}")

    def accuracy(self, y: Tensor | Sequence[int], k: int = 10) -> dict[str, float]:
        """{layer: the share of points whose k nearest in the map mostly bear their label}."""
        return {layer.path: layer.accuracy(y, k) for layer in self.layers}

    def transform(self, x: Tensor, *, batch_size: BatchSize = "auto") -> dict[str, Tensor]:
        """Where new inputs (M, ...) belong in the finished maps, {layer: (M, 2)}; the maps stay as they are."""
        if self._box is None:
            raise InputError("these maps came without their box, which reads new inputs; make them by tsne(box, x)")
        box, paths, n = self._box, [m.path for m in self.layers], len(self.layers[0].points)
        max_features = features.max_unsketched_features(n)  # sketched where the map's own examples were
        features_by_path = features.read_features(
            box, box.validate_inputs(x), paths, batch_size=batch_size, max_features=max_features
        )
        return {
            m.path: _to_tensor(m.embedding.transform(features_by_path[m.path].cpu().numpy()), box) for m in self.layers
        }


@card(
    name="t-SNE map",
    source="van der Maaten and Hinton 2008; openTSNE (Poličar et al. 2024), begun at the principal components",
    shows="Which examples a layer brings together: clusters of one class show that the layer already tells it apart.",
    does_not_show="How far apart clusters are, or how wide: the map keeps neighbors, not distances.",
    example=lambda method, box, x, y: method(box, x),
    exempt={
        "splitting": "the places in a map depend on one another, and the climb amplifies rounding errors; "
        "what it starts from, the features read, is the same for any split"
    },
)
def tsne(
    box: Box,
    x: Tensor,
    layers: str | Sequence[str] | None = None,
    *,
    perplexity: float = 30.0,
    batch_size: BatchSize = "auto",
) -> TsneMaps:
    """Maps of the inputs themselves ("input") and of hidden layers: four of them, evenly spread, unless named.

    More than 50 features become their 50 principal components; of a layer with too many values to hold, after a sketch
    that keeps distances within some percent. The perplexity is at most (N - 1) / 3; fewer than 6 points lie at their
    first two principal components. Nothing depends on chance: the same call gives the same map.
    Ctrl-C keeps the maps that are done. Raises LayerError for unknown layers.
    """
    perplexity = check_float("perplexity", perplexity, above=1)
    addresses = (
        ["input", *features.hidden_layer_inputs(box, N_DEFAULT_LAYERS)]
        if layers is None
        else features.resolve_layers(box, layers)
    )
    x = box.validate_inputs(x)
    features_by_path = features.read_features(
        box, x, addresses, batch_size=batch_size, max_features=features.max_unsketched_features(len(x))
    )
    finished: list[TsneMap] = []
    try:
        for path in addresses:
            embedding = fit_tsne(features_by_path.pop(path).cpu().numpy(), perplexity=perplexity)
            finished.append(TsneMap(path, _to_tensor(embedding.points, box), embedding))
    except KeyboardInterrupt:
        if not finished:
            raise
        return replace(TsneMaps(tuple(finished), _box=box), interrupted=True)
    return TsneMaps(tuple(finished), _box=box)


def _to_tensor(coordinates: object, box: Box) -> Tensor:
    return torch.as_tensor(coordinates).to(box.device, box.dtype)


def _knn_accuracy(points: Tensor, y: Tensor, k: int) -> float:
    neighbor_index = nearest_points(
        points, points, k, exclude=torch.arange(len(points), device=points.device)
    ).indices  # (N, k)
    classes, class_index = np.unique(y.cpu().numpy(), return_inverse=True)  # (N,)
    votes = np.zeros((len(class_index), len(classes)), dtype=np.int64)
    np.add.at(votes, (np.arange(len(class_index))[:, None], class_index[neighbor_index.cpu().numpy()]), 1)
    return float((votes.argmax(1) == class_index).mean())  # of a tie the lowest label
