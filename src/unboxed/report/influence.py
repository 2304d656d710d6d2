"""Who taught it that? The training examples that made some answers likelier, and those that made them less likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import influence
from ..engine.read.examples import indexed_labeled_examples
from ..engine.unroll.model_training import ModelTraining
from ..influence import Influence
from ..plots import colors
from ..plots.results.common import images_or_none
from ..plots.results.influence import format_score
from .blocks import Block, ExampleWithFigures, Figure, MethodNote, Text
from .context import TRAINING_DATA, ReportContext, Section
from .finding import NOT_IN_JSON, Example, Finding
from .pictures import Picture
from .words import count_noun

MAX_QUERIES = 3
MAX_TRAIN_EXAMPLES = 3000  # training examples that are scored, evenly spread
N_SHOWN = 3  # helpful and harmful training examples of each query
TILE_SIDE_PIXELS = 84


@dataclass(frozen=True)
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


@dataclass(frozen=True, eq=False, kw_only=True)
class InfluenceFinding(Finding):
    """The most helpful and harmful training examples of some answers."""

    method: str
    unit: str
    truth: str
    n_train: int
    noise_to_signal: float | None  # of the training, where it was run again
    answers: tuple[InfluencedAnswer, ...]

    @property
    def is_measured(self) -> bool:
        """Whether scores are figures of this very training; else their order alone is shown."""
        return self.noise_to_signal is not None


# -- find --------------------------------------------------------------------------------------------------------------


def find(context: ReportContext) -> InfluenceFinding:
    rows = context.example_indices[:MAX_QUERIES]
    x, train_x, index = context.inputs(rows), *_training_examples(context)
    result = _scores(context, x, index)
    answers = tuple(_answer(context, result, i, row, train_x, index) for i, row in enumerate(rows))
    smoothness = result.smoothness
    return InfluenceFinding(
        answer=_answer_sentence(answers, result),
        method=result.method,
        unit=result.unit,
        truth=result.truth,
        n_train=result.n_train,
        noise_to_signal=None if smoothness is None else float(smoothness.noise_to_signal.median()),
        answers=answers,
    )


def _training_examples(context: ReportContext) -> tuple[Tensor, Tensor]:
    """The inputs of the training examples that are scored, and their indices in the training data."""
    training = context.training
    if isinstance(training, ModelTraining):
        return training.x, torch.arange(training.n_examples)
    examples = indexed_labeled_examples(context.box, training)
    step = max(1, -(-len(examples.x) // MAX_TRAIN_EXAMPLES))
    return examples.x[::step], examples.dataset_rows[::step]


def _scores(context: ReportContext, x: Tensor, index: Tensor) -> Influence:
    """By unrolled differentiation where the training can be run again, else by influence functions."""
    training, box = context.training, context.box
    if isinstance(training, ModelTraining):
        return influence.unrolled(box, x, None, training, seed=context.seed)
    examples = indexed_labeled_examples(box, training)
    chosen = torch.isin(examples.dataset_rows, index)
    train = examples.x[chosen], examples.y[chosen]
    return influence.influence_functions(box, x, None, train, solver="ekfac", seed=context.seed)


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
    images = images_or_none(train_x[j : j + 1])
    return ScoredExample(
        int(index[j]), label, float(result.scores[query, j]), None if images is None else images[0].cpu()
    )


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
    return [*blocks, *(_answer_block(answer, finding.is_measured) for answer in finding.answers)]


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
