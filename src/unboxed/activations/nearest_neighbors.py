"""Nearest neighbors: the examples with the most similar activations in a layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read import features
from ..engine.read.neighbors import Metric, Neighbors, StreamingNeighborSearch
from ..inputs.items import SkippedExamples
from ..parameters import BatchSize, Data, InputBatch, LayerAddress, NExamplesToFind
from ..settings import check_settings


@card(
    name="Nearest neighbors",
    aliases=("knn",),
    source="Krizhevsky et al. 2012, section 6.1 and figure 4 (right)",
    shows="Which examples are similar in this layer: those that the model has learned to separate are far apart.",
    does_not_show="Why they are similar: a distance adds up all features, and those of large values dominate.",
    example=lambda method, box, x, y: method(box, x, _random_card_data(box), k=2),
    order=7,
)
def nearest_neighbors(
    box: Box,
    x: InputBatch,
    data: Data = None,
    layer: LayerAddress = None,
    *,
    k: NExamplesToFind = 8,
    metric: Annotated[Metric, "Metric in which activations are compared."] = "euclidean",
    batch_size: BatchSize = "auto",
) -> Neighbors:
    """The k examples of `data` nearest to each of x in a layer, exactly.

    To see which examples a model treats as similar, or which training examples resemble an input. For an overview of
    all examples use `tsne`. Data of any size are read once, in bounded memory.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        data: Examples: a Dataset, a DataLoader, an iterable, or tensors. None: x themselves, each without itself.
        layer: Address of the layer, as `box.layers` lists them. None: the input of the last layer with parameters.
        k: Number of examples to find. For each of x.
        metric: Metric in which activations are compared. "cosine" is 1 minus the cosine.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `Neighbors`: `indices` (N, k) in the data and `distances` (N, k), the nearest first.

    Raises:
        LayerError: for an unknown layer.
        InputError: for fewer than k examples, or settings out of their range.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(20)
        >>> ub.activations.nearest_neighbors(box, x[:2], x, k=3).indices[:, 0].tolist()
        [0, 1]

    Source:
        Krizhevsky et al. 2012, section 6.1 and figure 4 (right).
    """
    check_settings(nearest_neighbors, locals())
    address = features.default_feature_layer(box) if layer is None else features.resolve_address(box, layer)
    queries = features.read_features(box, box.validate_inputs(x), [address], batch_size=batch_size)[address]  # (N, D)
    if data is None:
        search = StreamingNeighborSearch(queries, k, metric=metric, exclude=torch.arange(len(queries)))
        search.add(queries)
        return search.nearest_so_far()
    search = StreamingNeighborSearch(queries, k, metric=metric)
    skipped = SkippedExamples()
    next_features = features.make_feature_reader(box, data, address, batch_size=batch_size, skipped=skipped)
    while (points := next_features()) is not None:
        search.add(points)
    neighbors = search.nearest_so_far()
    return replace(neighbors, indices=skipped.dataset_rows(neighbors.indices))


def _random_card_data(box: Box) -> Tensor:
    """Random examples, as neighbors."""
    return box.inputs.random_inputs(5, torch.Generator(box.device).manual_seed(1)).to(box.dtype)
