"""Charts of numbers: lines, bars and matrices. Matplotlib draws them; each function returns a Pillow image."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from ..atomic_write import to_printable
from . import colors
from .colors import to_float64_array
from .embedding import class_colors
from .legend import add_legend_below
from .text import format_among, hyphens_to_minus_signs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHART_DPI = 100
CHART_PADDING_INCHES = 0.14  # around all that is drawn
AXES_SIZE_PIXELS = (460, 260)  # pixels of a chart's axes
SCATTER_SIDE_PIXELS, MAX_SCATTER_TICK_INTERVALS = 280, 4  # of a scatter's square axes, with numbers of 7 digits
BEESWARM_ROW_PIXELS, BEESWARM_COLOR_SATURATION = 30, 0.9  # of each column; of the points' colors
N_SWARM_BINS, MIN_SWARM_LANES = 60, 10  # points in one bin are set beside one another, in at least so many lanes
RAISES_SCORE_COLOR, LOWERS_SCORE_COLOR = "#b3382c", "#2f6db3"  # what raises a score and what lowers it
BAR_HEIGHT_PIXELS = 20  # per bar
MEAN_CHARACTER_WIDTH_PIXELS = 8  # of a name, about
NULL_BAND_ROW_PIXELS = 34  # of each value
MIN_MATRIX_CELL_PIXELS, MAX_MATRIX_CELL_PIXELS, MIN_CELL_PIXELS_FOR_VALUES = (
    15,
    44,
    30,
)  # a matrix's cells; values are printed in large ones
MAX_MATRIX_SIDE_PIXELS = 560  # of all cells, per side
DARK_TEXT_MIN_BRIGHTNESS = 0.65  # of the color range: values on lighter cells are printed dark
INK_COLOR, FAINT_TEXT_COLOR, EDGE_COLOR, INK_COLOR_ON_TRANSPARENT = "#1c1c1e", "#6e6e73", "#d6d6da", "#7c7c84"
GOOD_COLOR, BAD_COLOR = "#2d7d46", "#b3382c"
MATPLOTLIB_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": EDGE_COLOR,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT_TEXT_COLOR,
    "ytick.color": FAINT_TEXT_COLOR,
    "legend.frameon": False,
    "text.usetex": False,
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "auto",
}
MatrixKind = Literal["magnitude", "signed"]


def line_chart(
    lines: Mapping[str, tuple[Any, Any]], *, title: str = "", x_label: str = "", y_label: str = "",
    y_range: tuple[float, float] | None = None, diagonal: bool = False, ticks: Sequence[str] = (),
    bands: Mapping[str, tuple[Any, Any]] | None = None, point_texts: Mapping[str, Sequence[str]] | None = None,
) -> Image.Image:  # fmt: skip
    """Lines {name: (x, y)} on one pair of axes.

    Args:
        lines: {name: (x (P,), y (P,))}; the names are the legend where there are several.
        title: Printed above.
        x_label: Name of the horizontal axis.
        y_label: Name of the vertical axis.
        y_range: Ends of the vertical axis; None fits the values.
        diagonal: Draw y = x as a dashed line: what is ideal for calibration.
        ticks: Names of the points 0, 1, ... of the horizontal axis, in place of numbers.
        bands: {name: (low (P,), high (P,))} of lines with an interval, which is shaded.
        point_texts: {name: texts (P,)} of lines with a word below each point.

    Returns:
        The chart.

    Example:
        >>> from unboxed.plots.charts import line_chart
        >>> line_chart({"pgd": ([0, 0.1, 0.2], [0.98, 0.6, 0.1])}, x_label="eps", y_label="robust accuracy").mode
        'RGB'
    """
    with _chart_axes(*AXES_SIZE_PIXELS, title) as chart:
        axes = chart.axes
        for (name, (x, y)), color in zip(lines.items(), class_colors(len(lines)), strict=True):
            x, y = to_float64_array(x), to_float64_array(y)
            axes.plot(x, y, marker="o" if len(x) <= 24 else "", markersize=3.5, color=color, label=to_printable(name))
            if bands and name in bands:
                low, high = map(to_float64_array, bands[name])
                axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
            for at, text in zip(zip(x, y, strict=True), (point_texts or {}).get(name, ()), strict=False):
                axes.annotate(text, at, (0, -12), textcoords="offset points", ha="center", fontsize=7.5)
        if diagonal:
            axes.plot([0, 1], [0, 1], linestyle="--", linewidth=1, color=FAINT_TEXT_COLOR)
        if y_range is not None:
            axes.set_ylim(*_pad_range(*y_range))
        if ticks:
            axes.set_xticks(range(len(ticks)), [to_printable(t) for t in ticks], rotation=30, ha="right")
        axes.set(xlabel=to_printable(x_label), ylabel=to_printable(y_label))
        if len(lines) > 1:
            add_legend_below(axes)
    return chart.image


def scatter_chart(x: Any, y: Any, *, title: str = "", x_label: str = "", y_label: str = "") -> Image.Image:
    """Points with the dashed line y = x, on equal axes: predictions against the truth.

    Args:
        x: Horizontal positions (P,).
        y: Vertical positions (P,).
        title: Printed above.
        x_label: Name of the horizontal axis.
        y_label: Name of the vertical axis.

    Returns:
        The chart.

    Example:
        >>> from unboxed.plots.charts import scatter_chart
        >>> scatter_chart([1.0, 2.0], [1.1, 1.8], x_label="true", y_label="predicted").mode
        'RGB'
    """
    x, y = to_float64_array(x), to_float64_array(y)
    ends = [min(x.min(initial=np.inf), y.min(initial=np.inf)), max(x.max(initial=-np.inf), y.max(initial=-np.inf))]
    with _chart_axes(SCATTER_SIDE_PIXELS, SCATTER_SIDE_PIXELS, title) as chart:
        axes = chart.axes
        axes.plot(ends, ends, linestyle="--", linewidth=1, color=FAINT_TEXT_COLOR)
        axes.scatter(x, y, s=14, color=class_colors(1)[0], alpha=0.5, linewidths=0)
        axes.set(xlabel=to_printable(x_label), ylabel=to_printable(y_label), aspect="equal")
        axes.locator_params(nbins=MAX_SCATTER_TICK_INTERVALS)
    return chart.image


def bar_chart(
    values: Mapping[str, Any], names: Sequence[str] = (), *, title: str = "", label: str = "",
    value_range: tuple[float, float] | None = None, intervals: Mapping[str, tuple[Any, Any]] | None = None,
    max_length: float = float("inf"),
) -> Image.Image:  # fmt: skip
    """Horizontal bars with their values printed.

    Args:
        values: {name: number}, one bar each; or {series: (B,)} with `names`, one bar of each series per name.
        names: Names of the groups of bars, from the top down.
        title: Printed above.
        label: What the bars measure, with its unit.
        value_range: Ends of the axis; None fits the values.
        intervals: {series: (low (B,), high (B,))}, drawn as a line on each bar of a series that has one.
        max_length: Where longer bars end; what is printed is their value.

    Returns:
        The chart.

    Example:
        >>> from unboxed.plots.charts import bar_chart
        >>> bar_chart({"fog": 0.8, "blur": 0.6}, label="accuracy", value_range=(0, 1)).mode
        'RGB'
    """
    series = (
        {k: to_float64_array(v) for k, v in values.items()}
        if names
        else {"": to_float64_array([*map(float, values.values())])}
    )
    rows = list(names) or list(values)
    thickness = 0.8 / len(series)
    with _chart_axes(
        AXES_SIZE_PIXELS[0], BAR_HEIGHT_PIXELS * (len(rows) * max(1, len(series) - 1) + 1), title
    ) as chart:
        axes = chart.axes
        for i, ((name, lengths), color) in enumerate(zip(series.items(), class_colors(len(series)), strict=True)):
            at = np.arange(len(rows)) + (i - (len(series) - 1) / 2) * thickness
            ends = (
                None if intervals is None or name not in intervals else [to_float64_array(e) for e in intervals[name]]
            )
            errors = None if ends is None else [(lengths - ends[0]).clip(0), (ends[1] - lengths).clip(0)]
            bars = axes.barh(
                at, lengths.clip(max=max_length), thickness, color=color, label=to_printable(name), xerr=errors,
                ecolor=INK_COLOR, error_kw={"linewidth": 1},
            )  # fmt: skip
            texts = [hyphens_to_minus_signs(f"{v:.3g}") for v in lengths]
            axes.bar_label(bars, texts, padding=3, fontsize=7.5, color=FAINT_TEXT_COLOR)
        axes.set_yticks(range(len(rows)), [to_printable(r) for r in rows])
        axes.invert_yaxis()
        axes.axvline(0, color=FAINT_TEXT_COLOR, linewidth=0.8)
        axes.set_xlabel(to_printable(label))
        axes.margins(x=0.12, y=0.02)
        if not any(lengths.any() for lengths in series.values()):
            axes.set_xlim(-1, 1)
        if value_range is not None:
            axes.set_xlim(*value_range)
        if len(series) > 1:
            add_legend_below(axes)
    return chart.image


def signed_bar_chart(
    values: Mapping[str, float], *, title: str = "", label: str = "", n_omitted: int = 0
) -> Image.Image:  # fmt: skip
    """Horizontal bars to both sides of zero, red above it and blue below, with their values printed.

    Args:
        values: {name: number}, from the top down: the columns of a row with what they contribute.
        title: Printed above.
        label: What the bars measure, with its unit.
        n_omitted: Number of further names that are not drawn, which is printed.

    Returns:
        The chart.

    Example:
        >>> from unboxed.plots.charts import signed_bar_chart
        >>> signed_bar_chart({"age = 41": 0.8, "height = 1.7": -0.2}, label="contribution to the logit").mode
        'RGB'
    """
    lengths = to_float64_array([*map(float, values.values())])
    with _chart_axes(AXES_SIZE_PIXELS[0], BAR_HEIGHT_PIXELS * (len(values) + 1), title) as chart:
        axes = chart.axes
        at = np.arange(len(values))
        bars = axes.barh(
            at, lengths, 0.75, color=[RAISES_SCORE_COLOR if v > 0 else LOWERS_SCORE_COLOR for v in lengths]
        )
        texts = [hyphens_to_minus_signs(f"{v:+.3g}") for v in lengths]
        axes.bar_label(bars, texts, padding=3, fontsize=7.5, color=FAINT_TEXT_COLOR)
        axes.set_yticks(at, [to_printable(name) for name in values])
        axes.invert_yaxis()
        axes.axvline(0, color=FAINT_TEXT_COLOR, linewidth=0.8)
        omitted = f"; {n_omitted} smaller {'one is' if n_omitted == 1 else 'ones are'} not shown" * bool(n_omitted)
        axes.set_xlabel(to_printable(label) + omitted)
        axes.margins(x=0.18, y=0.02)
        if not lengths.any():
            axes.set_xlim(-1, 1)
    return chart.image


def beeswarm_chart(
    values: Any, features: Any, names: Sequence[str], *, title: str = "", label: str = ""
) -> Image.Image:  # fmt: skip
    """Each column's values over many rows as points, colored by the column's own value: a SHAP summary plot.

    Args:
        values: What each column of each row contributes (N, F).
        features: The columns' own values (N, F), which color the points: from low, blue, to high, red.
        names: Names of the F columns, from the top down.
        title: Printed above.
        label: What `values` measure, with its unit.

    Returns:
        The chart.

    Example:
        >>> import torch
        >>> from unboxed.plots.charts import beeswarm_chart
        >>> beeswarm_chart(torch.randn(50, 2), torch.rand(50, 2), ["age", "height"], label="contribution").mode
        'RGB'

    Source:
        Lundberg et al. 2020, "From local explanations to global understanding with explainable AI for trees", fig. 4.
    """
    values, features = to_float64_array(values), to_float64_array(features)
    with _chart_axes(AXES_SIZE_PIXELS[0], BEESWARM_ROW_PIXELS * max(1, len(names)), title) as chart:
        axes = chart.axes
        axes.axvline(0, color=FAINT_TEXT_COLOR, linewidth=0.8)
        for i in range(len(names)):
            shade = _ranks_from_0_to_1(features[:, i]) * 2 - 1  # from -1, the lowest value, to 1
            rgb = colors.signed_to_rgb(shade * BEESWARM_COLOR_SATURATION, 1.0) / 255
            axes.scatter(
                values[:, i], i + _swarm_offsets(values[:, i]), s=9, c=rgb, linewidths=0.2, edgecolors=FAINT_TEXT_COLOR
            )
        axes.set_yticks(range(len(names)), [to_printable(name) for name in names])
        axes.set(ylim=(len(names) - 0.5, -0.5), xlabel=to_printable(label))
    return chart.image


def _ranks_from_0_to_1(values: colors.Array) -> colors.Array:
    """The rank of each value, from 0 to 1; equal values have one rank, and all of a constant 1/2."""
    distinct, index = np.unique(values, return_inverse=True)
    return index / (len(distinct) - 1) if len(distinct) > 1 else np.full(len(values), 0.5)


def _swarm_offsets(values: colors.Array) -> colors.Array:
    """Vertical offsets within +-0.4 (N,), wider where many points are near one another."""
    low, high = (values.min(), values.max()) if len(values) else (0.0, 0.0)
    bins = ((values - low) / (high - low or 1) * N_SWARM_BINS).astype(int)
    order, offsets, largest = np.argsort(bins, kind="stable"), np.zeros(len(values)), max(np.bincount(bins), default=1)
    for _, group in itertools.groupby(order, key=lambda i: bins[i]):
        members = np.array(list(group))
        steps = np.arange(len(members))
        offsets[members] = np.where(steps % 2, 1, -1) * ((steps + 1) // 2) * 0.8 / max(largest, MIN_SWARM_LANES)
    return offsets


def interval_chart(
    intervals: Mapping[str, tuple[float, float, float]], *, title: str = "", label: str = "",
    value_range: tuple[float, float] = (-1, 1),
) -> Image.Image:  # fmt: skip
    """Horizontal intervals with their means, against zero: green to the right of it, red to its left, else gray.

    Args:
        intervals: {name: (mean, low, high)}, from the top down.
        title: Printed above.
        label: What is measured, with its unit.
        value_range: Ends of the axis; what lies beyond is drawn to its end.

    Returns:
        The chart (RGB).

    Example:
        >>> import unboxed as ub
        >>> chart = ub.plots.charts.interval_chart({"removal": (0.3, 0.1, 0.5)})
        >>> chart.mode
        'RGB'
    """
    with _chart_axes(460, 30 * max(1, len(intervals)), title) as chart:
        axes, (left, right) = chart.axes, value_range
        for y, (mean, low, high) in enumerate(intervals.values()):
            color = GOOD_COLOR if low > 0 else BAD_COLOR if high < 0 else FAINT_TEXT_COLOR
            ends = [min(max(v, left), right) for v in (low, high)]
            axes.plot(ends, [y, y], color=color, linewidth=4, solid_capstyle="butt")
            axes.plot([min(max(mean, left), right)], [y], "o", color=color, markersize=7)
        axes.axvline(0, color=INK_COLOR, linewidth=1)
        axes.set(xlim=value_range, ylim=(len(intervals) - 0.5, -0.5), xlabel=to_printable(label))
        axes.set_yticks(range(len(intervals)), [to_printable(name) for name in intervals])
    return chart.image


def null_band_chart(
    rows: Mapping[str, tuple[float, float, float]], *, title: str = "", label: str = "", band_label: str = ""
) -> Image.Image:  # fmt: skip
    """Values as points, each on the gray band in which it would be by chance.

    Args:
        rows: {name: (value, low, high)}, from the top down; low and high are the ends of the band.
        title: Printed above.
        label: What is measured, with its unit.
        band_label: What the band is.

    Returns:
        The chart; a value outside of its band is filled, one inside is hollow.

    Example:
        >>> from unboxed.plots.charts import null_band_chart
        >>> null_band_chart({"flowers / insects": (1.5, -0.55, 0.55)}, label="effect size").mode
        'RGB'
    """
    color = class_colors(1)[0]
    with _chart_axes(AXES_SIZE_PIXELS[0], NULL_BAND_ROW_PIXELS * max(1, len(rows)), title) as chart:
        axes = chart.axes
        for y, (value, low, high) in enumerate(rows.values()):
            axes.barh(y, high - low, 0.6, left=low, color=EDGE_COLOR)
            fill = "white" if low <= value <= high else color
            axes.plot([value], [y], "o", markersize=7, markerfacecolor=fill, markeredgecolor=color)
            text = hyphens_to_minus_signs(f"{value:.2f}")
            axes.annotate(
                text, (value, y), (8, 0), textcoords="offset points", va="center", fontsize=8, color=INK_COLOR
            )
        axes.axvline(0, color=FAINT_TEXT_COLOR, linewidth=0.8)
        axes.set_yticks(range(len(rows)), [to_printable(name) for name in rows])
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel=to_printable(label + f"\ngray: {band_label}" * bool(band_label)))
        axes.set_xlim(*_pad_range(*axes.get_xlim()))
    return chart.image


def matrix_plot(
    values: Any, rows: Sequence[str], columns: Sequence[str], axis_names: tuple[str, str] = ("", ""), *,
    title: str = "", unit: str = "", kind: MatrixKind = "magnitude", vmax: float | None = None,
    max_pixels: int = MAX_MATRIX_SIDE_PIXELS, transparent: bool = False,
) -> Image.Image:  # fmt: skip
    """A matrix as colored cells with their values: similarities of layers, accuracies, changes of logits.

    Args:
        values: The matrix (R, C), its first row on top. Cells that are NaN are gray.
        rows: Names of the rows.
        columns: Names of the columns.
        axis_names: What the rows and the columns are.
        title: Printed above.
        unit: What the values are, printed at the color bar.
        kind: "magnitude" from 0, black, to `vmax`, light; "signed" from -vmax, blue, over 0, white, to vmax, red.
        vmax: The end of the color range; None takes the largest magnitude.
        max_pixels: Size of all cells, per side. Values are printed in cells of 30 pixels or more.
        transparent: Draw on no background, with words in a gray that can be read on light and dark pages.

    Returns:
        The matrix, with names, values and a color bar.

    Example:
        >>> from unboxed.plots.charts import matrix_plot
        >>> matrix_plot([[1.0, 0.4], [0.4, 1.0]], ["conv1", "fc1"], ["conv1", "fc1"], unit="CKA", vmax=1).mode
        'RGB'
    """
    values = to_float64_array(values)
    vmax = vmax or colors.max_magnitude(values)
    cell = max(MIN_MATRIX_CELL_PIXELS, min(MAX_MATRIX_CELL_PIXELS, max_pixels // max(values.shape)))
    with _chart_axes(values.shape[1] * cell, values.shape[0] * cell, title, transparent) as chart:
        axes = chart.axes
        table = colors.SIGNED_COLORMAP if kind == "signed" else colors.MAGNITUDE_COLORMAP
        rgb = colors.signed_to_rgb(values, vmax) if kind == "signed" else colors.magnitude_to_rgb(values, vmax)
        axes.imshow(rgb, interpolation="nearest", aspect="auto")
        axes.spines[:].set_visible(True)
        axes.set_yticks(range(len(rows)), [to_printable(r) for r in rows])
        is_wide = max((len(c) for c in columns), default=0) * MEAN_CHARACTER_WIDTH_PIXELS > cell
        axes.set_xticks(range(len(columns)), [to_printable(c) for c in columns], rotation=90 if is_wide else 0)
        axes.set(ylabel=to_printable(axis_names[0]), xlabel=to_printable(axis_names[1]))
        axes.tick_params(length=0)
        if cell >= MIN_CELL_PIXELS_FOR_VALUES:
            _draw_cell_values(axes, values, rgb)
        _add_color_bar(axes, table, (-vmax if kind == "signed" else 0.0, vmax), unit)
    return chart.image


def _draw_cell_values(axes: Axes, values: colors.Array, rgb: colors.Uint8Array) -> None:
    for (i, j), value in np.ndenumerate(values):
        is_light = float(rgb[i, j].mean()) > 255 * DARK_TEXT_MIN_BRIGHTNESS
        text = format_among(value, colors.max_magnitude(values))
        color = INK_COLOR if is_light else "white"
        cell_text = axes.text(j, i, text, ha="center", va="center", fontsize=7.5, color=color)
        cell_text.set_in_layout(False)


def _add_color_bar(axes: Axes, table: colors.Uint8Array, ends: tuple[float, float], unit: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    mappable = ScalarMappable(Normalize(*ends), ListedColormap(table / 255))
    width = axes.get_window_extent().width
    inset = axes.inset_axes((1 + 14 / width, 0, 12 / width, 1))
    bar = axes.figure.colorbar(mappable, cax=inset, ticks=[ends[0], 0, ends[1]] if ends[0] else list(ends))
    bar.ax.set_yticklabels([hyphens_to_minus_signs(f"{v:.3g}") for v in bar.get_ticks()])
    bar.set_label(to_printable(unit))
    bar.outline.set_visible(False)


def _pad_range(low: float, high: float) -> tuple[float, float]:
    pad = 0.03 * (high - low)
    return low - pad, high + pad


@dataclass
class _Chart:
    """Axes to draw on, and the image of the whole chart once they are left."""

    axes: Axes
    image: Image.Image


@contextmanager
def _chart_axes(width: int, height: int, title: str, transparent: bool = False) -> Iterator[_Chart]:
    """A chart with axes of that many pixels; room for titles and labels is added around them."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ink: Any = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK_COLOR_ON_TRANSPARENT)
    ink = ink if transparent else {"text.color": INK_COLOR, "axes.labelcolor": FAINT_TEXT_COLOR}
    with matplotlib.rc_context(MATPLOTLIB_STYLE | ink):
        figure = Figure(figsize=(width / CHART_DPI, height / CHART_DPI), dpi=CHART_DPI)
        chart = _Chart(figure.add_axes((0, 0, 1, 1)), Image.new("RGB", (1, 1)))
        chart.axes.set_title(to_printable(title), y=1)  # None lays all ticks out three times, to find none above
        chart.axes.spines[:].set_in_layout(False)  # along the axes, which are in the layout with all ticks
        yield chart
        buffer, once = BytesIO(), {"compress_level": 0}  # it is read again below
        extent = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer()).padded(CHART_PADDING_INCHES)  # type: ignore[no-untyped-call]
        # not bbox_inches="tight": it lays all out once more, to be drawn nowhere
        figure.savefig(buffer, format="png", bbox_inches=extent, transparent=transparent, pil_kwargs=once)
    with Image.open(buffer) as image:
        chart.image = image.convert("RGBA" if transparent else "RGB")
