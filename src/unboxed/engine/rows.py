"""Small operations on the rows of a batch that many methods share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # figures need `evenly_spaced_indices`, and not torch
    from torch import Tensor

MAX_ROW_MATRIX_VALUES = 2**26  # of a matrix that is made from rows: half a GB in float64


def broadcast_rows(values: Tensor, like: Tensor) -> Tensor:
    """A value per row (N,) as (N, 1, ...), which broadcasts with a tensor (N, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def evenly_spaced_indices(n: int, max_count: int) -> list[int]:
    """At most `max_count` of the indices 0 to n - 1, evenly spaced, with the first and the last one."""
    return sorted({round(i) for i in np.linspace(0, n - 1, min(n, max_count))}) if n else []


def row_chunks(n: int, width: int) -> Iterator[slice]:
    """Parts of n rows, each small enough for a matrix of `width` values per row: see `MAX_ROW_MATRIX_VALUES`."""
    step = max(1, MAX_ROW_MATRIX_VALUES // max(1, width))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))
