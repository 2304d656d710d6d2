"""What does it see? The filters it looks through, and what every layer makes of an image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..activations import LayerMaps, filters, maps
from ..errors import LayerError
from ..plots import draw
from ..plots.sheet import Bar
from .blocks import Block, Case, Figure, Figures, Files, Fold, Head, Method, Note, Scales
from .context import Context, Section, same
from .words import many, size

EXAMPLES = 2
LAYERS = 16  # drawn; deeper nets are sampled evenly
WIDE = 460  # pixels of a layer's picture


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
    alt = f"{shown} filters of the first layer, {size(weights.shape[2:])} weights each, from {bar.ends[0]} to {bar.ends[-1]}"
    path = context.pictures.keep("filters.png", draw.filters(weights, title="First-layer filters"))
    caption = [f"{shown} of {len(weights)} filters, {size(weights.shape[1:])} each, one scale"]
    return [
        Head("Filters of the first layer"),
        Method(filters.card),  # type: ignore[attr-defined]
        Figures([Figure(context.pictures.natural(picture, alt), "", tuple(caption))]),
        Scales([context.pictures.scale(bar)]),
        Files([(path, "the filters as a sheet")]),
    ]


def _maps(context: Context) -> list[Block]:
    places = list(dict.fromkeys([*context.survey.typical[:1], *context.survey.undecided[:1]]))[:EXAMPLES]
    x = context.inputs(places)
    paths = _paths(context)
    found = maps(context.box, x, paths)
    blocks: list[Block] = [Head("What every layer makes of an image" if context.images else "What every layer makes of an example")]
    blocks.append(Method(maps.card))  # type: ignore[attr-defined]
    left = len(context.box.layers.leaves) - len(paths)
    if left > 0:
        blocks.append(Note(f"{many(len(paths), 'layer')} of {len(paths) + left}, evenly spread over the depth."))
    for i, place in enumerate(places):
        rows = _layers(context, found, x, i)
        title = f"Example {context.survey.rows[place]}: says {context.says(place)}"
        label = context.label(place)
        blocks.append(Fold(title + (f", label {label}" if label is not None else ""), rows, open=i == 0))
    if context.images:
        sheet = draw.activations(found, 0, title=f"Activations, example {context.survey.rows[places[0]]}")
        blocks.append(Files([(context.pictures.keep("activations.png", sheet), "these maps as a sheet")]))
    return blocks


def _paths(context: Context) -> list[str]:
    """The leaves in the order in which they run, evenly sampled."""
    rows = [r for r in context.box.layers.leaves if r.shape]
    names = [r.path if r.calls == 1 else f"{r.path}#0" for r in rows]
    return [names[i] for i in draw.spread(len(names), LAYERS)]


def _layers(context: Context, found: Sequence[LayerMaps], x: Tensor, i: int) -> list[Block]:
    """One row a layer. What was received is drawn only where no layer above has drawn it."""
    blocks: list[Block] = []
    before: Tensor | None = None
    for layer in found:
        received, given = layer.received[i], layer.given[i]
        title = (f"{layer.type}, {size(given.shape)}",)
        if same(received, given):
            blocks.append(Case(layer.path, (*title, "passes on what it received"), []))
            continue
        figures = []
        if before is None or not same(received.flatten(), before.flatten()):
            figures.append(_figure(context, received, f"{layer.path} received"))
        figures.append(_figure(context, given, f"{layer.path} gave"))
        blocks.append(Case(layer.path, title, figures))
        before = given
    return blocks


def _figure(context: Context, h: Tensor, what: str) -> Figure:
    bar: Bar = draw.activation_bar(h)
    picture = draw.channels(h, wide=WIDE)
    shown = f"{min(len(h), draw.MOST)} of {len(h)} channels" if h.ndim == 3 else many(h.numel(), "unit")
    span = f"{bar.ends[0]} to {bar.ends[-1]}"
    colored = "blue to red" if bar.kind == "signed" else "black to yellow"
    alt = f"activation map: {what} {shown}, from {span}"
    return Figure(context.pictures.natural(picture, alt), what.rsplit(" ", 1)[-1], (f"{shown}, {span} ({colored})",))


SECTION = Section("What does it see?", "sees", build)
