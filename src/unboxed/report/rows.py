"""Rows of a table: what each column contributes to a prediction, and which columns would have to change for another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..attribution import integrated_gradients
from ..checks.methods import compute_attribution
from ..checks.ranking import attribution_cards
from ..checks.verdict import PASS, Verdict
from ..engine.attribution_result import Attribution
from ..engine.column_units import ColumnChange, column_changes
from ..inputs.features import Features
from ..inputs.labels import are_default_class_names
from ..plots.tables import MAX_DRAWN_TABLE_COLUMNS, contribution_swarm
from ..synthesis import morph
from .blocks import (
    Block,
    Collapsible,
    Figure,
    FigureGrid,
    Heading,
    MethodInterpretation,
    Paragraph,
    PerExample,
    SignedBars,
    Table,
)
from .checks import verdicts_and_unaffordable_methods
from .context import ReportContext
from .explained import explained_classes
from .finding import METADATA_OF_FIELD_NOT_IN_JSON, Example, Finding
from .pictures import PageImage
from .survey import evenly_spaced_indices
from .verdict_notes import TONE_BY_GRADE
from .words import breakable, count_noun, format_prob

MAX_SHOWN_TABLE_ROWS, MAX_SUMMARY_ROWS = 4, 200  # rows shown one by one, and in the summary
MAX_MORPH_ITERATIONS, MORPH_CONFIDENCE = 200, 0.9  # probability of the target at which one is done
N_PREVIEW_BARS, N_FOLLOWED_BARS = 8, 3  # columns of a prediction, in the chapter and at the top
N_PREVIEW_COLUMNS = 5  # of what would change a row, before the section is opened
ROW_ATTRIBUTION_METHOD = integrated_gradients  # where its checks pass: its bars add up to the score


def is_table(context: ReportContext) -> bool:
    return isinstance(context.box.inputs, Features)


def show_by_type(
    show: Callable[[Any], list[Block]], other: type[Finding], show_other: Callable[[Any], list[Block]]
) -> Callable[[Finding], list[Block]]:
    """What shows the findings of a section, and those of another type, as of rows of a table."""
    return lambda finding: show_other(finding) if isinstance(finding, other) else show(finding)


# -- why this prediction? ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class RowAttributionFinding(Finding):
    """Contributions of the columns to the predictions of some rows, and of many."""

    columns: tuple[str, ...]
    n_followed: int  # of the examples, the first
    method: str
    verdict: Verdict
    examples: list[Example]
    contributions: Tensor  # (n, F) of these examples
    many: Tensor = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # (M, F) of rows from all over the data
    many_rows: Tensor = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # (M, F)
    targets: list[str]
    scores: list[str]  # as `targets`: what the columns contribute to
    slope: str = ""  # what the values are where they are slopes of the score, not contributions to it

    def label(self, i: int) -> str:
        """What the contributions to the i-th score are."""
        name = attribution_cards()[self.method].name
        if self.slope:
            return f"{name}, {self.slope.replace('the score', f'the {self.scores[i]}')}"
        start = ", from the mean row" * (self.method == ROW_ATTRIBUTION_METHOD.__name__)
        return f"{name}: contribution to the {self.scores[i]}{start}"

    def followed_blocks(self, place: int) -> Sequence[Block]:
        return [_contribution_bars(self, place, N_FOLLOWED_BARS)] if place < self.n_followed else []


def find_column_contributions(context: ReportContext) -> RowAttributionFinding:
    s, box = context.survey, context.box
    indices = list(dict.fromkeys([*context.followed_indices, *context.example_indices[:MAX_SHOWN_TABLE_ROWS]]))
    many = evenly_spaced_indices(len(s.rows), MAX_SUMMARY_ROWS)
    explained = explained_classes(context)
    k = int(torch.bincount(explained).argmax())  # one score for all rows of the summary
    method = _row_attribution_method(context)
    verdict = context.verdict(method)
    x, many_rows = context.inputs(indices), context.inputs(many)
    targets = [int(explained[i]) for i in indices] + [k]
    contributions = _column_contributions(context, method, x, explained[indices])
    many_contributions = _column_contributions(context, method, many_rows, torch.full((len(many),), k))
    return RowAttributionFinding(
        answer=f"{attribution_cards()[method].name}: {verdict.badge} ({verdict.reason}).",
        method=method,
        columns=tuple(map(str, getattr(box.inputs, "names", ()))),
        n_followed=len(context.followed_indices),
        verdict=verdict,
        examples=context.examples(indices),
        contributions=contributions.per_column_scale().map.cpu(),
        many=many_contributions.per_column_scale().map.cpu(),
        many_rows=many_rows,
        targets=[context.class_name(target) for target in targets],
        scores=[_score_name(context, target) for target in targets],
        slope=contributions.slope.unit if contributions.slope else "",
    )


def _score_name(context: ReportContext, k: int) -> str:
    """What `Box.objective` scores: the logit of a class, or an output that is a number."""
    if not context.is_regression:
        return f"logit of {context.class_name(k)}"
    names = context.survey.classes
    if not are_default_class_names(names):
        return f"output {names[k]}"
    return "output" if len(names) == 1 else f"output {k}"


def _column_contributions(context: ReportContext, method: str, x: Tensor, classes: Tensor) -> Attribution:
    return compute_attribution(context.box, context.candidates[method], context.box.validate_inputs(x), classes)


def _row_attribution_method(context: ReportContext) -> str:
    """Integrated gradients, or where their checks do not pass and another method's do the one that is trusted most."""
    default = ROW_ATTRIBUTION_METHOD.__name__
    if context.verdict(default).grade == PASS:
        return default
    verdicts, _ = verdicts_and_unaffordable_methods(context)
    best = min(verdicts, key=lambda name: verdicts[name].rank)
    return best if verdicts[best].grade == PASS else default


def show_column_contributions(finding: RowAttributionFinding) -> list[Block]:
    bars = [_contribution_bars(finding, i) for i in range(len(finding.examples))]
    summary = contribution_swarm(
        finding.many,
        finding.many_rows,
        finding.columns,
        title=f"{len(finding.many)} rows",
        label=f"{finding.label(-1)}; red: high",
    )
    alt = f"contribution of each column to the {finding.scores[-1]} for {len(finding.many)} rows, a point per row"
    v = finding.verdict
    return [
        MethodInterpretation.of(
            attribution_cards()[finding.method].method, f"{v.badge.capitalize()}. {v.sentence}", TONE_BY_GRADE[v.grade]
        ),
        *bars,
        Heading(f"Over many rows: the {finding.scores[-1]}"),
        FigureGrid([Figure(PageImage.of_chart(summary, alt))]),
    ]


def best_column_contributions(finding: RowAttributionFinding) -> list[Block]:
    """The columns behind the followed example's prediction."""
    return [PerExample([[_contribution_bars(finding, i, N_PREVIEW_BARS)] for i in range(finding.n_followed)])]


def _contribution_bars(finding: RowAttributionFinding, i: int, n: int = MAX_DRAWN_TABLE_COLUMNS) -> SignedBars:
    """The columns that contribute most, each with its value."""
    example, values = finding.examples[i], finding.contributions[i].flatten()
    row, order = example.x.flatten().tolist(), values.abs().argsort(descending=True, stable=True)[:n].tolist()
    bars = [(f"{breakable(finding.columns[k])} = {row[k]:.4g}", float(values[k])) for k in order]
    rest = len(values) - len(bars)
    label = finding.label(i) + (f"; {count_noun(rest, 'smaller one')} not shown." if rest else ".")
    return SignedBars(example.title, example.lines(show_runner_up=True), bars, label, example.tone)


# -- what would change it? ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CounterfactualRow:
    """A row changed until the model predicts another class."""

    title: str
    example: int  # its index in the data
    before: str
    target: str
    changed: bool  # whether the model predicts the target then
    reached: bool  # the confidence that was wanted
    p_before: float  # of the target
    p_after: float
    changes: list[ColumnChange]


@dataclass(frozen=True, eq=False, kw_only=True)
class CounterfactualFinding(Finding):
    """The columns that would have to differ."""

    rows: list[CounterfactualRow]
    n_followed: int = 1  # of the rows, the first


def is_predicted(context: ReportContext, probs: Tensor, k: int) -> bool:
    """Whether these probabilities (K,) are of class k: the largest, or of labels of their own more than a half."""
    return bool(probs[k] > 0.5) if not context.survey.exclusive_classes else int(probs.argmax()) == k


def find_counterfactuals(context: ReportContext, plans: Sequence[tuple[int, int, str]]) -> CounterfactualFinding:
    """Of rows by their index in the survey, the class to become and a title."""
    x, targets = context.inputs([i for i, _, _ in plans]), torch.tensor([k for _, k, _ in plans])
    steps = MAX_MORPH_ITERATIONS
    result = morph(
        context.box, x, targets, score="log-odds", steps=steps, frame_every=steps, confidence=MORPH_CONFIDENCE
    )
    rows = [
        CounterfactualRow(
            title,
            context.survey.rows[i],
            context.predicted_class_text(i),
            context.class_name(k),
            is_predicted(context, result.probs[-1, n], k),
            bool(result.confidence_reached[n]),
            float(result.probs[0, n, k]),
            float(result.probs[-1, n, k]),
            column_changes(context.box.inputs, result.input[n], result.images[n]),
        )
        for n, (i, k, title) in enumerate(plans)
    ]
    n_changed = sum(row.changed for row in rows)
    largest = max((abs(c.change) for row in rows for c in row.changes), default=0.0)
    answer = (f"{n_changed} of {count_noun(len(rows), 'row')} changed to another class by steps toward p "
              f"{MORPH_CONFIDENCE}, which moved a {context.input_nouns.value} by up to {largest:.2g} "
              f"{context.input_nouns.unit}; less may do.")  # fmt: skip
    n_followed = min(len(rows), len(context.followed_indices))
    return CounterfactualFinding(answer=answer, rows=rows, n_followed=n_followed, interrupted=result.interrupted)


def show_counterfactuals(finding: CounterfactualFinding) -> list[Block]:
    return [MethodInterpretation.of(morph), *(block for row in finding.rows for block in _counterfactual_blocks(row))]


def best_counterfactuals(finding: CounterfactualFinding) -> list[Block]:
    """What would change the followed row's prediction: its largest changes."""
    previews = [_counterfactual_blocks(row, N_PREVIEW_COLUMNS)[1:3] for row in finding.rows[: finding.n_followed]]
    return [PerExample(previews)]


def _counterfactual_blocks(row: CounterfactualRow, n_columns: int = MAX_DRAWN_TABLE_COLUMNS) -> list[Block]:
    reached = "" if row.changed else " (not reached)"
    n_more = len(row.changes) - n_columns
    more = f" (and {count_noun(n_more, 'other')}, by less)" if n_more > 0 else ""
    lead = (
        f"Example {row.example}, predicted {row.before}: with these columns{more} changed, the probability of "
        f"{row.target} goes from {format_prob(row.p_before)} to {format_prob(row.p_after)}{reached}. Columns stay "
        "within the bounds that the inputs state, where they do, and categories as they are."
    )
    cells = [[c.name, f"{c.before:.4g}", f"{c.after:.4g}", _signed_number_text(c.change)] for c in row.changes]
    unit = row.changes[0].unit.strip("()") if row.changes else ""
    columns, numbers = ("column", "from", "to", f"change: {unit}"), frozenset({1, 2, 3})
    blocks: list[Block] = [
        Heading(row.title),
        Paragraph(lead),
        Table(columns, cells[:n_columns], numbers),
    ]
    if rest := cells[n_columns:]:
        blocks.append(Collapsible(f"{count_noun(len(rest), 'smaller change')}", [Table(columns, rest, numbers)]))
    return blocks


def _signed_number_text(value: float) -> str:
    return f"{value:+.3g}".replace("-", "\u2212")
