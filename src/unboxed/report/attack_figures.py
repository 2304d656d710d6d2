"""Figures of an attacked example, the adversarial image and what was changed, and accuracies class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..adversarial.changes import PredictionChange
from ..engine.optimize.constraints import format_eps
from ..engine.proportion import Proportion
from ..plots import attack_sheet, colors
from .blocks import Figure, FigureGrid, Table
from .finding import Example
from .pictures import PageImage
from .words import format_named_prob, format_percent, format_prob

FIGURE_SIDE_PIXELS = 112
MIN_VISIBLE_CHANGE = 0.05  # of the color scale, below which the picture of a change is blank
THIS_MODEL = "this model"


def after_and_change_figures(
    model: str, change: PredictionChange, example: Example, classes: Sequence[str], factor: float
) -> list[Figure]:
    """The changed image as a model sees it, and the change."""
    after = after_figure(model, change, example, classes)
    if not change.is_adversarial:
        return [after]
    if change.distance * factor < MIN_VISIBLE_CHANGE:
        return [replace(after, lines=(*after.lines, f"change of {change.distance:.2g}: too small to see"))]
    lines = (f"largest {change.distance:.2g}", f"shown × {factor:g}")
    return [after, captioned_figure(attack_sheet.render_change_image(change, factor), "change", lines)]


def after_figure(model: str, change: PredictionChange, example: Example, classes: Sequence[str]) -> Figure:
    """The changed image: what it is predicted as, and whether that is right by now."""
    of_model = (model,) if model != THIS_MODEL else ()
    if not change.is_adversarial:
        return captioned_figure(colors.image_to_rgb(change.image), "not fooled", of_model)
    name = classes[change.class_after]
    is_right = name == example.label
    lines = (
        *of_model,
        format_named_prob(change.probs_after[1]),
        f"p of {name} before: {format_prob(change.probs_before[1])}",
    )
    image, tone = colors.image_to_rgb(change.image), "good" if is_right else "bad"
    return captioned_figure(image, f"after: {name}", (*lines, *("now right",) * is_right), tone)


def before_after_and_change_figures(
    change: PredictionChange, example: Example, classes: Sequence[str], factor: float
) -> list[Figure]:
    """An example, its image changed, and the change."""
    lines = (format_named_prob(change.probs_before[0]), *example.lines()[bool(example.prediction) :])
    head, image = f"before: {classes[change.class_before]}", colors.image_to_rgb(change.original)
    before = captioned_figure(image, head, lines, example.tone)
    return [before, *after_and_change_figures(THIS_MODEL, change, example, classes, factor)]


def smallest_change_grid(
    changes: Sequence[PredictionChange], examples: Sequence[Example], classes: Sequence[str], lead: str
) -> FigureGrid:
    """Each example before and after, and the change."""
    factor = attack_sheet.largest_round_magnification(colors.max_magnitude(*(c.delta for c in changes)))
    figures = [
        f
        for c, e in zip(changes, examples, strict=True)
        for f in before_after_and_change_figures(c, e, classes, factor)
    ]
    title = f"{lead}: before, after the smallest change that alters the prediction, and that change times {factor:g}."
    return FigureGrid(figures, title, n_together=3 if len(figures) == 3 * len(changes) else 1)


def captioned_figure(image: Any, head: str, lines: tuple[str, ...], tone: str = "") -> Figure:
    return Figure(PageImage(image, f"{head}: {', '.join(lines)}", FIGURE_SIDE_PIXELS), head, lines, tone)


def accuracy_by_class_table(by_class: Mapping[str, tuple[Proportion, Proportion]], eps: float) -> Table:
    rows = [
        [name, format_percent(clean.value), format_percent(robust.value), f"{clean.n:,}"]
        for name, (clean, robust) in by_class.items()
    ]
    columns = ["class", "clean accuracy", f"robust accuracy within {format_eps(eps)}", "examples"]
    return Table(columns, rows, frozenset({1, 2, 3}))
