"""What the figures of several families need: examples as images, the names of classes, results in tuples and dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from ...engine.read.examples import fetch_inputs
from ...objectives import Objective
from .. import colors
from ..charts import matrix_plot
from ..sheet import Tile

if TYPE_CHECKING:
    from ...box import Box

MAX_FIGURE_EXAMPLES = 6  # examples that a figure shows


def as_images(x: Any) -> Tensor | None:
    """Inputs or maps if they are images (N, C, H, W), else None."""
    return x if isinstance(x, Tensor) and x.ndim == 4 else None


def input_parts(x: Any) -> dict[str, Any]:
    """{name: tensor} of inputs that may be several, a dict or a tuple; one alone has the name ""."""
    parts = x.items() if isinstance(x, Mapping) else enumerate(x) if isinstance(x, tuple) else [("", x)]
    return {str(name): part for name, part in parts}


def first_image_part(x: Any) -> Tensor | None:
    """The images (N, C, H, W) of inputs of which one part may be images; None where none is."""
    images = [as_images(part) for part in input_parts(x).values()]
    return next((part for part in images if part is not None), None)


def class_name(k: Any, classes: Sequence[str], box: Box | None = None) -> str:
    """The name of class k, or its number where no names are known."""
    names = classes or (box.classes if box is not None else ())
    return str(names[int(k)]) if 0 <= int(k) < len(names) else str(int(k))


def target_names(target: Any, n: int, classes: Sequence[str], box: Box | None = None) -> list[str]:
    """What is explained or optimized, one name for each of n examples; empty where it is nothing."""
    if isinstance(target, Tensor) and target.ndim == 1:
        return [class_name(k, classes, box) for k in target.tolist()]
    return [target.name if isinstance(target, Objective) else ""] * n


def examples_at(data: Any, indices: Any, box: Box | None) -> Tensor | None:
    """The examples (M, C, H, W) of data at these indices (M,), as images; None where there are none."""
    if data is None:
        return None
    inputs = None if box is None else box.inputs
    return as_images(fetch_inputs(data, torch.as_tensor(indices).flatten().cpu(), inputs))


def labels_of(data: Any, n: int) -> Tensor | None:
    """The first n labels (n,) of a pair (x, y); None for other data."""
    is_pair = isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[1], Tensor)
    return data[1][:n].cpu() if is_pair and len(data[1]) >= n else None


def image_tiles(x: Tensor, captions: Sequence[str] = ()) -> list[Tile | None]:
    """Images (N, C, H, W) in [0, 1], a tile each."""
    return [Tile(colors.image_to_rgb(image), captions[i] if captions else "") for i, image in enumerate(x)]


def row_names(n: int, word: str = "example") -> list[str]:
    return [f"{word} {i}" for i in range(n)]


def feature_matrix(values: Tensor, rows: Sequence[str], box: Box | None, *, title: str, unit: str) -> Image.Image:
    """Signed values (N, F) of the features of a table, with their names where the box is given."""
    flat = values.flatten(1)
    names = [str(name) for name in getattr(getattr(box, "inputs", None), "names", ())]
    columns = names if len(names) == flat.shape[1] else row_names(flat.shape[1], "feature")
    return matrix_plot(flat, rows, columns, title=title, kind="signed", unit=unit)
