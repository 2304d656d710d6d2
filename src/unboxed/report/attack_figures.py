"""Figures of an attacked example, the adversarial image and what was changed, and accuracies class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..adversarial.changes import PredictionChange
from ..engine.optimize.constraints import format_eps
from ..engine.proportion import Proportion
from ..plots import attack_sheet, colors
from .blocks import Figure, FigureGrid, Table
from .pictures import PageImage
from .words import format_named_prob, format_percent, format_prob

FIGURE_SIDE_PIXELS = 112


def adversarial_and_change_figures(
    model: str, change: PredictionChange, classes: Sequence[str], factor: float
) -> list[Figure]:
    if not change.is_adversarial:
        return [adversarial_figure(model, change, classes)]
    return [
        adversarial_figure(model, change, classes),
        captioned_figure(
            attack_sheet.render_change_image(change, factor),
            "change",
            (f"largest {change.distance:.2g}", f"shown × {factor:g}"),
        ),
    ]


def adversarial_figure(model: str, change: PredictionChange, classes: Sequence[str]) -> Figure:
    if not change.is_adversarial:
        return captioned_figure(colors.image_to_rgb(change.image), model, ("was not fooled",))
    lines = (
        class_and_prob_text(classes[change.class_after], change.probs_after[1]),
        f"p of {classes[change.class_after]} before: {format_prob(change.probs_before[1])}",
    )
    return captioned_figure(colors.image_to_rgb(change.image), f"fools {model}", lines, "bad")


def input_and_change_figures(change: PredictionChange, classes: Sequence[str], factor: float) -> list[Figure]:
    """The input, the input changed, and the change."""
    lines = (class_and_prob_text(classes[change.class_before], change.probs_before[0]),)
    figure = captioned_figure(colors.image_to_rgb(change.original), "input", lines)
    return [figure, *adversarial_and_change_figures("this model", change, classes, factor)]


def smallest_change_grid(changes: Sequence[PredictionChange], classes: Sequence[str]) -> FigureGrid:
    """Each input, the input changed, and the change."""
    factor = attack_sheet.largest_round_magnification(colors.max_magnitude(*(c.delta for c in changes)))
    figures = [f for c in changes for f in input_and_change_figures(c, classes, factor)]
    title = f"The smallest change that fools it, beside the input, and the change times {factor:g}:"
    return FigureGrid(figures, title, n_together=3 if len(figures) == 3 * len(changes) else 1)


def captioned_figure(image: Any, head: str, lines: tuple[str, ...], tone: str = "") -> Figure:
    return Figure(PageImage(image, f"{head}: {', '.join(lines)}", FIGURE_SIDE_PIXELS), head, lines, tone)


def class_and_prob_text(name: str, p: float) -> str:
    return f"predicted {name}, {format_named_prob(p)}"


def accuracy_by_class_table(by_class: Mapping[str, tuple[Proportion, Proportion]], eps: float) -> Table:
    rows = [
        [name, format_percent(clean.value), format_percent(robust.value), f"{clean.n:,}"]
        for name, (clean, robust) in by_class.items()
    ]
    columns = ["class", "clean accuracy", f"robust accuracy within {format_eps(eps)}", "examples"]
    return Table(columns, rows, frozenset({1, 2, 3}))
