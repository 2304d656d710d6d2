"""How good outputs are that exclude nothing: scores of yes/no labels, accuracy of label maps; numbers: `regression`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..engine.read.class_labels import names_with_noun
from .blocks import Block, Heading, Paragraph, collapsible_table
from .regression import output_errors
from .regression_blocks import output_errors_headline
from .survey import intersection_over_union
from .words import format_percent, format_score, mean_without_nan, quoted

if TYPE_CHECKING:
    from .survey import Survey


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
    n_labels, hits = confusion.sum(1), confusion.diagonal()
    rows = zip(names, n_labels.tolist(), hits.tolist(), intersection_over_union(confusion).tolist(), strict=True)
    return [LabelMapClassScore(name, n, _ratio_or_nan(hit, n), iou) for name, n, hit, iou in rows]


def least_overlapping_class(scores: Sequence[LabelMapClassScore]) -> LabelMapClassScore | None:
    """The class with the least intersection over union; None where no position has or gets a class."""
    known = [s for s in scores if not math.isnan(s.iou)]
    return min(known, key=lambda s: s.iou) if known else None


def _ratio_or_nan(part: int, total: int) -> float:
    return part / total if total else math.nan


# -- sentences and blocks ----------------------------------------------------------------------------------------------


def label_scores_headline(scores: Sequence[LabelScore]) -> tuple[str, str]:
    """The page's title and a sentence."""
    mean = mean_without_nan([s.average_precision for s in scores])
    known = [s for s in scores if not math.isnan(s.average_precision)]
    worst = min(known, key=lambda s: s.average_precision) if known else None
    text = (
        f"The label predicted worst is {quoted(worst.name)} ({format_score(worst.average_precision)})." if worst else ""
    )
    return f"Mean average precision {format_score(mean)}", text


def position_scores_headline(scores: Sequence[LabelMapClassScore]) -> tuple[str, str]:
    """The page's title and a sentence."""
    n = sum(s.n_positions for s in scores)
    accuracy = sum(s.accuracy * s.n_positions for s in scores if s.n_positions) / max(n, 1)
    mean_iou = mean_without_nan([s.iou for s in scores])
    worst = least_overlapping_class(scores)
    least = f"; the class with the least is {quoted(worst.name)} ({format_score(worst.iou)})" if worst else ""
    return (
        f"{format_percent(accuracy)} of positions correct",
        f"Mean intersection over union (IoU) {format_score(mean_iou)}{least}.",
    )


HEADLINE_FN_BY_SCORE_KIND: dict[str, Callable[[Any], tuple[str, str]]] = {
    "output_errors": output_errors_headline,
    "label_scores": label_scores_headline,
    "position_scores": position_scores_headline,
}
"""By the field of the overview's finding."""


def label_scores_blocks(scores: Sequence[LabelScore]) -> list[Block]:
    """A table of the labels."""
    rows = [
        [
            s.name,
            f"{s.n_positive:,}",
            format_score(s.precision),
            format_score(s.recall),
            format_score(s.average_precision),
        ]
        for s in scores
    ]
    columns = ("label", "examples that have it", "precision", "recall", "average precision")
    lead = "Precision and recall are those of a threshold of one half; average precision is over all thresholds."
    return [Heading("Label by label"), *collapsible_table(columns, rows), Paragraph(lead, "soft")]


def position_scores_blocks(scores: Sequence[LabelMapClassScore]) -> list[Block]:
    """A table of the classes of a label map."""
    rows = [[s.name, f"{s.n_positions:,}", format_score(s.accuracy), format_score(s.iou)] for s in scores]
    columns = ("class", "positions that have it", "share predicted as it", "intersection over union")
    return [Heading("Class by class"), *collapsible_table(columns, rows)]


def confused_positions_sentence(confusion: Tensor, names: Sequence[str]) -> str:
    """Which label is most often predicted as which other class, and the next pair if it is at least half as common.

    Of label maps, given how often each label (row) got each prediction (column), (K, K); "" without errors.
    """
    errors = confusion.clone().fill_diagonal_(0).flatten()
    counts, cells = errors.topk(min(2, len(errors)))
    cells = cells[(counts > 0) & (2 * counts >= counts[0])]
    pairs = [(int(i) // len(names), int(i) % len(names)) for i in cells]
    shares = [format_percent(float(confusion[a, b] / confusion[a].sum())) for a, b in pairs]
    named = [f"{quoted(names[a])} predicted as {quoted(names[b])}" for a, b in pairs]
    texts = [f"{name} ({share}" for name, share in zip(named, shares, strict=True)]
    if not texts:
        return ""
    of_label = f"Its most common confusion{'s' * (len(texts) > 1)}: {texts[0]} of the positions with that label)"
    return f"{of_label}{f' and {texts[1]})' if texts[1:] else ''}."


def scores_by_finding_field(s: Survey, outputs: str) -> dict[str, Any]:
    """The scores of outputs that are no classes, by their field of the finding; {} without true values."""
    if s.position_confusion is not None:
        return {"position_scores": position_scores(s.position_confusion, names_with_noun(s.classes, "class"))}
    if s.targets is None:
        return {}
    if outputs == "regression":
        return {"output_errors": output_errors(s.outputs, s.targets, names_with_noun(s.classes, "output"))}
    return {"label_scores": label_scores(s.outputs, s.targets, names_with_noun(s.classes, "label"))}
