"""How does it arrange the examples? An interactive map of each layer, and the nearest neighbors of each example."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..activations import TsneMaps, nearest_neighbors, tsne
from ..plots import draw
from ..plots import embedding as drawn
from . import chapters
from .blocks import Block, Caution, Figure, FigureGrid, FileLinks, MethodInterpretation, Paragraph, PerExample
from .context import ReportContext, Section
from .finding import METADATA_OF_FIELD_NOT_IN_JSON, CheckNote, Example, Finding, NotApplicable
from .pictures import PageFile
from .plane import LayerScatterMap, ScatterMapBlock, make_thumbnail_atlas
from .words import count_noun, format_percent, layer_display_name

MAX_MAPPED_EXAMPLES = 1000  # examples of the survey that are mapped
MIN_MAPPED_EXAMPLES = 6  # for a map
N_SHOWN_NEIGHBORS, N_BEST_NEIGHBORS = 6, 5  # shown per example; before the section is opened, in even rows
MAX_CLASSES_WITH_COLOR = 20  # with colors of their own
MAX_MAP_GRID_IMAGES = 900
N_VOTING_NEIGHBORS = 10  # nearest points in the map that vote for a label


@dataclass(frozen=True, eq=False, kw_only=True)
class TsneMapFinding(Finding):
    """t-SNE maps of sampled layers, and the nearest neighbors in the layers."""

    examples: int
    examples_evaluated: int
    neighbors_agree: dict[str, float]  # {layer: accuracy of a vote of the nearest points}; empty without labels
    label_agreement: dict[str, float]  # {layer: share of the nearest neighbors in the layer with the same label}
    maps: TsneMaps = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)
    neighbors: dict[str, Tensor] = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # {layer: (N, k)}
    shown: list[Example] = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # the N examples
    labels: Tensor | None = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # (N,)
    classes: tuple[str, ...] = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)
    groups: list[int] = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # (N,) indices into group_names: the colors
    group_names: list[str]
    has_labels: bool
    has_images: bool
    followed: list[int]  # the places of the followed examples among the N

    def cover(self, place: int) -> Sequence[Figure]:
        if not self.has_images:
            return []
        figure = _neighbor_figure(self, self.followed[place], 0)
        return [replace(figure, head="its nearest neighbor", lines=(figure.head, *figure.lines), tone="")]


# -- find --------------------------------------------------------------------------------------------------------------


def find(context: ReportContext, max_points: int = MAX_MAPPED_EXAMPLES) -> TsneMapFinding:
    s = context.survey
    followed = context.followed_indices
    indices = sorted({*draw.evenly_spaced_indices(len(s.rows), max_points), *followed})
    if len(indices) < MIN_MAPPED_EXAMPLES:
        raise NotApplicable(f"A map needs at least {MIN_MAPPED_EXAMPLES} examples; the data have {len(indices)}.")
    x = context.inputs(indices)
    maps = tsne(context.box, x)
    labels = s.labels[indices] if s.labels is not None and s.exclusive_classes else None
    accuracy = maps.accuracy(labels, N_VOTING_NEIGHBORS) if labels is not None else {}
    neighbors = _nearest_neighbors_by_layer(context, x, maps)
    groups, group_names = _color_group_indices_and_names(context, indices)
    return TsneMapFinding(
        answer=_label_separation_check(accuracy).text
        or "Maps of the layers, and the nearest neighbors of each example.",
        interrupted=maps.interrupted,
        examples=len(indices),
        examples_evaluated=len(s.rows),
        neighbors_agree=accuracy,
        label_agreement={} if labels is None else {p: _same_label_fraction(labels, i) for p, i in neighbors.items()},
        maps=replace(maps, _box=None),  # a finding holds no model
        neighbors=neighbors,
        shown=context.examples(indices),
        labels=labels,
        classes=s.classes,
        groups=groups,
        group_names=group_names,
        has_labels=s.labels is not None,
        has_images=context.has_images,
        followed=[indices.index(i) for i in followed],
    )


def _nearest_neighbors_by_layer(context: ReportContext, x: Tensor, maps: TsneMaps) -> dict[str, Tensor]:
    """{layer: the nearest neighbors of each example (N, k)}."""
    k = min(N_SHOWN_NEIGHBORS, len(x) - 1)
    by_layer = {m.path: nearest_neighbors(context.box, x, None, m.path, k=k).indices for m in maps.layers}
    return {path: indices.cpu() for path, indices in by_layer.items()}


def _same_label_fraction(labels: Tensor, neighbors: Tensor) -> float:
    return float((labels[neighbors] == labels[:, None]).double().mean())


def _color_group_indices_and_names(context: ReportContext, indices: Sequence[int]) -> tuple[list[int], list[str]]:
    """The color group of each example, and the names of the groups: labels, else predictions; rare classes are one."""
    s = context.survey
    if not s.exclusive_classes:
        return [0] * len(indices), ["all"]
    class_of_row = s.labels if s.labels is not None else s.predicted
    classes = [int(class_of_row[p]) for p in indices]
    count = Counter(classes)
    colored_classes = sorted(
        k for k, _ in sorted(count.items(), key=lambda item: (-item[1], item[0]))[:MAX_CLASSES_WITH_COLOR]
    )
    index = {k: i for i, k in enumerate(colored_classes)}
    names = [context.class_name(k) for k in colored_classes] + ["other classes"] * (len(count) > len(colored_classes))
    return [index.get(k, len(colored_classes)) for k in classes], names


# -- show --------------------------------------------------------------------------------------------------------------


def show(finding: TsneMapFinding) -> list[Block]:
    blocks: list[Block] = [
        Paragraph(_tsne_map_lead_text(finding)),
        MethodInterpretation.of(tsne, *_label_separation_check(finding.neighbors_agree)),
    ]
    if finding.examples < finding.examples_evaluated:
        blocks.append(Caution(f"{finding.examples:,} of {finding.examples_evaluated:,} examples, evenly spread."))
    neighbors_note = MethodInterpretation.of(nearest_neighbors, _label_agreement_text(finding))
    return [*blocks, _tsne_map_block(finding), FileLinks(_tsne_map_image_files(finding)), neighbors_note]


def best(finding: TsneMapFinding) -> list[Block]:
    """The followed example and its nearest neighbors in the last hidden layer."""
    if not finding.has_images:
        return []
    return [PerExample([[_neighbor_grid(finding, i)] for i in finding.followed])]


def _neighbor_grid(finding: TsneMapFinding, i: int) -> FigureGrid:
    k = min(N_BEST_NEIGHBORS, list(finding.neighbors.values())[-1].shape[1])
    figures = [finding.shown[i].figure(), *(_neighbor_figure(finding, i, rank) for rank in range(k))]
    return FigureGrid(figures, "An example, and those that are nearest to it in the last hidden layer:")


def _neighbor_figure(finding: TsneMapFinding, i: int, rank: int) -> Figure:
    """The example that is `rank`-th nearest to the i-th in the last hidden layer."""
    neighbors = list(finding.neighbors.values())[-1]  # (N, k)
    return finding.shown[int(neighbors[i, rank])].figure()


def _label_agreement_text(finding: TsneMapFinding) -> str:
    if len(finding.label_agreement) < 2:
        return ""
    shares = [format_percent(share) for share in finding.label_agreement.values()]
    k = next(iter(finding.neighbors.values())).shape[1]
    return (f"Of the {k} nearest neighbors in the last hidden layer {shares[-1]} have the example's label; "
            f"in the input {shares[0]}.")  # fmt: skip


def _hidden_layer_map_title(finding: TsneMapFinding, path: str) -> str:
    if path == "input":
        return "Raw pixels" if finding.has_images else "Raw features"
    before, _, call = path.partition(":input")
    return f"Before {layer_display_name(before)}{call}"


def _tsne_map_lead_text(finding: TsneMapFinding) -> str:
    lead = "Each dot is an example; examples that are similar to a layer are close in its map."
    if len(finding.neighbors_agree) < 2:
        return lead
    raw, last = (format_percent(finding.neighbors_agree[a]) for a in ("input", list(finding.neighbors_agree)[-1]))
    return (
        f"{lead} A vote of its {N_VOTING_NEIGHBORS} nearest dots gives an example its label for {raw} in the map of "
        f"the {_hidden_layer_map_title(finding, 'input').lower()}, and for {last} in that of the last hidden layer."
    )


def _label_separation_check(accuracy: dict[str, float]) -> CheckNote:
    if len(accuracy) < 2:
        return CheckNote()
    raw, last = accuracy["input"], list(accuracy.values())[-1]
    return CheckNote(
        f"An example's {N_VOTING_NEIGHBORS} nearest dots name its label {format_percent(last)} of the time in the map "
        f"of the last hidden layer, and {format_percent(raw)} in that of the raw input.",
        "good" if last > raw else "bad" * (last < raw),
    )


def _tsne_map_block(finding: TsneMapFinding) -> ScatterMapBlock:
    agree = {
        path: f"{N_VOTING_NEIGHBORS} nearest agree: {format_percent(share)}"
        for path, share in finding.neighbors_agree.items()
    }
    layers = [
        LayerScatterMap(
            _hidden_layer_map_title(finding, m.path), agree.get(m.path, ""), m.points, finding.neighbors[m.path]
        )
        for m in finding.maps.layers
    ]
    is_wrong = [e.is_correct is False for e in finding.shown]
    lines = [e.title for e in finding.shown], [", ".join(e.lines()[:-1]) for e in finding.shown]
    ringed = "A thin ring on a dot: misclassified. An orange ring: the selected example, and its neighbors. "
    keys = (
        f"{ringed * any(is_wrong)}Drag to move; pinch, or click the map and turn the wheel, to zoom. Keys: arrows go "
        "from example to example, + and − zoom, 0 shows the whole map, Escape clears the selection."
    )
    color = "label" if finding.has_labels else "prediction"
    return ScatterMapBlock(
        "map-plane", layers, finding.groups, finding.group_names, is_wrong, lines, [e.name for e in finding.shown],
        f"Map of {count_noun(finding.examples, 'example')}, colored by {color}",
        "Point at a dot to see its example; click it to see its nearest neighbors in the layer.",
        keys, make_thumbnail_atlas(_inputs_of_shown_examples(finding)) if finding.has_images else None,
        finding.followed[0],
    )  # fmt: skip


def _inputs_of_shown_examples(finding: TsneMapFinding) -> Tensor:
    return torch.stack([e.x for e in finding.shown])  # (N, C, H, W)


def _tsne_map_image_files(finding: TsneMapFinding) -> list[PageFile]:
    files = [
        PageFile(
            "map.png", drawn.tsne_scatter_sheet(finding.maps, finding.labels, finding.classes), "the maps as a sheet"
        )
    ]
    if finding.has_images:
        x, points = _inputs_of_shown_examples(finding), finding.maps.layers[-1].points
        sampled = torch.tensor(draw.evenly_spaced_indices(len(x), MAX_MAP_GRID_IMAGES))
        cell = min(32, max(16, max(x.shape[2:])))
        grid = drawn.neighbor_preserving_image_grid(points[sampled.to(points.device)], x[sampled], cell=cell)
        files.append(
            PageFile("map-images.png", drawn.thumbnail_scatter_image(points, x, cell=cell), "images at their points")
        )
        files.append(PageFile("map-grid.png", grid, "images on a grid"))
    return files


SECTION = Section("How does it arrange the examples?", "map", find, show, chapter=chapters.KNOWLEDGE, best=best)
