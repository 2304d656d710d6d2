"""The nouns for each kind of input: a page about a table has rows and columns, no pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..engine.column_units import ORIGINAL_UNIT_TEXT, column_unit_text
from ..inputs.base import Inputs
from ..inputs.features import Features
from ..inputs.multi import MultiInput
from ..inputs.pixels import Pixels
from ..inputs.tokens import Tokens
from .words import count_noun, format_shape


@dataclass(frozen=True)
class InputNouns:
    """The nouns of one kind of input."""

    inputs: str  # what the model takes
    example: str  # one example, changed by an attack
    value: str  # one of its numbers
    unit: str  # of those numbers, after an amount


PIXEL_NOUNS = InputNouns("images", "image", "pixel", "of the pixel range")
PIXEL_NOUNS_BY_AXES = {
    1: InputNouns("images", "signal", "value", "of the range of values"),
    2: PIXEL_NOUNS,
    3: InputNouns("images", "volume", "voxel", "of the range of values"),
}
TEXT_NOUNS = InputNouns("texts", "text", "word", "of its embedding")
COLUMN_NOUNS = InputNouns("a table of features", "row", "value", ORIGINAL_UNIT_TEXT)


def input_nouns_for(inputs: Inputs) -> InputNouns:
    if isinstance(inputs, Pixels):
        return PIXEL_NOUNS_BY_AXES[inputs.n_axes]
    if isinstance(inputs, Tokens):
        return TEXT_NOUNS
    if isinstance(inputs, MultiInput):
        return InputNouns(_input_parts_count_text(inputs), "example", "value", _units_of_parts_text(inputs))
    return replace(COLUMN_NOUNS, unit=column_unit_text(inputs))


def _units_of_parts_text(inputs: MultiInput) -> str:
    """The units of the parts, each once, to follow an amount."""
    units = dict.fromkeys(input_nouns_for(part).unit.strip("()") for _, part in inputs.keys_and_parts())
    return " or ".join(units)


def _input_parts_count_text(inputs: MultiInput) -> str:
    """Like "1 image and 2 tables of features"."""
    counts = Counter("image" if isinstance(part, Pixels) else "table" for _, part in _named_input_specs(inputs))
    words = {"image": ("image", "images"), "table": ("table of features", "tables of features")}
    return " and ".join(count_noun(n, *words[what]) for what, n in counts.items())


def input_shapes_text(inputs: Inputs) -> str:
    """The shapes of all inputs, as the page prints them."""
    if isinstance(inputs, Tokens):
        return TEXT_NOUNS.inputs
    return " and ".join(format_shape(part.shape) for _, part in _named_input_specs(inputs))


def column_names_and_values(inputs: Inputs, x: Tensor) -> tuple[list[str], Tensor]:
    """Names, and x (N, ...) as columns (N, F) of these names; an image among several inputs is one: its mean."""
    values = inputs.split(x) if isinstance(inputs, MultiInput) else [x]
    parts = _named_input_specs(inputs)
    n_tables = sum(isinstance(part, Features) for _, part in parts)
    names: list[str] = []
    column_values = []
    for (name, part), value in zip(parts, values, strict=True):
        flat = value.double().flatten(1)
        if isinstance(part, Features):
            names += [column if n_tables == 1 else f"{name}.{column}" for column in part.names]
            column_values.append(flat)
        else:
            names.append(f"{name} (mean)")
            column_values.append(flat.mean(1, keepdim=True))
    return names, torch.cat(column_values, 1)


def _named_input_specs(inputs: Inputs) -> list[tuple[str, Inputs]]:
    """Each input with its name; a single one is "input"."""
    if not isinstance(inputs, MultiInput):
        return [("input", inputs)]
    if isinstance(inputs.parts, Mapping):
        return list(inputs.parts.items())
    return [(f"input {i}", part) for i, part in enumerate(inputs.parts)]
