"""What excites a unit, in words: its top examples' labels, how unlike they are, and where rows of features differ."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch

from ..activations import TopExamples
from .blocks import Table
from .context import ReportContext
from .input_nouns import as_columns
from .words import format_number, join_names

MAX_LISTED_FEATURES = 4  # features named of a unit


def spread_text(top: TopExamples, c: int) -> str:
    """How unlike its top examples are; nothing where there is one alone."""
    value = float(top.mean_distance[c])
    return "" if math.isnan(value) else f"{value:.2f}"


def label_counts_text(context: ReportContext, top: TopExamples, c: int, indices: Sequence[int]) -> str:
    """Which classes its top examples belong to, the commonest first."""
    names = [context.label_name(indices[i]) for i in top.example_index[c].tolist()]
    if any(name is None for name in names):
        return ""
    return "examples of " + join_names([f"{name} ({n})" for name, n in Counter(names).most_common()], max_names=3)


def feature_table(context: ReportContext, top: TopExamples, chosen: Sequence[int], indices: Sequence[int]) -> Table:
    """For rows of features: in which columns a unit's top rows differ most from all."""
    x = torch.cat([context.inputs(indices[i : i + 256]) for i in range(0, len(indices), 256)])
    names, x = as_columns(context.box.inputs, x)
    mean, std = x.mean(0), x.std(0, correction=0)
    rows = []
    for c in chosen:
        top_mean = x[top.example_index[c].cpu()].mean(0)
        most_different = (
            ((mean - top_mean) / std.masked_fill(std == 0, torch.inf))
            .abs()
            .argsort(descending=True)[:MAX_LISTED_FEATURES]
        )
        text = "; ".join(
            f"{names[j]} {format_number(float(top_mean[j]))} (all {format_number(float(mean[j]))})"
            for j in most_different.tolist()
        )
        value = format_number(float(top.value[c, 0]))
        rows.append((str(c), value, spread_text(top, c) or "–", label_counts_text(context, top, c, indices), text))
    heads = ("unit", "largest value", "spread", "labels", "its top rows on average, where they differ most")
    return Table(heads, rows, frozenset({1, 2}))
