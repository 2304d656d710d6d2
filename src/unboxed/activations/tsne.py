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
from ..engine.read.embedding import Embedding, embed
from ..engine.read.neighbors import nearest
from ..errors import InputError
from ..model.batching import BatchSize
from ..validation import check_float, check_int

LAYERS = 4  # hidden layers that are mapped when none is named


@dataclass(frozen=True, eq=False)
class LayerMap:
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
        return _voted(self.points, y.long(), k)


@dataclass(frozen=True)
class Maps:
    """A map a layer of the same N examples."""

    layers: tuple[LayerMap, ...]
    interrupted: bool = False
    _box: Box | None = field(default=None, repr=False)

    def __getitem__(self, path: str) -> LayerMap:
        """The map of a layer. Raises InputError where it has none."""
        for layer in self.layers:
            if layer.path == path:
                return layer
        raise InputError(f"there is no map of {path!r}; there are {', '.join(m.path for m in self.layers)}")

    def accuracy(self, y: Tensor | Sequence[int], k: int = 10) -> dict[str, float]:
        """{layer: the share of points whose k nearest in the map mostly bear their label}."""
        return {layer.path: layer.accuracy(y, k) for layer in self.layers}

    def place(self, x: Tensor, *, batch_size: BatchSize = "auto") -> dict[str, Tensor]:
        """Where new inputs (M, ...) belong in the finished maps, {layer: (M, 2)}; the maps stay as they are."""
        if self._box is None:
            raise InputError("these maps came without their box, which reads new inputs; make them by tsne(box, x)")
        box, paths, n = self._box, [m.path for m in self.layers], len(self.layers[0].points)
        most = features.kept(n)  # sketched where the map's own examples were
        found = features.read(box, box.validate_inputs(x), paths, batch_size=batch_size, most=most)
        return {m.path: _points(m.embedding.place(found[m.path].cpu().numpy()), box) for m in self.layers}


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
) -> Maps:
    """Maps of the inputs themselves ("input") and of hidden layers: four of them, evenly spread, unless named.

    More than 50 features become their 50 principal components; of a layer with too many values to hold, after a sketch
    that keeps distances within some percent. The perplexity is at most (N - 1) / 3; fewer than 6 points lie at their
    first two principal components. Nothing depends on chance: the same call gives the same map.
    Ctrl-C keeps the maps that are done. Raises LayerError for unknown layers.
    """
    perplexity = check_float("perplexity", perplexity, above=1)
    chosen = ["input", *features.hidden(box, LAYERS)] if layers is None else features.resolved(box, layers)
    x = box.validate_inputs(x)
    found = features.read(box, x, chosen, batch_size=batch_size, most=features.kept(len(x)))
    done: list[LayerMap] = []
    try:
        for path in chosen:
            embedding = embed(found.pop(path).cpu().numpy(), perplexity=perplexity)
            done.append(LayerMap(path, _points(embedding.points, box), embedding))
    except KeyboardInterrupt:
        if not done:
            raise
        return replace(Maps(tuple(done), _box=box), interrupted=True)
    return Maps(tuple(done), _box=box)


def _points(places: object, box: Box) -> Tensor:
    return torch.as_tensor(places).to(box.device, box.dtype)


def _voted(points: Tensor, y: Tensor, k: int) -> float:
    near = nearest(points, points, k, exclude=torch.arange(len(points), device=points.device)).indices  # (N, k)
    names, own = np.unique(y.cpu().numpy(), return_inverse=True)  # (N,)
    votes = np.zeros((len(own), len(names)), dtype=np.int64)
    np.add.at(votes, (np.arange(len(own))[:, None], own[near.cpu().numpy()]), 1)
    return float((votes.argmax(1) == own).mean())  # of a tie the lowest label
