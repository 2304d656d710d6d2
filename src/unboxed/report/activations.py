"""What does it see? The filters it looks through, and what every layer makes of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..activations import LayerMaps, filters, maps
from ..errors import LayerError
from ..plots import draw
from .blocks import Block, ColorScales, Figure, FigureGrid, Files, Fold, Heading, MethodNote, Note, Text
from .context import ReportContext, Section, tensors_equal
from .words import count_noun, format_shape

N_EXAMPLES = 2
MAX_LAYERS = 16  # drawn; deeper models are sampled evenly
VERDICT_TEXT = "Nothing to check: these are the model's own numbers, colored."
WIDTH_PIXELS = 500  # pixels of a layer's picture


def build(context: ReportContext) -> Sequence[Block]:
    blocks = _filter_blocks(context) if context.has_images else []
    return [*blocks, *_map_blocks(context)]


def _filter_blocks(context: ReportContext) -> list[Block]:
    try:
        weights = filters(context.box)
    except LayerError as error:
        return [Note(f"No filters to show: {error}.")]
    image, bar = draw.filter_grid(weights, max_width=640)
    n_shown = min(64, len(weights))
    alt = (
        f"{n_shown} filters of the first layer, {format_shape(weights.shape[2:])} "
        f"each, from {bar.tick_labels[0]} to {bar.tick_labels[-1]}"
    )
    path = context.pictures.save_file("filters.png", draw.filters(weights, title="First-layer filters"))
    caption = [f"{n_shown} of {len(weights)} filters, {format_shape(weights.shape[1:])} each, one scale"]
    return [
        Heading("Filters of the first layer"),
        MethodNote.of(filters, VERDICT_TEXT),
        FigureGrid([Figure(context.pictures.full_size(image, alt), "", tuple(caption))]),
        ColorScales([context.pictures.color_scale(bar)]),
        Files([(path, "the filters as a sheet")]),
    ]


def _map_blocks(context: ReportContext) -> list[Block]:
    indices = list(dict.fromkeys([*context.survey.typical[:1], *context.survey.by_margin[:1]]))[:N_EXAMPLES]
    paths = _sampled_layers(context)
    layer_maps = maps(context.box, context.inputs(indices), paths)
    blocks: list[Block] = [Heading("What every layer makes of an example"), MethodNote.of(maps, VERDICT_TEXT)]
    n_omitted = len(context.box.layers.leaves) - len(paths)
    if n_omitted > 0:
        blocks.append(
            Note(f"{count_noun(len(paths), 'layer')} of {len(paths) + n_omitted}, evenly spread over the depth.")
        )
    if len(indices) > 1:
        blocks.append(Text("A layer has one scale for both examples, so their brightness compares.", "soft"))
    for i, index in enumerate(indices):
        title = f"Example {context.survey.rows[index]}: {context.answer_sentence(index)}"
        label = context.label_name(index)
        title += f", label {label}" if label is not None else ""
        blocks.append(Fold(title, [_layer_figures(context, layer_maps, i)], open=i == 0))
    if context.has_images:
        sheet = draw.activations(layer_maps, 0, title=f"Activations, example {context.survey.rows[indices[0]]}")
        blocks.append(Files([(context.pictures.save_file("activations.png", sheet), "these maps as a sheet")]))
    return blocks


def _sampled_layers(context: ReportContext) -> list[str]:
    """The leaves in the order in which they run, evenly sampled."""
    rows = [r for r in context.box.layers.leaves if r.shape]
    names = [r.addresses[0] for r in rows]
    return [names[i] for i in draw.evenly_spaced(len(names), MAX_LAYERS)]


def _layer_figures(context: ReportContext, layer_maps: Sequence[LayerMaps], i: int) -> FigureGrid:
    """What each layer gave; what it received is drawn only where no layer above has drawn it."""
    figures: list[Figure] = []
    previous: Tensor | None = None
    for layer in layer_maps:
        input_, output = layer.inputs[i], layer.outputs[i]
        if previous is None or not tensors_equal(input_.flatten(), previous.flatten()):
            figures.append(_figure(context, layer, layer.inputs, i, "received"))
        if not tensors_equal(input_, output):  # dropout, identity: nothing new
            figures.append(_figure(context, layer, layer.outputs, i, "gave"))
        previous = output
    return FigureGrid(figures, two_per_row=True)


def _figure(context: ReportContext, layer: LayerMaps, all_maps: Tensor, i: int, verb: str) -> Figure:
    """Example i of a layer's activations (N, ...), on the scale of all examples."""
    h, bar = all_maps[i], draw.activation_bar(all_maps)
    if h.ndim == 1 and h.numel() == math.prod(context.box.inputs.shape) and context.has_images:
        h = h.view(context.box.inputs.shape)  # a flattened image
    image = draw.channel_maps(h, bar=bar, max_width=WIDTH_PIXELS)
    is_channels_first = h.ndim != 3 or verb == "received" or layer.path.partition("#")[0] in context.channels_first
    size_text = (
        _size_text(h) if is_channels_first else f"{format_shape(h.shape)} values, drawn row by row of its first axis"
    )
    title = f"{layer.path} {verb} {size_text}"
    colored = "blue to red" if bar.kind == "signed" else "black to yellow"
    span = f"{bar.tick_labels[0]} to {bar.tick_labels[-1]}"
    alt = f"activation map: {title}, from {span}"
    lines = (f"{layer.type}: {size_text}", f"scale {span} ({colored})")
    return Figure(context.pictures.full_size(image, alt), f"{layer.path} {verb}", lines)


def _size_text(h: Tensor) -> str:
    if h.ndim != 3:
        part = f"{draw.MAX_UNITS:,} of " if h.ndim == 1 and len(h) > draw.MAX_UNITS else ""
        return part + count_noun(h.numel(), "unit")
    part = f"{draw.MAX_CHANNELS} of " if len(h) > draw.MAX_CHANNELS else ""
    return f"{part}{count_noun(len(h), 'channel')} of {format_shape(h.shape[1:])}"


SECTION = Section("What does it see?", "sees", build)
