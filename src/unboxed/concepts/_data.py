"""What the methods read: concepts, each given by examples of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from ..box import Box
from ..engine.read.examples import first_inputs
from ..errors import DataError, InputError
from ..settings import ValueRole
from ..validation import missing_path_text

Concepts = Annotated[
    Mapping[str, Any], ValueRole("concepts"), "Examples of each concept by its name: {name: examples in any form}."
]

MIN_EXAMPLES_PER_CONCEPT = 2  # of a concept


def read_concepts(box: Box, concepts: Any, max_examples: int | None = None) -> dict[str, Tensor]:
    """Inputs (n, ...) of each concept by its name.

    Raises InputError where `concepts` is no mapping or empty, DataError for a concept with fewer than two examples.
    """
    if not isinstance(concepts, Mapping) or not concepts:
        got = "an empty one" if isinstance(concepts, Mapping) else type(concepts).__name__
        raise InputError(f"wanted concepts as a mapping {{name: examples}}, such as {{'stripes': folder}}; got {got}")
    return {str(name): _read_concept(box, str(name), data, max_examples) for name, data in concepts.items()}


def _read_concept(box: Box, name: str, data: Any, max_examples: int | None) -> Tensor:
    try:
        x = first_inputs(box, _concept_files(data) if isinstance(data, (str, os.PathLike)) else data, max_examples)
    except (DataError, InputError) as error:
        raise type(error)(f"concept {name!r}: {error}") from error
    if len(x) < MIN_EXAMPLES_PER_CONCEPT:
        raise DataError(f"concept {name!r} has {len(x)} example; give at least {MIN_EXAMPLES_PER_CONCEPT}, better 50")
    return x


def _concept_files(path: str | os.PathLike[str]) -> list[Path]:
    """The image itself, or all visible files of a folder, by name. Raises DataError where there is none."""
    place = Path(path)
    if not place.exists():
        raise DataError(missing_path_text(place))
    files = [place] if place.is_file() else sorted(f for f in place.iterdir() if f.is_file() and f.name[0] != ".")
    if not files:
        raise DataError(f"the folder {place} holds no images")
    return files


def random_card_concepts(box: Box, n: int = 6) -> dict[str, Tensor]:
    """Two concepts of random inputs, for the examples of cards."""
    generator = torch.Generator(box.device).manual_seed(2)
    draws = [box.inputs.random_inputs(n, generator).to(box.dtype) for _ in range(2)]
    return {"a": draws[0], "b": draws[1]}
