"""The figures of attacks: originals, adversarial images and the change; perturbations and patches; success by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from ...adversarial import Adversarial, AutoAdversarial, Fooling, Patch, Universal, WordSwaps
from ...adversarial.changes import PredictionChange, prediction_changes
from ...engine.read.class_labels import has_class_labels
from .. import colors
from ..attack_sheet import (
    DISTANCE_NAME_BY_NORM,
    attack_sheet,
    class_prob_text,
    input_change_sheet,
    label_map_rows,
    largest_round_magnification,
)
from ..charts import bar_chart, line_chart
from ..draw import signed_map_to_rgb
from ..figures import Figures, figures
from ..generated import image_sheet
from ..patch import printable_patch
from ..sheet import ColorBar, Tile, contact_sheet
from ..tables import MAX_TABLE_ROW_PANELS, column_change_bars, stack_panels
from ..text_map import TextWithValues, text_sheet
from .common import (
    MAX_EXAMPLES_PER_FIGURE,
    as_images_or_none,
    changed_columns_of_row,
    class_name,
    first_image_part,
    input_part_by_name,
)

if TYPE_CHECKING:
    from ...box import Box

PRINTED_PATCH_SIDE_PIXELS = 320


@figures.register(Adversarial)
def _adversarial_figures(result: Adversarial, box: Box | None = None, *, data: Any = None) -> Figures:
    """The attack sheet; with the box, with what the model predicts."""
    if result.input is None:
        return {}
    if first_image_part(result.images) is None:
        return column_change_figures(result, box)
    if box is not None and not isinstance(result.images, (dict, tuple)) and _has_one_class_per_example(box):
        rows = _rows_fooled_first(result)
        changes = prediction_changes(box, result.input, result, rows)
        return (
            {"attack": attack_sheet(changes, box.classes, norm=result.norm, title=_success_title(result))}
            if changes
            else {}
        )
    tables = {} if isinstance(result.images, Tensor) else column_change_figures(result, box)
    return {"attack": _sheet_without_predictions(result), **tables}


@figures.register(WordSwaps)
def _word_swap_figures(result: WordSwaps, box: Box | None = None, *, data: Any = None) -> Figures:
    """The new texts, with the words that were put in on a color; those that are fooled come first."""
    texts = []
    for i in _rows_fooled_first(result):
        put_in = {position for position, *_ in result.swaps[i]}
        values = [float(k in put_in) for k in range(len(result.tokens[i]))]
        swaps = ", ".join(f"{old} to {new}" for _, old, new in result.swaps[i]) or "no swap"
        outcome = "fooled" if result.success[i] else "attack failed"
        caption = "misclassified as it is" if result.initially_misclassified[i] else f"{outcome}: {swaps}"
        texts.append(TextWithValues(result.tokens[i], values, [False] * len(values), caption))
    return {"swaps": text_sheet(texts, title=_success_title(result), unit="1: put in")}


@figures.register(AutoAdversarial)
def _auto_attack_figures(result: AutoAdversarial, box: Box | None = None, *, data: Any = None) -> Figures:
    """The attack sheet, and the robust accuracy after each attack of the ensemble."""
    clean = 1 - float(result.initially_misclassified.double().mean())
    robust = {"clean": clean, **{name: float(rows.double().mean()) for name, rows in result.robust_after.items()}}
    label = "robust accuracy" if result.goal == "untargeted" else "share without success"
    chart = bar_chart(robust, title="After each attack", label=label, value_range=(0, 1))
    return {**_adversarial_figures(result, box), "robust accuracy": chart}


def _has_one_class_per_example(box: Box) -> bool:
    return has_class_labels(box) and len(box.classes) > 1


def _sheet_without_predictions(result: Adversarial) -> Image.Image:
    """Without predictions."""
    norm = DISTANCE_NAME_BY_NORM.get(result.norm, result.norm)
    rows = _rows_fooled_first(result)
    captions = {
        "original": [""] * len(rows),
        "adversarial": [result.outcome_text(i) for i in rows],
        "change": [f"{norm} {float(result.distance[i]):.3g}" for i in rows],
    }
    x, z = (colors.to_float64_array(first_image_part(images))[rows] for images in (result.input, result.images))
    return input_change_sheet(x, z, captions, title=_success_title(result), more=_label_maps(result, rows))


def _label_maps(result: Adversarial, rows: list[int]) -> dict[str, list[Tile]]:
    """Of a model that gives each position a class, the classes before and after; empty of other outputs."""
    before, after = result.output_before, result.output_after
    if before is None or after is None or before.ndim != 4 or before.shape[1] != len(result.classes):
        return {}
    return label_map_rows(before[rows], after[rows])


def column_change_figures(
    result: Adversarial, box: Box | None, *, title: str = "", dataset_rows: Sequence[int] | None = None
) -> Figures:
    """Of tables, and of the tables among several inputs: which columns were changed, and how far.

    `dataset_rows` are where the examples are in data of which only some were attacked.
    """
    spec = result.input_spec if box is None else box.inputs
    parts = zip(input_part_by_name(result.input).items(), input_part_by_name(result.images).values(), strict=True)
    rows = _rows_fooled_first(result)[:MAX_TABLE_ROW_PANELS]
    numbers = rows if dataset_rows is None else [dataset_rows[i] for i in rows]
    titles = [f"example {n}, {text}" for n, text in zip(numbers, _row_outcomes(result, rows, box), strict=True)]
    head = contact_sheet([], title=title or _success_title(result, len(rows)))
    return {
        f"change {name}".rstrip(): stack_panels(
            [
                head,
                *(
                    column_change_bars(changed_columns_of_row(spec, name, x[i], z[i]), title=t)
                    for i, t in zip(rows, titles, strict=True)
                ),
            ]
        )
        for (name, x), z in parts
        if as_images_or_none(x) is None
    }


def _row_outcomes(result: Adversarial, rows: list[int], box: Box | None) -> list[str]:
    """What became of each row: with the box, what the model predicts before and after."""
    outcomes = [result.outcome_text(i) for i in rows]
    if box is not None and rows and _has_one_class_per_example(box):
        changes = prediction_changes(box, result.input, result, rows)
        outcomes = [_prediction_change_text(change, box.classes) for change in changes]
    return outcomes


def _prediction_change_text(change: PredictionChange, classes: Sequence[str]) -> str:
    before = class_prob_text(change.class_before, change.probs_before[0], classes)
    after = class_prob_text(change.class_after, change.probs_after[1], classes)
    return f"{before} -> {after}" + ", attack failed" * (not change.is_adversarial)


def _rows_fooled_first(result: Adversarial) -> list[int]:
    """The examples that are drawn: those that are fooled come first."""
    order: list[int] = (~result.success.cpu()).to(torch.uint8).argsort(stable=True).tolist()
    return order[:MAX_EXAMPLES_PER_FIGURE]


def _success_title(result: Adversarial, n_shown: int = MAX_EXAMPLES_PER_FIGURE) -> str:
    n = len(result.success)
    shown = f"; {n_shown} of {n} shown" if n > n_shown else ""
    return result.success_count_text + shown


@figures.register(Universal)
def _universal_figures(result: Universal, box: Box | None = None, *, data: Any = None) -> Figures:
    """The perturbation, enlarged to the whole range, and its fooling rate by step."""
    images = first_image_part(result.perturbation)
    rates = {} if not len(result.fooling_rates) else {"fooling rate": _fooling_rate_chart(result.fooling_rates)}
    if images is None:
        return rates
    vmax = colors.max_magnitude(images)
    factor, is_gray = largest_round_magnification(vmax), images.shape[1] == 1
    image = signed_map_to_rgb(images[0], vmax) if is_gray else colors.image_to_rgb(0.5 + images[0] * factor / 2)
    aim = "another class" if result.target is None else class_name(result.target, (), box)
    note = "" if is_gray else f"\n× {factor:g}, gray: none"
    caption = f"{DISTANCE_NAME_BY_NORM.get(result.norm, result.norm)} {result.eps:g}{note}"
    bars = [ColorBar("signed", vmax, "change, in parts of the pixel range")] * is_gray
    sheet = contact_sheet([[Tile(image, caption)]], title=f"One perturbation to {aim}", bars=bars, side=224)
    return {"perturbation": sheet, **rates}


@figures.register(Patch)
def _patch_figures(result: Patch, box: Box | None = None, *, data: Any = None) -> Figures:
    """The patch as a page, images with it where the data are given, and its fooling rate by step."""
    classes = () if box is None else box.classes
    page = {"patch": printable_patch(result, classes=classes, side=PRINTED_PATCH_SIDE_PIXELS)}
    return {**page, "fooling rate": _fooling_rate_chart(result.fooling_rates)} if len(result.fooling_rates) else page


@figures.register(Fooling)
def _fooling_figures(result: Fooling, box: Box | None = None, *, data: Any = None) -> Figures:
    """The images with the model's confidence in their class, and that confidence by step."""
    rows = zip(result.targets.tolist(), result.confidence.tolist(), strict=True)
    captions = [f"{class_name(k, (), box)}: {p:.1%}" for k, p in rows]
    mean = result.confidence_history.double().mean(1)
    chart = line_chart({"": (range(len(mean)), mean)}, x_label="step", y_label="mean confidence", y_range=(0, 1))
    return {"images": image_sheet(result, captions=captions, columns=5), "confidence": chart}


def _fooling_rate_chart(rates: Any) -> Image.Image:
    return line_chart({"": (range(1, len(rates) + 1), rates)}, x_label="step", y_label="fooling rate", y_range=(0, 1))
