"""How good outputs are that exclude nothing: errors of numbers, scores of yes/no labels, accuracy of label maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..inputs.labels import are_default_class_names
from ..plots.charts import scatter_chart
from .blocks import Block, Collapsible, Figure, FigureGrid, Heading, Paragraph, Table
from .finding import METADATA_OF_FIELD_NOT_IN_JSON
from .pictures import PageImage
from .words import format_percent

if TYPE_CHECKING:
    from .survey import Survey

MAX_SCATTER_CHARTS = 4  # outputs whose predictions are drawn against the truth
MAX_SCATTER_POINTS = 2000
MAX_UNFOLDED_SCORE_ROWS = 20  # of a table before it folds


@dataclass(frozen=True, eq=False)
class RegressionOutputErrors:
    """The errors of one output of a regression."""

    name: str
    mae: float  # mean absolute error
    rmse: float  # root of the mean squared error
    r2: float  # coefficient of determination: 1 is exact, 0 as good as always predicting the mean; NaN of a constant
    predicted: Tensor = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # (n,)
    true: Tensor = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # (n,)


@dataclass(frozen=True)
class LabelScore:
    """How well one yes/no label is predicted; NaN where no example decides it."""

    name: str
    n_positive: int
    precision: float  # of those predicted yes, the share that are
    recall: float  # of those that are, the share predicted yes
    average_precision: float  # area below the precision-recall curve, in steps


@dataclass(frozen=True)
class LabelMapClassScore:
    """How well one class of a label map is predicted, over all positions."""

    name: str
    n_positions: int  # that have the label
    accuracy: float  # of these, the share predicted as it
    iou: float  # intersection over union


def output_errors(predicted: Tensor, true: Tensor, names: Sequence[str]) -> list[RegressionOutputErrors]:
    """The errors of each output, given (n, K) and (n, K)."""
    error = predicted - true
    squares, spread = error.square().mean(0), (true - true.mean(0)).square().mean(0)
    r2 = torch.where(spread > 0, 1 - squares / spread, math.nan)
    rows = zip(names, error.abs().mean(0).tolist(), squares.sqrt().tolist(), r2.tolist(), strict=True)
    return [RegressionOutputErrors(*row, predicted[:, k], true[:, k]) for k, row in enumerate(rows)]


def label_scores(probs: Tensor, true: Tensor, names: Sequence[str]) -> list[LabelScore]:
    """The scores of each label, given probabilities (n, K) and zeros and ones (n, K)."""
    return [_label_score(name, probs[:, k], true[:, k] > 0.5) for k, name in enumerate(names)]


def _label_score(name: str, p: Tensor, is_positive: Tensor) -> LabelScore:
    is_predicted, n_positive = p > 0.5, int(is_positive.sum())
    hits = int((is_predicted & is_positive).sum())
    return LabelScore(
        name,
        n_positive,
        _ratio_or_nan(hits, int(is_predicted.sum())),
        _ratio_or_nan(hits, n_positive),
        average_precision(p, is_positive),
    )


def average_precision(p: Tensor, is_positive: Tensor) -> float:
    """The sum of precisions at each threshold, weighted by the increase in recall; NaN without positives.

    Examples of the same probability share a threshold, as in scikit-learn.
    """
    order = p.argsort(descending=True, stable=True)
    hits = is_positive[order].double().cumsum(0)
    is_last = torch.cat([p[order][1:] != p[order][:-1], torch.ones(1, dtype=torch.bool)])
    n_taken = torch.arange(1, len(p) + 1)[is_last]
    hits = hits[is_last]
    gained = hits.diff(prepend=hits.new_zeros(1))
    return float((gained * hits / n_taken).sum() / hits[-1]) if hits[-1] > 0 else math.nan


def position_scores(confusion: Tensor, names: Sequence[str]) -> list[LabelMapClassScore]:
    """The scores of each class, given how often each label (row) got each prediction (column), (K, K)."""
    hits, n_labels, n_predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    unions = (n_labels + n_predicted - hits).tolist()
    rows = zip(names, n_labels.tolist(), hits.tolist(), unions, strict=True)
    return [
        LabelMapClassScore(name, n, _ratio_or_nan(hit, n), _ratio_or_nan(hit, union)) for name, n, hit, union in rows
    ]


def mean_without_nan(values: Sequence[float]) -> float:
    """The mean of those that are no NaN; NaN where none is known."""
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


def _ratio_or_nan(part: int, total: int) -> float:
    return part / total if total else math.nan


# -- sentences and blocks ----------------------------------------------------------------------------------------------


def output_errors_headline(errors: Sequence[RegressionOutputErrors]) -> tuple[str, str]:
    """The page's title and a sentence."""
    if len(errors) == 1:
        e = errors[0]
        return (
            f"Mean absolute error {e.mae:.3g}",
            f"Root mean squared error {e.rmse:.3g}; R² {_format_score_or_dash(e.r2)}.",
        )
    r2 = mean_without_nan([e.r2 for e in errors])
    worst = min(errors, key=lambda e: math.inf if math.isnan(e.r2) else e.r2)
    return (
        f"Mean R² {_format_score_or_dash(r2)}",
        f"Of {len(errors)} outputs, {worst.name} is predicted worst (R² {_format_score_or_dash(worst.r2)}).",
    )


def label_scores_headline(scores: Sequence[LabelScore]) -> tuple[str, str]:
    """The page's title and a sentence."""
    mean = mean_without_nan([s.average_precision for s in scores])
    known = [s for s in scores if not math.isnan(s.average_precision)]
    worst = min(known, key=lambda s: s.average_precision) if known else None
    text = (
        f"The label predicted worst is {worst.name} ({_format_score_or_dash(worst.average_precision)})."
        if worst
        else ""
    )
    return f"Mean average precision {_format_score_or_dash(mean)}", text


def position_scores_headline(scores: Sequence[LabelMapClassScore]) -> tuple[str, str]:
    """The page's title and a sentence."""
    n = sum(s.n_positions for s in scores)
    accuracy = sum(s.accuracy * s.n_positions for s in scores if s.n_positions) / max(n, 1)
    mean_iou = mean_without_nan([s.iou for s in scores])
    known = [s for s in scores if not math.isnan(s.iou)]
    worst = min(known, key=lambda s: s.iou) if known else None
    least = f"; the class with the least is {worst.name} ({_format_score_or_dash(worst.iou)})" if worst else ""
    return (
        f"{format_percent(accuracy)} of positions correct",
        f"Mean intersection over union (IoU) {_format_score_or_dash(mean_iou)}{least}.",
    )


HEADLINE_FN_BY_SCORE_KIND: dict[str, Callable[[Any], tuple[str, str]]] = {
    "output_errors": output_errors_headline,
    "label_scores": label_scores_headline,
    "position_scores": position_scores_headline,
}
"""By the field of the overview's finding."""


def score_blocks(
    errors: Sequence[RegressionOutputErrors], labels: Sequence[LabelScore], positions: Sequence[LabelMapClassScore]
) -> list[Block]:
    """The tables and charts of those scores that there are."""
    if errors:
        return output_errors_blocks(errors)
    return label_scores_blocks(labels) if labels else position_scores_blocks(positions) if positions else []


def output_errors_blocks(errors: Sequence[RegressionOutputErrors]) -> list[Block]:
    """A table of the errors, and predictions against the truth."""
    rows = [[e.name, f"{e.mae:.3g}", f"{e.rmse:.3g}", _format_score_or_dash(e.r2)] for e in errors]
    lead = "R² is 1 for exact predictions, and 0 for those no better than always predicting the mean."
    table = _collapsible_table(("output", "mean absolute error", "root mean squared error", "R²"), rows)
    figures = [_prediction_scatter_figure(e) for e in errors[:MAX_SCATTER_CHARTS]]
    return [
        Heading("How far off it is"),
        *table,
        Paragraph(lead, "soft"),
        FigureGrid(figures, two_per_row=len(figures) > 1),
    ]


def label_scores_blocks(scores: Sequence[LabelScore]) -> list[Block]:
    """A table of the labels."""
    rows = [
        [
            s.name,
            f"{s.n_positive:,}",
            _format_score_or_dash(s.precision),
            _format_score_or_dash(s.recall),
            _format_score_or_dash(s.average_precision),
        ]
        for s in scores
    ]
    columns = ("label", "examples that have it", "precision", "recall", "average precision")
    lead = "Precision and recall are those of a threshold of one half; average precision is over all thresholds."
    return [Heading("Label by label"), *_collapsible_table(columns, rows), Paragraph(lead, "soft")]


def position_scores_blocks(scores: Sequence[LabelMapClassScore]) -> list[Block]:
    """A table of the classes of a label map."""
    rows = [
        [s.name, f"{s.n_positions:,}", _format_score_or_dash(s.accuracy), _format_score_or_dash(s.iou)] for s in scores
    ]
    columns = ("class", "positions that have it", "share predicted as it", "intersection over union")
    return [Heading("Class by class"), *_collapsible_table(columns, rows)]


def _collapsible_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Block]:
    numbers = frozenset(range(1, len(columns)))
    blocks: list[Block] = [Table(columns, rows[:MAX_UNFOLDED_SCORE_ROWS], numbers)]
    if rest := rows[MAX_UNFOLDED_SCORE_ROWS:]:
        blocks.append(Collapsible(f"{len(rest)} more", [Table(columns, rest, numbers)]))
    return blocks


def _prediction_scatter_figure(e: RegressionOutputErrors) -> Figure:
    step = -(-len(e.true) // MAX_SCATTER_POINTS)
    chart = scatter_chart(e.true[::step], e.predicted[::step], x_label="true", y_label="predicted", title=e.name)
    alt = f"predicted against true values of {e.name}, {len(e.true[::step])} examples; R² {_format_score_or_dash(e.r2)}"
    return Figure(PageImage(chart, alt, side=None), "", (f"predicted against true, {e.name}",))


def _format_score_or_dash(value: float) -> str:
    """Like "0.83"; a dash where it is not known."""
    return "–" if math.isnan(value) else f"{value:.2f}".replace("-", "\u2212")


def scores_by_finding_field(s: Survey, outputs: str) -> dict[str, Any]:
    """The scores of outputs that are no classes, by their field of the finding; {} without true values."""
    if s.position_confusion is not None:
        return {"position_scores": position_scores(s.position_confusion, _output_names(s, "class"))}
    if s.targets is None:
        return {}
    if outputs == "regression":
        return {"output_errors": output_errors(s.outputs, s.targets, _output_names(s, "output"))}
    return {"label_scores": label_scores(s.outputs, s.targets, _output_names(s, "label"))}


def _output_names(s: Survey, noun: str) -> list[str]:
    """The names of the outputs; "output 0" where they are numbers."""
    return [f"{noun} {name}" if are_default_class_names(s.classes) else name for name in s.classes]
