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

from ..engine.read.channel_axes import channels_first
from ..errors import UnboxedWarning
from ..model.layers import Layer
from ..plots import colors, draw, drawings
from ..synthesis import Channels, channels
from .blocks import Block, Figure, Figures, Files, Fold, Head, Method, Note, Text
from .context import Context, Section
from .words import listed, many

LATE, EARLY = 16, 8  # channels drawn of the last layer with positions, and of an earlier one
MOST = 2000  # examples that the drawings are compared with
PART = 256  # read at a time
STEPS = 160
TURNS = 16  # by which a drawing is turned, zoomed and shifted before it is compared
DEGREES, ZOOM, SHIFT = 10.0, 0.1, 0.07
SIDE = 84
LINEAR = ("Conv", "Linear", "BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "Dropout", "Identity", "Pad")


@dataclass(frozen=True, eq=False)
class Found:
    """The drawings of one layer beside the examples that excite its channels most; all are means over positions."""

    drawn: Channels
    best: Tensor  # (K,) of the examples
    example: Tensor  # (K,) its place in the survey
    held: Tensor  # (K,) of the drawing, mean over the turns
    examples: int

    @property
    def ratio(self) -> Tensor:
        """How many times as much as the best example the drawing excites its channel; NaN where none excites it."""
        return torch.where(self.best > 0, self.held / self.best, math.nan)

    @property
    def live(self) -> Tensor:
        return self.best > 0


def build(context: Context) -> Sequence[Block]:
    layers = _layers(context)
    if not layers:
        return [Note("This model has no layer that surely has channels with positions: there is no texture to draw.")]
    made = [_found(context, layer, most) for layer, most in zip(layers, (LATE, EARLY), strict=False)]
    blocks: list[Block] = [Method.of(channels, *_verdict(made))]
    for layer, found in zip(layers, made, strict=True):
        blocks += _blocks(context, layer, found)
    context.facts["channels"] = {found.drawn.layer: _facts(found) for found in made}
    path = context.pictures.keep("channels.png", _sheet(made[0]))
    return [*blocks, Files([(path, f"the drawings of {made[0].drawn.layer} as a sheet")])]


def _layers(context: Context) -> list[Layer]:
    """The last layer with positions, after its clamp where it has one, and one of the first half of the model."""
    rows = [r for r in channels_first(context.box) if len(r.shape) == 3 and min(r.shape[1:]) > 1]
    bent = [r for r in rows if not r.type.startswith(LINEAR) and "Pool" not in r.type] or rows
    if not bent:
        return []
    return [bent[-1]] if len(bent) == 1 else [bent[-1], bent[(len(bent) - 1) // 2]]


def _address(layer: Layer) -> str:
    return layer.addresses[-1]


def _found(context: Context, layer: Layer, most: int) -> Found:
    address = _address(layer)
    units = draw.spread(layer.shape[0], most)
    with warnings.catch_warnings():  # told beside the drawings
        warnings.filterwarnings("ignore", ".* units seem dead", UnboxedWarning)
        made = channels(context.box, address, units, steps=STEPS, seed=context.seed)
    if made.interrupted:  # half-drawn images would mislead
        raise KeyboardInterrupt
    best, example, examples = _best(context, address, units)
    turned = _turned(made.images, context.seed)
    held = _excited(context, turned.flatten(0, 1), address)[:, units].view(TURNS, len(units), len(units))
    return Found(made, best, example, held.mean(0).diagonal(), examples)


def _excited(context: Context, x: Tensor, address: str) -> Tensor:
    """Means over positions, (N, C)."""
    parts = [context.box.read(x[i : i + PART], [address])[address] for i in range(0, len(x), PART)]
    return torch.cat([h.flatten(2).mean(2) for h in parts]).cpu()


def _best(context: Context, address: str, units: list[int]) -> tuple[Tensor, Tensor, int]:
    """What the examples excite each channel at most, which does, and among how many."""
    places = draw.spread(len(context.survey.rows), MOST)
    parts = [places[i : i + PART] for i in range(0, len(places), PART)]
    values = torch.cat([_excited(context, context.inputs(part), address)[:, units] for part in parts])
    best, which = values.max(0)
    return best, torch.tensor(places)[which], len(places)


def _turned(x: Tensor, seed: int) -> Tensor:
    """Images (TURNS, N, C, H, W) turned, zoomed and shifted by whole pixels: not the transforms that drew them."""
    generator = torch.Generator().manual_seed(seed + 1)
    made = []
    for u in (2 * torch.rand(TURNS, 4, generator=generator) - 1).tolist():
        angle, zoom = math.radians(DEGREES) * u[0], 1 + ZOOM * u[1]
        by = [round(SHIFT * side * v) for side, v in zip(x.shape[-2:], u[2:], strict=True)]
        turn = x.new_tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]]) / zoom
        grid = F.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
        seen = F.grid_sample(_shifted(x, *by), grid, padding_mode="border", align_corners=False)
        made.append(seen.clamp(0, 1))
    return torch.stack(made)


def _shifted(x: Tensor, down: int, right: int) -> Tensor:
    """By whole pixels; the edge is repeated."""
    h, w = x.shape[-2:]
    rows, columns = (torch.arange(s, device=x.device) for s in (h, w))
    return x[..., (rows - down).clamp(0, h - 1), :][..., (columns - right).clamp(0, w - 1)]


# -- words and pictures ----------------------------------------------------------------------


def _verdict(made: Sequence[Found]) -> tuple[str, str]:
    ratio = torch.cat([f.ratio[f.live] for f in made])
    if not len(ratio):
        return "No example excites any of these channels, so there is nothing to compare the drawings with.", ""
    above = int((ratio > 1).sum())
    text = (f"Turned, zoomed and shifted at random anew, {above} of {len(ratio)} drawings still excite their channel "
            f"more than the best of {many(made[0].examples, 'example')} does as it is "
            f"(median {float(ratio.median()):.1f} times as much).")  # fmt: skip
    return text, "good" if above == len(ratio) else "" if 2 * above > len(ratio) else "bad"


def _blocks(context: Context, layer: Layer, found: Found) -> list[Block]:
    path = found.drawn.layer
    shown, total = len(found.best), layer.shape[0]
    count = f"all {total} channels" if shown == total else f"{shown} of {total} channels"
    lead = f"{layer.type} of {layer.shape[1]}×{layer.shape[2]} positions, {count}; each drawn to excite it everywhere."
    blocks: list[Block] = [Head(path), Text(lead, "soft")]
    units = found.drawn.targets.tolist()
    if dead := [str(k) for k, live in zip(units, found.live.tolist(), strict=True) if not live]:
        rest = "what is drawn for it tells little" if len(dead) == 1 else "what is drawn for them tells little"
        blocks.append(Note(f"No example excites {'channel' if len(dead) == 1 else 'channels'} {listed(dead)}: {rest}."))
    blocks.append(Figures([_figure(context, found, i) for i in range(shown)]))
    live = found.live.nonzero().flatten().tolist()
    if not live:
        return blocks
    seen = context.inputs(found.example[live].tolist())
    examples = [_example(context, found, i, x) for i, x in zip(live, seen, strict=True)]
    return [*blocks, Fold("The examples that excite these channels most", [Figures(examples)])]


def _figure(context: Context, found: Found, i: int) -> Figure:
    k, ratio = int(found.drawn.targets[i]), float(found.ratio[i])
    said = "no example excites\u00a0it" if math.isnan(ratio) else f"{ratio:.1f}× the best example"
    alt = f"drawn for channel {k} of {found.drawn.layer}; {said}"
    tone = "" if math.isnan(ratio) or ratio > 1 else "bad"
    return Figure(
        context.pictures.inline(colors.image(found.drawn.images[i]), alt, SIDE), f"channel {k}", (said,), tone
    )


def _example(context: Context, found: Found, i: int, x: Tensor) -> Figure:
    k, place = int(found.drawn.targets[i]), int(found.example[i])
    row, value = context.survey.rows[place], f"{float(found.best[i]):.3g}"
    alt = f"example {row}, which excites channel {k} of {found.drawn.layer} most, {value}"
    picture = context.pictures.inline(colors.image(x), alt, SIDE)
    return Figure(picture, f"channel {k}", (f"example\u00a0{row}", f"mean {value}"))


def _sheet(found: Found) -> Image:
    words = [f"channel {k}" for k in found.drawn.targets.tolist()]
    return drawings(found.drawn, captions=words, title=f"Channels of {found.drawn.layer}")


def _facts(found: Found) -> dict[str, object]:
    ratio = [None if math.isnan(r) else round(r, 3) for r in found.ratio.tolist()]
    return {"channels": found.drawn.targets.tolist(), "times_best_example": ratio, "examples": found.examples}


SECTION = Section("What does each channel look for?", "channels", build, needs=("pixels",))
