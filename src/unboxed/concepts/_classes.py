"""Examples by class: which classes are looked at, and which examples each has."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from ..box import Box
from ..engine.read.features import default_feature_layer
from ..inputs.labels import ClassLabels
from ..model.batching import BatchSize
from ..settings import ValueRole

ClassSelection = Annotated[ClassLabels | None, ValueRole("labels"), "The classes to look at, by number or name."]


def example_indices_by_class(
    box: Box, x: Tensor, labels: Tensor | None, classes: Any, min_examples: int, batch_size: BatchSize
) -> dict[int, Tensor]:
    """Indices (n,) of each class's examples, by label or else by prediction; classes with fewer are left out."""
    y = (box.predict(x, batch_size=batch_size) if labels is None else labels).cpu()
    selected = range(box.n_outputs) if classes is None else resolve_class_numbers(box, classes)
    rows = {k: (y == k).nonzero().flatten() for k in selected}
    return {k: r for k, r in rows.items() if len(r) >= min_examples}


def resolve_class_numbers(box: Box, classes: Any) -> list[int]:
    """Numbers of classes that are given by number or name. Raises InputError for what is none."""
    numbers = box.class_numbers(classes).flatten()
    return list(dict.fromkeys(box.class_labels(numbers, len(numbers)).tolist()))


def random_card_examples(box: Box, n: int = 12) -> Tensor:
    """Random inputs, the same for each box, for the examples of cards."""
    return box.inputs.random_inputs(n, torch.Generator(box.device).manual_seed(1)).to(box.dtype)


def card_example_layer(box: Box) -> str | None:
    """The layer that examples of cards take: the same in each spelling of a model that has parameters."""
    return default_feature_layer(box) if any(row.n_parameters for row in box.layers.leaves) else None
