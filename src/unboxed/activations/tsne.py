"""t-SNE maps: examples as points in the plane, close to one another where they are similar in a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read import features
from ..engine.read.embedding import FittedTSNE, fit_tsne
from ..engine.read.neighbors import nearest_points
from ..engine.results import ResultMixin
from ..errors import InputError
from ..parameters import BatchSize, InputBatch, LayerAddresses
from ..settings import Above, check_settings
from ..validation import check_int

N_DEFAULT_TSNE_LAYERS = 4  # hidden layers that are mapped where none is named


@dataclass(frozen=True, eq=False, repr=False)
class TsneMap(ResultMixin):
    """The t-SNE map of one layer."""

    path: str  # the layer's address; "input" is the example itself
    points: Tensor  # (N, 2)
    embedding: FittedTSNE = field(repr=False)

    def accuracy(self, y: Tensor | Sequence[int], k: int = 10) -> float:
        """The accuracy of a vote of the k nearest other points on the label of each point, for labels y (N,)."""
        y = torch.as_tensor(y, device=self.points.device)
        if y.shape != self.points.shape[:1] or y.is_floating_point() or y.is_complex():
            raise InputError(f"y must be one class per point, ({len(self.points)},) integers; got {tuple(y.shape)}")
        k = min(check_int("k", k, minimum=1), len(y) - 1)
        if k < 1:
            raise InputError("a map of one point has no neighbors: map more examples")
        return _knn_accuracy(self.points, y.long(), k)


@dataclass(frozen=True, repr=False)
class TsneMaps(ResultMixin):
    """One t-SNE map per layer of the same N examples."""

    returns: ClassVar[str] = "embedding"

    layers: tuple[TsneMap, ...]
    interrupted: bool = False  # by Ctrl-C: the maps that were done until then
    classes: tuple[str, ...] = ()  # the names of the model's classes
    _box: Box | None = field(default=None, repr=False)

    def summary_lines(self) -> Iterator[str]:
        yield f"t-SNE maps of {len(self.layers[0].points)} examples: " + ", ".join(m.path for m in self.layers)

    def __getitem__(self, path: str) -> TsneMap:
        """The map of a layer. Raises InputError for one that has none."""
        for layer in self.layers:
            if layer.path == path:
                return layer
        raise InputError(f"there is no map of {path!r}; there are {', '.join(m.path for m in self.layers)}")

    def accuracy(self, y: Tensor | Sequence[int], k: int = 10) -> dict[str, float]:
        """{layer: the accuracy of a vote of the k nearest other points on the label of each point}."""
        return {layer.path: layer.accuracy(y, k) for layer in self.layers}

    def transform(self, x: Tensor, *, batch_size: BatchSize = "auto") -> dict[str, Tensor]:
        """The points of new inputs (M, ...) in the finished maps, {layer: (M, 2)}; the maps stay as they are."""
        if self._box is None:
            raise InputError("these maps have no model to read new inputs with: make them by tsne(box, x)")
        box, paths, n = self._box, [m.path for m in self.layers], len(self.layers[0].points)
        max_features = features.max_unsketched_features(n)  # sketched where the examples of the map were
        features_by_path = features.read_features(
            box, box.validate_inputs(x), paths, batch_size=batch_size, max_features=max_features
        )
        return {
            m.path: _coordinates_to_tensor(m.embedding.transform(features_by_path[m.path].cpu().numpy()), box)
            for m in self.layers
        }


@card(
    name="t-SNE map",
    source="van der Maaten and Hinton 2008; openTSNE (Poličar et al. 2024), from the principal components",
    shows="Which examples are similar in a layer: clusters of one class mean that the layer separates it.",
    does_not_show="Distances between clusters, or their sizes: a map preserves neighbors, not distances.",
    example=lambda method, box, x, y: method(box, x),
    exempt={
        "splitting": "the points of a map depend on one another, and the optimization amplifies rounding errors; "
        "the features that it starts from are the same for any split"
    },
    order=8,
)
def tsne(
    box: Box,
    x: InputBatch,
    layers: LayerAddresses = None,
    *,
    perplexity: Annotated[float, Above(1), "About how many neighbors of each point count."] = 30.0,
    batch_size: BatchSize = "auto",
) -> TsneMaps:
    """t-SNE maps of examples: of the inputs themselves, and of their activations in layers.

    An overview of how a model separates classes from layer to layer. For the neighbors of single examples, exactly, use
    `nearest_neighbors`; for two models `cka`. The same call gives the same map.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        layers: Addresses of the layers, as `box.layers` lists them. None: "input", and the inputs of four layers,
            evenly spaced over the depth.
        perplexity: About how many neighbors of each point count. At most (N - 1) / 3.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `TsneMaps`: for each of its `layers` the `points` (N, 2); `accuracy(y)`, `transform(new_x)`. Ctrl-C keeps the
        maps that are done.

    Raises:
        InputError: for inputs or settings out of their range.
        LayerError: for an unknown layer.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(5)
        >>> tuple(ub.activations.tsne(box, x, ["fc1"])["fc1"].points.shape)
        (5, 2)

    Source:
        van der Maaten & Hinton 2008, "Visualizing Data using t-SNE", as openTSNE computes it (Policar et al. 2024),
        from the principal components. More than 50 features become their 50 principal components; layers with too many
        values are sketched first, which preserves distances within some percent. Fewer than 6 points are at their first
        two principal components.
    """
    check_settings(tsne, locals())
    addresses = (
        ["input", *features.hidden_layer_input_addresses(box, N_DEFAULT_TSNE_LAYERS)]
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
            finished.append(TsneMap(path, _coordinates_to_tensor(embedding.points, box), embedding))
    except KeyboardInterrupt:
        if not finished:
            raise
        return TsneMaps(tuple(finished), interrupted=True, classes=box.classes, _box=box)
    return TsneMaps(tuple(finished), classes=box.classes, _box=box)


def _coordinates_to_tensor(coordinates: object, box: Box) -> Tensor:
    return torch.as_tensor(coordinates).to(box.device, box.dtype)


def _knn_accuracy(points: Tensor, y: Tensor, k: int) -> float:
    neighbor_index = nearest_points(
        points, points, k, exclude=torch.arange(len(points), device=points.device)
    ).indices  # (N, k)
    classes, class_index = np.unique(y.cpu().numpy(), return_inverse=True)  # (N,)
    votes = np.zeros((len(class_index), len(classes)), dtype=np.int64)
    np.add.at(votes, (np.arange(len(class_index))[:, None], class_index[neighbor_index.cpu().numpy()]), 1)
    return float((votes.argmax(1) == class_index).mean())  # of a tie the smallest label
