"""Who taught it that? The training examples that made some answers likelier, and those that made them less likely."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import influence
from ..engine.read.examples import LabeledExamples, indexed_labeled_examples
from ..engine.unroll.model_training import ModelTraining
from ..errors import UnboxedWarning
from ..influence import Influence
from ..plots import colors
from ..plots.results.common import images_or_none
from ..plots.results.influence import format_score
from .blocks import Block, ExampleWithFigures, Figure, FigureGrid, Heading, MethodNote, Text
from .context import TRAINING_DATA, ReportContext, Section
from .finding import NOT_IN_JSON, Example, Finding
from .pictures import Picture
from .words import count_noun

MAX_QUERIES = 3
MAX_TRAIN_EXAMPLES = 3000  # training examples that are scored, evenly spread
N_SHOWN = 3  # helpful and harmful training examples of each query
N_SUSPECTS, N_SHOWN_REMOVED = 8, 6  # training examples with suspect labels, and of a removed set
MIN_TRAIN_FOR_SUSPECTS, N_NEIGHBORS = 10, 20  # training examples, and those that vote on a label
MISLABELS_MEASURED = (
    "Of MNIST labels of which a tenth were flipped, 94 to 96 % of the wrong ones are in the first tenth by this order."
)
MAX_TRAINING_FLOPS = 5e10  # of one run of a training that is run some 20 times more for a removal
TILE_SIDE_PIXELS = 84


@dataclass(frozen=True, eq=False)
class ScoredExample:
    """A training example with its score for a query."""

    index: int  # in the training data
    label: str
    score: float  # in the unit of the finding
    x: Tensor | None = field(metadata=NOT_IN_JSON)  # (C, H, W)


@dataclass(frozen=True)
class InfluencedAnswer:
    """An answer of the model with the training examples behind it."""

    query: Example
    helpful: tuple[ScoredExample, ...]
    harmful: tuple[ScoredExample, ...]
    share_of_own_class: float  # of the helpful score, that of training examples labeled with the predicted class


@dataclass(frozen=True, eq=False)
class SuspectedLabel:
    """A training example whose label may be wrong."""

    index: int
    label: str
    suggested: str
    x: Tensor | None = field(metadata=NOT_IN_JSON)


@dataclass(frozen=True)
class ProvedRemoval:
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
    answers: tuple[InfluencedAnswer, ...]
    suspected_mislabels: tuple[SuspectedLabel, ...]
    removal: ProvedRemoval | None  # where the training can be run again at a low cost

    @property
    def is_measured(self) -> bool:
        """Whether scores are figures of this very training; else their order alone is shown."""
        return self.noise_to_signal is not None


# -- find --------------------------------------------------------------------------------------------------------------


def find(context: ReportContext) -> InfluenceFinding:
    rows = context.example_indices[:MAX_QUERIES]
    train = _training_examples(context)
    result = _scores(context, context.inputs(rows), train)
    answers = tuple(_answer(context, result, i, row, train.x, train.dataset_rows) for i, row in enumerate(rows))
    smoothness = result.smoothness
    return InfluenceFinding(
        answer=_answer_sentence(answers, result),
        method=result.method,
        unit=result.unit,
        truth=result.truth,
        n_train=result.n_train,
        noise_to_signal=None if smoothness is None else float(smoothness.noise_to_signal.median()),
        answers=answers,
        suspected_mislabels=_suspected(context, train),
        removal=_removal(context, rows),
    )


def _suspected(context: ReportContext, train: LabeledExamples) -> tuple[SuspectedLabel, ...]:
    """The training examples that are most suspect, of those of which another class is likelier."""
    n = len(train.y)
    if n < MIN_TRAIN_FOR_SUSPECTS:
        return ()
    data = context.box.restore_structure(train.x), train.y
    found = influence.suspected_mislabels(context.box, data, n_neighbors=min(N_NEIGHBORS, n - 1))
    suspects = [j for j in found.top(N_SUSPECTS).tolist() if int(found.suggested[j]) != int(train.y[j])]
    return tuple(_suspect(context, found, j, int(train.dataset_rows[j]), train.x) for j in suspects)


def _suspect(
    context: ReportContext, found: influence.SuspectedMislabels, j: int, index: int, train_x: Tensor
) -> SuspectedLabel:
    label, suggested = (context.class_name(int(k[j])) for k in (found.train_labels, found.suggested))
    return SuspectedLabel(index, label, suggested, _image(train_x[j : j + 1]))


def _removal(context: ReportContext, rows: Sequence[int]) -> ProvedRemoval | None:
    """The right answer with the lowest margin, and the set without which a retraining answers differently."""
    training = context.training
    if not isinstance(training, ModelTraining) or _training_flops(context, training) > MAX_TRAINING_FLOPS:
        return None
    s = context.survey
    row = next((r for r in s.indices_by_margin if s.is_correct is None or s.is_correct[r]), rows[0])
    found = influence.removal(context.box, context.inputs([row]), None, training, seed=context.seed)
    (example,), removed = context.examples([row]), found.sets[0]
    index = torch.arange(training.n_examples)
    shown = (_scored(context, found.influence, 0, j, training.x, index) for j in removed[:N_SHOWN_REMOVED].tolist())
    margins = float(found.margin), float(found.real_margin), float(found.control_margin.mean())
    new_answer = context.class_name(int(found.new_answer))
    return ProvedRemoval(
        example, len(removed), training.n_examples, *margins, new_answer, bool(found.flipped), tuple(shown)
    )


def _training_flops(context: ReportContext, training: ModelTraining) -> float:
    """FLOPs of one run of the training: forward and backward."""
    return 3 * sum(context.forward_flops(len(batch)) for batch in training.batches)


def _training_examples(context: ReportContext) -> LabeledExamples:
    """Those of the training; of data, some evenly spread ones, read once."""
    training = context.training
    if isinstance(training, ModelTraining):
        return LabeledExamples(training.x, training.y, torch.arange(training.n_examples))
    examples = indexed_labeled_examples(context.box, training)
    step = max(1, -(-len(examples.x) // MAX_TRAIN_EXAMPLES))
    return LabeledExamples(*(values[::step] for values in examples))


def _scores(context: ReportContext, x: Tensor, train: LabeledExamples) -> Influence:
    """By unrolled differentiation where the training can be run again, else by influence functions."""
    training, box = context.training, context.box
    if isinstance(training, ModelTraining):
        return influence.unrolled(box, x, None, training, seed=context.seed)
    with warnings.catch_warnings():  # the page shows their order alone
        warnings.filterwarnings("ignore", "scores of up to", UnboxedWarning)
        return influence.influence_functions(box, x, None, (train.x, train.y), solver="ekfac", seed=context.seed)


def _answer(
    context: ReportContext, result: Influence, query: int, row: int, train_x: Tensor, index: Tensor
) -> InfluencedAnswer:
    scores, k = result.scores[query], min(N_SHOWN, result.n_train)
    (example,) = context.examples([row])
    helpful, harmful = (
        tuple(_scored(context, result, query, j, train_x, index) for j in order.tolist() if sign * scores[j] > 0)
        for order, sign in ((result.top(k)[query], 1), (result.bottom(k)[query], -1))
    )
    return InfluencedAnswer(example, helpful, harmful, _own_class_share(result, query))


def _scored(
    context: ReportContext, result: Influence, query: int, j: int, train_x: Tensor, index: Tensor
) -> ScoredExample:
    labels = result.train_labels
    label = "" if labels is None else context.class_name(int(labels[j]))
    return ScoredExample(int(index[j]), label, float(result.scores[query, j]), _image(train_x[j : j + 1]))


def _image(x: Tensor) -> Tensor | None:
    """The one input x (1, ...) as an image (C, H, W)."""
    images = images_or_none(x)
    return None if images is None else images[0].cpu()


def _own_class_share(result: Influence, query: int) -> float:
    """Of the sum of positive scores, the share of examples that are labeled with the class that is explained."""
    positive = result.scores[query].clamp_min(0)
    if result.train_labels is None or not isinstance(result.target, Tensor) or not float(positive.sum()):
        return float("nan")
    own = result.train_labels == result.target[query]
    return float(positive[own].sum() / positive.sum())


def _answer_sentence(answers: Sequence[InfluencedAnswer], result: Influence) -> str:
    first = answers[0]
    if not first.helpful:
        return "No training example made these answers likelier."
    best, query = first.helpful[0], first.query
    return (
        f"Of {count_noun(result.n_train, 'training example')}, number {best.index} (label {best.label}) did most for "
        f"the prediction {query.prediction} of example {query.row}."
    )


# -- show --------------------------------------------------------------------------------------------------------------


def show(finding: InfluenceFinding) -> list[Block]:
    method = influence.unrolled if finding.is_measured else influence.influence_functions
    text = "Beside each answer: the training examples that made it likelier (helpful) and less likely (harmful)" + (
        f", by how much leaving one out raises the loss ({finding.unit})." if finding.is_measured else "."
    )
    blocks: list[Block] = [Text(text), MethodNote.of(method, *_trust_note(finding))]
    blocks += [_answer_block(answer, finding.is_measured) for answer in finding.answers]
    return [*blocks, *_removal_blocks(finding.removal), *_mislabel_blocks(finding.suspected_mislabels)]


def _removal_blocks(removal: ProvedRemoval | None) -> list[Block]:
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
    figures = [removal.query.input_figure(TILE_SIDE_PIXELS)] if removal.query.x.ndim == 3 else []
    figures += [_figure(e, "removed", "") for e in removal.removed]
    example = ExampleWithFigures(removal.query.title, removal.query.lines(), figures, removal.query.tone)
    note = MethodNote.of(influence.removal, *(("Proved by a retraining.", "good") if removal.is_flipped else ()))
    return [Heading("Remove these, and it flips"), Text(text), note, example]


def _mislabel_blocks(suspects: Sequence[SuspectedLabel]) -> list[Block]:
    if not suspects:
        return []
    figures = [_suspect_figure(s) for s in suspects]
    note = MethodNote.of(influence.suspected_mislabels, MISLABELS_MEASURED)
    return [Heading("Labels of the training data that may be wrong"), note, FigureGrid(figures)]


def _suspect_figure(s: SuspectedLabel) -> Figure:
    x = s.x if s.x is not None else torch.zeros(1, 1, 1)
    alt = f"training example {s.index}, label {s.label}, rather {s.suggested}"
    lines = (f"rather {s.suggested}?", f"example {s.index}")
    return Figure(Picture(colors.image_to_rgb(x), alt, TILE_SIDE_PIXELS), f"label {s.label}", lines)


def _trust_note(finding: InfluenceFinding) -> tuple[str, ...]:
    if finding.noise_to_signal is None:
        return ("An estimate near the final weights, not a retraining: a ranking more than a figure.",)
    return (f"Noise of the training: {finding.noise_to_signal:.2g} of what leaving out 1 % of the examples changes.",)


def _answer_block(answer: InfluencedAnswer, is_measured: bool) -> Block:
    share = answer.share_of_own_class
    note = (
        (f"{share:.0%} of the helpful score is of examples labeled {answer.query.prediction}",)
        if share == share
        else ()
    )
    figures = [answer.query.input_figure(TILE_SIDE_PIXELS)] if answer.query.x.ndim == 3 else []
    for examples, word, tone in ((answer.helpful, "helpful", "good"), (answer.harmful, "harmful", "bad")):
        heads = [format_score(e.score) if is_measured else f"{word} {i}" for i, e in enumerate(examples, start=1)]
        figures += [_figure(e, head, tone) for e, head in zip(examples, heads, strict=True)]
    lines = (*answer.query.lines(show_runner_up=True), *note)
    return ExampleWithFigures(answer.query.title, lines, figures, answer.query.tone)


def _figure(example: ScoredExample, head: str, tone: str) -> Figure:
    lines = tuple(filter(None, (f"label {example.label}" if example.label else "", f"example {example.index}")))
    alt = f"training example {example.index}, label {example.label}, score {example.score:+.2g}"
    x = example.x if example.x is not None else torch.zeros(1, 1, 1)
    return Figure(Picture(colors.image_to_rgb(x), alt, TILE_SIDE_PIXELS), head, lines, tone)


SECTION = Section(
    "Who taught it that?", "influence", find, show, needs=(TRAINING_DATA, "classes", "exclusive classes", "pixels")
)
