"""The page's title and the sentences below it: how good the model is, and its worst errors."""

from __future__ import annotations

import re
from typing import Any

import torch

from ..engine.proportion import Proportion
from ..engine.read.class_labels import class_order_notes
from .context import ReportContext
from .label_maps import worst_map_sentence
from .score_intervals import accuracy_interval_text, score_interval_text
from .scores import HEADLINE_FN_BY_SCORE_KIND, confused_positions_sentence
from .words import count_noun, format_percent, format_shape, quoted

MAX_CONFUSED_PAIRS_IN_JSON = 50  # and in the headline
TEST_SPLIT_PATTERN = re.compile(r"(?<![a-z])(test|val|valid|validation|held.?out)(?![a-z])", re.IGNORECASE)
MIN_SHARE_OF_FREQUENT_CLASS = 0.25  # of the predictions, from which the most frequent class is the page's title


def title_and_headline(context: ReportContext, scored: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The page's title and the sentences below it."""
    s = context.survey
    examples_text = f"{count_noun(len(s.rows), 'example')}{context.data.prefixed_name_or_empty(' of ')}"
    for name, scores in scored.items():
        title, sentence = HEADLINE_FN_BY_SCORE_KIND[name](scores)
        return title, (
            f"Measured on {examples_text}{score_interval_text(s, context.box.outputs, context.seed)}."
            f"{_unknown_split_note(context)}",
            *filter(None, (sentence, confused_positions_sentence_or_empty(context), worst_map_sentence(context))),
        )
    if s.accuracy is not None:
        return f"{format_percent(s.accuracy)} accuracy", (
            f"Measured on {examples_text}{accuracy_interval_text(s)}.{_unknown_split_note(context)}",
            *class_order_sentences(context),
            *_misclassification_sentences(context),
        )
    if s.exclusive_classes:
        return _most_frequent_prediction(context, examples_text)
    title = count_noun(len(s.classes), "output")
    if context.is_regression and len(s.classes) == 1:
        low, high = (f"{float(end):.3g}" for end in s.outputs.aminmax())
        title = f"Outputs from {low} to {high}" if low != high else f"Its output is always {low}"
    return title, (f"Measured on {examples_text}. {no_accuracy_reason(context)}, so there is no accuracy.",)


def class_order_sentences(context: ReportContext) -> list[str]:
    """What is to be read beside the accuracy: a guess about the order of classes, and one that is below guessing."""
    s = context.survey
    if s.is_correct is None:
        return []
    accuracy = Proportion(len(s.rows) - len(s.misclassified), len(s.rows))
    notes = class_order_notes(context.data.label_assumption, accuracy, len(s.classes))
    return [f"{note[0].upper()}{note[1:]}." for note in notes]


def _unknown_split_note(context: ReportContext) -> str:
    """That figures on examples of the training say little, unless the data are called after another split."""
    if TEST_SPLIT_PATTERN.search(context.data.name):
        return ""
    return " If it was trained on these examples, this says little."


def confused_positions_sentence_or_empty(context: ReportContext) -> str:
    """Which classes label maps confuse; "" without label maps."""
    confusion = context.survey.position_confusion
    return "" if confusion is None else confused_positions_sentence(confusion, context.survey.classes)


def _most_frequent_prediction(context: ReportContext, examples_text: str) -> tuple[str, tuple[str, ...]]:
    """A title and a sentence of a page without labels: the class that is predicted most often, if one stands out."""
    s = context.survey
    counts = torch.bincount(s.predicted, minlength=len(s.classes))
    k, n_predicted = int(counts.argmax()), int((counts > 0).sum())
    share, name = float(counts[k]) / len(s.rows), quoted(context.class_name(k))
    prediction = f"its prediction for {format_percent(share)} of {examples_text}. Without labels there is no accuracy."
    if share < MIN_SHARE_OF_FREQUENT_CLASS:
        title = f"Predicts {count_noun(n_predicted, 'class', 'classes')}"
        if int(counts.max()) == 1:
            return title, (f"All {examples_text} get different classes. Without labels there is no accuracy.",)
        return title, (f"The most frequent one, {name}, is {prediction}",)
    return f"Predicts {context.class_name(k)} most often", (f"This is {prediction}",)


def no_accuracy_reason(context: ReportContext) -> str:
    if shape := context.box.output_map_shape:
        return f"The output is a map ({format_shape(shape)} positions), and no label maps of that size were given"
    if len(context.survey.classes) == 1:
        return f"The output is one number, not a choice between classes ({context.box.outputs})"
    return f"The outputs don't exclude one another ({context.box.outputs})"


def _misclassification_sentences(context: ReportContext) -> list[str]:
    s = context.survey
    if not s.misclassified:
        least_certain = context.prediction_text(s.indices_by_margin[0], quote=True)
        return [f"It makes no error; its least certain prediction is {least_certain}."]
    worst = s.misclassified[0]
    return [
        _most_common_confusion_sentence(context),
        f"Its most confident error: {quoted(context.label_name(worst) or '')} classified as "
        f"{context.prediction_text(worst, quote=True)}.",
    ]


def _most_common_confusion_sentence(context: ReportContext) -> str:
    """Which label is most often classified as which other class; ties are reported."""
    pairs = context.survey.confused_pairs(MAX_CONFUSED_PAIRS_IN_JSON)
    errors = count_noun(len(context.survey.misclassified), "error")
    names = [f"{quoted(context.class_name(a))} classified as {quoted(context.class_name(b))}" for a, b, _ in pairs]
    count = pairs[0][2]
    if count == 1:
        return f"It makes {errors}{' (no confusion occurs twice)' if len(pairs) > 1 else ': ' + names[0]}."
    top = [name for name, (_, _, n) in zip(names, pairs, strict=True) if n == count]
    if len(top) > 2:
        return (f"Its most common confusion: {top[0]} ({count} of {errors}); "
                f"{len(top) - 1} other pairs are as common.")  # fmt: skip
    each = " each" if len(top) > 1 else ""
    plural = "s" if len(top) > 1 else ""
    return f"Its most common confusion{plural}: {' and '.join(top)} ({count} of {errors}{each})."
