"""The figures of discovered concepts: the crops of each beside its importance, and what they rebuild of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from ...concepts import DiscoveredConcepts
from ...concepts.discover import DiscoveredConcept, Faithfulness
from ...engine.intervals import Interval
from ..charts import bar_chart, interval_chart
from ..embedding import class_colors
from ..figures import Figures, figures
from ..sheet import Tile, contact_sheet
from .common import as_images_or_none, image_tiles

if TYPE_CHECKING:
    from ...box import Box

MAX_CONCEPTS, N_CROPS_PER_CONCEPT = 8, 5  # rows of the figure, and crops of each
TILE_SIDE_PIXELS = 84
BAR_HALF_HEIGHT_PIXELS, BAR_MARGIN_PIXELS = 12, 4  # pixels


@figures.register(DiscoveredConcepts)
def _discovered_concepts_figures(result: DiscoveredConcepts, box: Box | None = None, *, data: Any = None) -> Figures:
    """A row per concept: its importance as a bar, and its crops; what is left of the answers, with the controls."""
    return {"concepts": concept_sheet(result), "faithfulness": faithfulness_chart(result)}


def concept_sheet(result: DiscoveredConcepts, n_concepts: int = MAX_CONCEPTS) -> Image.Image:
    """The most important concepts with the crops that have most of them; without images their importance alone."""
    shown = result.concepts[:n_concepts]
    title = f"Concepts of {result.layer} ({result.factorization.upper()}): {result.verdict}"
    if any(c.images is None or as_images_or_none(c.images) is None for c in shown):
        intervals = {f"concept {i}": _ends(c.importance) for i, c in enumerate(shown)}
        vmax = max(high for _, _, high in intervals.values())
        label = "total Sobol index, 90% interval"
        return interval_chart(intervals, title=title, label=label, value_range=(0, vmax or 1))
    rows = concept_tiles(shown)
    examples = "crops with most of it" if shown[0].crops else "examples with most of it"
    columns = ["importance (Sobol), 90% interval", examples]
    names = [f"concept {i}" for i in range(len(shown))]
    return contact_sheet(rows, title=title, columns=columns, names=names, side=TILE_SIDE_PIXELS)


def concept_tiles(shown: Sequence[DiscoveredConcept]) -> list[list[Tile | None]]:
    """A row per concept: its importance as a bar on one scale, and its crops."""
    vmax = max(c.importance.high for c in shown) or 1.0
    rows = list[list[Tile | None]]()
    for c in shown:
        images = None if c.images is None else as_images_or_none(c.images)
        bar = Tile(
            _importance_bar(c.importance, vmax), f"{c.importance.mean:.2f}\nderivative {c.sensitivity.mean:+.2f}"
        )
        rows.append([bar, *([] if images is None else image_tiles(images[:N_CROPS_PER_CONCEPT]))])
    return rows


def _importance_bar(interval: Interval, vmax: float) -> Image.Image:
    """An importance as a bar from the left, with its interval as a line."""
    image = Image.new("RGB", (TILE_SIDE_PIXELS, TILE_SIDE_PIXELS), "white")
    pen, width, middle = ImageDraw.Draw(image), TILE_SIDE_PIXELS - 2 * BAR_MARGIN_PIXELS, TILE_SIDE_PIXELS // 2
    low, mean, high = (
        BAR_MARGIN_PIXELS + round(width * float(np.clip(v / vmax, 0, 1)))
        for v in (interval.low, interval.mean, interval.high)
    )
    color = ImageColor.getrgb(class_colors(1)[0])
    pen.rectangle(
        (BAR_MARGIN_PIXELS, middle - BAR_HALF_HEIGHT_PIXELS, mean, middle + BAR_HALF_HEIGHT_PIXELS), fill=color
    )
    pen.line((low, middle, high, middle), fill=(28, 28, 30), width=2)
    return image


def _ends(interval: Interval) -> tuple[float, float, float]:
    return interval.mean, interval.low, interval.high


def faithfulness_chart(result: DiscoveredConcepts) -> Image.Image:
    """Predictions kept, and accuracy, with the layer rebuilt; the controls, and the model with random weights."""
    names, kept, accuracy = list[str](), list[float](), list[float]()
    for name, (change, share_kept, share_right) in faithfulness_rows(result):
        names.append(f"{name} (change {change:.2g} {result.unit})")
        kept.append(share_kept)
        accuracy.append(share_right)
    series: dict[str, Any] = {"predictions kept": kept}
    if not any(np.isnan(accuracy)):
        series["accuracy"] = accuracy
    title = f"Answers rebuilt from {len(result.concepts)} concepts of {result.layer}: {result.verdict}"
    return bar_chart(series, names, title=title, label="share of the held-out examples", value_range=(0, 1.15))


def faithfulness_rows(result: DiscoveredConcepts) -> list[tuple[str, tuple[float, float, float]]]:
    """(name, (change, share kept, accuracy)) of the concepts, their controls, and the same with random weights."""
    rows = _for_each_gradient_rows_in_state(result.faithfulness)
    if result.twin is None:
        return rows
    return rows + [
        (f"{name}, with random weights", figures) for name, figures in _for_each_gradient_rows_in_state(result.twin)[:1]
    ]


def _for_each_gradient_rows_in_state(f: Faithfulness) -> list[tuple[str, tuple[float, float, float]]]:
    rebuilt = {"concepts": [f.concepts], "random directions": list(f.random), "mean alone": [f.ablated]}
    found = []
    for name, some in rebuilt.items():
        if some:
            change = fmean(r.mean_change.mean for r in some)
            shares = (fmean(_or_nan(getattr(r, key)) for r in some) for key in ("kept", "accuracy"))
            found.append((name, (change, *shares)))
    return found  # type: ignore[return-value]


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
