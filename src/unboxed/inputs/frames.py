"""DataFrames, of pandas and whatever has its `columns` and `to_numpy`: columns are matched by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, UnclearLabelsError
from ..validation import REORDERED_INDEX_TEXT, is_index_reordered, listed_names, nearest_names, normalized_name
from .base import Inputs
from .features import Features
from .multi import MultiInput

LABEL_COLUMN_NAMES = ("label", "labels", "class", "classname", "classid", "target", "category", "y", "labelname")
LABEL_COLUMN_ADVICE = 'Name it: ub.data.table(data, box, label="COLUMN"), --label COLUMN on the command line'


def is_data_frame(data: object) -> bool:
    """Whether this is a table with named columns."""
    return hasattr(data, "columns") and callable(getattr(data, "to_numpy", None)) and hasattr(data, "__getitem__")


def frames_to_arrays(data: Any, inputs: Inputs | None) -> Any:
    """A DataFrame or a Series, alone or as (x, y), as arrays; other data as they are. Raises DataError."""
    if is_data_frame(data):
        return frame_to_rows(data, inputs)
    if _is_series(data):
        _refuse_row_of_frame(data, inputs)
        return _column_to_inputs(data)
    is_pair = isinstance(data, (tuple, list)) and len(data) == 2 and not isinstance(inputs, MultiInput)
    if not is_pair or not any(is_data_frame(part) or _is_series(part) for part in data):
        return data
    if is_index_reordered(*data):
        raise DataError(REORDERED_INDEX_TEXT)
    x = frame_to_rows(data[0], inputs) if is_data_frame(data[0]) else _column_to_inputs(data[0])
    return x, series_to_array(data[1])


def _refuse_row_of_frame(series: Any, inputs: Inputs | None) -> None:
    """Raise DataError for one row of a table, which pandas gives as a Series with the columns as its index."""
    names = inputs.names if isinstance(inputs, Features) else ()
    if names and {*names} <= {*getattr(series, "index", ())}:
        raise DataError("a Series is one row without its table: pass it as a DataFrame of one row, df.iloc[[0]] "
                        "(two pairs of brackets) or row.to_frame().T")  # fmt: skip


def _is_series(data: object) -> bool:
    return callable(getattr(data, "to_numpy", None)) and hasattr(data, "__len__") and not is_data_frame(data)


def _column_to_inputs(x: Any) -> Any:
    """A column of numbers as an array, of texts or files as a list; other inputs unchanged."""
    values = series_to_array(x)
    return values.tolist() if values is not x and values.dtype.kind in "OU" else values


def series_to_array(y: Any) -> Any:
    """A column, or a DataFrame of one, as an array of its own, so that it can be written; others unchanged."""
    return np.array(y.to_numpy()) if callable(getattr(y, "to_numpy", None)) else y


def frame_with_labels(frame: Any, features: Features, label: str | None = None) -> tuple[Any, list[Any]] | None:
    """A DataFrame and the labels in one of its columns; None where no column is the labels'. Raises DataError."""
    others = [str(name) for name in frame.columns if name not in features.names]
    column = find_label_column("the DataFrame", others, label)
    if column is None:
        return None
    return frame, frame[next(name for name in frame.columns if str(name) == column)].to_numpy().tolist()


def label_column_or_empty(
    source: object, columns: Iterable[Any], names: Sequence[str], label: str | None = None
) -> str:
    """The column of labels of a table, beside those of the inputs; "" where there is none, or it is not certain which.

    Raises DataError where `label` is no such column.
    """
    try:
        return find_label_column(source, [str(name) for name in columns if name not in names], label) or ""
    except UnclearLabelsError:
        if label is not None:
            raise
        return ""


def target_column_name(data: Any, inputs: Inputs) -> str:
    """The name of the column that holds a regression's true values; "" where it is unknown, or says nothing."""
    name = getattr(data, "label_name", "")
    if is_data_frame(data) and isinstance(inputs, Features):
        name = label_column_or_empty("the DataFrame", data.columns, inputs.names)
    elif not name and isinstance(data, (tuple, list)) and len(data) == 2:
        y = data[1]
        name = y.columns[0] if is_data_frame(y) and len(y.columns) == 1 else getattr(y, "name", "")
    return name if isinstance(name, str) and normalized_name(name) not in LABEL_COLUMN_NAMES else ""


def find_label_column(source: object, others: Sequence[str], label: str | None = None) -> str | None:
    """Of the columns that are no inputs, the labels': `label`, or one that is called so, or the only one.

    None where there is none. Raises DataError for a column that is not there, and where it could be several.
    """
    others = [name for name in others if name.strip() and not name.startswith("Unnamed: ")]  # an index of pandas
    listed = listed_names(others)
    if label is not None:
        if label in others:
            return label
        raise UnclearLabelsError(
            f"{source} has no column {label!r} for labels; beside the inputs it has {listed or 'none'}"
        )
    called = [name for name in others if normalized_name(name) in LABEL_COLUMN_NAMES]
    if len(called) == 1 or len(others) == 1:
        return (called or others)[0]
    if not others:
        return None
    raise UnclearLabelsError(unclear_labels_text(source, others))


def unclear_labels_text(source: object, others: Sequence[str]) -> str:
    return f"{source}: which of the columns {listed_names(others)} has the labels? {LABEL_COLUMN_ADVICE}"


def frame_to_rows(frame: Any, inputs: Inputs | None) -> NDArray[np.float64]:
    """The columns that `Features` name, in their order (N, F); others are left out. Raises DataError."""
    if not isinstance(inputs, Features):
        is_text = getattr(inputs, "is_text", False)
        advice = (
            "ub.data.texts(frame, box) takes one of texts and labels"
            if is_text
            else ("ub.data.table(frame, box) takes one of image files and labels")
        )
        raise DataError(f"a DataFrame holds rows for Features; these inputs are {type(inputs).__name__}. {advice}")
    columns = list(frame.columns)
    if missing := [name for name in inputs.names if name not in columns]:
        near = nearest_columns_text(missing, columns)
        listed = f"{near and f'{near}; '}it has {listed_names(columns)}"
        raise DataError(f"the DataFrame has no column {listed_names(missing)}; {listed}")
    if repeated := [name for name in inputs.names if columns.count(name) > 1]:
        raise DataError(
            f"the DataFrame has several columns of the name {listed_names(repeated)}; leave out all but one"
        )
    try:
        return np.array(frame[list(inputs.names)].to_numpy(), dtype=np.float64)
    except (TypeError, ValueError) as error:
        no_numbers = ", ".join(repr(name) for name in inputs.names if not _holds_numbers(frame[name]))
        advice = "encode their values as numbers, as in training (ub.Features(categories=) says how many there are)"
        raise DataError(f"of the DataFrame {no_numbers or 'a column'} holds no numbers: {error}; {advice}") from error


def nearest_columns_text(missing: Sequence[Any], columns: Iterable[Any]) -> str:
    """The columns that are spelled like those that are missing: "'Ash' is spelled like 'ash'", or nothing."""
    near = {str(name): nearest_names(str(name), map(str, columns)) for name in missing}
    return ", ".join(f"{found[0]!r} is spelled like {name!r}" for name, found in near.items() if found)


def _holds_numbers(column: Any) -> bool:
    try:
        np.array(column.to_numpy(), dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return True
