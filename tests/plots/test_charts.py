"""Charts: what they take of the width."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unboxed.plots.charts import bar_chart, line_chart, scatter_chart


def test_a_legend_takes_no_width() -> None:
    x = [0, 1, 2]
    one = line_chart({"the first of two lines": (x, x)}, x_label="layer", ticks=["one", "two", "three"])
    two = line_chart({f"the {k} of two lines": (x, x) for k in ("first", "second")}, x_label="layer",
                     ticks=["one", "two", "three"])  # fmt: skip
    assert two.width <= one.width + 2
    assert two.height > one.height + 20


def test_a_bar_that_is_cut_has_its_own_value_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[list[float], list[str]]] = []

    def noted(axes: Any, bars: Any, labels: list[str], **how: Any) -> None:
        drawn.append(([bar.get_width() for bar in bars], labels))

    monkeypatch.setattr(Axes, "bar_label", noted)
    bar_chart({"before": [54.0, 3.0], "after": [1.0, 20.0]}, ["a", "b"], max_length=20)
    bar_chart({"long": 54.0})
    assert drawn == [([20, 3], ["54", "3"]), ([1, 20], ["1", "20"]), ([54], ["54"])]


@pytest.mark.parametrize("ends", [(18_000, 321_000), (-1_200_000, 4_700_000), (0.0, 0.0123)])
def test_ticks_of_large_numbers_do_not_overlap(ends: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    extents: list[Any] = []
    save = Figure.savefig

    def measured(figure: Figure, *words: Any, **how: Any) -> None:
        axes = figure.axes[0]
        low, high = axes.get_xlim()
        shown = [t for t in axes.get_xticklabels() if low <= t.get_position()[0] <= high]
        extents.extend(label.get_window_extent() for label in shown)
        save(figure, *words, **how)

    monkeypatch.setattr(Figure, "savefig", measured)
    scatter_chart(ends, ends)
    assert len(extents) >= 3
    assert all(a.x1 + 2 < b.x0 for a, b in pairwise(extents))
