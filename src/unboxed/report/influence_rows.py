"""Training rows beside the row that they act on: tables in place of pictures."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..inputs.base import Inputs
from ..inputs.features import Features
from .blocks import Table
from .words import format_number

N_SHOWN_COLUMNS = 5


def columns_that_stand_out(inputs: Inputs, x: Tensor, train_x: Tensor) -> tuple[tuple[int, str], ...]:
    """(index, name) of the columns in which a row x (F,) is farthest from the training rows (N, F); () of no table.

    Distances are in standard deviations of the training rows.
    """
    if not isinstance(inputs, Features):
        return ()
    mean, std = train_x.double().mean(0), train_x.double().std(0)
    distance = ((x.double() - mean) / std).abs().nan_to_num(0, 0, 0)  # a column that does not vary says nothing
    chosen = distance.topk(min(N_SHOWN_COLUMNS, len(distance))).indices.tolist()
    return tuple((k, str(inputs.names[k])) for k in chosen)


def rows_table(columns: Sequence[tuple[int, str]], rows: Sequence[tuple[str, str, str, Tensor]]) -> Table:
    """Rows (what it is, its name, its label, its values (F,)) with the values of these columns."""
    names = ("", "row", "label", *(name for _, name in columns))
    cells = [(*words, *(format_number(float(x[k])) for k, _ in columns)) for *words, x in rows]
    return Table(names, cells, frozenset(range(3, len(names))))
