"""Which output the maps of a page explain: the predicted class, but of label maps and of several numbers the worst."""

from __future__ import annotations

import torch
from torch import Tensor

from .context import ReportContext
from .survey import intersection_over_union
from .words import quoted


def worst_output_or_none(context: ReportContext) -> int | None:
    """Of label maps the class of least intersection over union, of several numbers the output of least R²; else None.

    The largest mean probability of a label map is that of the background, and the largest of several numbers is of no
    meaning.
    """
    s = context.survey
    if s.position_confusion is not None:
        score = intersection_over_union(s.position_confusion)
    elif context.is_regression and s.targets is not None and len(s.classes) > 1:
        score = 1 - (s.outputs - s.targets).square().mean(0) / s.targets.var(0, correction=0)
    else:
        return None
    return int(score.nan_to_num(torch.inf).argmin())


def explained_classes(context: ReportContext) -> Tensor:
    """The class or output (n,) whose score each map explains."""
    k, predicted = worst_output_or_none(context), context.survey.predicted
    return predicted if k is None else torch.full_like(predicted, k)


def explained_text(context: ReportContext) -> str:
    """What the maps explain, in a sentence."""
    if (k := worst_output_or_none(context)) is None:
        return "its likeliest label" if context.has_labels else "that prediction"
    name = quoted(context.class_name(k))
    return f"{name}, the {'output predicted worst' if context.is_regression else 'class with the least overlap'}"
