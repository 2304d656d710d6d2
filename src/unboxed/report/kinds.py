"""What the inputs are, in words: a page about a table speaks of rows and columns, never of pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..box import Box
from ..inputs.base import Inputs
from ..inputs.features import Features
from ..inputs.multi import MultiInput
from ..inputs.pixels import Pixels
from .words import many, size


@dataclass(frozen=True)
class Kind:
    """The nouns of one kind of input."""

    takes: str  # what the model takes
    example: str  # one example, changed by an attack
    value: str  # one of its numbers
    unit: str  # of those numbers, behind an amount of them


PIXELS = Kind("images", "image", "pixel", "of the pixel range")
COLUMNS = Kind("a table of features", "row", "column", "(in each column's own unit)")
STANDARDIZED = replace(COLUMNS, unit="standard deviations of each column")


def kind_of(inputs: Inputs) -> Kind:
    if isinstance(inputs, Pixels):
        return PIXELS
    if isinstance(inputs, MultiInput):
        return Kind(_together(inputs), "example", "value", "(in each input's own unit)")
    if isinstance(inputs, Features) and _scaled(inputs):
        return STANDARDIZED
    return COLUMNS


def _together(inputs: MultiInput) -> str:
    """Like "1 image and 2 tables of features"."""
    counts = Counter("image" if isinstance(part, Pixels) else "table" for _, part in _parts(inputs))
    words = {"image": ("image", "images"), "table": ("table of features", "tables of features")}
    return " and ".join(many(n, *words[what]) for what, n in counts.items())


def shapes(inputs: Inputs) -> str:
    """The shapes of all inputs, as the page prints them."""
    return " and ".join(size(part.shape) for _, part in _parts(inputs))


def columns(inputs: Inputs, x: Tensor) -> tuple[list[str], Tensor]:
    """Names, and x (N, ...) as columns (N, F) of these names; an image among several inputs is one: its mean."""
    values = inputs.split(x) if isinstance(inputs, MultiInput) else [x]
    parts = _parts(inputs)
    tables = sum(isinstance(part, Features) for _, part in parts)
    names: list[str] = []
    found = []
    for (name, part), value in zip(parts, values, strict=True):
        flat = value.double().flatten(1)
        if isinstance(part, Features):
            names += [column if tables == 1 else f"{name}.{column}" for column in part.names]
            found.append(flat)
        else:
            names.append(f"{name} (mean)")
            found.append(flat.mean(1, keepdim=True))
    return names, torch.cat(found, 1)


def _parts(inputs: Inputs) -> list[tuple[str, Inputs]]:
    """Each input with its name; a single one is "input"."""
    if not isinstance(inputs, MultiInput):
        return [("input", inputs)]
    if isinstance(inputs.parts, Mapping):
        return list(inputs.parts.items())
    return [(f"input {i}", part) for i, part in enumerate(inputs.parts)]


def _scaled(inputs: Features) -> bool:
    return any(s != 1.0 for s in inputs.std)


def standardized(box: Box, x: Tensor) -> tuple[Box, Tensor]:
    """The same model on columns in units of their standard deviations, and x (N, F) so; other inputs as they are.

    Categories are not kept.
    """
    inputs = box.inputs
    if not isinstance(inputs, Features) or not _scaled(inputs):
        return box, x
    x = box.accept(x)
    low, high = (tuple(inputs.encode(x.new_tensor([ends]))[0].tolist()) for ends in (inputs.low, inputs.high))
    return box.around(box.model, Features(inputs.names, low, high)), inputs.encode(x)


def categories(inputs: Inputs) -> list[str]:
    """The columns that take certain values alone, of all tables among the inputs."""
    return [name for _, part in _parts(inputs) if isinstance(part, Features) for name in part.categories]
