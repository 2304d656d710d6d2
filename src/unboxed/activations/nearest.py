"""Nearest neighbors: the examples that a layer holds to be alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read import features
from ..engine.read.items import SkippedExamples
from ..engine.read.neighbors import Metric, Neighbors, NeighborSearch
from ..errors import LayerError
from ..model.batching import BatchSize
from ..objectives import MODEL_ENDS
from ..validation import check_int


@card(
    name="Nearest neighbors",
    source="Krizhevsky et al. 2012, section 6.1 and figure 4 (right)",
    shows="Which examples this layer holds to be alike: what the model has learned to tell apart is far apart.",
    does_not_show="Why they are alike: distance adds up every feature, and those of large values count most.",
    example=lambda method, box, x, y: method(box, x, _example_data(box), k=2),
)
def nearest_neighbors(
    box: Box,
    x: Tensor,
    data: Any = None,
    layer: str | None = None,
    *,
    k: int = 8,
    metric: Metric = "euclidean",
    batch_size: BatchSize = "auto",
) -> Neighbors:
    """The k examples of `data` nearest to each of x in a layer (by default what the last one receives), exactly.

    Without `data`: among x themselves, each but itself. `data` of any size are read once, in bounded memory; indices
    count them from 0. Raises LayerError for unknown layers, InputError where there are fewer than k examples.
    """
    k = check_int("k", k, minimum=1)
    address = _last_hidden_layer(box) if layer is None else layer if layer in MODEL_ENDS else box.layers.resolve(layer)
    queries = features.read_features(box, box.validate_inputs(x), [address], batch_size=batch_size)[address]  # (N, D)
    if data is None:
        search = NeighborSearch(queries, k, metric=metric, exclude=torch.arange(len(queries)))
        search.add(queries)
        return search.result()
    search = NeighborSearch(queries, k, metric=metric)
    skipped = SkippedExamples()
    next_features = features.feature_stream(box, data, address, batch_size=batch_size, skipped=skipped)
    while (points := next_features()) is not None:
        search.add(points)
    neighbors = search.result()
    return replace(neighbors, indices=skipped.dataset_rows(neighbors.indices))


def _last_hidden_layer(box: Box) -> str:
    """What the last layer receives; of a model without a hidden layer, the output."""
    if not any(row.n_parameters for row in box.layers.leaves):
        raise LayerError("no module of this model has parameters; name what to compare, for one layer='output'")
    hidden = features.hidden_layer_inputs(box)
    return hidden[-1] if hidden else "output"


def _example_data(box: Box) -> Tensor:
    """Some examples to be neighbors."""
    return box.inputs.sample(5, torch.Generator(box.device).manual_seed(1)).to(box.dtype)
