"""The top examples of a unit in words: their labels, their distance, and which features differ most."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch

from ..activations import TopExamples
from .blocks import Table
from .context import ReportContext
from .example_texts import MAX_CAPTION_VALUES
from .input_nouns import column_names_and_values
from .words import format_number, join_names_with_limit

MAX_LISTED_INPUT_COLUMNS_PER_UNIT = 4  # features named of a unit


def top_examples_distance_text(top: TopExamples, unit: int) -> str:
    """The mean distance of its top examples; "" where there is only one."""
    value = float(top.mean_distance[unit])
    return "" if math.isnan(value) else f"{value:.2f}"


def label_counts_text(context: ReportContext, top: TopExamples, unit: int, indices: Sequence[int]) -> str:
    """The labels of its top examples, the most common first; of numbers, their mean."""
    if context.is_regression:
        return _mean_label_text(context, [indices[i] for i in top.example_index[unit].tolist()])
    names = [context.label_name(indices[i]) for i in top.example_index[unit].tolist()]
    if any(name is None for name in names):
        return ""
    return "examples of " + join_names_with_limit(
        [f"{name} ({n})" for name, n in Counter(names).most_common()], max_names=3
    )


def _mean_label_text(context: ReportContext, top_indices: Sequence[int]) -> str:
    """The true values of some examples, on average, beside those of all: "mean price 3.2 (all 2.1)"."""
    targets = context.survey.targets
    if targets is None:
        return ""
    top_mean, mean = targets[list(top_indices)].mean(0).tolist(), targets.mean(0).tolist()
    names = context.survey.classes[:MAX_CAPTION_VALUES]
    pairs = zip(names, top_mean, mean, strict=False)
    return "mean " + "; ".join(f"{name} {format_number(a)} (all {format_number(b)})" for name, a, b in pairs)


def distinctive_input_columns_table(
    context: ReportContext, top: TopExamples, chosen: Sequence[int], labels: Sequence[str], indices: Sequence[int]
) -> Table:
    """For rows of features: in which columns a unit's top rows differ most from all."""
    x = torch.cat([context.inputs(indices[i : i + 256]) for i in range(0, len(indices), 256)])
    names, x = column_names_and_values(context.box.inputs, x)
    mean, std = x.mean(0), x.std(0, correction=0)
    rows = []
    for c, label in zip(chosen, labels, strict=True):
        top_mean = x[top.example_index[c].cpu()].mean(0)
        most_different = (
            ((mean - top_mean) / std.masked_fill(std == 0, torch.inf))
            .abs()
            .argsort(descending=True)[:MAX_LISTED_INPUT_COLUMNS_PER_UNIT]
        )
        text = "; ".join(
            f"{names[j]} {format_number(float(top_mean[j]))} (all {format_number(float(mean[j]))})"
            for j in most_different.tolist()
        )
        value = format_number(float(top.value[c, 0]))
        rows.append((str(c), value, top_examples_distance_text(top, c) or "–", label, text))
    columns = ("unit", "largest value", "distance", "labels", "mean of its top rows, where it differs most")
    return Table(columns, rows, frozenset({1, 2}))
