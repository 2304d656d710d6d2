"""What does each channel look for? Drawings, checked against real examples under transforms of their own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from ..engine.read.channel_axes import channels_first_layers
from ..errors import UnboxedWarning
from ..model.layers import Layer
from ..plots import colors, draw, image_sheet
from ..synthesis import Channels, channels
from .blocks import Block, Figure, FigureGrid, Files, Fold, Heading, MethodNote, Note, Text
from .context import ReportContext, Section
from .words import count_noun, join_names

MAX_LATE_CHANNELS, MAX_EARLY_CHANNELS = 16, 8  # channels drawn of the last layer with positions, and of an earlier one
MAX_EXAMPLES = 2000  # examples that the drawings are compared with
READ_BATCH_SIZE = 256  # read at a time
OPTIMIZATION_STEPS = 160
N_TRANSFORMS = 16  # by which a drawing is turned, zoomed and shifted before it is compared
MAX_ROTATION_DEGREES, MAX_ZOOM, MAX_SHIFT = 10.0, 0.1, 0.07
FIGURE_PIXELS = 84
LINEAR_LAYER_TYPES = (
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
    """The drawings of one layer beside the examples that excite its channels most; all are means over positions."""

    images: Channels
    best_activation: Tensor  # (K,) of the examples
    best_example: Tensor  # (K,) its place in the survey
    image_activation: Tensor  # (K,) of the drawing, mean over the turns
    n_examples: int

    @property
    def ratio(self) -> Tensor:
        """How many times as much as the best example the drawing excites its channel; NaN where none excites it."""
        return torch.where(self.best_activation > 0, self.image_activation / self.best_activation, math.nan)

    @property
    def is_live(self) -> Tensor:
        return self.best_activation > 0


def build(context: ReportContext) -> Sequence[Block]:
    layers = _chosen_layers(context)
    if not layers:
        return [Note("This model has no layer that surely has channels with positions: there is no texture to draw.")]
    all_channels = [
        _optimize_channels(context, layer, max_channels)
        for layer, max_channels in zip(layers, (MAX_LATE_CHANNELS, MAX_EARLY_CHANNELS), strict=False)
    ]
    blocks: list[Block] = [MethodNote.of(channels, *_verdict_text(all_channels))]
    for layer, layer_channels in zip(layers, all_channels, strict=True):
        blocks += _layer_blocks(context, layer, layer_channels)
    context.facts["channels"] = {found.images.layer: _channel_facts(found) for found in all_channels}
    path = context.pictures.save_file("channels.png", _channel_sheet(all_channels[0]))
    return [*blocks, Files([(path, f"the drawings of {all_channels[0].images.layer} as a sheet")])]


def _chosen_layers(context: ReportContext) -> list[Layer]:
    """The last layer with positions, after its clamp where it has one, and one of the first half of the model."""
    rows = [r for r in channels_first_layers(context.box) if len(r.shape) == 3 and min(r.shape[1:]) > 1]
    nonlinear = [r for r in rows if not r.type.startswith(LINEAR_LAYER_TYPES) and "Pool" not in r.type] or rows
    if not nonlinear:
        return []
    return [nonlinear[-1]] if len(nonlinear) == 1 else [nonlinear[-1], nonlinear[(len(nonlinear) - 1) // 2]]


def _address(layer: Layer) -> str:
    return layer.addresses[-1]


def _optimize_channels(context: ReportContext, layer: Layer, max_channels: int) -> ChannelImages:
    address = _address(layer)
    units = draw.evenly_spaced(layer.shape[0], max_channels)
    with warnings.catch_warnings():  # told beside the drawings
        warnings.filterwarnings("ignore", ".* units seem dead", UnboxedWarning)
        images = channels(context.box, address, units, steps=OPTIMIZATION_STEPS, seed=context.seed)
    if images.interrupted:  # half-drawn images would mislead
        raise KeyboardInterrupt
    best_activation, best_example, n_examples = _best_examples(context, address, units)
    transformed = _random_transforms(images.images, context.seed)
    image_activation = _mean_activations(context, transformed.flatten(0, 1), address)[:, units].view(
        N_TRANSFORMS, len(units), len(units)
    )
    return ChannelImages(images, best_activation, best_example, image_activation.mean(0).diagonal(), n_examples)


def _mean_activations(context: ReportContext, x: Tensor, address: str) -> Tensor:
    """Means over positions, (N, C)."""
    parts = [
        context.box.read(x[i : i + READ_BATCH_SIZE], [address])[address] for i in range(0, len(x), READ_BATCH_SIZE)
    ]
    return torch.cat([h.flatten(2).mean(2) for h in parts]).cpu()


def _best_examples(context: ReportContext, address: str, units: list[int]) -> tuple[Tensor, Tensor, int]:
    """What the examples excite each channel at most, which does, and among how many."""
    indices = draw.evenly_spaced(len(context.survey.rows), MAX_EXAMPLES)
    parts = [indices[i : i + READ_BATCH_SIZE] for i in range(0, len(indices), READ_BATCH_SIZE)]
    values = torch.cat([_mean_activations(context, context.inputs(part), address)[:, units] for part in parts])
    best, best_index = values.max(0)
    return best, torch.tensor(indices)[best_index], len(indices)


def _random_transforms(x: Tensor, seed: int) -> Tensor:
    """Images (TURNS, N, C, H, W) turned, zoomed and shifted by whole pixels: not the transforms that drew them."""
    generator = torch.Generator().manual_seed(seed + 1)
    transformed = []
    for u in (2 * torch.rand(N_TRANSFORMS, 4, generator=generator) - 1).tolist():
        angle, zoom = math.radians(MAX_ROTATION_DEGREES) * u[0], 1 + MAX_ZOOM * u[1]
        offset = [round(MAX_SHIFT * side * v) for side, v in zip(x.shape[-2:], u[2:], strict=True)]
        matrix = x.new_tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]]) / zoom
        grid = F.affine_grid(matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False)
        image = F.grid_sample(_shift(x, *offset), grid, padding_mode="border", align_corners=False)
        transformed.append(image.clamp(0, 1))
    return torch.stack(transformed)


def _shift(x: Tensor, down: int, right: int) -> Tensor:
    """By whole pixels; the edge is repeated."""
    h, w = x.shape[-2:]
    rows, columns = (torch.arange(s, device=x.device) for s in (h, w))
    return x[..., (rows - down).clamp(0, h - 1), :][..., (columns - right).clamp(0, w - 1)]


# -- words and pictures ----------------------------------------------------------------------


def _verdict_text(all_channels: Sequence[ChannelImages]) -> tuple[str, str]:
    ratio = torch.cat([f.ratio[f.is_live] for f in all_channels])
    if not len(ratio):
        return "No example excites any of these channels, so there is nothing to compare the drawings with.", ""
    above = int((ratio > 1).sum())
    text = (f"Turned, zoomed and shifted at random anew, {above} of {len(ratio)} drawings still excite their channel "
            f"more than the best of {count_noun(all_channels[0].n_examples, 'example')} does as it is "
            f"(median {float(ratio.median()):.1f} times as much).")  # fmt: skip
    return text, "good" if above == len(ratio) else "" if 2 * above > len(ratio) else "bad"


def _layer_blocks(context: ReportContext, layer: Layer, layer_channels: ChannelImages) -> list[Block]:
    path = layer_channels.images.layer
    n_shown, total = len(layer_channels.best_activation), layer.shape[0]
    count = f"all {total} channels" if n_shown == total else f"{n_shown} of {total} channels"
    lead = f"{layer.type} of {layer.shape[1]}×{layer.shape[2]} positions, {count}; each drawn to excite it everywhere."
    blocks: list[Block] = [Heading(path), Text(lead, "soft")]
    units = layer_channels.images.targets.tolist()
    if dead := [str(k) for k, live in zip(units, layer_channels.is_live.tolist(), strict=True) if not live]:
        rest = "what is drawn for it tells little" if len(dead) == 1 else "what is drawn for them tells little"
        blocks.append(
            Note(f"No example excites {'channel' if len(dead) == 1 else 'channels'} {join_names(dead)}: {rest}.")
        )
    blocks.append(FigureGrid([_channel_figure(context, layer_channels, i) for i in range(n_shown)]))
    live = layer_channels.is_live.nonzero().flatten().tolist()
    if not live:
        return blocks
    inputs = context.inputs(layer_channels.best_example[live].tolist())
    examples = [_example_figure(context, layer_channels, i, x) for i, x in zip(live, inputs, strict=True)]
    return [*blocks, Fold("The examples that excite these channels most", [FigureGrid(examples)])]


def _channel_figure(context: ReportContext, layer_channels: ChannelImages, i: int) -> Figure:
    k, ratio = int(layer_channels.images.targets[i]), float(layer_channels.ratio[i])
    text = "no example excites\u00a0it" if math.isnan(ratio) else f"{ratio:.1f}× the best example"
    alt = f"drawn for channel {k} of {layer_channels.images.layer}; {text}"
    tone = "" if math.isnan(ratio) or ratio > 1 else "bad"
    return Figure(
        context.pictures.inline(colors.image_to_rgb(layer_channels.images.images[i]), alt, FIGURE_PIXELS),
        f"channel {k}",
        (text,),
        tone,
    )


def _example_figure(context: ReportContext, layer_channels: ChannelImages, i: int, x: Tensor) -> Figure:
    k, index = int(layer_channels.images.targets[i]), int(layer_channels.best_example[i])
    row, value = context.survey.rows[index], f"{float(layer_channels.best_activation[i]):.3g}"
    alt = f"example {row}, which excites channel {k} of {layer_channels.images.layer} most, {value}"
    picture = context.pictures.inline(colors.image_to_rgb(x), alt, FIGURE_PIXELS)
    return Figure(picture, f"channel {k}", (f"example\u00a0{row}", f"mean {value}"))


def _channel_sheet(layer_channels: ChannelImages) -> Image:
    captions = [f"channel {k}" for k in layer_channels.images.targets.tolist()]
    return image_sheet(layer_channels.images, captions=captions, title=f"Channels of {layer_channels.images.layer}")


def _channel_facts(layer_channels: ChannelImages) -> dict[str, object]:
    ratios = [None if math.isnan(r) else round(r, 3) for r in layer_channels.ratio.tolist()]
    return {
        "channels": layer_channels.images.targets.tolist(),
        "times_best_example": ratios,
        "examples": layer_channels.n_examples,
    }


SECTION = Section("What does each channel look for?", "channels", build, needs=("pixels",))
