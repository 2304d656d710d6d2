"""Figures of tables: what each column of a row contributes, which columns were changed, and columns over many rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..engine.attribution_result import Attribution
from ..engine.column_units import ColumnChange
from ..engine.perturb.baselines import ATTRIBUTION_UNIT
from .charts import beeswarm_chart, signed_bar_chart
from .colors import to_float64_array

MAX_TABLE_ROW_PANELS = 4  # rows that are drawn one by one
MAX_DRAWN_TABLE_COLUMNS = 12  # that are drawn; the others are counted
PANEL_GAP_PIXELS = 6  # pixels between the panels of a figure


def attribution_axis_label(attribution: Attribution) -> str:
    """What one value means, for an axis."""
    return attribution.unit or ATTRIBUTION_UNIT


def contribution_bars(values: Any, x: Any, names: Sequence[str], *, title: str = "", label: str = "") -> Image.Image:
    """What each column of a row contributes (F,), the largest first, named with the column's value."""
    values = to_float64_array(values)
    order = np.argsort(-np.abs(values), kind="stable")[:MAX_DRAWN_TABLE_COLUMNS]
    row = None if x is None else to_float64_array(x)
    bars = {names[i] if row is None else f"{names[i]} = {row[i]:.4g}": float(values[i]) for i in order}
    return signed_bar_chart(bars, title=title, label=label, n_omitted=len(values) - len(order))


def column_change_bars(changes: Sequence[ColumnChange], *, title: str = "") -> Image.Image:
    """How far each column of a row was moved, in the unit in which columns are compared, with both values."""
    shown = changes[:MAX_DRAWN_TABLE_COLUMNS]
    label = f"change: {shown[0].unit.strip('()')}" if shown else "no column was changed"
    bars = {c.text: c.change for c in shown}
    return signed_bar_chart(bars, title=title, label=label, n_omitted=len(changes) - len(shown))


def contribution_swarm(values: Any, x: Any, names: Sequence[str], *, title: str = "", label: str = "") -> Image.Image:
    """What each column contributes over many rows (N, F), the columns of the largest mean magnitude first."""
    values, x = to_float64_array(values), to_float64_array(x)
    order = np.argsort(-np.abs(values).mean(0), kind="stable")[:MAX_DRAWN_TABLE_COLUMNS]
    hidden = values.shape[1] - len(order)
    label += f"; {hidden} {'column' if hidden == 1 else 'columns'} of smaller ones not shown" * bool(hidden)
    return beeswarm_chart(values[:, order], x[:, order], [names[i] for i in order], title=title, label=label)


def stack_panels(panels: Sequence[Image.Image]) -> Image.Image:
    """Charts below one another."""
    width = max((p.width for p in panels), default=1)
    height = sum(p.height + PANEL_GAP_PIXELS for p in panels) or 1
    sheet = Image.new("RGB", (width, height), "white")
    top = 0
    for panel in panels:
        sheet.paste(panel, (0, top))
        top += panel.height + PANEL_GAP_PIXELS
    return sheet
