"""How does it sort the examples? A map of each layer that one can move about in, and each example's neighbors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ..activations import Maps, nearest_neighbors, tsne
from ..plots import draw
from ..plots import map as drawn
from .blocks import Block, Files, Method, Note, Text
from .context import Context, Section
from .plane import Layer, Plane, atlas
from .words import many, percent

POINTS = 1000  # of the survey that are mapped
LEAST = 6  # examples that make a map
NEAR = 6  # neighbors that are shown
CLASSES = 20  # with colors of their own
SHEET = 900  # images of the grid


def build(context: Context, points: int = POINTS) -> Sequence[Block]:
    places = draw.spread(len(context.survey.rows), points)
    if len(places) < LEAST:
        return [Note(f"A map needs at least {LEAST} examples; the data have {len(places)}.")]
    x = context.inputs(places)
    maps = tsne(context.box, x)
    context.interrupted |= maps.interrupted
    labels = _labels(context, places)
    accuracy = maps.accuracy(labels) if labels is not None else {}
    context.facts["map"] = {"examples": len(places), "neighbors_agree": accuracy}
    blocks: list[Block] = [Text(_lead(context, accuracy)), Method.of(tsne, *_verdict(maps, accuracy))]
    if len(places) < len(context.survey.rows):
        blocks.append(Note(f"{len(places):,} of {len(context.survey.rows):,} examples, evenly spread."))
    near = _near(context, x, maps)
    blocks.append(_plane(context, places, x, maps, accuracy, near))
    return [*blocks, Files(_files(context, x, maps, labels)), Method.of(nearest_neighbors, _alike(near, labels))]


def _near(context: Context, x: Tensor, maps: Maps) -> dict[str, Tensor]:
    """{layer: the nearest others of each example (N, k)}."""
    k = min(NEAR, len(x) - 1)
    found = {m.path: nearest_neighbors(context.box, x, None, m.path, k=k).indices for m in maps.layers}
    return {path: indices.cpu() for path, indices in found.items()}


def _alike(near: dict[str, Tensor], labels: Tensor | None) -> str:
    """How many of the neighbors bear the same label."""
    if labels is None or len(near) < 2:
        return ""
    shares = [percent(float((labels[i] == labels[:, None]).double().mean())) for i in near.values()]
    k = next(iter(near.values())).shape[1]
    return (
        f"Of the {k} nearest in the last hidden layer {shares[-1]} bear the example's label; in the input {shares[0]}."
    )


def _labels(context: Context, places: Sequence[int]) -> Tensor | None:
    labels = context.survey.labels
    return labels[list(places)] if labels is not None and context.survey.named else None


def _name(context: Context, path: str) -> str:
    if path == "input":
        return "Raw pixels" if context.images else "Raw features"
    before, _, call = path.partition(":input")
    return f"Before {before}{call}"


def _lead(context: Context, accuracy: dict[str, float]) -> str:
    lead = "Each dot is an example; the model's layers bring together what they hold to be alike."
    if len(accuracy) < 2:
        return lead
    raw, last = (percent(accuracy[a]) for a in ("input", list(accuracy)[-1]))
    what = _name(context, "input").lower()
    return (
        f"{lead} Asked for its label, the 10 nearest dots of an example are right for {raw} in the map of the {what}, "
        f"and for {last} in that of the last hidden layer."
    )


def _verdict(maps: Maps, accuracy: dict[str, float]) -> tuple[str, str]:
    if len(accuracy) < 2:
        return "", ""
    raw, last = accuracy["input"], list(accuracy.values())[-1]
    points = f"{100 * abs(last - raw):.1f} points"
    if last > raw:
        return f"The last hidden layer sorts the labels {points} better than the raw input does.", "good"
    worse = f"{points} worse than" if last < raw else "just as well as"
    return f"The last hidden layer sorts the labels {worse} the raw input does.", "bad" if last < raw else ""


def _plane(
    context: Context, places: Sequence[int], x: Tensor, maps: Maps, accuracy: dict[str, float], near: dict[str, Tensor]
) -> Plane:
    s, groups = context.survey, _groups(context, places)
    layers = [
        Layer(
            _name(context, m.path),
            f"10 nearest agree: {percent(accuracy[m.path])}" if accuracy else "",
            m.points,
            near[m.path],
        )
        for m in maps.layers
    ]
    wrong = [s.right is not None and not bool(s.right[p]) for p in places]
    facts = [context.title(p) for p in places], [", ".join(context.facts_of(p)[:-1]) for p in places]
    many_dots = f"Map of {many(len(places), 'example')}"
    return Plane(
        "map-plane", layers, groups[0], groups[1], wrong, facts, [s.rows[p] for p in places],
        f"{many_dots}, colored by {'label' if s.labels is not None else 'answer'}",
        "Point at a dot to see its example; click it to see what the layer holds to be nearest.",
        _help(context, any(wrong)), _pictures(context, x),
    )  # fmt: skip


def _help(context: Context, mistakes: bool) -> str:
    """How to move about."""
    ringed = "Ringed dots are wrong answers. " if mistakes else ""
    return (
        f"{ringed}Drag to move; pinch, or click the map and turn the wheel, to zoom. Keys: arrows go from example to "
        "example, + and − zoom, 0 shows the whole map, Escape lets go."
    )


def _groups(context: Context, places: Sequence[int]) -> tuple[list[int], list[str]]:
    """The color class of each example and their names: labels, else answers; of many classes the largest by name."""
    s = context.survey
    if not s.named:
        return [0] * len(places), ["all"]
    of = s.labels if s.labels is not None else s.answers
    own = [int(of[p]) for p in places]
    count = Counter(own)
    kept = sorted(k for k, _ in sorted(count.items(), key=lambda item: (-item[1], item[0]))[:CLASSES])
    index = {k: i for i, k in enumerate(kept)}
    names = [context.name(k) for k in kept] + ["other classes"] * (len(count) > len(kept))
    return [index.get(k, len(kept)) for k in own], names


def _pictures(context: Context, x: Tensor) -> dict[str, object] | None:
    if not context.images:
        return None
    made = atlas(x)
    source = context.pictures.raw(made.content, made.kind)
    sizes = {"width": made.width, "height": made.height, "columns": made.columns, "hard": made.hard}
    return {"src": source, **sizes}


def _files(context: Context, x: Tensor, maps: Maps, labels: Tensor | None) -> list[tuple[str, str]]:
    keep, last = context.pictures.keep, maps.layers[-1]
    files = [(keep("map.png", drawn.scatters(maps, labels, context.survey.classes)), "the maps as a sheet")]
    if context.images:
        some = torch.tensor(draw.spread(len(x), SHEET))
        cell = min(32, max(16, max(x.shape[2:])))
        grid = drawn.grid(last.points[some.to(last.points.device)], x[some], cell=cell)
        files.append((keep("map-images.png", drawn.thumbnails(last.points, x, cell=cell)), "images at their places"))
        files.append((keep("map-grid.png", grid), "images on a grid"))
    return files


SECTION = Section("How does it sort the examples?", "map", build)
