"""Why this prediction? Gradients of misclassified, ambiguous and correct examples, and of the untrained model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..attribution import gradient, guided_backprop
from ..checks.ranking import attribution_cards
from ..checks.verdict import Verdict
from ..engine.gradients.score import Gradients, gradients
from ..errors import UnboxedError
from ..model import relu_rules
from ..objectives import Objective
from ..plots import colors, draw
from ..plots.explanation_sheet import render_map
from ..plots.sheet import ColorBar
from . import chapters
from .blocks import (
    Block,
    Caution,
    ColorScaleImages,
    ExampleWithFigures,
    Figure,
    FigureGrid,
    FileLinks,
    Heading,
    MethodInterpretation,
    Paragraph,
)
from .context import ReportContext, Section
from .finding import METADATA_OF_FIELD_NOT_IN_JSON, Example, Finding
from .label_maps import explained_classes, explained_text, least_overlapping_class
from .overview import N_EXPLAINED_ERRORS
from .pictures import PageFile, PageImage
from .rows import (
    RowAttributionFinding,
    best_column_contributions,
    find_column_contributions,
    is_table,
    show_by_type,
    show_column_contributions,
)
from .verdict_notes import check_note_from_verdict
from .words import count_noun, error_sentence

MAX_EXAMPLES_PER_GROUP = 3
FIGURE_SIDE_PIXELS, COVER_SIDE_PIXELS = 140, 112
# Of the pixel range: the largest change of a pixel when an input is moved along a gradient
MAX_GRADIENT_MOVE_PIXEL_CHANGE = 0.5
GRADIENT_COLUMN_TITLE = "gradient"  # the title of the two columns that share one scale


@dataclass(frozen=True, eq=False)
class MethodMapColumn:
    """The maps of one method for all N examples."""

    title: str
    method: str | None  # whose verdict is shown; None: a control
    scale: float
    before_clamp: list[bool]  # (N,) the gradient is zero at the output's ReLU, and was taken before it
    targets: list[str]  # (N,) classes
    maps: Tensor = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # (N, C, H, W)


@dataclass(frozen=True, eq=False)
class ExampleMovedAlongGradients:
    """The example with the lowest margin, moved along the gradients of its two largest outputs."""

    example: Example
    classes: list[str]  # (2,)
    logits: list[float]
    before_clamp: list[bool]
    factor: float  # of the gradients
    maps: Tensor = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # (2, C, H, W)


@dataclass(frozen=True, eq=False, kw_only=True)
class AttributionFinding(Finding):
    """Maps of examples in groups, columns of maps over all of them, and verdicts on their methods."""

    scales: dict[str, float]
    before_clamp: dict[str, int]  # maps taken before the output's ReLU
    verdicts: dict[str, Verdict]
    groups: dict[str, list[Example]]
    columns: list[MethodMapColumn]
    notes: list[str]  # why there is no map of a kind
    push: ExampleMovedAlongGradients | None = None
    explained: str = "that prediction"
    followed: list[int] = field(default_factory=list)  # the places of the followed examples among the examples

    @property
    def examples(self) -> list[Example]:
        return [example for group in self.groups.values() for example in group]

    def cover(self, place: int) -> Sequence[Figure]:
        column = self.columns[0]
        i = self.followed[place]
        figure = _map_figure(column, i, self.examples[i].x, COVER_SIDE_PIXELS)
        lines = (*figure.lines[1:], f"scale ±{column.scale:.3g}")
        return [replace(figure, head=figure.lines[0], lines=lines)]


# -- find --------------------------------------------------------------------------------------------------------------


def find(context: ReportContext) -> AttributionFinding:
    groups = _example_indices_by_outcome(context)
    indices = [i for group in groups.values() for i in group]
    columns, notes = _map_columns_and_notes(context, indices)
    distinct = {c.title: c for c in columns}.values()  # the later of the two columns that share a scale
    verdicts = {c.method: context.verdict(c.method) for c in distinct if c.method is not None}
    return AttributionFinding(
        answer=" ".join(f"{attribution_cards()[n].name}: {v.badge} ({v.reason})." for n, v in verdicts.items()),
        scales={c.title: c.scale for c in distinct},
        before_clamp={c.title: sum(c.before_clamp) for c in distinct},
        verdicts=verdicts,
        groups={title: context.examples(group) for title, group in groups.items()},
        columns=columns,
        notes=notes,
        push=_move_along_gradients(context),
        explained=explained_text(context),
        followed=[indices.index(i) for i in context.followed_indices],
    )


def _example_indices_by_outcome(context: ReportContext) -> dict[str, list[int]]:
    """Indices of the examples by outcome; none twice."""
    s = context.survey
    if s.is_correct is None:
        by_outcome = {
            "Lowest margin" if s.exclusive_classes else "Examples": s.indices_by_margin,
            "Typical": s.typical_indices,
        }
    else:
        by_outcome = {
            "Misclassified": s.misclassified,
            "Lowest margin": s.indices_by_margin,
            "Correct": s.typical_indices,
        }
    groups: dict[str, list[int]] = {}
    if context.followed_index not in next(iter(by_outcome.values()))[:1]:
        groups["The followed example"] = [context.followed_index]
    for title, indices in by_outcome.items():
        used = {i for group in groups.values() for i in group}
        groups[title] = [i for i in indices if i not in used][:MAX_EXAMPLES_PER_GROUP]
    used = {i for group in groups.values() for i in group}
    groups[title] += [i for i in context.followed_indices if i not in used]  # typical ones of more classes
    return {title: group for title, group in groups.items() if group}


def _rival_classes(context: ReportContext, indices: Sequence[int]) -> Tensor:
    """The class that each prediction is compared with: the label where it is misclassified, else the runner-up."""
    s = context.survey
    runner_ups = s.runner_up[list(indices)]
    if s.is_correct is None or s.labels is None:
        return runner_ups
    return torch.where(s.is_correct[list(indices)], runner_ups, s.labels[list(indices)])


def _map_columns_and_notes(context: ReportContext, indices: Sequence[int]) -> tuple[list[MethodMapColumn], list[str]]:
    """Gradients of the prediction and its rival on one scale, guided backprop, and of the untrained model."""
    box, x, notes = context.box, context.inputs(indices), []
    predicted, rivals = explained_classes(context)[list(indices)], _rival_classes(context, indices)

    def score(classes: Tensor) -> Objective:
        return box.objective(classes, len(x))

    def make_map_column(
        title: str, method: str | None, result: Gradients, targets: Tensor, scale: float | None = None
    ) -> MethodMapColumn:
        names = [context.class_name(k) for k in targets.tolist()]
        scale = draw.shared_vmax(result.map) if scale is None else scale
        return MethodMapColumn(title, method, scale, result.before_clamp.tolist(), names, result.map)

    results = [gradients(box, score(t), x) for t in (predicted, rivals)]
    scale = draw.shared_vmax(results[0].map, results[1].map)
    columns = [
        make_map_column(GRADIENT_COLUMN_TITLE, gradient.__name__, result, targets, scale)
        for result, targets in zip(results, (predicted, rivals), strict=True)
    ]
    is_one_score = len(box.classes) == 1 or context.data.binary  # the gradient of no is that of yes, negated
    if is_one_score or least_overlapping_class(context) is not None:
        del columns[1]
    try:
        guided = gradients(box, score(predicted), x, rule=relu_rules.GUIDED_BACKPROP_RULE)
        columns.append(make_map_column("guided backprop", guided_backprop.__name__, guided, predicted))
    except UnboxedError as error:
        notes.append(f"No guided backprop for this model: {error}.")
    try:
        untrained = gradients(context.untrained, score(predicted), x)
        columns.append(make_map_column("gradient, untrained model", None, untrained, predicted))
    except UnboxedError as error:  # a model that can't be copied is no reason to show nothing
        notes.append(f"No untrained copy of this model to compare with ({error_sentence(error)}).")
    return columns, notes


def _move_along_gradients(context: ReportContext) -> ExampleMovedAlongGradients | None:
    s = context.survey
    if not s.exclusive_classes or context.data.binary:
        return None
    index = s.indices_by_margin[0]
    x, classes = context.inputs([index]), [int(s.predicted[index]), int(s.runner_up[index])]
    results = [gradients(context.box, context.box.objective(k, 1), x) for k in classes]
    maps = torch.cat([r.map for r in results]).cpu()
    return ExampleMovedAlongGradients(
        context.examples([index])[0],
        [context.class_name(k) for k in classes],
        [float(r.score) for r in results],
        [bool(r.before_clamp) for r in results],
        float(f"{MAX_GRADIENT_MOVE_PIXEL_CHANGE / draw.shared_vmax(maps):.2g}"),
        maps,
    )


# -- show --------------------------------------------------------------------------------------------------------------


def show(finding: AttributionFinding) -> list[Block]:
    blocks: list[Block] = [Paragraph("The next section shows and ranks all attribution methods.", "soft")]
    cards = attribution_cards()
    blocks += [MethodInterpretation(cards[name], *check_note_from_verdict(v)) for name, v in finding.verdicts.items()]
    blocks += [Caution(note) for note in finding.notes]
    blocks.append(
        ColorScaleImages([ColorBar("signed", v, f"{t}, logit per pixel range") for t, v in finding.scales.items()])
    )
    legend = "Red: a brighter pixel raises the score; blue: it lowers it. Maps of one kind share one scale."
    n_channels = finding.columns[0].maps.shape[1]
    channels_note = f" They are summed over {count_noun(n_channels, 'channel')}." if n_channels > 1 else ""
    blocks.append(Paragraph(legend + channels_note, "soft"))
    return [
        *blocks,
        *_example_group_blocks(finding),
        _attribution_sheet_file(finding),
        *_move_along_gradients_blocks(finding.push),
    ]


def best(finding: AttributionFinding) -> list[Block]:
    """Some examples, each with the map of its prediction."""
    column, figures = finding.columns[0], list[Figure]()
    for i, example in enumerate(finding.examples[:N_EXPLAINED_ERRORS]):
        figure = _map_figure(column, i, example.x, COVER_SIDE_PIXELS)
        figures += [example.figure(COVER_SIDE_PIXELS), replace(figure, head=figure.lines[0], lines=figure.lines[1:])]
    text = (
        f"Beside each example: where a brighter pixel makes {finding.explained} likelier (red) or less likely (blue)."
    )
    return [FigureGrid(figures, text, n_together=2)]


def _example_group_blocks(finding: AttributionFinding) -> Iterator[Block]:
    i = 0
    for title, group in finding.groups.items():
        yield Heading(title)
        for example in group:
            yield _example_with_map_figures(example, finding.columns, i)
            i += 1


def _example_with_map_figures(
    example: Example, columns: Sequence[MethodMapColumn], example_index: int
) -> ExampleWithFigures:
    figures = [example.input_figure(FIGURE_SIDE_PIXELS), *(_map_figure(c, example_index, example.x) for c in columns)]
    return example.with_figures(figures, show_runner_up=True)


def _map_figure(column: MethodMapColumn, example_index: int, x: Tensor, side: int = FIGURE_SIDE_PIXELS) -> Figure:
    """A map of the input x (C, H, W), laid over it where it is a photo."""
    title = (
        f"{GRADIENT_COLUMN_TITLE} of {column.targets[example_index]}"
        if column.title == GRADIENT_COLUMN_TITLE
        else column.title
    )
    notes = ["before the ReLU"] * column.before_clamp[example_index] + ["zero everywhere"] * (
        not bool(column.maps[example_index].any())
    )
    alt = f"{title} ({', '.join([*notes, f'scale ±{column.scale:.3g}'])})"
    return Figure(
        PageImage(render_map(x, column.maps[example_index], column.scale).shown, alt, side), "", (title, *notes)
    )


def _move_along_gradients_blocks(push: ExampleMovedAlongGradients | None) -> list[Block]:
    if push is None:
        return []
    x = push.example.x
    figures = [push.example.figure(show_runner_up=True)]
    for name, m in zip(push.classes, push.maps, strict=True):
        alt = f"the input plus {push.factor:g} times the gradient of {name}"
        picture = PageImage(colors.image_to_rgb(x.cpu() + push.factor * m), alt)
        figures.append(Figure(picture, f"moved toward {name}", (f"input + {push.factor:g} × gradient",)))
    page = draw.confused(
        x, push.maps, push.classes, label=push.example.label or "", factor=push.factor,
        logits=push.logits, before_clamp=push.before_clamp,
    )  # fmt: skip
    files = FileLinks([PageFile("confused.png", page, "with both gradients, as a sheet")])
    return [Heading("The lowest margin, moved toward either class"), FigureGrid(figures), files]


def _attribution_sheet_file(finding: AttributionFinding) -> FileLinks:
    """All maps as one file."""
    shared_titles = ("gradient of its prediction", "gradient of its rival")
    titles = [shared_titles[i] if c.title == GRADIENT_COLUMN_TITLE else c.title for i, c in enumerate(finding.columns)]
    maps = dict(zip(titles, (c.maps for c in finding.columns), strict=True))
    own_scale = [t for t in titles if t not in shared_titles]
    x, captions = torch.stack([e.x for e in finding.examples]), [e.prediction_text for e in finding.examples]
    page = draw.gradients(x, maps, captions=captions, own_scale=own_scale, title="Gradients")
    return FileLinks([PageFile("gradients.png", page, "these maps as a sheet")])


def find_maps_or_contributions(context: ReportContext) -> Finding:
    """Maps of images; of rows of a table, what each column contributes."""
    return find_column_contributions(context) if is_table(context) else find(context)


SECTION = Section(
    "Why this prediction?",
    "gradients",
    find_maps_or_contributions,
    show_by_type(show, RowAttributionFinding, show_column_contributions),
    needs=("pixels or table",),
    chapter=chapters.MISTAKES,
    best=show_by_type(best, RowAttributionFinding, best_column_contributions),
)
