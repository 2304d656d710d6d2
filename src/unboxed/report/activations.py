"""What does it see? The filters of the first layer, and the activations of every layer for two examples."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..activations import LayerMaps, filters, maps
from ..errors import LayerError
from ..plots import draw
from . import chapters
from .blocks import (
    Block,
    Caution,
    Collapsible,
    ColorScaleImages,
    Figure,
    FigureGrid,
    FileLinks,
    Heading,
    MethodInterpretation,
    Paragraph,
)
from .context import ReportContext, Section, is_equal_tensor
from .finding import Example, Finding, NotApplicable
from .pictures import PageFile, PageImage
from .words import count_noun, format_shape, layer_display_name

N_SHOWN_EXAMPLES = 2
MAX_SHOWN_LAYERS = 16  # whose activations are shown; deeper models are sampled evenly
MAX_SHOWN_FILTERS = 64
NO_CHECK_NEEDED_TEXT = "Nothing to check: these are the model's own numbers, colored."
LAYER_IMAGE_WIDTH_PIXELS = 500  # of a layer's image
FILTERS_IMAGE_WIDTH_PIXELS = 640


@dataclass(frozen=True, eq=False, kw_only=True)
class ActivationsFinding(Finding):
    """Filters of the first layer, and activations of sampled layers for the examples."""

    filters: Tensor | None  # (K, C, h, w); None where the model has none or its inputs are no images
    no_filters_reason: str
    examples: list[Example]
    layers: tuple[LayerMaps, ...]
    n_layers: int  # of the model
    channels_first: list[str]  # paths of the layers whose channels are on axis 1
    image_shape: tuple[int, ...] | None  # of the inputs, where they are images


def find(context: ReportContext) -> ActivationsFinding:
    weights, no_filters_reason = None, ""
    if context.has_images:
        try:
            weights = filters(context.box).weights
        except LayerError as error:
            no_filters_reason = f"No filters to show: {error}."
    indices = context.typical_and_ambiguous_indices(N_SHOWN_EXAMPLES)
    paths = _evenly_sampled_leaf_addresses(context)
    if not paths:
        raise NotApplicable("This model has no layers inside: what it sees is its input.")
    what = f"activations of {count_noun(len(paths), 'layer')} for {count_noun(len(indices), 'example')}."
    return ActivationsFinding(
        answer=f"The {what}" if weights is None else f"The filters of the first layer, and the {what}",
        filters=weights,
        no_filters_reason=no_filters_reason,
        examples=context.examples(indices),
        layers=maps(context.box, context.inputs(indices), paths),
        n_layers=len(context.box.layers.leaves),
        channels_first=sorted(context.channels_first),
        image_shape=context.box.inputs.shape if context.has_images else None,
    )


def _evenly_sampled_leaf_addresses(context: ReportContext) -> list[str]:
    """The leaves in the order in which they run, evenly sampled."""
    names = [r.addresses[0] for r in context.box.layers.leaves if r.shape and r.runs_per_example]
    return [names[i] for i in draw.evenly_spaced_indices(len(names), MAX_SHOWN_LAYERS)]


# -- show --------------------------------------------------------------------------------------------------------------


def show(finding: ActivationsFinding) -> list[Block]:
    return [*_filter_blocks(finding), *_activation_map_blocks(finding)]


def _filter_blocks(finding: ActivationsFinding) -> list[Block]:
    if finding.filters is None:
        return [Caution(finding.no_filters_reason)] if finding.no_filters_reason else []
    image, bar = draw.filter_grid(finding.filters, max_width=FILTERS_IMAGE_WIDTH_PIXELS)
    n_shown = min(MAX_SHOWN_FILTERS, len(finding.filters))
    alt = (
        f"{n_shown} filters of the first layer, {format_shape(finding.filters.shape[2:])} "
        f"each, from {bar.tick_labels[0]} to {bar.tick_labels[-1]}"
    )
    caption = f"{n_shown} of {len(finding.filters)} filters, {format_shape(finding.filters.shape[1:])} each, one scale"
    sheet = draw.filters(finding.filters, title="First-layer filters")
    return [
        Heading("Filters of the first layer"),
        MethodInterpretation.of(filters, NO_CHECK_NEEDED_TEXT),
        FigureGrid([Figure(PageImage(image, alt, None), "", (caption,))]),
        ColorScaleImages([bar]),
        FileLinks([PageFile("filters.png", sheet, "the filters as a sheet")]),
    ]


def _activation_map_blocks(finding: ActivationsFinding) -> list[Block]:
    blocks: list[Block] = [Heading("Activations of every layer"), MethodInterpretation.of(maps, NO_CHECK_NEEDED_TEXT)]
    if len(finding.layers) < finding.n_layers:
        blocks.append(
            Caution(f"{count_noun(len(finding.layers), 'layer')} of {finding.n_layers}, evenly spread over the depth.")
        )
    if len(finding.examples) > 1:
        blocks.append(
            Paragraph("Each layer has one scale for both examples, so their brightness can be compared.", "soft")
        )
    for i, example in enumerate(finding.examples):
        title = f"{example.heading}: {example.sentence}"
        title += f", label {example.label}" if example.label is not None else ""
        blocks.append(Collapsible(title, [_all_layers_activation_figures(finding, i)], open=i == 0))
    if finding.image_shape is not None:
        sheet = draw.activations(finding.layers, 0, title=f"Activations, {finding.examples[0].name}")
        blocks.append(FileLinks([PageFile("activations.png", sheet, "these maps as a sheet")]))
    return blocks


def _all_layers_activation_figures(finding: ActivationsFinding, example_index: int) -> FigureGrid:
    """The output of each layer; its input only where no layer above has shown it."""
    figures: list[Figure] = []
    previous: Tensor | None = None
    for layer in finding.layers:
        input_, output = layer.inputs[example_index], layer.outputs[example_index]
        if previous is None or not is_equal_tensor(input_.flatten(), previous.flatten()):
            figures.append(_layer_activation_figure(finding, layer, layer.inputs, example_index, "input"))
        if not is_equal_tensor(input_, output):  # dropout, identity: nothing new
            figures.append(_layer_activation_figure(finding, layer, layer.outputs, example_index, "output"))
        previous = output
    return FigureGrid(figures, two_per_row=True)


def _layer_activation_figure(
    finding: ActivationsFinding, layer: LayerMaps, all_maps: Tensor, example_index: int, input_or_output: str
) -> Figure:
    """Example i of a layer's activations (N, ...), on the scale of all examples."""
    h, bar = all_maps[example_index], draw.activation_color_bar(all_maps)
    if finding.image_shape is not None and h.ndim == 1 and h.numel() == math.prod(finding.image_shape):
        h = h.view(finding.image_shape)  # a flattened image
    image = draw.channel_map_grid(h, bar=bar, max_width=LAYER_IMAGE_WIDTH_PIXELS)
    is_channels_first = (
        h.ndim != 3 or input_or_output == "input" or layer.path.partition("#")[0] in finding.channels_first
    )
    size = (
        _layer_shape_text(h) if is_channels_first else f"{format_shape(h.shape)} values, row by row of the first axis"
    )
    span = f"{bar.tick_labels[0]} to {bar.tick_labels[-1]}"
    colored = "blue to red" if bar.kind == "signed" else "black to yellow"
    title = f"{layer_display_name(layer.path)} {input_or_output}"
    lines = (f"{layer.type}: {size}", f"scale {span} ({colored})")
    return Figure(PageImage(image, f"activation map: {title} {size}, from {span}", None), title, lines)


def _layer_shape_text(h: Tensor) -> str:
    if h.ndim != 3:
        part = (
            f"{draw.MAX_SHOWN_UNITS_WITHOUT_POSITIONS:,} of "
            if h.ndim == 1 and len(h) > draw.MAX_SHOWN_UNITS_WITHOUT_POSITIONS
            else ""
        )
        return part + count_noun(h.numel(), "unit")
    part = f"{draw.MAX_SHOWN_CHANNELS_PER_LAYER} of " if len(h) > draw.MAX_SHOWN_CHANNELS_PER_LAYER else ""
    return f"{part}{count_noun(len(h), 'channel')} of {format_shape(h.shape[1:])}"


SECTION = Section("What does it see?", "activations", find, show, chapter=chapters.KNOWLEDGE)
