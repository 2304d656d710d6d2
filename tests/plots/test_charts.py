"""Charts: what they take of the width."""

from __future__ import annotations

from unboxed.plots.charts import line_chart


def test_a_legend_takes_no_width() -> None:
    x = [0, 1, 2]
    one = line_chart({"the first of two lines": (x, x)}, x_label="layer", ticks=["one", "two", "three"])
    two = line_chart({f"the {k} of two lines": (x, x) for k in ("first", "second")}, x_label="layer",
                     ticks=["one", "two", "three"])  # fmt: skip
    assert two.width <= one.width + 2
    assert two.height > one.height + 20
