"""Training examples with their scores for an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..influence import Influence
from ..plots import colors
from ..plots.results.influence import format_signed_score
from .blocks import Figure
from .context import ReportContext
from .finding import METADATA_OF_FIELD_NOT_IN_JSON
from .influence_checks import TILE_SIDE_PIXELS
from .mislabels import single_input_as_image_or_none
from .pictures import PageImage


@dataclass(frozen=True, eq=False)
class ScoredExample:
    """A training example with its score for a query."""

    index: int  # in the training data
    label: str
    score: float  # in the unit of the finding
    x: Tensor | None = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # (C, H, W), or (F,) of a table


def make_scored_example(
    context: ReportContext, result: Influence, query: int, j: int, train_x: Tensor, index: Tensor
) -> ScoredExample:
    """The training example j, number `index[j]` in the data, with its score for a query."""
    labels = result.train_labels
    label = "" if labels is None else context.class_name(int(labels[j]))
    x = single_input_as_image_or_none(train_x[j : j + 1]) if train_x.ndim > 2 else train_x[j].cpu()
    return ScoredExample(int(index[j]), label, float(result.scores[query, j]), x)


def scored_example_figures(examples: Sequence[ScoredExample], word: str, tone: str, is_measured: bool) -> list[Figure]:
    """With their scores, where these are measured; else with a word."""
    return [scored_example_figure(e, format_signed_score(e.score) if is_measured else word, tone) for e in examples]


def scored_example_figure(example: ScoredExample, head: str, tone: str, side: int = TILE_SIDE_PIXELS) -> Figure:
    """An image of the training data below a word."""
    lines = tuple(filter(None, (f"label {example.label}" if example.label else "", f"example {example.index}")))
    alt = f"training example {example.index}, label {example.label}, score {example.score:+.2g}"
    x = example.x if example.x is not None else torch.zeros(1, 1, 1)
    return Figure(PageImage(colors.image_to_rgb(x), alt, side), head, lines, tone)
