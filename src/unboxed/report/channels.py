"""What does each channel look for? Feature visualizations, compared with real examples under other transforms."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.read.channel_axes import channels_first_layers
from ..errors import UnboxedWarning
from ..model.layers import Layer
from ..plots import colors, draw, image_sheet
from ..synthesis import Channels, channels
from . import chapters
from .blocks import Block, Caution, Collapsible, Figure, FigureGrid, FileLinks, Heading, MethodInterpretation, Paragraph
from .context import ReportContext, Section, require_uninterrupted
from .finding import METADATA_OF_FIELD_NOT_IN_JSON, CheckNote, Example, Finding, NotApplicable
from .pictures import PageFile, PageImage
from .words import count_noun, join_names_with_limit, layer_display_name

# Channels of the last layer with positions, of an earlier one, and steps of their images; the fullest first
CHANNEL_PLANS = ((16, 8, 160), (16, 8, 96), (8, 4, 96), (4, 2, 64), (3, 0, 48))
MAX_CHANNEL_FLOPS = 4e11  # of all images; a step takes three forward passes
MAX_EXAMPLES_COMPARED_WITH_IMAGES = 2000  # that the images are compared with
READ_BATCH_EXAMPLES = 256  # read at a time
N_RANDOM_TRANSFORMS = 16  # rotations, zooms and shifts of an image before it is compared
MAX_ROTATION_DEGREES, MAX_ZOOM_FRACTION, MAX_SHIFT_FRACTION = 10.0, 0.1, 0.07
FIGURE_SIDE_PIXELS = 84
NON_ACTIVATION_TYPE_PREFIXES = (
    "Conv",
    "Linear",
    "BatchNorm",
    "LayerNorm",
    "GroupNorm",
    "InstanceNorm",
    "Dropout",
    "Identity",
    "Pad",
)


@dataclass(frozen=True, eq=False)
class ChannelImages:
    """The images of one layer's channels, and the examples that activate them most; all are means over positions."""

    channels: list[int]  # (K,)
    times_best_example: Tensor  # (K,) activation of the image, over that of the best example; NaN where that is none
    is_above_best_example: Tensor  # (K,) bool
    examples: int  # among which the best was searched
    best_activation: Tensor = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # (K,) of the examples
    best_examples: dict[int, Example] = field(
        metadata=METADATA_OF_FIELD_NOT_IN_JSON
    )  # {i: that of the i-th channel}, of those that are above 0 at any position of any example
    images: Channels = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)
    layer: Layer = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)

    @property
    def dead_channels(self) -> list[int]:
        return [k for i, k in enumerate(self.channels) if i not in self.best_examples]


@dataclass(frozen=True, eq=False, kw_only=True)
class ChannelsFinding(Finding):
    """Images of channels, {layer: images}, the last layer with positions first."""

    layers: dict[str, ChannelImages]
    steps: int  # of each image


# -- find --------------------------------------------------------------------------------------------------------------


def find(context: ReportContext) -> ChannelsFinding:
    layers = _late_and_early_map_layers(context)
    if not layers:
        raise NotApplicable("No layer of this model is known to have channels with positions.")
    *counts, steps = _affordable_channel_plan(context)
    plan = [(layer, n) for layer, n in zip(layers, counts, strict=False) if n]
    found = [_make_compared_channel_images(context, layer, n, steps) for layer, n in plan]
    answer = _check_against_best_examples(found).text
    return ChannelsFinding(answer=answer, layers={c.images.layer: c for c in found}, steps=steps)


def _affordable_channel_plan(context: ReportContext) -> tuple[int, int, int]:
    """The fullest of CHANNEL_PLANS within MAX_CHANNEL_FLOPS, and the least where none is."""
    step_flops = 3 * context.forward_flops(1)
    fitting = (p for p in CHANNEL_PLANS if (p[0] + p[1]) * p[2] * step_flops <= MAX_CHANNEL_FLOPS)
    return next(fitting, CHANNEL_PLANS[-1])


def _late_and_early_map_layers(context: ReportContext) -> list[Layer]:
    """The last layer with positions, after its activation function, and one of the first half of the model."""
    rows = [r for r in channels_first_layers(context.box) if len(r.shape) == 3 and min(r.shape[1:]) > 1]
    nonlinear = [
        r for r in rows if not r.type.startswith(NON_ACTIVATION_TYPE_PREFIXES) and "Pool" not in r.type
    ] or rows
    if not nonlinear:
        return []
    return [nonlinear[-1]] if len(nonlinear) == 1 else [nonlinear[-1], nonlinear[(len(nonlinear) - 1) // 2]]


def _last_call_address(layer: Layer) -> str:
    return layer.addresses[-1]


def _make_compared_channel_images(context: ReportContext, layer: Layer, max_channels: int, steps: int) -> ChannelImages:
    address = _last_call_address(layer)
    units = draw.evenly_spaced_indices(layer.shape[0], max_channels)
    with warnings.catch_warnings():  # the page names the dead channels
        warnings.filterwarnings("ignore", ".* units seem dead", UnboxedWarning)
        images = require_uninterrupted(channels(context.box, address, units, steps=steps, seed=context.seed))
    best_activation, best_example, is_live, n_examples = _best_activations_and_examples(context, address, units)
    transformed = _randomly_transformed_images(images.images, context.seed)
    image_activations, _ = _spatial_means_and_peaks(context, transformed.flatten(0, 1), address, units)
    image_activation = image_activations.view(N_RANDOM_TRANSFORMS, len(units), len(units)).mean(0).diagonal()  # (K,)
    live = is_live.nonzero().flatten().tolist()
    examples = dict(zip(live, context.examples(best_example[live].tolist()), strict=True))
    ratio = torch.where(best_activation > 0, image_activation / best_activation, math.nan)
    is_above = image_activation > best_activation
    return ChannelImages(images.targets.tolist(), ratio, is_above, n_examples, best_activation, examples, images, layer)


def _spatial_means_and_peaks(
    context: ReportContext, x: Tensor, address: str, units: list[int]
) -> tuple[Tensor, Tensor]:
    """Means over positions and largest values of these channels, (N, K) each."""
    parts = [
        context.box.read(x[i : i + READ_BATCH_EXAMPLES], [address])[address][:, units].flatten(2)  # (N, K, positions)
        for i in range(0, len(x), READ_BATCH_EXAMPLES)
    ]
    return torch.cat([h.mean(2) for h in parts]).cpu(), torch.cat([h.amax(2) for h in parts]).cpu()


def _best_activations_and_examples(
    context: ReportContext, address: str, units: list[int]
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Of each channel the largest mean over positions, the example that has it, and whether any is above 0 anywhere;
    and among how many examples."""
    indices = draw.evenly_spaced_indices(len(context.survey.rows), MAX_EXAMPLES_COMPARED_WITH_IMAGES)
    parts = [indices[i : i + READ_BATCH_EXAMPLES] for i in range(0, len(indices), READ_BATCH_EXAMPLES)]
    found = [_spatial_means_and_peaks(context, context.inputs(part), address, units) for part in parts]
    means, peaks = (torch.cat(values) for values in zip(*found, strict=True))
    best, best_index = means.max(0)
    return best, torch.tensor(indices)[best_index], peaks.amax(0) > 0, len(indices)


def _randomly_transformed_images(x: Tensor, seed: int) -> Tensor:
    """Images (T, N, C, H, W) rotated, zoomed and shifted by whole pixels: other transforms than made them."""
    generator = torch.Generator().manual_seed(seed + 1)
    transformed = []
    for u in (2 * torch.rand(N_RANDOM_TRANSFORMS, 4, generator=generator) - 1).tolist():
        angle, zoom = math.radians(MAX_ROTATION_DEGREES) * u[0], 1 + MAX_ZOOM_FRACTION * u[1]
        offset = [round(MAX_SHIFT_FRACTION * side * v) for side, v in zip(x.shape[-2:], u[2:], strict=True)]
        matrix = x.new_tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]]) / zoom
        grid = F.affine_grid(matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False)
        image = F.grid_sample(_shift_repeating_edge(x, *offset), grid, padding_mode="border", align_corners=False)
        transformed.append(image.clamp(0, 1))
    return torch.stack(transformed)


def _shift_repeating_edge(x: Tensor, down: int, right: int) -> Tensor:
    """Shift by whole pixels; the edge is repeated."""
    h, w = x.shape[-2:]
    rows, columns = (torch.arange(s, device=x.device) for s in (h, w))
    return x[..., (rows - down).clamp(0, h - 1), :][..., (columns - right).clamp(0, w - 1)]


# -- show --------------------------------------------------------------------------------------------------------------


def show(finding: ChannelsFinding) -> list[Block]:
    layers = list(finding.layers.values())
    blocks: list[Block] = [MethodInterpretation.of(channels, *_check_against_best_examples(layers))]
    if finding.steps < CHANNEL_PLANS[0][-1]:
        text = f"To save time: fewer channels, and {finding.steps} steps instead of {CHANNEL_PLANS[0][-1]}. "
        blocks.append(Caution(text + "unboxed run channels makes images of any channel in full."))
    for layer in layers:
        blocks += _channel_layer_blocks(layer)
    name = layer_display_name(layers[0].images.layer)
    captions = [f"channel {k}" for k in layers[0].channels]
    sheet = image_sheet(layers[0].images, captions=captions, title=f"Channels of {name}")
    return [*blocks, FileLinks([PageFile("channels.png", sheet, f"the images of {name} as a sheet")])]


def _check_against_best_examples(layers: Sequence[ChannelImages]) -> CheckNote:
    n = sum(len(c.best_examples) for c in layers)
    if not n:
        return CheckNote("No example activates any of these channels, so there is nothing to compare the images with.")
    above = sum(bool(c.is_above_best_example[i]) for c in layers for i in c.best_examples)
    ratio = torch.cat([c.times_best_example for c in layers])
    ratio = ratio[~ratio.isnan()]
    median = f" (median {float(ratio.median()):.1f} times as much)" if len(ratio) else ""
    examples = count_noun(layers[0].examples, "example")
    text = (f"{above} of {n} generated images activate their channel more than the best of {examples} does, even "
            f"rotated, zoomed and shifted at random{median}.")  # fmt: skip
    return CheckNote(text, "good" if above == n else "" if 2 * above > n else "bad")


def _channel_layer_blocks(channel_images: ChannelImages) -> list[Block]:
    n_shown, (total, height, width) = len(channel_images.channels), channel_images.layer.shape
    count = f"all {total} channels" if n_shown == total else f"{n_shown} of {total} channels"
    positions = f"{channel_images.layer.type} of {height}×{width} positions"
    lead = f"{positions}, {count}; each image activates its channel at all of them."
    blocks: list[Block] = [Heading(layer_display_name(channel_images.images.layer)), Paragraph(lead, "soft")]
    if dead := [str(k) for k in channel_images.dead_channels]:
        names = f"{'channel' if len(dead) == 1 else 'channels'} {join_names_with_limit(dead)}"
        blocks.append(
            Caution(
                f"No example activates {names}: {'its image shows' if len(dead) == 1 else 'their images show'} little."
            )
        )
    blocks.append(FigureGrid([_channel_figure(channel_images, i) for i in range(n_shown)]))
    if not channel_images.best_examples:
        return blocks
    examples = [_best_example_figure(channel_images, i, example) for i, example in channel_images.best_examples.items()]
    return [*blocks, Collapsible("The examples that activate these channels most", [FigureGrid(examples)])]


def _channel_figure(channel_images: ChannelImages, index: int) -> Figure:
    k, is_above = channel_images.channels[index], bool(channel_images.is_above_best_example[index])
    is_dead, text = index not in channel_images.best_examples, _comparison_text(channel_images, index)
    picture = PageImage(
        colors.image_to_rgb(channel_images.images.images[index]),
        f"image of channel {k} of {layer_display_name(channel_images.images.layer)}; {text}",
        FIGURE_SIDE_PIXELS,
    )
    return Figure(picture, f"channel {k}", (text,), "" if is_dead or is_above else "bad")


def _comparison_text(channel_images: ChannelImages, index: int) -> str:
    if index not in channel_images.best_examples:
        return "no example activates\u00a0it"
    ratio = float(channel_images.times_best_example[index])
    if math.isnan(ratio):  # a mean below 0 is no measure: before an activation function
        return f"{'above' if channel_images.is_above_best_example[index] else 'below'} the best example"
    return f"{ratio:.1f}× the best example"


def _best_example_figure(channel_images: ChannelImages, index: int, example: Example) -> Figure:
    k, value = channel_images.channels[index], f"{float(channel_images.best_activation[index]):.3g}"
    layer = layer_display_name(channel_images.images.layer)
    alt = f"{example.name}, which activates channel {k} of {layer} most, {value}"
    picture = PageImage(colors.image_to_rgb(example.x), alt, FIGURE_SIDE_PIXELS)
    return Figure(picture, f"channel {k}", (example.name.replace(" ", "\u00a0"), f"mean {value}"))


SECTION = Section(
    "What does each channel look for?", "channels", find, show, needs=("pixels",), chapter=chapters.PICTURES
)
