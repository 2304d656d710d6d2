"""Charts: what they take of the width."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.axes import Axes

from unboxed.plots.charts import bar_chart, line_chart


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
