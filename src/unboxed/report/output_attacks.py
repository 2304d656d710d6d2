"""How little change spoils it? Errors of numbers, several labels and label maps within eps of the examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine.intervals import Interval
from ..engine.optimize.constraints import format_eps
from ..plots.figures import figures
from ..robustness.evaluate_outputs import ALL_ATTACKS, OutputRobustness, evaluate_outputs
from .attack_budget import default_output_attacks_in_few_steps
from .attack_words import attacked_count_text
from .blocks import Block, Figure, FigureGrid, Paragraph, Table
from .context import ReportContext, require_uninterrupted
from .finding import Finding
from .input_nouns import InputNouns
from .pictures import PageImage
from .survey import evenly_spaced_indices
from .words import count_noun, format_percent

NAME_AND_VERB_BY_METRIC = {
    "MAE": ("mean absolute error", "raise"),
    "label accuracy": ("share of labels that are right", "lower"),
    "pixel accuracy": ("share of positions that are correct", "lower"),
}
PERCENT_METRICS = ("label accuracy", "exact match", "pixel accuracy")
INTERVAL_NOTE_TEMPLATE = (
    "Of each example the worst of all attacks counts. Within {amount}: {intervals} (95% intervals over the examples). "
    "Stronger attacks may find more: run unboxed attack."
)


@dataclass(frozen=True, eq=False, kw_only=True)
class OutputRobustnessFinding(Finding):
    """Metrics of the model under attacks."""

    attacked: list[int]  # indices in the data
    n_examples: int
    nouns: InputNouns
    robustness: OutputRobustness

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "robustness": self.robustness.to_dict()}


def find_output_robustness(context: ReportContext, n: int, eps: Sequence[float]) -> OutputRobustnessFinding:
    """The metrics of n examples, evenly spread over the data, within each eps."""
    s, nouns = context.survey, context.input_nouns
    countable = [i for i in range(len(s.rows)) if s.map_scores is None or not bool(s.map_scores[i].isnan().any())]
    indices = [countable[i] for i in evenly_spaced_indices(len(countable), n)]
    x, y = _inputs_and_values(context, indices)
    attacks = default_output_attacks_in_few_steps()
    result = require_uninterrupted(
        evaluate_outputs(context.box, (x, y), attacks, eps=eps, check_masking=False, seed=context.seed)
    )
    sentence = output_attack_sentence(result, nouns, len(s.rows))
    return OutputRobustnessFinding(
        answer=sentence, headline=(sentence,), attacked=[s.rows[i] for i in indices], n_examples=len(s.rows),
        nouns=nouns, robustness=result,
    )  # fmt: skip


def _inputs_and_values(context: ReportContext, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The inputs at these indices of the survey, and what their outputs should be."""
    s = context.survey
    if s.targets is not None:
        return context.inputs(indices), s.targets[list(indices)]
    read = context.data.read([s.rows[i] for i in indices])
    shape = context.box.output_map_shape
    return read.x, torch.stack([torch.as_tensor(target).long().cpu().view(shape) for target in read.targets])


def output_attack_sentence(result: OutputRobustness, nouns: InputNouns, n_examples: int) -> str:
    """What the attacks do to the first metric within the largest eps, and on how many examples."""
    metric = next(iter(result.clean))
    name, verb = NAME_AND_VERB_BY_METRIC[metric]
    clean, attacked = (_format_metric(metric, i.mean) for i in (result.clean[metric], result.metric(metric)))
    amount = f"{format_eps(result.eps[-1])} {nouns.unit}"
    on = f"of {attacked_count_text(result.example_errors.shape[2], n_examples)}"
    if clean == attacked:
        return f"No attack within {amount} changes the {name} {on} ({clean})."
    attacks = f"Attacks that change each {nouns.value} by at most {amount}"
    return f"{attacks} {verb} the {name} {on} from {clean} to {attacked}."


def show_output_robustness(finding: OutputRobustnessFinding) -> list[Block]:
    result = finding.robustness
    intervals = ", ".join(_interval_text(metric, result.metric(metric)) for metric in result.clean)
    amount = f"{format_eps(result.eps[-1])} {finding.nouns.unit}"
    charts = [
        Figure(PageImage.of_chart(chart, f"{metric} over eps, of each attack"))
        for metric, chart in figures(result).items()
    ]
    return [
        _metric_table(finding, [ALL_ATTACKS, *result.attacks]),
        Paragraph(INTERVAL_NOTE_TEMPLATE.format(amount=amount, intervals=intervals), "soft"),
        FigureGrid(charts, two_per_row=True),
    ]


def best_output_robustness(finding: OutputRobustnessFinding) -> list[Block]:
    """The metrics under all attacks."""
    return [_metric_table(finding, [ALL_ATTACKS])]


def _metric_table(finding: OutputRobustnessFinding, attacks: Sequence[str]) -> Table:
    result = finding.robustness
    rows = [
        [metric, attack, *(_format_metric(metric, i.mean) for i in (clean, *result.attacked[attack][metric]))]
        for metric, clean in result.clean.items()
        for attack in attacks
    ]
    count = count_noun(len(finding.attacked), "example")
    columns = [f"of {count}", "attack", "no attack", *(f"eps {format_eps(e)}" for e in result.eps)]
    return Table(columns, rows, frozenset(range(2, len(columns))))


def _interval_text(metric: str, interval: Interval) -> str:
    low, high = _format_metric(metric, interval.low), _format_metric(metric, interval.high)
    return f"{metric} {_format_metric(metric, interval.mean)} ({low} to {high})"


def _format_metric(metric: str, value: float) -> str:
    return format_percent(value) if metric in PERCENT_METRICS else f"{value:.3g}"
