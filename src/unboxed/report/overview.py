"""How good is it? Accuracy, what it confuses, its most confident errors, and what it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..model.layers import Layer
from . import chapters
from .blocks import (
    Block,
    Caution,
    Collapsible,
    ConfusionMatrix,
    Figure,
    Heading,
    Paragraph,
    SideBySide,
    Table,
)
from .context import ReportContext, Section
from .finding import METADATA_OF_FIELD_NOT_IN_JSON, Example, Finding, examples_block
from .headline import (
    MAX_CONFUSED_PAIRS_IN_JSON,
    class_order_sentences,
    confused_positions_sentence_or_empty,
    no_accuracy_reason,
    title_and_headline,
)
from .input_nouns import input_shapes_text
from .label_maps import LabelMapExample, label_map_blocks, label_map_examples, predicted_map_figure
from .layer_table import layer_table_blocks
from .regression import ErrorGroup, RegressionOutputErrors
from .regression_blocks import LargestError, bias_sentence, error_group_sentence, output_errors_blocks, preview_blocks
from .regression_rows import error_groups_of_columns, largest_errors
from .scores import (
    LabelMapClassScore,
    LabelScore,
    label_scores_blocks,
    position_scores_blocks,
    scores_by_finding_field,
)
from .skipped import left_out_sentence, skipped_text
from .words import count_noun

MAX_OVERVIEW_EXAMPLES_PER_ROW = 8  # examples in a row
N_EXPLAINED_ERRORS, N_PREVIEW_MAPS, N_PREVIEW_EXAMPLES = 3, 4, 6  # before the section is opened
MAX_CONFUSION_MATRIX_CLASSES = 16  # in the confusion matrix
MAX_LISTED_CONFUSED_PAIRS = 8  # in the table beside it
MAX_COLLAPSED_CONFUSED_PAIRS = 200  # in the folded table
MAX_COLLAPSED_MISCLASSIFIED = 40  # misclassified examples in the fold
MAX_MISCLASSIFIED_IN_JSON = 100  # misclassified examples in report.json
RANGES_OF_DATA_TEXT = (
    "; no std or bounds of the columns are given, so that changes are shares of each column's range in these data, and "
    "stay in it"
)
MAX_LISTED_SKIPPED_FILES = 200  # that are listed


@dataclass(frozen=True, eq=False, kw_only=True)
class OverviewFinding(Finding):
    """Accuracy, confusions, layers, and the examples that show them."""

    accuracy: float | None  # None without labels, or where outputs do not exclude one another
    examples: int  # evaluated
    examples_in_data: int
    examples_requested: int
    mistakes: int | None
    most_confident_errors: list[dict[str, Any]]
    lowest_margin: list[int]  # indices in the data
    confusions: list[dict[str, Any]] | None
    layers: tuple[Layer, ...]
    model: str  # its class
    parameters: int
    inputs_and_outputs: str
    skipped: str  # what could not be read
    skipped_files: list[tuple[str, str]]
    no_accuracy_reason: str
    class_order: list[str]  # what is to be read beside the accuracy: a guess about the order of classes
    folded_confusions: list[tuple[str, str, int]] = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)
    matrix_classes: list[str] = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)
    matrix: Tensor = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # (K, K) labels x predictions, of these classes
    n_omitted_classes: int = 0
    followed: list[Example] = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # none where inputs are no images
    misclassified: list[Example] = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # none where inputs are no images
    ambiguous: list[Example] = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)
    exclusive_classes: bool = True
    binary: bool = False
    output_errors: list[RegressionOutputErrors] = field(default_factory=list)  # of a regression with true values
    error_groups: list[ErrorGroup] = field(default_factory=list)  # of rows with larger errors, of a regression
    largest_errors: list[LargestError] = field(default_factory=list)  # of a regression
    label_scores: list[LabelScore] = field(default_factory=list)  # of yes/no labels
    position_scores: list[LabelMapClassScore] = field(default_factory=list)  # of label maps
    worst_maps: list[LabelMapExample] = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON, default_factory=list)
    followed_maps: list[LabelMapExample] = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON, default_factory=list)
    classes: tuple[str, ...] = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON, default=())

    def cover(self, place: int) -> Sequence[Figure]:
        maps = [predicted_map_figure(m, self.classes) for m in self.followed_maps[place : place + 1]]
        return [e.figure(show_runner_up=not self.misclassified) for e in self.followed[place : place + 1]] + maps


# -- find --------------------------------------------------------------------------------------------------------------


def find(context: ReportContext) -> OverviewFinding:
    s, box = context.survey, context.box
    shown_classes = _most_confused_classes(s.confusion)
    scored = scores_by_finding_field(s, box.outputs)
    title, headline = title_and_headline(context, scored)
    errors = scored.get("output_errors", [])
    groups = error_groups_of_columns(context) if errors else []
    group_sentence = error_group_sentence(groups, errors)
    where_wrong = [bias_sentence(errors[0]) if len(errors) == 1 else "", group_sentence]
    skipped = skipped_text(context.data, s)
    is_shown = context.has_images or context.has_texts
    misclassified = s.misclassified[: MAX_OVERVIEW_EXAMPLES_PER_ROW + MAX_COLLAPSED_MISCLASSIFIED] if is_shown else []
    pairs = [
        (context.class_name(a), context.class_name(b), n) for a, b, n in s.confused_pairs(MAX_COLLAPSED_CONFUSED_PAIRS)
    ]
    return OverviewFinding(
        answer=_overview_answer_text(context, title, where_wrong),
        title=title,
        headline=(*headline, *filter(None, (group_sentence, left_out_sentence(context.data, s)))),
        accuracy=s.accuracy,
        examples=len(s.rows),
        examples_in_data=s.n_total,
        examples_requested=s.n_requested,
        mistakes=None if s.is_correct is None else len(s.misclassified),
        most_confident_errors=[
            _misclassification_to_dict(context, i) for i in s.misclassified[:MAX_MISCLASSIFIED_IN_JSON]
        ],
        lowest_margin=[s.rows[i] for i in s.indices_by_margin[:MAX_OVERVIEW_EXAMPLES_PER_ROW]],
        confusions=None
        if s.is_correct is None and s.position_confusion is None
        else [{"label": a, "prediction": b, "times": n} for a, b, n in pairs[:MAX_CONFUSED_PAIRS_IN_JSON]],
        layers=tuple(box.layers),
        model=type(box.model).__name__,
        parameters=sum(p.numel() for p in box.model.parameters()),
        inputs_and_outputs=f"inputs {input_shapes_text(box.inputs)}, "
        f"{count_noun(len(box.classes), 'output')} ({box.outputs}){RANGES_OF_DATA_TEXT * context.has_ranges_of_data}",
        skipped=skipped,
        skipped_files=[(str(path), str(reason)) for path, reason in context.data.skipped[:MAX_LISTED_SKIPPED_FILES]],
        no_accuracy_reason="" if s.exclusive_classes else no_accuracy_reason(context),
        folded_confusions=pairs,
        matrix_classes=[context.class_name(k) for k in shown_classes],
        class_order=class_order_sentences(context),
        matrix=s.confusion[shown_classes][:, shown_classes],
        n_omitted_classes=len(s.classes) - len(shown_classes),
        followed=context.examples(context.followed_indices) if context.has_images else [],
        misclassified=context.examples(misclassified),
        ambiguous=context.examples(s.indices_by_margin[:MAX_OVERVIEW_EXAMPLES_PER_ROW]) if is_shown else [],
        exclusive_classes=s.exclusive_classes,
        binary=context.data.binary,
        worst_maps=label_map_examples(context, s.indices_by_margin[:MAX_OVERVIEW_EXAMPLES_PER_ROW]),
        followed_maps=label_map_examples(context, context.followed_indices),
        classes=s.classes,
        error_groups=groups,
        largest_errors=largest_errors(context) if errors else [],
        **scored,
    )


def _misclassification_to_dict(context: ReportContext, index: int) -> dict[str, Any]:
    s = context.survey
    prediction = context.class_name(int(s.predicted[index]))
    return {"example": s.rows[index], "label": context.label_name(index), "prediction": prediction,
            "output": float(s.confidence[index])}  # fmt: skip


def _overview_answer_text(context: ReportContext, title: str, where_wrong: Sequence[str]) -> str:
    survey, examples = context.survey, count_noun(len(context.survey.rows), "example")
    if survey.is_correct is not None:
        return f"{count_noun(len(survey.misclassified), 'error')} in {examples}."
    sentences = [*where_wrong, confused_positions_sentence_or_empty(context)]
    return " ".join(filter(None, sentences)) or f"{title}, on {examples}."


def _most_confused_classes(confusion: Tensor) -> list[int]:
    if len(confusion) <= MAX_CONFUSION_MATRIX_CLASSES:
        return list(range(len(confusion)))
    off_diagonal = confusion.clone().fill_diagonal_(0)
    return sorted((off_diagonal.sum(0) + off_diagonal.sum(1)).topk(MAX_CONFUSION_MATRIX_CLASSES).indices.tolist())


# -- show --------------------------------------------------------------------------------------------------------------


def show(finding: OverviewFinding) -> list[Block]:
    made_of = f"{finding.model}: {count_noun(finding.parameters, 'parameter')}, {finding.inputs_and_outputs}."
    return [
        *_accuracy_blocks(finding),
        *_error_and_margin_example_blocks(finding),
        Heading("What it is made of"),
        *layer_table_blocks(finding.layers, made_of),
    ]


def best(finding: OverviewFinding) -> list[Block]:
    """The worst errors; the least certain examples where there is no error, the scores where inputs are no images."""
    if 0 < len(finding.misclassified) <= N_EXPLAINED_ERRORS and not finding.misclassified[0].text:
        return []  # the next section shows them with their maps
    if finding.position_scores:
        maps = label_map_blocks(finding.worst_maps[:N_PREVIEW_MAPS], finding.classes) if finding.worst_maps else []
        return [SideBySide([_confusion_matrix(finding)], position_scores_blocks(finding.position_scores)[1:2]), *maps]
    if finding.output_errors:
        return preview_blocks(finding.output_errors, finding.largest_errors)
    if finding.ambiguous and finding.ambiguous[0].text and not finding.misclassified:
        return []  # the texts are alike in what is said of them, and the next section shows some
    if shown := (finding.misclassified or finding.ambiguous)[:N_PREVIEW_EXAMPLES]:
        return [examples_block(shown, show_runner_up=not finding.misclassified)]
    if finding.label_scores:
        return label_scores_blocks(finding.label_scores)[1:2]
    rows = [(a, b, str(n)) for a, b, n in finding.folded_confusions[:N_PREVIEW_EXAMPLES]]
    return [Table(("label", "classified as", "times"), rows, frozenset({2}))] if rows else []


def _accuracy_blocks(finding: OverviewFinding) -> list[Block]:
    blocks: list[Block] = []
    if finding.examples < finding.examples_in_data:
        spread = ", evenly spread over the data" if finding.examples_requested < finding.examples_in_data else ""
        blocks.append(Caution(f"Measured on {finding.examples:,} of {finding.examples_in_data:,} examples{spread}."))
    if finding.skipped:
        blocks += [
            Caution(f"{finding.skipped}."),
            Collapsible("Which files, and why", [Table(("file", "reason"), finding.skipped_files)]),
        ]
    if scores := _score_blocks(finding):
        return [*blocks, *scores]
    if finding.mistakes is None:
        reason = finding.no_accuracy_reason or "Not every example has a label"
        return [*blocks, Caution(f"No accuracy and no confusion matrix: {reason[0].lower()}{reason[1:]}.")]
    if not finding.mistakes:
        return [
            *blocks,
            Paragraph("Every prediction is correct, so the confusion matrix is a diagonal and is left out."),
        ]
    return [*blocks, SideBySide([_confusion_matrix(finding)], _confused_pair_blocks(finding))]


def _score_blocks(finding: OverviewFinding) -> list[Block]:
    """The scores of outputs that are no classes of examples."""
    if finding.output_errors:
        return output_errors_blocks(finding.output_errors, finding.error_groups, finding.largest_errors)
    if finding.label_scores:
        return label_scores_blocks(finding.label_scores)
    if finding.position_scores:
        heading, *tables = position_scores_blocks(finding.position_scores)
        return [heading, SideBySide([_confusion_matrix(finding)], tables)]
    return []


def _confusion_matrix(finding: OverviewFinding) -> ConfusionMatrix:
    """Counts of examples; of label maps, whose positions are many, their shares."""
    off_diagonal = finding.matrix.clone().fill_diagonal_(0)
    tint, cells = off_diagonal / max(1, int(off_diagonal.max())), finding.matrix.double()
    if finding.position_scores:
        caption = "Each row is a label: the share of its positions that gets each prediction; the diagonal is correct."
        cells = cells / cells.sum(1, keepdim=True).clamp(min=1)
        tint = cells.clone().fill_diagonal_(0)
    else:
        caption = "Each row is a label, each column a prediction; the diagonal is correct."
    if finding.n_omitted_classes:
        caption += (f" The {len(finding.matrix_classes)} classes with the most errors; "
                    f"{finding.n_omitted_classes} more are left out.")  # fmt: skip
    form = _share_text if finding.position_scores else "{:.0f}".format
    texts = [[form(cell) if cell else "" for cell in row] for row in cells.tolist()]
    return ConfusionMatrix(finding.matrix_classes, texts, tint.sqrt().tolist(), caption)


def _share_text(share: float) -> str:
    return "<1%" if share < 0.005 else f"{share:.0%}"


def _confused_pair_blocks(finding: OverviewFinding) -> list[Block]:
    """The errors pair by pair, the most common first."""
    columns, numbers = ("label", "classified as", "times"), frozenset({2})
    rows = [(a, b, str(n)) for a, b, n in finding.folded_confusions]
    blocks: list[Block] = [Table(columns, rows[:MAX_LISTED_CONFUSED_PAIRS], numbers)]
    if rest := rows[MAX_LISTED_CONFUSED_PAIRS:]:
        blocks.append(Collapsible(f"{count_noun(len(rest), 'more pair')}", [Table(columns, rest, numbers)]))
    return blocks


def _error_and_margin_example_blocks(finding: OverviewFinding) -> list[Block]:
    blocks: list[Block] = []
    if finding.worst_maps:
        return [Heading("Least overlap with the labels"), *label_map_blocks(finding.worst_maps, finding.classes)]
    if not finding.ambiguous:
        return blocks
    if finding.misclassified:
        shown = examples_block(finding.misclassified[:MAX_OVERVIEW_EXAMPLES_PER_ROW])
        blocks += [Heading("Misclassified, most confident first"), shown]
        if rest := finding.misclassified[MAX_OVERVIEW_EXAMPLES_PER_ROW:]:
            blocks.append(Collapsible(f"{count_noun(len(rest), 'more error')}", [examples_block(rest)]))
    ambiguous = examples_block(finding.ambiguous, show_runner_up=True)
    if not finding.exclusive_classes:
        is_by_error = finding.output_errors or finding.label_scores
        return [*blocks, Heading("Largest errors" if is_by_error else "Examples"), ambiguous]
    lead = "The examples whose two largest outputs differ least."
    if finding.binary:
        lead = "The examples whose probability is closest to one half."
    return [*blocks, Heading("Lowest margin"), Paragraph(lead, "soft"), ambiguous]


SECTION = Section("How good is it?", "overview", find, show, chapter=chapters.MISTAKES, best=best, texts=True)
