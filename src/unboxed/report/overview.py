"""The answer first: how good the model is, what it confuses, and what it is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .blocks import Block, ConfusionMatrix, Figure, FigureGrid, Fold, Heading, Note, SideBySide, Table, Text
from .context import ReportContext, Section
from .input_nouns import shapes_text
from .skipped import skipped_text
from .words import count_noun, format_percent, format_shape

EXAMPLES_PER_ROW = 8  # examples in a row
MAX_MATRIX_CLASSES = 16  # in the confusion matrix
MAX_PAIRS = 8  # in the table beside it
UNFOLDED_LAYERS = 14  # rows of the table that are not folded
MAX_FOLDED_MISTAKES = 40  # mistakes kept in the fold


def build(context: ReportContext) -> Sequence[Block]:
    _write_headline(context)
    blocks: list[Block] = [*_accuracy_blocks(context)]
    if context.has_images:
        blocks += _example_blocks(context)
    return [*blocks, Heading("What it is made of"), *_layer_table(context)]


def _write_headline(context: ReportContext) -> None:
    """The page's first words."""
    s = context.survey
    examples_text = f"{count_noun(len(s.rows), 'example')}{context.data.name_with_prefix(' of ')}"
    if s.accuracy is not None:
        context.title_text = f"{format_percent(s.accuracy)} right"
        context.headline += [f"That is on {examples_text}.", *_mistake_sentences(context)]
    elif s.exclusive_classes:
        counts = torch.bincount(s.answers, minlength=len(s.classes))
        k = int(counts.argmax())
        context.title_text = f"Says {context.class_name(k)} most often"
        percentage = format_percent(float(counts[k]) / len(s.rows))
        context.headline += [f"For {percentage} of {examples_text}. Without labels there is no accuracy."]
    else:
        context.title_text = count_noun(len(s.classes), "output")
        if context.is_single_number:
            low, high = (f"{float(end):.3g}" for end in s.outputs.aminmax())
            context.title_text = f"Gives {low} to {high}" if low != high else f"Gives {low}"
        context.headline += [f"Read on {examples_text}. {_no_accuracy_reason(context)}, so there is no accuracy."]
    context.facts["overview"] = _overview_facts(context)


def _no_accuracy_reason(context: ReportContext) -> str:
    if len(context.survey.classes) == 1:
        return f"It is one number, no choice between classes ({context.box.outputs})"
    return f"The outputs don't exclude one another ({context.box.outputs})"


def _mistake_sentences(context: ReportContext) -> list[str]:
    s = context.survey
    if not s.misclassified:
        index = s.by_margin[0]
        return [f"No mistake; the least sure answer is {context.answer_text(index)}."]
    surest = s.misclassified[0]
    return [
        _most_common_confusion(context),
        f"Its surest mistake: {context.label_name(surest)} taken for {context.answer_text(surest)}.",
    ]


def _most_common_confusion(context: ReportContext) -> str:
    """Which label it takes for which answer most often; a tie is told."""
    pairs, mistakes_text = context.survey.confused_pairs(50), count_noun(len(context.survey.misclassified), "mistake")
    count = pairs[0][2]
    if count == 1:
        kinds = ", each of another kind" if len(pairs) > 1 else ""
        which = f": {context.class_name(pairs[0][0])} for {context.class_name(pairs[0][1])}" if len(pairs) == 1 else ""
        return f"It makes {mistakes_text}{kinds}{which}."
    top = [f"{context.class_name(a)} for {context.class_name(b)}" for a, b, n in pairs if n == count]
    if len(top) > 2:
        return f"It most often takes {top[0]} ({count} of {mistakes_text}), and {len(top) - 1} other pairs as often."
    each_text = " each" if len(top) > 1 else ""
    return f"It most often takes {' and '.join(top)} ({count} of {mistakes_text}{each_text})."


def _overview_facts(context: ReportContext) -> dict[str, object]:
    s = context.survey
    rows = [{"example": s.rows[p], "label": context.label_name(p), "answer": context.class_name(int(s.answers[p])),
             "output": float(s.confidence[p])} for p in s.misclassified[:100]]  # fmt: skip
    return {
        "accuracy": s.accuracy,
        "examples": len(s.rows),
        "mistakes": None if s.is_correct is None else len(s.misclassified),
        "surest_mistakes": rows,
        "undecided": [s.rows[p] for p in s.by_margin[:EXAMPLES_PER_ROW]],
        "confusions": None
        if s.is_correct is None
        else [
            {"label": context.class_name(a), "answer": context.class_name(b), "times": n}
            for a, b, n in s.confused_pairs(50)
        ],
        "layers": [
            {
                "path": r.path,
                "type": r.type,
                "shape": list(r.shape),
                "parameters": r.n_parameters,
                "flops": None if math.isnan(r.flops_share) else r.flops_share,
            }
            for r in context.box.layers
        ],
    }


# -- how good it is ---------------------------------------------------------------------------------------


def _accuracy_blocks(context: ReportContext) -> list[Block]:
    s = context.survey
    blocks: list[Block] = []
    if len(s.rows) < s.n_total:
        spread = ", evenly spread over the data" if s.n_requested < s.n_total else ""
        blocks.append(Note(f"Looked at {len(s.rows):,} of {s.n_total:,} examples{spread}."))
    blocks += _skipped_blocks(context)
    if s.is_correct is None:
        rivals = _no_accuracy_reason(context)
        reason = "not every example has a label" if s.exclusive_classes else rivals[0].lower() + rivals[1:]
        return [*blocks, Note(f"No accuracy and no confusion matrix: {reason}.")]
    if not s.misclassified:
        return [*blocks, Text("Every answer is right, so the confusion matrix would be a diagonal and is left out.")]
    return [*blocks, SideBySide([_confusion_block(context)], _confused_pairs(context))]


def _skipped_blocks(context: ReportContext) -> list[Block]:
    """What could not be read, told before anything is said of the rest."""
    if not (text := skipped_text(context.data, context.survey)):
        return []
    rows = [(str(path), str(reason)) for path, reason in context.data.skipped[:200]]
    return [Note(f"{text}."), Fold("Which files, and why", [Table(("file", "why"), rows)])]


def _confusion_block(context: ReportContext) -> ConfusionMatrix:
    s = context.survey
    shown_classes = _most_confused_classes(context)
    counts = s.confusion[shown_classes][:, shown_classes]
    off_diagonal = counts.clone().fill_diagonal_(0)
    strength = (off_diagonal / max(1, int(off_diagonal.max()))).sqrt()
    n_omitted = len(s.classes) - len(shown_classes)
    caption = "Each row is a label, each column an answer; the diagonal is right."
    if n_omitted:
        caption += f" The {len(shown_classes)} classes with the most mistakes; {n_omitted} more are left out."
    names = [context.class_name(k) for k in shown_classes]
    return ConfusionMatrix(names, counts.tolist(), strength.tolist(), caption)


def _most_confused_classes(context: ReportContext) -> list[int]:
    confusion = context.survey.confusion
    if len(confusion) <= MAX_MATRIX_CLASSES:
        return list(range(len(confusion)))
    off_diagonal = confusion.clone().fill_diagonal_(0)
    return sorted((off_diagonal.sum(0) + off_diagonal.sum(1)).topk(MAX_MATRIX_CLASSES).indices.tolist())


def _confused_pairs(context: ReportContext) -> list[Block]:
    """The mistakes pair by pair, the commonest first."""
    s = context.survey
    heads, numbers = ("label", "taken for", "times"), frozenset({2})
    rows = [(context.class_name(a), context.class_name(b), str(n)) for a, b, n in s.confused_pairs(200)]
    blocks: list[Block] = [
        Text(f"{count_noun(len(s.misclassified), 'mistake')} in {count_noun(len(s.rows), 'example')}.")
    ]
    blocks.append(Table(heads, rows[:MAX_PAIRS], numbers))
    if rest := rows[MAX_PAIRS:]:
        blocks.append(Fold(f"{count_noun(len(rest), 'more pair')}", [Table(heads, rest, numbers)]))
    return blocks


def _example_blocks(context: ReportContext) -> list[Block]:
    s = context.survey
    blocks: list[Block] = []
    if s.misclassified:
        selected, rest = (
            s.misclassified[:EXAMPLES_PER_ROW],
            s.misclassified[EXAMPLES_PER_ROW : EXAMPLES_PER_ROW + MAX_FOLDED_MISTAKES],
        )
        figures = _example_figures(context, selected)
        context.cover.append(figures[0])
        blocks += [Heading("Surest mistakes"), FigureGrid(figures)]
        if rest:
            blocks.append(
                Fold(f"{count_noun(len(rest), 'more mistake')}", [FigureGrid(_example_figures(context, rest))])
            )
    undecided = _example_figures(context, s.by_margin[:EXAMPLES_PER_ROW], show_runner_up=True)
    if not s.misclassified:
        context.cover.append(undecided[0])
    if not s.exclusive_classes:
        return [*blocks, Heading("Examples"), FigureGrid(undecided)]
    lead = "The two largest outputs of these lie closest."
    if context.data.binary:
        lead = "The p of yes of these lies closest to one half."
    return [*blocks, Heading("Most confused examples"), Text(lead, "soft"), FigureGrid(undecided)]


def _example_figures(context: ReportContext, indices: Sequence[int], show_runner_up: bool = False) -> list[Figure]:
    x = context.inputs(indices)
    return [context.example_figure(p, x[i], show_runner_up=show_runner_up) for i, p in enumerate(indices)]


# -- what it is made of ------------------------------------------------------------------------------------------------


def _layer_table(context: ReportContext) -> list[Block]:
    box = context.box
    total = sum(p.numel() for p in box.model.parameters())
    inputs_outputs_text = f"inputs {shapes_text(box.inputs)}, {count_noun(len(box.classes), 'output')} ({box.outputs})"
    lead = f"{type(box.model).__name__}: {count_noun(total, 'parameter')}, {inputs_outputs_text}."
    heads = ("layer", "type", "output", "parameters", "share of FLOPs")
    rows = [
        (
            r.path + (f" (runs {r.n_calls}×)" if r.n_calls > 1 else ""),
            r.type,
            format_shape(r.shape),
            f"{r.n_parameters:,}",
            "" if math.isnan(r.flops_share) else format_percent(r.flops_share),
        )
        for r in box.layers
    ]
    numbers = frozenset({3, 4})
    blocks: list[Block] = [Text(lead), Table(heads, rows[:UNFOLDED_LAYERS], numbers)]
    if rest := rows[UNFOLDED_LAYERS:]:
        blocks.append(Fold(f"{count_noun(len(rest), 'more layer')}", [Table(heads, rest, numbers)]))
    return blocks


SECTION = Section("How good is it?", "overview", build)
