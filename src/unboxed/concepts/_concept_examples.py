"""The settings of concept vectors, and what is read for them: examples of concepts and the layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from ..box import Box
from ..engine.read.examples import first_inputs
from ..engine.read.features import hidden_layer_input_addresses, resolve_layers
from ..errors import DataError, InputError, LayerError
from ..inputs.pixels import Pixels
from ..settings import Above, AtLeast, Unit, ValueRole
from ._data import MIN_EXAMPLES_PER_CONCEPT, read_concepts

RandomData = Annotated[Any, ValueRole("data"), "Examples that the random sets are drawn from."]
Relative = Annotated[bool, "Tell each concept apart from the other concepts, in place of random examples."]
NRandomSets = Annotated[int, AtLeast(3), Unit("sets"), "Number of random sets."]
MaxSetSize = Annotated[int, AtLeast(2), Unit("examples"), "Largest number of examples of a set."]
Penalty = Annotated[float, Above(0), "L2 penalty of the classifiers, on features of variance 1 in all."]
MAX_DEFAULT_LAYERS = 4

Selector = Callable[[Any], Any]
"""Inputs -> (N,) bool: which of them have the concept."""


def read_concept_examples(
    box: Box, concepts: Any, x: Tensor, dataset_rows: Tensor, max_examples: int | None = None
) -> dict[str, Tensor]:  # fmt: skip
    """Inputs (n, ...) of each concept by its name: those given, or those of x (N, ...) that are selected.

    What selects is a function of the inputs, or a bool for each example of the data, of which x are these rows (N,).
    Raises InputError and DataError.
    """
    selectors = {name: c for name, c in getattr(concepts, "items", dict)() if _is_selector(c)}
    given = {name: c for name, c in concepts.items() if name not in selectors} if selectors else concepts
    read = read_concepts(box, given, max_examples) if given or not selectors else {}
    selected = {
        str(name): _select_concept_examples(box, str(name), c, x, dataset_rows, max_examples)
        for name, c in selectors.items()
    }
    return {str(name): (selected | read)[str(name)] for name in concepts}


def _is_selector(concept: Any) -> bool:
    is_mask = isinstance(concept, (Tensor, np.ndarray)) and concept.ndim == 1
    return is_mask or (callable(concept) and not hasattr(concept, "__getitem__"))


def _select_concept_examples(
    box: Box, name: str, concept: Any, x: Tensor, dataset_rows: Tensor, max_examples: int | None
) -> Tensor:  # fmt: skip
    mask = concept(box.restore_structure(x.clone())) if callable(concept) else concept
    mask = torch.as_tensor(mask).detach().cpu()
    n_rows = int(dataset_rows.max()) + 1  # of the data; more than those of x where files could not be read
    is_longer = not callable(concept) and mask.ndim == 1 and len(mask) >= max(n_rows, len(x) + 1)
    if is_longer and (max_examples is not None or n_rows > len(x)):
        mask = mask[dataset_rows]
    if mask.shape != (len(x),) or mask.dtype != torch.bool:
        raise InputError(
            f"concept {name!r} must say of each of the {len(x)} examples whether it has it, (N,) bool; got "
            f"{str(mask.dtype).removeprefix('torch.')} of shape {tuple(mask.shape)}"
        )
    if int(mask.sum()) < MIN_EXAMPLES_PER_CONCEPT:
        raise DataError(
            f"{int(mask.sum())} of {len(x)} examples have concept {name!r}; wanted {MIN_EXAMPLES_PER_CONCEPT} or more"
        )
    return x[mask.to(x.device)]


def random_pool(box: Box, random_data: Any, x: Tensor) -> Tensor:
    """Inputs (P, ...) that random sets are drawn from. Raises DataError and InputError."""
    if random_data is None:
        return x
    try:
        return first_inputs(box, random_data)
    except (DataError, InputError) as error:
        raise type(error)(f"random_data: {error}") from error


def resolve_concept_layers(box: Box, layers: Any) -> list[str]:
    """The full addresses; by default the inputs of up to four hidden layers. Raises LayerError."""
    addresses = hidden_layer_input_addresses(box, MAX_DEFAULT_LAYERS) if layers is None else resolve_layers(box, layers)
    if not addresses:
        addresses = ["input"]
    if "input" in addresses and not isinstance(box.inputs, Pixels):
        raise LayerError("the columns of inputs that are no images have different units; name a hidden layer")
    return addresses
