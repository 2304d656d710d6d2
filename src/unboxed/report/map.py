"""How does it sort the examples? A map of each layer that one can move about in, and each example's neighbors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ..activations import TsneMaps, nearest_neighbors, tsne
from ..plots import draw
from ..plots import embedding as drawn
from .blocks import Block, Files, MethodNote, Note, Text
from .context import ReportContext, Section
from .plane import LayerMap, MapBlock, make_atlas
from .words import count_noun, format_percent

MAX_POINTS = 1000  # of the survey that are mapped
MIN_EXAMPLES = 6  # examples that make a map
N_NEIGHBORS = 6  # neighbors that are shown
MAX_COLORED_CLASSES = 20  # with colors of their own
MAX_GRID_IMAGES = 900  # images of the grid


def build(context: ReportContext, max_points: int = MAX_POINTS) -> Sequence[Block]:
    indices = draw.evenly_spaced(len(context.survey.rows), max_points)
    if len(indices) < MIN_EXAMPLES:
        return [Note(f"A map needs at least {MIN_EXAMPLES} examples; the data have {len(indices)}.")]
    x = context.inputs(indices)
    maps = tsne(context.box, x)
    context.interrupted |= maps.interrupted
    labels = _known_labels(context, indices)
    accuracy = maps.accuracy(labels) if labels is not None else {}
    context.facts["map"] = {"examples": len(indices), "neighbors_agree": accuracy}
    blocks: list[Block] = [Text(_lead_text(context, accuracy)), MethodNote.of(tsne, *_verdict_text(maps, accuracy))]
    if len(indices) < len(context.survey.rows):
        blocks.append(Note(f"{len(indices):,} of {len(context.survey.rows):,} examples, evenly spread."))
    neighbors = _layer_neighbors(context, x, maps)
    blocks.append(_plane_block(context, indices, x, maps, accuracy, neighbors))
    return [
        *blocks,
        Files(_map_files(context, x, maps, labels)),
        MethodNote.of(nearest_neighbors, _label_agreement_text(neighbors, labels)),
    ]


def _layer_neighbors(context: ReportContext, x: Tensor, maps: TsneMaps) -> dict[str, Tensor]:
    """{layer: the nearest others of each example (N, k)}."""
    k = min(N_NEIGHBORS, len(x) - 1)
    by_layer = {m.path: nearest_neighbors(context.box, x, None, m.path, k=k).indices for m in maps.layers}
    return {path: indices.cpu() for path, indices in by_layer.items()}


def _label_agreement_text(neighbors: dict[str, Tensor], labels: Tensor | None) -> str:
    """How many of the neighbors bear the same label."""
    if labels is None or len(neighbors) < 2:
        return ""
    shares = [format_percent(float((labels[i] == labels[:, None]).double().mean())) for i in neighbors.values()]
    k = next(iter(neighbors.values())).shape[1]
    return (
        f"Of the {k} nearest in the last hidden layer {shares[-1]} bear the example's label; in the input {shares[0]}."
    )


def _known_labels(context: ReportContext, indices: Sequence[int]) -> Tensor | None:
    labels = context.survey.labels
    return labels[list(indices)] if labels is not None and context.survey.exclusive_classes else None


def _layer_title(context: ReportContext, path: str) -> str:
    if path == "input":
        return "Raw pixels" if context.has_images else "Raw features"
    before, _, call = path.partition(":input")
    return f"Before {before}{call}"


def _lead_text(context: ReportContext, accuracy: dict[str, float]) -> str:
    lead = "Each dot is an example; the model's layers bring together what they hold to be alike."
    if len(accuracy) < 2:
        return lead
    raw, last = (format_percent(accuracy[a]) for a in ("input", list(accuracy)[-1]))
    what = _layer_title(context, "input").lower()
    return (
        f"{lead} Asked for its label, the 10 nearest dots of an example are right for {raw} in the map of the {what}, "
        f"and for {last} in that of the last hidden layer."
    )


def _verdict_text(maps: TsneMaps, accuracy: dict[str, float]) -> tuple[str, str]:
    if len(accuracy) < 2:
        return "", ""
    raw, last = accuracy["input"], list(accuracy.values())[-1]
    points = f"{100 * abs(last - raw):.1f} points"
    if last > raw:
        return f"The last hidden layer sorts the labels {points} better than the raw input does.", "good"
    worse = f"{points} worse than" if last < raw else "just as well as"
    return f"The last hidden layer sorts the labels {worse} the raw input does.", "bad" if last < raw else ""


def _plane_block(
    context: ReportContext,
    indices: Sequence[int],
    x: Tensor,
    maps: TsneMaps,
    accuracy: dict[str, float],
    neighbors: dict[str, Tensor],
) -> MapBlock:
    s, groups = context.survey, _color_groups(context, indices)
    layers = [
        LayerMap(
            _layer_title(context, m.path),
            f"10 nearest agree: {format_percent(accuracy[m.path])}" if accuracy else "",
            m.points,
            neighbors[m.path],
        )
        for m in maps.layers
    ]
    is_wrong = [s.is_correct is not None and not bool(s.is_correct[p]) for p in indices]
    facts = [context.answer_title(p) for p in indices], [", ".join(context.example_lines(p)[:-1]) for p in indices]
    caption = f"Map of {count_noun(len(indices), 'example')}"
    return MapBlock(
        "map-plane", layers, groups[0], groups[1], is_wrong, facts, [s.rows[p] for p in indices],
        f"{caption}, colored by {'label' if s.labels is not None else 'answer'}",
        "Point at a dot to see its example; click it to see what the layer holds to be nearest.",
        _help_text(context, any(is_wrong)), _atlas_data(context, x),
    )  # fmt: skip


def _help_text(context: ReportContext, has_mistakes: bool) -> str:
    """How to move about."""
    ringed = "Ringed dots are wrong answers. " if has_mistakes else ""
    return (
        f"{ringed}Drag to move; pinch, or click the map and turn the wheel, to zoom. Keys: arrows go from example to "
        "example, + and − zoom, 0 shows the whole map, Escape lets go."
    )


def _color_groups(context: ReportContext, indices: Sequence[int]) -> tuple[list[int], list[str]]:
    """The color class of each example and their names: labels, else answers; of many classes the largest by name."""
    s = context.survey
    if not s.exclusive_classes:
        return [0] * len(indices), ["all"]
    class_of_row = s.labels if s.labels is not None else s.answers
    classes = [int(class_of_row[p]) for p in indices]
    count = Counter(classes)
    colored_classes = sorted(
        k for k, _ in sorted(count.items(), key=lambda item: (-item[1], item[0]))[:MAX_COLORED_CLASSES]
    )
    index = {k: i for i, k in enumerate(colored_classes)}
    names = [context.class_name(k) for k in colored_classes] + ["other classes"] * (len(count) > len(colored_classes))
    return [index.get(k, len(colored_classes)) for k in classes], names


def _atlas_data(context: ReportContext, x: Tensor) -> dict[str, object] | None:
    if not context.has_images:
        return None
    image_atlas = make_atlas(x)
    source = context.pictures.encoded_source(image_atlas.content, image_atlas.kind)
    sizes = {
        "width": image_atlas.width,
        "height": image_atlas.height,
        "columns": image_atlas.columns,
        "hard": image_atlas.pixelated,
    }
    return {"src": source, **sizes}


def _map_files(context: ReportContext, x: Tensor, maps: TsneMaps, labels: Tensor | None) -> list[tuple[str, str]]:
    keep, last = context.pictures.save_file, maps.layers[-1]
    files = [(keep("map.png", drawn.scatters(maps, labels, context.survey.classes)), "the maps as a sheet")]
    if context.has_images:
        sampled = torch.tensor(draw.evenly_spaced(len(x), MAX_GRID_IMAGES))
        cell = min(32, max(16, max(x.shape[2:])))
        grid = drawn.image_grid(last.points[sampled.to(last.points.device)], x[sampled], cell=cell)
        files.append((keep("map-images.png", drawn.thumbnails(last.points, x, cell=cell)), "images at their places"))
        files.append((keep("map-grid.png", grid), "images on a grid"))
    return files


SECTION = Section("How does it sort the examples?", "map", build)
