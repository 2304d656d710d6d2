"""Which units do the predictions need? Those of the last hidden layer, removed one at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..activations import Ablation, ablation
from ..activations.ablation import last_hidden_layer
from ..box import Box
from ..engine.read.channel_axes import channels_first_layers
from ..errors import LayerError, UnboxedError
from .blocks import Block, Caution, Heading, MethodInterpretation, Paragraph, Table
from .context import ReportContext
from .survey import evenly_spaced_indices
from .words import count_noun, format_percent, layer_display_name

MAX_ABLATION_EXAMPLES = 256  # that layers and units are compared on; fewer for large models
MAX_ABLATION_EXAMPLES_LARGE_MODEL = 48
MIN_EXAMPLES_PER_HALF = 16  # examples in each half, to check one by the other
MAX_EXAMPLE_UNIT_PAIRS, MAX_EXAMPLE_UNIT_PAIRS_PER_BATCH_ROW = (
    128 * 128,
    64,
)  # of example and removed unit; per example of a batch
MAX_LISTED_UNITS = 10
MAX_ABLATION_LOGITS = 10**7  # of all pairs
TOO_FEW_EXAMPLES_TEXT = "Too few examples to check it on two halves of them."


@dataclass(frozen=True, eq=False)
class UnitImportanceTable:
    """Units of the last hidden layer, the most important first, and what removing each does."""

    layer: str
    units: list[list[str]]  # rows of the table
    columns: list[str]
    lead: str
    half_correlation: float | None  # rank correlation of the units between two halves of the examples


def unit_table_or_reason(context: ReportContext) -> tuple[UnitImportanceTable | None, str]:
    """The units of the last hidden layer, or why there are none."""
    try:
        layer = _require_units_on_axis_1(context.box, last_hidden_layer(context.box))
        ablations, indices, width = _ablation_indices_and_width(context, layer)
    except UnboxedError as error:
        return None, f"No unit to remove: {error}."
    return _make_unit_importance_table(context, ablations, indices, layer, width), ""


def _require_units_on_axis_1(box: Box, address: str) -> str:
    """An address whose units are on axis 1."""
    if box.layers[address.replace(":input", "")] not in channels_first_layers(box):
        raise LayerError(f"the axis of {address} that holds its units cannot be determined")
    return address


def _unit_rank_correlation_of_halves(change: Tensor) -> float | None:
    """Whether two halves of the examples rank the units (N, U) alike."""
    if len(change) < 2 * MIN_EXAMPLES_PER_HALF or change.shape[1] < 3:
        return None
    ranks = torch.stack([half.mean(0).argsort().argsort() for half in (change[::2], change[1::2])])
    return float(torch.corrcoef(ranks.double())[0, 1])


def _ablation_indices_and_width(context: ReportContext, layer: str) -> tuple[Ablation, list[int], int]:
    """The units of a layer removed, on as many examples as fit: (result, their indices, width of the layer)."""
    box, total = context.box, len(context.survey.rows)
    h = box.read(context.inputs(evenly_spaced_indices(total, MAX_ABLATION_EXAMPLES_LARGE_MODEL)), [layer])[layer]
    values = h.flatten(2).mean(2) if h.ndim > 2 else h  # (n, C)
    pairs = min(
        MAX_EXAMPLE_UNIT_PAIRS, MAX_EXAMPLE_UNIT_PAIRS_PER_BATCH_ROW * box.batch_limit
    )  # a large model takes few at a time
    spread_of_unit = values.float().std(0, correction=0)
    units = sorted(spread_of_unit.topk(min(len(spread_of_unit), math.isqrt(pairs))).indices.tolist())
    n_examples = min(MAX_ABLATION_EXAMPLES, pairs // len(units), MAX_ABLATION_LOGITS // (len(units) * len(box.classes)))
    indices = list(evenly_spaced_indices(total, max(2, n_examples)))
    return ablation(box, context.inputs(indices), layer, units), indices, len(spread_of_unit)


def _make_unit_importance_table(
    context: ReportContext, ablations: Ablation, indices: list[int], layer: str, width: int
) -> UnitImportanceTable:
    s, change, n = context.survey, ablations.score_change.mean(0).cpu(), len(ablations.units)
    which = f"{n} of the {width} units (those that vary most)" if n < width else f"each of the {count_noun(n, 'unit')}"
    name = (
        f"the input of {layer_display_name(layer.partition(':')[0])}"
        if ":input" in layer
        else layer_display_name(layer)
    )
    lead = f"With {which} of {name} set to zero, one at a time, on {count_noun(len(indices), 'example')}. "
    half_correlation = _unit_rank_correlation_of_halves(ablations.score_change)
    if s.labels is None or not s.exclusive_classes:
        order = change.abs().argsort(descending=True)[:MAX_LISTED_UNITS].tolist()
        rows = [[str(int(ablations.units[i])), _signed_change_text(float(change[i]))] for i in order]
        score = "output" if context.box.outputs == "regression" else "logit of the prediction"
        lead += f"Unit {rows[0][0]} matters most: the {score} changes by {rows[0][1]} on average."
        return UnitImportanceTable(layer, rows, ["unit", f"change of the {score}"], lead, half_correlation)
    full_accuracy, accuracy_without = ablations.accuracy(s.labels[indices])
    accuracy_without = accuracy_without.cpu()
    order = sorted(range(n), key=lambda i: (float(accuracy_without[i]), float(change[i])))[:MAX_LISTED_UNITS]
    rows = [
        [
            str(int(ablations.units[i])),
            format_percent(float(accuracy_without[i])),
            _signed_change_text(float(change[i])),
            _most_affected_class_text(context, ablations, i),
        ]
        for i in order
    ]
    lead += _accuracy_drop_text(full_accuracy, float(accuracy_without[order[0]]), rows[0][0], accuracy_without)
    columns = ["unit", "accuracy without it", "change of the prediction's logit", "most affected class"]
    return UnitImportanceTable(layer, rows, columns, lead, half_correlation)


def _signed_change_text(value: float) -> str:
    return f"{value:+.3g}".replace("-", "\u2212")


def _accuracy_drop_text(full_accuracy: float, lowest_accuracy: float, unit: str, accuracy_without: Tensor) -> str:
    if lowest_accuracy >= full_accuracy:
        return (
            f"No single unit is needed: without any one of them the accuracy stays at {format_percent(full_accuracy)}"
            + (" or more." if full_accuracy < 1 else ".")
        )
    n_unneeded = int((accuracy_without >= full_accuracy).sum())
    text = (
        f"Unit {unit} is needed most: without it the accuracy falls from "
        f"{format_percent(full_accuracy)} to {format_percent(lowest_accuracy)}."
    )
    return f"{text} {count_noun(n_unneeded, 'unit')} can be removed without loss." if n_unneeded else text


def _most_affected_class_text(context: ReportContext, ablations: Ablation, unit_position: int) -> str:
    """The class whose logit falls most, on average over the examples that are predicted as it."""
    predicted, change = ablations.original_logits.argmax(1), ablations.score_change[:, unit_position]
    means = {k: float(change[predicted == k].mean()) for k in set(predicted.tolist())}
    k = min(means, key=lambda k: means[k])
    return f"{context.class_name(k)} ({_signed_change_text(means[k])})" if means[k] < 0 else "–"


def unit_importance_blocks(units: UnitImportanceTable | None, no_units_reason: str) -> list[Block]:
    heading = Heading("Which units do the predictions need?")
    if units is None:
        return [heading, Caution(no_units_reason)]
    r = units.half_correlation
    verdict = (
        TOO_FEW_EXAMPLES_TEXT
        if r is None
        else f"Rank correlation of the units between two halves of the examples: {r:.2f}."
    )
    table = Table(units.columns, units.units, frozenset({1, 2} & set(range(len(units.columns)))))
    return [heading, MethodInterpretation.of(ablation, verdict), Paragraph(units.lead), table]
