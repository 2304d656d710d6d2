"""The legend of a chart, below it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEGEND_MARK_PIXELS, LEGEND_CHARACTER_PIXELS, LEGEND_GAP_PIXELS = 60, 8, 6  # of an entry of a legend; above it


def add_legend_below(axes: Axes) -> None:
    """The names below all labels, in as many columns as there is room for: beside the axes they would take the width
    that a phone has not."""
    area, drawn = axes.get_window_extent(), axes.xaxis.get_tightbbox()  # all that reaches below the axes
    bottom = 0.0 if drawn is None else (drawn.y0 - area.y0) / area.height
    longest = max(len(str(text)) for text in axes.get_legend_handles_labels()[1])
    columns = max(1, int(area.width / (LEGEND_MARK_PIXELS + LEGEND_CHARACTER_PIXELS * longest)))
    axes.legend(loc="upper left", bbox_to_anchor=(0, bottom - LEGEND_GAP_PIXELS / area.height), ncols=columns)
