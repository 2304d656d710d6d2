"""What the figures of several families need: examples as images, the names of classes, results in tuples and dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...engine.column_units import ColumnChange, column_changes
from ...engine.read.examples import fetch_inputs
from ...engine.results import class_name as name_of_class
from ...inputs.base import Inputs
from ...inputs.features import Features
from ...inputs.multi import MultiInput
from ...objectives import Objective
from .. import colors
from ..sheet import Tile

if TYPE_CHECKING:
    from ...box import Box

MAX_EXAMPLES_PER_FIGURE = 6  # examples that a figure shows


def shown_of_total_suffix(n_shown: int, n: int, noun: str) -> str:
    """The end of a title of a figure that does not show all.

    >>> shown_of_total_suffix(12, 16, "unit"), shown_of_total_suffix(16, 16, "unit")
    (' (12 of 16 units)', '')
    """
    return f" ({n_shown:,} of {n:,} {noun}s)" if n_shown < n else ""


def as_images_or_none(x: Any) -> Tensor | None:
    """Inputs or maps as images (N, C, H, W), else None: signals as one row, volumes as their slices."""
    if not isinstance(x, Tensor) or x.ndim not in (3, 4, 5):
        return None
    return x if x.ndim == 4 else x[:, :, None] if x.ndim == 3 else x.flatten(2, 3)


def input_part_by_name(x: Any) -> dict[str, Any]:
    """{name: tensor} of inputs that may be several, a dict or a tuple; one alone has the name ""."""
    parts = x.items() if isinstance(x, Mapping) else enumerate(x) if isinstance(x, tuple) else [("", x)]
    return {str(name): part for name, part in parts}


def first_image_part(x: Any) -> Tensor | None:
    """The images (N, C, H, W) of inputs of which one part may be images; None where none is."""
    images = [as_images_or_none(part) for part in input_part_by_name(x).values()]
    return next((part for part in images if part is not None), None)


def class_name(k: Any, classes: Sequence[str], box: Box | None = None) -> str:
    """The name of class k, or its number where no names are known."""
    return name_of_class(k, classes or (box.classes if box is not None else ()))


def target_names(target: Any, n: int, classes: Sequence[str], box: Box | None = None) -> list[str]:
    """What is explained or optimized, one name for each of n examples; empty where it is nothing."""
    if isinstance(target, Tensor) and target.ndim == 1:
        return [class_name(k, classes, box) for k in target[:n].tolist()]
    return [target.name if isinstance(target, Objective) else ""] * n


def fetch_images_at(data: Any, indices: Any, box: Box | None) -> Tensor | None:
    """The examples (M, C, H, W) of data at these indices (M,), as images; None where there are none."""
    if data is None:
        return None
    inputs = None if box is None else box.inputs
    return as_images_or_none(fetch_inputs(data, torch.as_tensor(indices).flatten().cpu(), inputs))


def labels_of_data_pair(data: Any, n: int) -> Tensor | None:
    """The first n labels (n,) of a pair (x, y); None for other data."""
    is_pair = isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[1], Tensor)
    return data[1][:n].cpu() if is_pair and len(data[1]) >= n else None


def image_tiles(x: Tensor, captions: Sequence[str] = ()) -> list[Tile | None]:
    """Images (N, C, H, W) in [0, 1], a tile each."""
    return [Tile(colors.image_to_rgb(image), captions[i] if captions else "") for i, image in enumerate(x)]


def numbered_names(n: int, word: str = "example") -> list[str]:
    return [f"{word} {i}" for i in range(n)]


def _input_spec_of_part(inputs: Inputs | None, part: str) -> Any:
    """What the inputs are, or those of one part of several."""
    return dict(map(_with_name_as_str, inputs.keys_and_parts())).get(part) if isinstance(inputs, MultiInput) else inputs


def _with_name_as_str(pair: tuple[str | int, Any]) -> tuple[str, Any]:
    return str(pair[0]), pair[1]


def changed_columns_of_row(spec: Inputs | None, part: str, before: Tensor, after: Tensor) -> list[ColumnChange]:
    """The columns of a row (F,) that were changed, the farthest first; in their own units where there is no `spec`."""
    inputs = _input_spec_of_part(spec, part)
    inputs = inputs if isinstance(inputs, Features) else Features(tuple(numbered_names(before.numel(), "feature")))
    return column_changes(inputs, before.flatten(), after.flatten())


def column_names(
    box: Box | None, part: str, n: int, names_by_part: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> list[str]:
    """The names of the n columns of a table, or of one part of several inputs; numbers where they are not known."""
    inputs = _input_spec_of_part(getattr(box, "inputs", None), part)
    names = [str(name) for name in getattr(inputs, "names", names_by_part.get(part, ()))]
    return names if len(names) == n else numbered_names(n, "feature")
