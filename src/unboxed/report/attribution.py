"""Why this prediction? Maps of wrong, ambiguous and correct examples by the method that the page trusts most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..checks.methods import compute_map
from ..checks.ranking import attribution_cards
from ..checks.verdict import Verdict
from ..engine.gradients.score import gradients
from ..errors import UnboxedError
from ..plots import colors, draw
from ..plots.explanation_sheet import render_map
from ..plots.sheet import ColorBar
from . import chapters
from .blocks import (
    Block,
    Caution,
    ColorScaleImages,
    Figure,
    FigureGrid,
    FileLinks,
    Heading,
    MethodInterpretation,
    Paragraph,
)
from .checks import maps_by_most_trusted_methods
from .context import ReportContext, Section
from .explained import explained_classes, explained_text, worst_output_or_none
from .finding import METADATA_OF_FIELD_NOT_IN_JSON, Example, Finding, NotApplicable
from .input_maps import InputMapsFinding, best_input_maps, find_input_maps, show_input_maps
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
from .verdict_notes import MAP_LEGEND, check_note_from_verdict, checks_text, trusted_method_text
from .words import count_noun, error_sentence

MAX_EXAMPLES_PER_GROUP = 3
FIGURE_SIDE_PIXELS, COVER_SIDE_PIXELS = 140, 112
# Of the pixel range: the largest change of a pixel when an input is moved along a gradient
MAX_GRADIENT_MOVE_PIXEL_CHANGE = 0.5
PREDICTION, RIVAL, UNTRAINED = "prediction", "rival", "untrained model"  # the columns; the first two share a scale


@dataclass(frozen=True, eq=False)
class MapColumn:
    """The maps of one score or model for all N examples."""

    title: str
    scale: float
    targets: list[str]  # (N,) classes
    maps: Tensor = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # (N, C or 1, H, W)

    def head(self, i: int) -> str:
        """What the i-th map is of."""
        return self.title if self.title == UNTRAINED else f"why {self.targets[i]}"


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
    """Maps of examples in groups, columns of maps over all of them, and the verdict on their method."""

    method: str
    verdict: Verdict
    scales: dict[str, float]
    groups: dict[str, list[Example]]
    columns: list[MapColumn]
    notes: list[str]  # why there is no map of a kind
    push: ExampleMovedAlongGradients | None = None
    explained: str = "that prediction"
    followed: list[int] = field(default_factory=list)  # the places of the followed examples among the examples

    @property
    def examples(self) -> list[Example]:
        return [example for group in self.groups.values() for example in group]

    @property
    def method_name(self) -> str:
        return attribution_cards()[self.method].name

    def cover(self, place: int) -> Sequence[Figure]:
        """The map on its own scale: in the section, the maps of all examples share one."""
        i, column = self.followed[place], self.columns[0]
        own = replace(column, scale=draw.shared_vmax(column.maps[i]))
        figure = _map_figure(replace(self, columns=[own]), 0, i, COVER_SIDE_PIXELS)
        scale = f"scale ±{own.scale:.3g}"
        return [replace(figure, lines=(f"by {self.method_name}", checks_text(self.verdict), *figure.lines, scale))]


# -- find --------------------------------------------------------------------------------------------------------------


def find(context: ReportContext) -> AttributionFinding:
    groups = _example_indices_by_outcome(context)
    indices = [i for group in groups.values() for i in group]
    x, predicted = context.inputs(indices), explained_classes(context)[indices]
    maps = maps_by_most_trusted_methods(context, x, predicted, 1)
    if not maps:
        raise NotApplicable("No attribution method can explain this model.")
    ((method, prediction_maps),) = maps.items()
    columns, notes = _map_columns_and_notes(context, indices, method, prediction_maps)
    verdict = context.verdict(method)
    return AttributionFinding(
        answer=f"Explained by {trusted_method_text(attribution_cards()[method].name, verdict)}.",
        method=method,
        verdict=verdict,
        scales={c.title: c.scale for c in columns},
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


def _map_columns_and_notes(
    context: ReportContext, indices: Sequence[int], method: str, maps: Tensor
) -> tuple[list[MapColumn], list[str]]:
    """The maps of the prediction and of its rival on one scale, and of the untrained model."""
    box, x, notes = context.box, context.inputs(indices), list[str]()
    predicted, rivals = explained_classes(context)[list(indices)], _rival_classes(context, indices)
    by_title = {PREDICTION: (maps, predicted)}
    is_one_score = len(box.classes) == 1 or context.data.binary  # a map of no is that of yes, negated
    if not is_one_score and worst_output_or_none(context) is None:
        by_title[RIVAL] = (compute_map(box, context.candidates[method], x, rivals), rivals)
    shared = draw.shared_vmax(*(m for m, _ in by_title.values()))
    scales = dict.fromkeys(by_title, shared)
    try:
        untrained = compute_map(context.untrained, context.candidates[method], x, predicted)
        by_title[UNTRAINED], scales[UNTRAINED] = (untrained, predicted), draw.shared_vmax(untrained)
    except UnboxedError as error:  # a model that can't be copied is no reason to show nothing
        notes.append(f"No untrained copy of this model to compare with ({error_sentence(error)}).")
    names = {title: [context.class_name(k) for k in classes.tolist()] for title, (_, classes) in by_title.items()}
    return [MapColumn(t, scales[t], names[t], m.cpu()) for t, (m, _) in by_title.items()], notes


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
    blocks: list[Block] = [
        MethodInterpretation(attribution_cards()[finding.method], *check_note_from_verdict(finding.verdict)),
        *map(Caution, finding.notes),
        ColorScaleImages([ColorBar("signed", v, title) for title, v in _scale_titles(finding).items()]),
    ]
    n_channels = finding.columns[0].maps.shape[1]
    channels_note = f" Maps are summed over {count_noun(n_channels, 'channel')}." if n_channels > 1 else ""
    blocks.append(Paragraph(MAP_LEGEND + channels_note, "soft"))
    return [
        *blocks,
        *_example_group_blocks(finding),
        _attribution_sheet_file(finding),
        *_move_along_gradients_blocks(finding.push),
    ]


def _scale_titles(finding: AttributionFinding) -> dict[str, float]:
    """{what is on it: a scale}, each once."""
    titles = {scale: [t for t, s in finding.scales.items() if s == scale] for scale in finding.scales.values()}
    return {" and ".join(names): scale for scale, names in titles.items()}


def best(finding: AttributionFinding) -> list[Block]:
    """Some examples, each with the map of its prediction."""
    figures = list[Figure]()
    for i, example in enumerate(finding.examples[:N_EXPLAINED_ERRORS]):
        figures += [example.figure(COVER_SIDE_PIXELS), _map_figure(finding, 0, i, COVER_SIDE_PIXELS)]
    method = trusted_method_text(finding.method_name, finding.verdict)
    legend = f"Beside each example: red raises the score of {finding.explained}, blue lowers it, by {method}."
    return [FigureGrid(figures, legend, n_together=2)]


def _example_group_blocks(finding: AttributionFinding) -> Iterator[Block]:
    i = 0
    for title, group in finding.groups.items():
        yield Heading(title)
        for example in group:
            maps = [_map_figure(finding, column, i) for column in range(len(finding.columns))]
            figures = [example.input_figure(FIGURE_SIDE_PIXELS), *maps]
            yield example.with_figures(figures, show_runner_up=True)
            i += 1


def _map_figure(finding: AttributionFinding, column: int, i: int, side: int = FIGURE_SIDE_PIXELS) -> Figure:
    """A map of the i-th example, laid over it where it is a photo."""
    shown = finding.columns[column]
    head, note = shown.head(i), "" if bool(shown.maps[i].any()) else "zero everywhere"
    alt = f"{head}, by {finding.method_name} (scale ±{shown.scale:.3g})"
    picture = PageImage(render_map(finding.examples[i].x, shown.maps[i], shown.scale).shown, alt, side)
    return Figure(picture, head, tuple(filter(None, (note,))))


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
    x, captions = torch.stack([e.x for e in finding.examples]), [e.prediction_text for e in finding.examples]
    page = draw.gradients(
        x, {c.title: c.maps for c in finding.columns}, captions=captions, own_scale=[UNTRAINED],
        title=finding.method_name,
        unit="attribution to the score",
    )  # fmt: skip
    return FileLinks([PageFile("explained.png", page, "these maps as a sheet")])


def find_maps_or_contributions(context: ReportContext) -> Finding:
    """Maps of images, or of several inputs; of rows of a table, what each column contributes."""
    if is_table(context):
        return find_column_contributions(context)
    return find(context) if context.has_images else find_input_maps(context)


SECTION = Section(
    "Why this prediction?",
    "gradients",
    find_maps_or_contributions,
    show_by_type(
        show_by_type(show, RowAttributionFinding, show_column_contributions), InputMapsFinding, show_input_maps
    ),
    chapter=chapters.MISTAKES,
    best=show_by_type(
        show_by_type(best, RowAttributionFinding, best_column_contributions), InputMapsFinding, best_input_maps
    ),
)
