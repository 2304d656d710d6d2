"""Tables that have a column for each output of a model: yes/no labels, or several numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..atomic_write import to_printable
from ..box import Box
from ..engine.read.class_labels import columns_of_outputs, has_class_labels
from ..errors import DataError, warn
from ..inputs.features import Features
from ..inputs.images import require_pixels
from ..inputs.labels import label_to_text, missing_labels_text
from ..inputs.pixels import Pixels
from .labeled_files import LabeledFiles, SkippedFileReasons, readable_image_paths, require_files
from .rows import FeatureRows, finite_number, select_feature_columns
from .table_files import column_names, file_column_name, values_by_column

YES_NO_VALUES = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}


def output_columns(path: Any, box: Box) -> tuple[str, ...]:
    """As `columns_of_outputs`, of a table, a file or a DataFrame, of which no others are read. Raises DataError."""
    return () if has_class_labels(box) else columns_of_outputs(box, column_names(path))


def open_table_of_output_columns(
    path: Any, box: Box, names: Sequence[str], keep_unlabeled: bool
) -> LabeledFiles | FeatureRows:
    """The rows or images of a table, with the values of these columns as their labels (K,).

    Rows without one of them are left out with a warning, or kept with NaN. Raises DataError.
    """
    source, columns = values_by_column(path)
    y = _values(columns, names, source)  # (N, K)
    known = ~y.isnan().any(1)
    kept = torch.ones_like(known) if keep_unlabeled or not known.any() else known
    n_unlabeled = int((~kept).sum())
    if n_unlabeled:
        warn(f"{source.name}: {missing_labels_text(n_unlabeled, len(y))}")
    if isinstance(box.inputs, Features):
        x = select_feature_columns(columns, box.inputs.names, source)[kept]
        return FeatureRows(source.name, x, y[kept], (), box.inputs, labels_are_values=True, n_unlabeled=n_unlabeled)
    files = columns[file_column_name(list(columns), source)]
    rows = kept.nonzero().flatten().tolist()
    return _images(source, [(source.parent / str(files[i]).strip(), y[i]) for i in rows], require_pixels(box.inputs))


def _images(source: Path, listed: Sequence[tuple[Path, Tensor]], inputs: Pixels) -> LabeledFiles:
    labels, skipped = dict[Path, Tensor](), SkippedFileReasons()
    for path, label in listed:
        if path in labels:
            if not torch.equal(labels[path], label):
                raise DataError(f"{source}: {to_printable(str(path))} is listed twice, with other labels")
            skipped.append((path, "listed twice"))
        labels[path] = label
    files: list[Any] = [(path, labels[path]) for path in readable_image_paths(labels, skipped)]
    require_files(files, source, skipped)
    dataset = LabeledFiles(source, files, (), inputs, skipped, {})
    dataset.labels_are_values = True
    return dataset


def _values(columns: Mapping[str, Sequence[Any]], names: Sequence[str], source: Path) -> Tensor:
    """The values (N, K) of these columns, NaN where there is none. Raises DataError."""
    return torch.tensor(
        [[_value(cell, name, source, row) for row, cell in enumerate(columns[name])] for name in names]
    ).T


def _value(cell: Any, name: str, source: Path, row: int) -> float:
    text = label_to_text(cell, is_value=True)
    if not text:
        return math.nan
    return YES_NO_VALUES[text.lower()] if text.lower() in YES_NO_VALUES else finite_number(text, name, source, row)
