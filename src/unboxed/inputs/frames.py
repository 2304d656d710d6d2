"""DataFrames, of pandas and whatever has its `columns` and `to_numpy`: columns are matched by name."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .base import Inputs
from .features import Features


def is_data_frame(data: object) -> bool:
    """Whether this is a table with named columns."""
    return hasattr(data, "columns") and callable(getattr(data, "to_numpy", None)) and hasattr(data, "__getitem__")


def frames_to_arrays(data: Any, inputs: Inputs | None) -> Any:
    """A DataFrame, alone or as (frame, labels), as an array of rows; other data as they are. Raises DataError."""
    if is_data_frame(data):
        return frame_to_rows(data, inputs)
    if isinstance(inputs, Features) and isinstance(data, (tuple, list)) and len(data) == 2 and is_data_frame(data[0]):
        return frame_to_rows(data[0], inputs), series_to_array(data[1])
    return data


def series_to_array(y: Any) -> Any:
    """A column of labels as an array; other labels unchanged."""
    return y.to_numpy() if callable(getattr(y, "to_numpy", None)) else y


def frame_to_rows(frame: Any, inputs: Inputs | None) -> NDArray[np.float64]:
    """The columns that `Features` name, in their order (N, F); others are left out. Raises DataError."""
    if not isinstance(inputs, Features):
        advice = "ub.data.table(frame, box) takes one of image files and labels"
        raise DataError(f"a DataFrame holds rows for Features; these inputs are {type(inputs).__name__}. {advice}")
    columns = list(frame.columns)
    if missing := [name for name in inputs.names if columns.count(name) != 1]:
        names = ", ".join(map(repr, missing[:5]))
        raise DataError(f"the DataFrame has no column, or two, of the name {names}; it has {columns[:12]}")
    try:
        return np.asarray(frame[list(inputs.names)].to_numpy(), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"the DataFrame has columns that are no numbers: {error}; encode them as numbers") from error
