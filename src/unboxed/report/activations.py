"""What does it see? The filters it looks through, and what every layer makes of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..activations import LayerMaps, filters, maps
from ..errors import LayerError
from ..plots import draw
from .blocks import Block, Figure, Figures, Files, Fold, Head, Method, Note, Scales, Text
from .context import Context, Section, same
from .words import many, size

EXAMPLES = 2
LAYERS = 16  # drawn; deeper models are sampled evenly
OWN = "Nothing to check: these are the model's own numbers, colored."
WIDE = 500  # pixels of a layer's picture


def build(context: Context) -> Sequence[Block]:
    blocks = _filters(context) if context.images else []
    return [*blocks, *_maps(context)]


def _filters(context: Context) -> list[Block]:
    try:
        weights = filters(context.box)
    except LayerError as error:
        return [Note(f"No filters to show: {error}.")]
    picture, bar = draw.filter_grid(weights, wide=640)
    shown = min(64, len(weights))
    alt = f"{shown} filters of the first layer, {size(weights.shape[2:])} each, from {bar.ends[0]} to {bar.ends[-1]}"
    path = context.pictures.keep("filters.png", draw.filters(weights, title="First-layer filters"))
    caption = [f"{shown} of {len(weights)} filters, {size(weights.shape[1:])} each, one scale"]
    return [
        Head("Filters of the first layer"),
        Method.of(filters, OWN),
        Figures([Figure(context.pictures.natural(picture, alt), "", tuple(caption))]),
        Scales([context.pictures.scale(bar)]),
        Files([(path, "the filters as a sheet")]),
    ]


def _maps(context: Context) -> list[Block]:
    places = list(dict.fromkeys([*context.survey.typical[:1], *context.survey.undecided[:1]]))[:EXAMPLES]
    paths = _paths(context)
    found = maps(context.box, context.inputs(places), paths)
    blocks: list[Block] = [Head("What every layer makes of an example"), Method.of(maps, OWN)]
    left = len(context.box.layers.leaves) - len(paths)
    if left > 0:
        blocks.append(Note(f"{many(len(paths), 'layer')} of {len(paths) + left}, evenly spread over the depth."))
    if len(places) > 1:
        blocks.append(Text("A layer has one scale for both examples, so their brightness compares.", "soft"))
    for i, place in enumerate(places):
        title = f"Example {context.survey.rows[place]}: {context.told(place)}"
        label = context.label(place)
        title += f", label {label}" if label is not None else ""
        blocks.append(Fold(title, [_layers(context, found, i)], open=i == 0))
    if context.images:
        sheet = draw.activations(found, 0, title=f"Activations, example {context.survey.rows[places[0]]}")
        blocks.append(Files([(context.pictures.keep("activations.png", sheet), "these maps as a sheet")]))
    return blocks


def _paths(context: Context) -> list[str]:
    """The leaves in the order in which they run, evenly sampled."""
    rows = [r for r in context.box.layers.leaves if r.shape]
    names = [r.addresses[0] for r in rows]
    return [names[i] for i in draw.spread(len(names), LAYERS)]


def _layers(context: Context, found: Sequence[LayerMaps], i: int) -> Figures:
    """What each layer gave; what it received is drawn only where no layer above has drawn it."""
    figures: list[Figure] = []
    before: Tensor | None = None
    for layer in found:
        received, given = layer.received[i], layer.given[i]
        if before is None or not same(received.flatten(), before.flatten()):
            figures.append(_figure(context, layer, layer.received, i, "received"))
        if not same(received, given):  # dropout, identity: nothing new
            figures.append(_figure(context, layer, layer.given, i, "gave"))
        before = given
    return Figures(figures, halves=True)


def _figure(context: Context, layer: LayerMaps, every: Tensor, i: int, verb: str) -> Figure:
    """Example i of a layer's activations (N, ...), on the scale of all examples."""
    h, bar = every[i], draw.activation_bar(every)
    if h.ndim == 1 and h.numel() == math.prod(context.box.inputs.shape) and context.images:
        h = h.view(context.box.inputs.shape)  # a flattened image
    picture = draw.channels(h, bar=bar, wide=WIDE)
    first = h.ndim != 3 or verb == "received" or layer.path.partition("#")[0] in context.channels_first
    told = _size(h) if first else f"{size(h.shape)} values, drawn row by row of its first axis"
    what = f"{layer.path} {verb} {told}"
    colored = "blue to red" if bar.kind == "signed" else "black to yellow"
    span = f"{bar.ends[0]} to {bar.ends[-1]}"
    alt = f"activation map: {what}, from {span}"
    lines = (f"{layer.type}: {told}", f"scale {span} ({colored})")
    return Figure(context.pictures.natural(picture, alt), f"{layer.path} {verb}", lines)


def _size(h: Tensor) -> str:
    if h.ndim != 3:
        part = f"{draw.UNITS:,} of " if h.ndim == 1 and len(h) > draw.UNITS else ""
        return part + many(h.numel(), "unit")
    part = f"{draw.MOST} of " if len(h) > draw.MOST else ""
    return f"{part}{many(len(h), 'channel')} of {size(h.shape[1:])}"


SECTION = Section("What does it see?", "sees", build)
