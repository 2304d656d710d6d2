"""Rows of numbers from a table, with a label each: the examples of a model of tables."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, warn
from ..inputs.features import Features
from ..inputs.frames import find_label_column, nearest_columns_text
from ..inputs.labels import (
    ClassByLabel,
    classes_from_label_names,
    classes_named_by_labels,
    label_to_text,
    match_label_names_to_classes,
    missing_labels_text,
)
from ..inputs.signed_labels import refuse_signed_labels
from ..validation import listed_names
from .sets import Batch, Images, check_n_examples

DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")


class FeatureRows(Images):
    """Rows (F,) with a class number, or with a number or several (K,) (`labels_are_values`); -1 or NaN without labels.

    `classes` are the names of the labels, where they are classes.
    """

    labels_are_names = True
    inputs: Features  # type: ignore[assignment]

    def __init__(
        self, name: str, x: Tensor, y: Tensor | None, classes: tuple[str, ...], inputs: Features,
        labels_are_values: bool = False, n_unlabeled: int = 0,
    ) -> None:  # fmt: skip
        self.name, self.classes, self.inputs, self.labels_are_values = name, classes, inputs, labels_are_values
        self.n_unlabeled = n_unlabeled  # rows without a label, which were left out
        self.names_source = "labels"
        self._x, self._y = x, y  # (N, F), (N,) or (N, K)

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self._y is None:
            return self._x[index], math.nan if self.labels_are_values else -1  # type: ignore[return-value]
        label = self._y[index]
        return self._x[index], label if label.ndim else label.item()  # type: ignore[return-value]

    def first(self, n: int) -> Batch:
        n = check_n_examples(n)
        return Batch(self._x[:n], None if self._y is None else self._y[:n].clone()).copy_label_names_from(self)

    def __repr__(self) -> str:
        n_rows, n_columns = self._x.shape
        several = self._y is not None and self._y.ndim == 2
        labels = "labels are numbers" if self.labels_are_values else f"{len(self.classes)} classes"
        labels = f"{self._y.shape[1]} labels each" if several and self._y is not None else labels
        labels = "no labels" if self._y is None else labels
        return f"Rows({self.name!r}, {n_rows} rows of {n_columns} columns, {labels})"


def read_rows(
    source: Path, columns: dict[str, list[Any]], inputs: Features, classes: Sequence[str] | None, *,
    is_regression: bool = False, label: str | None = None, keep_unlabeled: bool = False,
) -> FeatureRows:  # fmt: skip
    """The rows of a table {column: values} that has the inputs' columns, in any order, and perhaps one of labels.

    Rows without a label beside others are left out with a warning, or kept with the label -1, NaN of numbers. Raises
    DataError for a missing column, values that are no numbers, and other columns of which none says that it is the
    labels'.
    """
    x = select_feature_columns(columns, inputs.names, source)
    if label in inputs.names:
        raise DataError(f"{source}: the column {label!r} is an input of this model, and so no label")
    column = find_label_column(source, [name for name in columns if name not in inputs.names], label)
    if column is None:
        return FeatureRows(source.name, x, None, (), inputs, is_regression)
    if not is_regression:
        refuse_signed_labels(columns[column], None if classes is None else len(classes))
    names = [label_to_text(label, is_value=is_regression) for label in columns[column]]
    kept = [i for i, name in enumerate(names) if name]
    if not kept:
        raise DataError(f"{source}: {len(names)} rows have no {column!r}, such as row 0")
    n_unlabeled = 0 if keep_unlabeled else len(names) - len(kept)
    if n_unlabeled:
        warn(f"{source.name}: {missing_labels_text(n_unlabeled, len(names))}")
        x, names = x[kept], [names[i] for i in kept]
    if is_regression:
        numbers = torch.tensor([finite_number(name, column, source) if name else math.nan for name in names])
        rows = FeatureRows(source.name, x, numbers, (), inputs, is_regression, n_unlabeled)
        rows.label_name = column
        return rows
    given = [name for name in names if name]
    numbered = tuple(classes_from_label_names(given)) if classes is None else tuple(classes)
    number_of = (
        ClassByLabel((n, i) for i, n in enumerate(numbered))
        if classes is None
        else match_label_names_to_classes(given, numbered)
    )
    y = torch.tensor([number_of[name] if name else -1 for name in names])
    numbered = classes_named_by_labels(numbered, number_of)
    rows = FeatureRows(source.name, x, y, numbered, inputs, n_unlabeled=n_unlabeled)
    rows.label_assumption = number_of.assumption
    return rows


def select_feature_columns(columns: dict[str, list[Any]], names: Sequence[str], source: Path) -> Tensor:
    """The named columns as rows (N, F), whatever their order in the file. Raises DataError."""
    if missing := [name for name in names if str(name) not in columns]:
        near = nearest_columns_text(missing, columns)
        if columns and all(_is_number_text(name) for name in columns):
            near = "its first line must name the columns"
        raise DataError(f"{source} has no column {listed_names(missing)}; "
                        f"{near and f'{near}; '}its columns are {listed_names(columns)}")  # fmt: skip
    values = [[finite_number(v, name, source, row) for row, v in enumerate(columns[str(name)])] for name in names]
    if not values[0]:
        raise DataError(f"{source} has no rows")
    return torch.tensor(values).T.contiguous()


def _is_number_text(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def finite_number(value: Any, name: str, source: Path, row: int | None = None) -> float:
    """A cell as a number. Raises DataError."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        where = "" if row is None else f" in row {row} (counted from 0)"
        raise DataError(f"{source}: the column {name!r} holds {value!r}{where}; {_number_advice_text(value)}")
    return number


def _number_advice_text(value: Any) -> str:
    """What to do with a cell that is no number."""
    if value is None or value != value or not str(value).strip():
        return "this model takes numbers: fill in what is missing as in training, or leave such rows out"
    if DECIMAL_COMMA.fullmatch(str(value).strip()):
        return "write decimals with a point"
    return "this model takes numbers"
