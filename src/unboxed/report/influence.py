"""Which training examples made these predictions: those that made them likelier, and those that made them less so?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import influence
from ..checks.verdict import Verdict
from ..engine.read.examples import LabeledExamples, indexed_labeled_examples
from ..engine.unroll.model_training import ModelTraining
from ..influence import Influence
from ..influence.influence_functions import without_large_score_warning
from ..plots.results.influence import format_signed_score
from . import chapters
from .blocks import (
    Block,
    ExampleWithFigures,
    Figure,
    FigureGrid,
    Heading,
    MethodInterpretation,
    Paragraph,
    PerExample,
    Table,
)
from .context import TRAINING_DATA_NEED, ReportContext, Section
from .finding import METADATA_OF_FIELD_NOT_IN_JSON, Example, Finding
from .influence_checks import (
    TILE_SIDE_PIXELS,
    can_afford_retrainings,
    default_solver,
    influence_verdict_or_none,
    lds_scatter_blocks,
    loss_slopes_in_pixels_or_none,
    pixel_slope_figure,
    scoring_method_and_train_input,
)
from .influence_rows import columns_that_stand_out, rows_table
from .mislabels import SuspectedLabel, find_suspected_labels, mislabel_blocks
from .scored_examples import ScoredExample, make_scored_example, scored_example_figure, scored_example_figures
from .verdict_notes import check_note_from_verdict
from .words import count_noun

MAX_INFLUENCE_QUERIES = 3
PREVIEW_SIDE_PIXELS = 112  # of the figures that are seen before the section is opened
MAX_TRAIN_EXAMPLES = 3000  # training examples that are scored, evenly spread
N_HELPFUL_AND_HARMFUL_EXAMPLES_EACH = 3  # helpful and harmful training examples of each query
MIN_REMOVAL_LOGIT_MARGIN = 0.5  # in logits: what lies below hangs on one example
FLIPPED_TEXT_AND_TONE = ("Proved by a retraining.", "good")
NOT_FLIPPED_TEXT_AND_TONE = ("Retrained without the best set that was found: the answer stays.", "fair")
INFLUENCES_TEXT = (
    "An example, the training examples that made its prediction likelier, and those that made it less likely."
)
COLUMNS_TEXT = "The columns are those in which it is farthest from the training rows."
N_SHOWN_REMOVED_TRAIN_EXAMPLES = 6  # training examples of a removed set


@dataclass(frozen=True, eq=False)
class AnswerWithInfluences:
    """An answer of the model with the training examples behind it."""

    query: Example
    helpful: tuple[ScoredExample, ...]
    harmful: tuple[ScoredExample, ...]
    share_of_own_class: float  # of the helpful score, that of training examples labeled with the predicted class
    pixels: Tensor | None = field(
        metadata=METADATA_OF_FIELD_NOT_IN_JSON
    )  # (C, H, W) the loss's slope in the best example's pixels
    columns: tuple[tuple[int, str], ...] = ()  # of a table those that are shown, with their indices


@dataclass(frozen=True)
class RemovalProof:
    """An answer that changes when a set of training examples is left out, proved by retraining."""

    query: Example
    n_removed: int
    n_train: int
    margin: float
    margin_after: float
    margin_without_random: float
    new_answer: str
    is_flipped: bool
    removed: tuple[ScoredExample, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class InfluenceFinding(Finding):
    """The most helpful and harmful training examples of some answers."""

    method: str
    unit: str
    truth: str
    n_train: int
    noise_to_signal: float | None  # of the training, where it was run again
    verdict: Verdict | None  # on the scores; None: retraining would cost too much
    answers: tuple[AnswerWithInfluences, ...]
    suspected_mislabels: tuple[SuspectedLabel, ...]
    removal: RemovalProof | None  # where the training can be run again at a low cost

    def cover(self, place: int) -> Sequence[Figure]:
        helpful = [e for answer in self.answers[place : place + 1] if not answer.columns for e in answer.helpful[:1]]
        return [scored_example_figure(e, "taught by", "", PREVIEW_SIDE_PIXELS) for e in helpful]

    @property
    def is_measured(self) -> bool:
        """Whether scores are figures of this very training; else their order alone is shown."""
        return self.noise_to_signal is not None


# -- find --------------------------------------------------------------------------------------------------------------


def find(context: ReportContext) -> InfluenceFinding:
    rows = context.followed_indices[:MAX_INFLUENCE_QUERIES]
    train = _read_training_examples(context)
    solver = default_solver(context.box)
    method, taken = scoring_method_and_train_input(context, train, solver)
    with without_large_score_warning():
        result = method(context.box, context.inputs(rows), None, taken)
    slopes = loss_slopes_in_pixels_or_none(context, rows, train, result.top(1)[:, 0].tolist(), solver)
    answers = tuple(_make_influenced_answer(context, result, i, row, train, slopes) for i, row in enumerate(rows))
    smoothness = result.smoothness
    return InfluenceFinding(
        answer=_most_helpful_example_sentence(answers, result),
        method=result.method,
        unit=result.unit,
        truth=result.truth,
        n_train=result.n_train,
        noise_to_signal=None if smoothness is None else float(smoothness.noise_to_signal.median()),
        verdict=influence_verdict_or_none(context, method, taken),
        answers=answers,
        suspected_mislabels=find_suspected_labels(context, train),
        removal=_find_removal_proof(context, rows),
    )


def _find_removal_proof(context: ReportContext, rows: Sequence[int]) -> RemovalProof | None:
    """A right answer that no single example flips, and the set without which a retraining answers differently."""
    training = context.training
    if not isinstance(training, ModelTraining) or not can_afford_retrainings(context):
        return None
    s = context.survey
    right = [r for r in s.indices_by_margin if s.is_correct is None or s.is_correct[r]] or list(rows)
    row = next((r for r in right if s.margin[r] >= MIN_REMOVAL_LOGIT_MARGIN), right[-1])
    found = influence.removal(context.box, context.inputs([row]), None, training, seed=context.seed)
    (example,), removed = context.examples([row]), found.sets[0]
    index = torch.arange(training.n_examples)
    shown = (
        make_scored_example(context, found.influence, 0, j, training.x, index)
        for j in removed[:N_SHOWN_REMOVED_TRAIN_EXAMPLES].tolist()
    )
    margins = float(found.margin), float(found.real_margin), float(found.control_margin.mean())
    new_answer = context.class_name(int(found.new_answer))
    return RemovalProof(
        example, len(removed), training.n_examples, *margins, new_answer, bool(found.flipped), tuple(shown)
    )


def _read_training_examples(context: ReportContext) -> LabeledExamples:
    """Those of the training; of data, some evenly spread ones, read once."""
    training = context.training
    if isinstance(training, ModelTraining):
        return LabeledExamples(training.x, training.y, torch.arange(training.n_examples))
    examples = indexed_labeled_examples(context.box, training)
    step = max(1, -(-len(examples.x) // MAX_TRAIN_EXAMPLES))
    return LabeledExamples(*(values[::step] for values in examples))


def _make_influenced_answer(
    context: ReportContext, result: Influence, query: int, row: int, train: LabeledExamples, slopes: Tensor | None
) -> AnswerWithInfluences:
    scores, k = result.scores[query], min(N_HELPFUL_AND_HARMFUL_EXAMPLES_EACH, result.n_train)
    (example,) = context.examples([row])
    helpful, harmful = (
        tuple(
            make_scored_example(context, result, query, j, train.x, train.dataset_rows)
            for j in order.tolist()
            if sign * scores[j] > 0
        )
        for order, sign in ((result.top(k)[query], 1), (result.bottom(k)[query], -1))
    )
    pixels = slopes[query] if slopes is not None and helpful else None
    columns = columns_that_stand_out(context.box.inputs, example.x, train.x)
    return AnswerWithInfluences(example, helpful, harmful, _same_label_score_share(result, query), pixels, columns)


def _same_label_score_share(result: Influence, query: int) -> float:
    """Of the sum of positive scores, the share of examples that are labeled with the class that is explained."""
    positive = result.scores[query].clamp_min(0)
    if result.train_labels is None or not isinstance(result.target, Tensor) or not float(positive.sum()):
        return float("nan")
    own = result.train_labels == result.target[query]
    return float(positive[own].sum() / positive.sum())


def _most_helpful_example_sentence(answers: Sequence[AnswerWithInfluences], result: Influence) -> str:
    first = answers[0]
    if not first.helpful:
        return "No training example made these answers likelier."
    best, query = first.helpful[0], first.query
    return (
        f"Of {count_noun(result.n_train, 'training example')}, number {best.index} (label {best.label}) did most for "
        f"the prediction {query.prediction} of {query.name}."
    )


# -- show --------------------------------------------------------------------------------------------------------------


def show(finding: InfluenceFinding) -> list[Block]:
    method = influence.unrolled if finding.is_measured else influence.influence_functions
    text = "Beside each answer: the training examples that made it likelier (helpful) and less likely (harmful)" + (
        f", by how much leaving one out raises the loss ({finding.unit})." if finding.is_measured else "."
    )
    if any(answer.pixels is not None for answer in finding.answers):
        text += " The map is of the most helpful one: had it been brighter where it is red, the loss would be higher."
    text += f" {COLUMNS_TEXT}" * any(answer.columns for answer in finding.answers)
    blocks: list[Block] = [Paragraph(text), MethodInterpretation.of(method, *_verdict_text_and_tone(finding))]
    for answer in finding.answers:
        blocks += _influenced_answer_blocks(answer, finding.is_measured)
    blocks += [*lds_scatter_blocks(finding.verdict), *_removal_blocks(finding.removal)]
    return [*blocks, *mislabel_blocks(finding.suspected_mislabels)]


def best(finding: InfluenceFinding) -> list[Block]:
    """The training examples behind the followed example's prediction."""
    if finding.answers[0].columns:
        tables = [_influences_table(answer, finding.is_measured) for answer in finding.answers]
        return [Paragraph(f"{INFLUENCES_TEXT} {COLUMNS_TEXT}", "soft"), PerExample([[table] for table in tables])]
    grids = [_influences_grid(answer) for answer in finding.answers]
    return [PerExample([[grid] for grid in grids])] if all(grid.figures for grid in grids) else []


def _influences_grid(answer: AnswerWithInfluences) -> FigureGrid:
    figures = [answer.query.figure(PREVIEW_SIDE_PIXELS)] if answer.query.x.ndim == 3 else []
    figures += [scored_example_figure(e, "helpful", "good", PREVIEW_SIDE_PIXELS) for e in answer.helpful]
    figures += [scored_example_figure(e, "harmful", "bad", PREVIEW_SIDE_PIXELS) for e in answer.harmful]
    return FigureGrid(figures, INFLUENCES_TEXT)


def _influences_table(answer: AnswerWithInfluences, is_measured: bool) -> Table:
    """The row, and those that act on it, in the columns in which it is unusual."""
    query = answer.query
    rows = [(f"predicted {query.prediction}", query.name, query.label or "", query.x)]
    for word, examples in (("helpful", answer.helpful), ("harmful", answer.harmful)):
        words = [format_signed_score(e.score) if is_measured else word for e in examples]
        rows += [
            (w, f"training {e.index}", e.label, e.x) for w, e in zip(words, examples, strict=True) if e.x is not None
        ]
    return rows_table(answer.columns, rows)


def _removal_blocks(removal: RemovalProof | None) -> list[Block]:
    if removal is None:
        return []
    share, before = f"{removal.n_removed / removal.n_train:.1%}", removal.query.prediction
    after = f"answers {removal.new_answer}" if removal.is_flipped else f"still answers {before}"
    examples = count_noun(removal.n_removed, "example")
    text = (
        f"Retrained without {examples} ({share}), the model {after} in place of {before}: its margin goes from "
        f"{removal.margin:.2f} to {removal.margin_after:.2f}. Retrained without as many random examples: "
        f"{removal.margin_without_random:.2f}."
    )
    if not removal.is_flipped:
        text = (
            f"No set of up to {share} of the training examples was found without which a retraining answers otherwise."
        )
    figures = []
    if removal.query.x.ndim == 3:
        removed = [scored_example_figure(e, "removed", "") for e in removal.removed]
        figures = [removal.query.input_figure(TILE_SIDE_PIXELS), *removed]
    example = ExampleWithFigures(removal.query.title, removal.query.lines(), figures, removal.query.tone)
    note = MethodInterpretation.of(
        influence.removal, *(FLIPPED_TEXT_AND_TONE if removal.is_flipped else NOT_FLIPPED_TEXT_AND_TONE)
    )
    heading = "Remove these, and it flips" if removal.is_flipped else "Does an answer hang on few examples?"
    return [Heading(heading), Paragraph(text), note, example]


def _verdict_text_and_tone(finding: InfluenceFinding) -> tuple[str, str]:
    """The verdict in words, and its tone."""
    verdict, noise = finding.verdict, finding.noise_to_signal
    text, tone = "Not compared with retrainings, which would cost too much.", ""
    if verdict is not None:
        text, tone = check_note_from_verdict(verdict)
    if noise is not None:
        text += f" Noise of the training: {noise:.2g} of what leaving out 1 % of the examples changes."
    return text, tone


def _influenced_answer_blocks(answer: AnswerWithInfluences, is_measured: bool) -> list[Block]:
    share = answer.share_of_own_class
    note = (
        (f"{share:.0%} of the helpful score is of examples labeled {answer.query.prediction}",)
        if share == share
        else ()
    )
    lines = (*answer.query.lines(show_runner_up=True), *note)
    if answer.columns:
        head = ExampleWithFigures(answer.query.title, lines, [], answer.query.tone)
        return [head, _influences_table(answer, is_measured)]
    figures = [answer.query.input_figure(TILE_SIDE_PIXELS)] if answer.query.x.ndim == 3 else []
    figures += scored_example_figures(answer.helpful, "helpful", "good", is_measured)
    if answer.pixels is not None:
        figures.append(pixel_slope_figure(answer.pixels, answer.helpful[0].index))
    figures += scored_example_figures(answer.harmful, "harmful", "bad", is_measured)
    return [ExampleWithFigures(answer.query.title, lines, figures, answer.query.tone)]


SECTION = Section(
    "Which training examples made these predictions?",
    "influence",
    find,
    show,
    needs=(TRAINING_DATA_NEED, "classes", "exclusive classes", "pixels or table"),
    chapter=chapters.TRAINING,
    best=best,
)
