"""What the page says of a regression: how far off it is, beside a baseline, and where it is too high or too low."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..plots.charts import scatter_chart
from .blocks import Block, Collapsible, Figure, FigureGrid, Heading, Paragraph, SideBySide, Table, collapsible_table
from .pictures import PageImage
from .regression import ErrorGroup, ErrorRange, RegressionOutputErrors, biased_ranges
from .words import format_number, format_score, format_signed, mean_without_nan

MAX_SCATTER_CHARTS = 4  # outputs whose predictions are drawn against the truth
MAX_SCATTER_POINTS = 2000
N_PREVIEW_LARGEST_ERRORS = 5  # before the section is opened
UNIT_PATTERN = re.compile(r"(.*\S)\s*[\[(]([^\[\]()]+)[\])]")
PULL_TO_MEAN_NOTE = (
    "Mean error is predicted minus true; all intervals hold together. Where the inputs do not determine the value, "
    "even the best predictions are nearer to the mean than the true values; ranges of the prediction are free of that."
)


@dataclass(frozen=True)
class LargestError:
    """An example that is far off."""

    example: str
    true: str
    predicted: str
    error: float | None  # predicted minus true; None of several outputs


def split_unit(name: str) -> tuple[str, str]:
    """The name of a quantity, and the unit that it ends in.

    >>> split_unit("price (USD)"), split_unit("height [cm]"), split_unit("age")
    (('price', 'USD'), ('height', 'cm'), ('age', ''))
    """
    found = UNIT_PATTERN.fullmatch(name)
    return (found[1], found[2]) if found else (name, "")


def _with_unit(text: str, e: RegressionOutputErrors) -> str:
    return f"{text} {unit}" if (unit := split_unit(e.name)[1]) else text


# -- sentences ---------------------------------------------------------------------------------------------------------


def output_errors_headline(errors: Sequence[RegressionOutputErrors]) -> tuple[str, str]:
    """The page's title and the sentences below it."""
    if len(errors) == 1:
        e = errors[0]
        title = f"Mean absolute error {_with_unit(format_number(e.mae), e)}"
        return title, " ".join(filter(None, (baseline_sentence(e), bias_sentence(e))))
    r2 = mean_without_nan([e.r2 for e in errors])
    worst = worst_predicted_output(errors)
    sentence = f"Of {len(errors)} outputs, {worst.name} is predicted worst (R² {format_score(worst.r2)})."
    return f"Mean R² {format_score(r2)}", " ".join(filter(None, (sentence, bias_sentence(worst))))


def worst_predicted_output(errors: Sequence[RegressionOutputErrors]) -> RegressionOutputErrors:
    """The output of least R2; one that is constant in the data has none."""
    return min(errors, key=lambda e: math.inf if math.isnan(e.r2) else e.r2)


def baseline_sentence(e: RegressionOutputErrors) -> str:
    """How far off the best constant is."""
    median, off = (_with_unit(format_number(value), e) for value in (e.median, e.median_mae))
    if e.mae < e.median_mae:
        return f"Always predicting the median, {median}, would be off by {off}; R² {format_score(e.r2)}."
    return f"It is no better than always predicting the median, {median}, which is off by {off}."


def bias_sentence(e: RegressionOutputErrors) -> str:
    """In which ranges of the true value predictions are too high or too low on average; "" where in none."""
    runs = sorted(biased_ranges(e.by_true_value), key=lambda run: -abs(_mean_error(run)))[:2]
    if not runs:
        return ""
    texts = [_biased_range_text(run, e) for run in sorted(runs, key=lambda run: run[0].low)]
    return f"It predicts {split_unit(e.name)[0]} {' and '.join(texts)}."


def _biased_range_text(run: Sequence[ErrorRange], e: RegressionOutputErrors) -> str:
    ranges = e.by_true_value
    is_first, final = run[0] is ranges[0], ranges.index(run[-1])
    direction, error = "too high" if run[0].sign > 0 else "too low", format_signed(_mean_error(run))
    low = "" if is_first else _with_unit(format_number(run[0].low), e)
    high = "" if final + 1 == len(ranges) else _with_unit(format_number(ranges[final + 1].low), e)
    where = f"from {low} to {high}" if low and high else f"above {low}" if low else f"below {high}" if high else ""
    return f"{direction} {where or 'everywhere'} (mean error {_with_unit(error, e)})"


def _mean_error(run: Sequence[ErrorRange]) -> float:
    return sum(r.mean_error * r.n_examples for r in run) / sum(r.n_examples for r in run)


def error_group_sentence(groups: Sequence[ErrorGroup], errors: Sequence[RegressionOutputErrors]) -> str:
    """The rows with the largest errors; "" where no group of them holds on other examples."""
    if not groups:
        return ""
    g = groups[0]
    inside, outside = (_absolute_error_text(v, errors) for v in (g.mean_absolute_error, g.others_absolute_error))
    return f"It is further off where {condition_text(g)}: by {inside} on average, elsewhere by {outside}."


def _absolute_error_text(value: float, errors: Sequence[RegressionOutputErrors]) -> str:
    number = format_number(value)
    return _with_unit(number, errors[0]) if len(errors) == 1 else f"{number} standard deviations"


def condition_text(g: ErrorGroup) -> str:
    """The rows of a group, as a condition on its column."""
    low, high = (f"{end:.4g}" for end in (g.low, g.high))
    if g.low == g.high:
        return f"{g.column} = {low}"
    if math.isinf(g.low):
        return f"{g.column} ≤ {high}"
    return f"{g.column} ≥ {low}" if math.isinf(g.high) else f"{low} ≤ {g.column} ≤ {high}"


# -- blocks ------------------------------------------------------------------------------------------------------------


def output_errors_blocks(
    errors: Sequence[RegressionOutputErrors], groups: Sequence[ErrorGroup], largest: Sequence[LargestError]
) -> list[Block]:
    """The errors beside a baseline, by range and by group, and predictions against the truth."""
    rows = [[e.name, *map(format_number, (e.mae, e.median_mae, e.rmse)), format_score(e.r2)] for e in errors]
    columns = ("output", "mean absolute error", "predicting the median", "root mean squared error", "R²")
    lead = "R² is 1 for exact predictions, and 0 for those no better than always predicting the mean."
    charted = errors[:MAX_SCATTER_CHARTS]
    return [
        Heading("How far off it is"),
        *collapsible_table(columns, rows),
        Paragraph(lead, "soft"),
        *(SideBySide([FigureGrid([_prediction_scatter_figure(e)])], _bias_blocks(e)) for e in charted),
        *_error_group_blocks(groups, errors),
        Heading("Largest errors"),
        _largest_error_table(largest),
    ]


def preview_blocks(errors: Sequence[RegressionOutputErrors], largest: Sequence[LargestError]) -> list[Block]:
    """Predictions against the truth beside the bias and the largest errors; of several outputs, of the worst."""
    e = worst_predicted_output(errors)
    tables: list[Block] = [_range_table("true value", e.by_true_value)] if e.by_true_value else []
    tables.append(_largest_error_table(largest[:N_PREVIEW_LARGEST_ERRORS]))
    return [SideBySide([FigureGrid([_prediction_scatter_figure(e)])], tables)]


def _bias_blocks(e: RegressionOutputErrors) -> list[Block]:
    if not e.by_true_value:
        return []
    blocks: list[Block] = [
        _range_table("true value", e.by_true_value),
        Paragraph(PULL_TO_MEAN_NOTE, "soft"),
    ]
    if e.by_prediction:
        blocks.append(Collapsible("By range of the prediction", [_range_table("predicted", e.by_prediction)]))
    return blocks


def _range_table(what: str, ranges: Sequence[ErrorRange]) -> Table:
    rows = [
        (
            f"{format_number(r.low)} to {format_number(r.high)}",
            f"{r.n_examples:,}",
            format_signed(r.mean_error),
            f"{format_signed(r.interval[0])} to {format_signed(r.interval[1])}",
        )
        for r in ranges
    ]
    return Table((what, "examples", "mean error", "95% interval"), rows, frozenset({1, 2, 3}))


def _error_group_blocks(groups: Sequence[ErrorGroup], errors: Sequence[RegressionOutputErrors]) -> list[Block]:
    if not groups:
        return []
    rows = [
        (
            condition_text(g),
            f"{g.n_examples:,}",
            _absolute_error_text(g.mean_absolute_error, errors),
            _absolute_error_text(g.others_absolute_error, errors),
            f"{format_signed(g.interval[0])} to {format_signed(g.interval[1])}",
            "" if math.isnan(g.mean_error) else format_signed(g.mean_error),
        )
        for g in groups
    ]
    columns = ("rows", "examples", "mean absolute error", "others", "95% interval of the difference", "mean error")
    lead = "Ranges of a column, found on one half of the examples and tested on the other; all intervals hold together."
    return [Heading("Where it is further off"), Table(columns, rows, frozenset(range(1, 6))), Paragraph(lead, "soft")]


def _largest_error_table(largest: Sequence[LargestError]) -> Table:
    columns = ("furthest off", "true value", "predicted", "error")
    has_error = all(row.error is not None for row in largest)
    rows = [(r.example, r.true, r.predicted, format_signed(r.error or 0.0))[: 3 + has_error] for r in largest]
    return Table(columns[: 3 + has_error], rows, frozenset({1, 2, 3}) if has_error else frozenset())


def _prediction_scatter_figure(e: RegressionOutputErrors) -> Figure:
    step = -(-len(e.true) // MAX_SCATTER_POINTS)
    chart = scatter_chart(e.true[::step], e.predicted[::step], x_label="true value", y_label="predicted", title=e.name)
    alt = f"predicted against true values of {e.name}, {len(e.true[::step])} examples; R² {format_score(e.r2)}"
    return Figure(PageImage.of_chart(chart, alt))
