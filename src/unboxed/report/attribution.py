"""Why this answer? Gradients for right, wrong and confused examples, beside the model without its training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..attribution import gradient, guided_backprop
from ..box import Box
from ..engine.gradients.score import Gradients, gradients
from ..errors import UnboxedError
from ..model import relu_rules
from ..objectives import logit
from ..plots import colors, draw
from ..plots.sheet import ColorBar
from .blocks import Block, ColorScales, ExampleRow, Figure, FigureGrid, Files, Heading, MethodNote, Note, Text
from .context import ReportContext, Section
from .words import count_noun, error_sentence

TONE_BY_GRADE = {"pass": "good", "inconclusive": "fair", "fail": "bad", "not applicable": ""}
EXAMPLES_PER_GROUP = 3  # examples of a kind
FIGURE_PIXELS = 140
PUSH_SIZE = 0.5  # of the pixel range: how far the strongest pixel moves when an input is pushed along a gradient


@dataclass(frozen=True, eq=False)
class MapColumn:
    """One method's maps for all examples."""

    title: str
    result: Gradients
    targets: Tensor  # (N,)
    scale: float


def build(context: ReportContext) -> Sequence[Block]:
    groups = _example_groups(context)
    indices = [p for group in groups.values() for p in group]
    x = context.inputs(indices)
    answers, rivals = context.survey.answers[indices], _rival_classes(context, indices)
    if context.data.binary:  # no and yes stand on one output
        answers = rivals = torch.zeros_like(answers)
    columns, notes = _compute_columns(context, x, answers, rivals)
    blocks: list[Block] = [Text("Every other method, side by side and ranked, stands in the next section.", "soft")]
    blocks += [_method_block(context, m) for m in (gradient, guided_backprop)]
    blocks += [Note(note) for note in notes]
    bars = [ColorBar("signed", c.scale, f"{c.title}, logit per pixel range") for c in _unique_scales(columns)]
    blocks.append(ColorScales([context.pictures.color_scale(bar) for bar in bars]))
    legend = "Red: more light here would raise the score; blue: less would. Maps of one kind share one scale."
    channels_note = f" They are summed over {count_noun(x.shape[1], 'channel')}." if x.shape[1] > 1 else ""
    blocks.append(Text(legend + channels_note, "soft"))
    i = 0
    for title, group in groups.items():
        blocks.append(Heading(title))
        for index in group:
            blocks.append(_example_row(context, index, x[i], columns, i))
            i += 1
    _record_facts(context, columns)
    context.cover.insert(1, _cover_figure(context, columns[0]))
    return [*blocks, _sheet_files(context, indices, x, columns), *_undecided_blocks(context)]


def _method_block(context: ReportContext, method: Callable[..., Any]) -> MethodNote:
    """What the method tells, and the verdict on it."""
    verdict = context.verdict(method.__name__)
    return MethodNote.of(method, f"{verdict.badge.capitalize()}. {verdict.sentence}", TONE_BY_GRADE[verdict.grade])


def _example_groups(context: ReportContext) -> dict[str, list[int]]:
    """Places of the examples, by what became of them; none twice."""
    s = context.survey
    if s.is_correct is None:
        by_outcome = {"Undecided" if s.exclusive_classes else "Examples": s.by_margin, "Typical": s.typical}
    else:
        by_outcome = {"Taken wrongly": s.misclassified, "Undecided": s.by_margin, "Right": s.typical}
    groups: dict[str, list[int]] = {}
    for title, indices in by_outcome.items():
        used = {p for group in groups.values() for p in group}
        groups[title] = [p for p in indices if p not in used][:EXAMPLES_PER_GROUP]
    return {title: group for title, group in groups.items() if group}


def _rival_classes(context: ReportContext, indices: Sequence[int]) -> Tensor:
    """The class each answer is weighed against: the label where the answer is wrong, else the runner-up."""
    s = context.survey
    runner_ups = s.runner_up[list(indices)]
    if s.is_correct is None or s.labels is None:
        return runner_ups
    return torch.where(s.is_correct[list(indices)], runner_ups, s.labels[list(indices)])


def _compute_columns(
    context: ReportContext, x: Tensor, answers: Tensor, rivals: Tensor
) -> tuple[list[MapColumn], list[str]]:
    """Maps of the answer and its rival on one scale, by guided backprop, and of the untrained model."""
    box, notes = context.box, []
    results = [gradients(box, logit(t), x) for t in (answers, rivals)]
    scale = draw.shared_vmax(results[0].map, results[1].map)
    columns = [MapColumn("gradient", results[0], answers, scale), MapColumn("gradient", results[1], rivals, scale)]
    if len(context.box.classes) == 1:
        del columns[1]
    try:
        columns.append(_compute_column("guided backprop", box, x, answers, relu_rules.guided))
    except UnboxedError as error:
        notes.append(f"No guided backprop for this model: {error}.")
    try:
        columns.append(_compute_column("gradient, untrained model", context.untrained, x, answers, None))
    except UnboxedError as error:  # a model that can't be copied is no reason to show nothing
        notes.append(f"No untrained copy of this model to compare with ({error_sentence(error)}).")
    return columns, notes


def _compute_column(title: str, box: Box, x: Tensor, targets: Tensor, rule: relu_rules.ReluRule | None) -> MapColumn:
    result = gradients(box, logit(targets), x, rule=rule)
    return MapColumn(title, result, targets, draw.shared_vmax(result.map))


def _unique_scales(columns: Sequence[MapColumn]) -> list[MapColumn]:
    return list({c.title: c for c in columns}.values())


def _example_row(context: ReportContext, index: int, x: Tensor, columns: Sequence[MapColumn], i: int) -> ExampleRow:
    figures = [_input_figure(context, index, x), *(_map_figure(context, c, i) for c in columns)]
    return ExampleRow(
        context.answer_title(index),
        context.example_lines(index, show_runner_up=True),
        figures,
        context.correctness_tone(index),
    )


def _input_figure(context: ReportContext, index: int, x: Tensor) -> Figure:
    alt = f"input, example {context.survey.rows[index]}"
    return Figure(context.pictures.inline(colors.image_to_rgb(x), alt, FIGURE_PIXELS), "", ("input",))


def _map_figure(context: ReportContext, column: MapColumn, i: int, side: int = FIGURE_PIXELS) -> Figure:
    name = context.target_name(int(column.targets[i]))
    map_ = column.result.map[i]
    words = f"{column.title} of {name}" if column.title == "gradient" else column.title
    notes = ["before the clamp"] * bool(column.result.before_clamp[i]) + ["zero everywhere"] * (not bool(map_.any()))
    alt = f"{words} ({', '.join([*notes, f'scale ±{column.scale:.3g}'])})"
    return Figure(context.pictures.inline(draw.signed_map(map_, column.scale), alt, side), "", (words, *notes))


def _cover_figure(context: ReportContext, column: MapColumn) -> Figure:
    """The gradient of the page's first example."""
    figure = _map_figure(context, column, 0, side=112)
    return replace(figure, head=figure.lines[0], lines=(*figure.lines[1:], f"scale ±{column.scale:.3g}"))


def _record_facts(context: ReportContext, columns: Sequence[MapColumn]) -> None:
    context.facts["why"] = {
        "scales": {c.title: c.scale for c in _unique_scales(columns)},
        "before_clamp": {c.title: int(c.result.before_clamp.sum()) for c in _unique_scales(columns)},
    }


# -- the most undecided example ---------------------------------------------------------------------------


def _undecided_blocks(context: ReportContext) -> list[Block]:
    """The example with the closest two outputs, and the same pushed along the gradient of either."""
    s = context.survey
    if not s.exclusive_classes or context.data.binary:
        return []
    index = s.by_margin[0]
    x, ks = context.inputs([index]), [int(s.answers[index]), int(s.runner_up[index])]
    results = [gradients(context.box, logit(k), x) for k in ks]
    maps = torch.cat([f.map for f in results]).cpu()
    factor = float(f"{PUSH_SIZE / draw.shared_vmax(maps):.2g}")
    names = [context.class_name(k) for k in ks]
    figures = [context.example_figure(index, x[0], show_runner_up=True)]
    for name, m in zip(names, maps, strict=True):
        alt = f"the input plus {factor:g} times the gradient of {name}"
        picture = context.pictures.inline(colors.image_to_rgb(x[0].cpu() + factor * m), alt)
        figures.append(Figure(picture, f"pushed to {name}", (f"input + {factor:g} × gradient",)))
    page = draw.confused(
        x[0], maps, names, label=context.label_name(index) or "", factor=factor,
        logits=[float(f.score) for f in results], before_clamp=[bool(f.before_clamp) for f in results],
    )  # fmt: skip
    path = context.pictures.save_file("confused.png", page)
    files = Files([(path, "with both gradients, as a sheet")])
    return [Heading("The most undecided, pushed either way"), FigureGrid(figures), files]


def _sheet_files(context: ReportContext, indices: Sequence[int], x: Tensor, columns: Sequence[MapColumn]) -> Files:
    """All maps as one file."""
    shared_titles = ("gradient of its answer", "gradient of its rival")
    titles = [shared_titles[i] if c.title == "gradient" else c.title for i, c in enumerate(columns)]
    maps = dict(zip(titles, (c.result.map for c in columns), strict=True))
    own_scale = [t for t in titles if t not in shared_titles]
    words = [context.answer_text(p) for p in indices]
    page = draw.gradients(x, maps, captions=words, own_scale=own_scale, title="Gradients")
    return Files([(context.pictures.save_file("gradients.png", page), "these maps as a sheet")])


SECTION = Section("Why this answer?", "why", build, needs=("pixels",))
