"""What excites a unit, in words: its top examples' labels, how unlike they are, and where rows of features differ."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch

from ..activations import TopExamples
from .blocks import Table
from .context import Context
from .kinds import columns
from .words import digits, listed

TABLED = 4  # features named of a unit


def spread(top: TopExamples, c: int) -> str:
    """How unlike its top examples are; nothing where there is one alone."""
    value = float(top.spread[c])
    return "" if math.isnan(value) else f"{value:.2f}"


def labels(context: Context, top: TopExamples, c: int, places: Sequence[int]) -> str:
    """Which classes its top examples belong to, the commonest first."""
    names = [context.label(places[i]) for i in top.index[c].tolist()]
    if any(name is None for name in names):
        return ""
    return "examples of " + listed([f"{name} ({n})" for name, n in Counter(names).most_common()], most=3)


def table(context: Context, top: TopExamples, chosen: Sequence[int], places: Sequence[int]) -> Table:
    """For rows of features: in which columns a unit's top rows differ most from all."""
    x = torch.cat([context.inputs(places[i : i + 256]) for i in range(0, len(places), 256)])
    names, x = columns(context.box.inputs, x)
    mean, std = x.mean(0), x.std(0, correction=0)
    rows = []
    for c in chosen:
        mine = x[top.index[c].cpu()].mean(0)
        off = ((mean - mine) / std.masked_fill(std == 0, torch.inf)).abs().argsort(descending=True)[:TABLED]
        told = "; ".join(f"{names[j]} {digits(float(mine[j]))} (all {digits(float(mean[j]))})" for j in off.tolist())
        value = digits(float(top.value[c, 0]))
        rows.append((str(c), value, spread(top, c) or "–", labels(context, top, c, places), told))
    heads = ("unit", "largest value", "spread", "labels", "its top rows on average, where they differ most")
    return Table(heads, rows, frozenset({1, 2}))
