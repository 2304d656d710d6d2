"""What excites each unit? The parts of real examples that do most, what of them counts, and which units are dead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..activations import Projections, ReceptiveField, TopExamples, projections, receptive_field, top_examples
from ..activations.projections import neurons
from ..engine.optimize.constraints import TINY, length
from ..engine.read.channel_axes import channels_first
from ..errors import OutputError
from ..model.layers import Layer
from ..plots import draw, units
from ..plots.sheet import Bar
from ..plots.units import Unit
from .blocks import Block, Case, Figure, Files, Fold, Head, Method, Note, Scales, Text
from .context import Context, Section
from .unit_words import labels, spread, table
from .words import many, size

UNITS = 12  # of a layer that are shown, half of them folded
LEAST = 4  # of large photos
PROJECTED = 6_000_000  # values of a layer's projections: each takes a backward pass
TOP = 9  # examples of a unit, but no more than a quarter of all
EXAMPLES = 2000  # passed over
VALUES = 20_000_000  # of input: photos are many values each
PROBES = 28  # bands of rows: fields in photos are rounded up to a 28th of the picture
KEEPS_SHAPE = ("ReLU", "GELU", "SiLU", "ELU", "Mish", "Hardswish", "Norm", "Tanh", "Sigmoid", "Softplus")
MOSTLY = 0.8  # of the examples must be excited more, for the projections to be believed
LITTLE = 0.01  # root mean square of that change, in pixel range


def build(context: Context) -> Sequence[Block]:
    paths = _paths(context)
    if not paths:
        return [Note(_why(context))]
    places = draw.spread(len(context.survey.rows), _most(context))
    tops = top_examples(context.box, _Looked(context, places), paths, max(1, min(TOP, len(places) // 4)))
    facts = {t.path: {"units": len(t.dead), "dead": int(t.dead.sum())} for t in tops}
    context.facts["units"] = facts
    raised: list[Tensor] = []
    layers = [block for top in tops for block in _layer(context, top, places, raised)]
    blocks: list[Block] = [Method.of(top_examples, _alike(tops))]
    if context.images:
        blocks.append(Method.of(projections, *_checked(raised)))
    return [*blocks, *layers]


def _why(context: Context) -> str:
    """Why no layer is shown."""
    if any(r.parameters and r.takes and r.rows and r.shape for r in context.box.layers.leaves):
        return "No layer of this model surely has its units on the first axis of an example; a token's are on the last."
    return "No layer of this model has units: none of its modules with weights gives a row an example."


def _alike(tops: Sequence[TopExamples]) -> str:
    """Whether what excites a unit belongs together."""
    live = [(float(top.spread[c]), top.usual) for top in tops for c in _ordered(top)]
    if not live:
        return "Too few examples to say whether those of a unit belong together."
    closer = sum(spread < usual for spread, usual in live)
    return f"The top examples of {closer} of {len(live)} living units are more alike than any two examples are."


def _checked(raised: Sequence[Tensor]) -> tuple[str, str]:
    """Whether the pictures point uphill."""
    if not raised:
        return "No projections were made.", ""
    up = torch.cat(list(raised))
    told = f"Changed a little as its picture says, {int(up.sum())} of {len(up)} examples excite their neuron more."
    return told, "good" if float(up.double().mean()) > MOSTLY else "bad"


class _Looked:
    """The inputs that the report looked at, or some of them, by their places."""

    def __init__(self, context: Context, places: Sequence[int]) -> None:
        self._context, self._places = context, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, i: int) -> Tensor:
        return self._context.inputs([self._places[i]])[0]


def _most(context: Context) -> int:
    return max(32, min(EXAMPLES, VALUES // max(1, math.prod(context.box.inputs.shape))))


def _paths(context: Context) -> list[str]:
    """The last layer with weights that has positions, and that in the middle of those before; else the last hidden one.

    Each where its activation function has been applied, if that is a module: what the model goes on with.
    """
    rows = [r for r in context.box.layers.leaves if r.takes and r.rows and r.shape]
    first = {r.path for r in channels_first(context.box)}
    every = [i for i, r in enumerate(rows) if r.parameters and not _keeps_shape(r)]
    weighted = [i for i in every if rows[i].path in first]
    drawn = [i for i in weighted if len(rows[i].shape) == 3]
    if len(drawn) > 1 and drawn[-1] == every[-1]:
        drawn.pop()  # its units are the answers
    if drawn and context.images:
        chosen = list(dict.fromkeys([drawn[-1], drawn[(len(drawn) - 1) // 2]]))
    else:
        chosen = weighted[-2:-1] or weighted
    return [_settled(rows, i) for i in chosen]


def _settled(rows: Sequence[Layer], i: int) -> str:
    """The address of layer i, or of what normalizes and activates it at once."""
    last = rows[i]
    for row in rows[i + 1 :]:
        if row.shape != last.shape or row.calls > 1 or not _keeps_shape(row):
            break
        last = row
    return last.addresses[-1]


def _keeps_shape(row: Layer) -> bool:
    return any(name in row.type for name in KEEPS_SHAPE)


def _layer(context: Context, top: TopExamples, places: Sequence[int], raised: list[Tensor]) -> list[Block]:
    row = context.box.layers[top.path]
    blocks: list[Block] = [Head(f"Layer {top.path}: {many(len(top.index), 'unit')}"), Text(_told(top))]
    chosen = _chosen(top, _shown(context))
    if not chosen:
        return blocks
    if not context.images:
        return [*blocks, table(context, top, chosen, places)]
    seen = _Pictured.of(context, top, places, chosen)
    raised += seen.raised
    cases = [_case(context, seen, c, places) for c in chosen]
    drawn = f"{size(seen.field.size)} pixels, the most that a unit of {top.path} ({row.type}) sees"
    blocks.append(Text(f"Patches are {drawn}; its strongest, each from another example. {seen.rule}", "soft"))
    if seen.scale:
        bar = Bar("signed", seen.scale, f"{seen.projected}: change of the unit per unit of pixel value")
        blocks.append(Scales([context.pictures.scale(bar)]))
    half = _shown(context) // 2
    blocks += cases[:half]
    if rest := cases[half:]:
        blocks.append(Fold(f"{many(len(rest), 'more unit')} of {top.path}", rest))
    sheet = units.units_sheet(list(seen.units.values()), title=f"Units of {top.path}", rule=seen.projected)
    return [*blocks, Files([(context.pictures.keep(f"units-{_file(top.path)}.png", sheet), "these units as a sheet")])]


def _file(path: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in path)


def _told(top: TopExamples) -> str:
    """How many are dead, and which answer to one thing and which to many."""
    n, dead = len(top.dead), int(top.dead.sum())
    seen = f"{many(top.statistics.examples, 'example')}"
    no = f"{dead} of {many(n, 'unit')}" if dead else f"None of the {many(n, 'unit')}"
    verb = "is" if dead <= 1 else "are"
    said = f"{no} {verb} dead (never above zero, or the same everywhere) on {seen}."
    order = _ordered(top)
    if len(order) < 2:
        return said
    least, most = order[0], order[-1]
    return (
        f"{said} The clearest is unit {least}: its top examples are alike (mean cosine distance "
        f"{float(top.spread[least]):.2f} in {top.features}; {top.usual:.2f} between any two examples). "
        f"The most mixed is unit {most} ({float(top.spread[most]):.2f})."
    )


def _ordered(top: TopExamples) -> list[int]:
    """Units that all their top examples excite, the clearest first."""
    excited = top.value[:, -1] > top.statistics.low.to(top.value)  # else those at the end are just the first of many
    live = (~top.dead & excited & top.spread.isfinite()).nonzero()[:, 0]
    return [int(i) for i in live[top.spread[live].argsort(stable=True)]]


def _shown(context: Context) -> int:
    values = TOP * max(1, math.prod(context.box.inputs.shape))
    return max(LEAST, min(UNITS, PROJECTED // values))


def _chosen(top: TopExamples, most: int) -> list[int]:
    """Units from the clearest to the most mixed, evenly spread; the half that is shown at once first."""
    order = _ordered(top) or (~top.dead).nonzero()[:, 0].tolist()
    first = [order[i] for i in draw.spread(len(order), most // 2)]
    rest = [c for c in order if c not in first]
    return [*first, *(rest[i] for i in draw.spread(len(rest), most - most // 2))]


@dataclass(frozen=True)
class _Pictured:
    top: TopExamples
    field: ReceptiveField
    units: dict[int, Unit]
    scale: float  # of all projections of the layer; 0 where there are none
    rule: str
    projected: str
    raised: list[Tensor]  # (N,) bool: a small change along the projection raises the neuron

    @classmethod
    def of(cls, context: Context, top: TopExamples, places: Sequence[int], chosen: Sequence[int]) -> _Pictured:
        side = max(context.box.inputs.shape[1:])
        field = receptive_field(context.box, top.path, step=max(1, side // PROBES))
        x = top.fetch(_Looked(context, places), chosen)  # (U, k, C, H, W)
        found, why = _projected(context, top, field, x.flatten(0, 1), chosen)
        made = {c: _unit(top, field, x[i], found, i, c) for i, c in enumerate(chosen)}
        scale = units.reach_of(list(made.values())) if found else 0.0
        raised = [_raised(context, found, x.flatten(0, 1))] if found else []
        return cls(top, field, made, scale, why, found.rule if found else "", raised)


def _raised(context: Context, found: Projections, x: Tensor) -> Tensor:
    """Which neurons (N,) answer more to their example after a small step along their map."""
    x = x.to(found.map)
    step = LITTLE * math.sqrt(x[0].numel()) * found.map / length(found.map).clamp_min(TINY).view(-1, 1, 1, 1)
    moved = context.box.inputs.clip(x + step)
    neuron = neurons(found.path, found.unit, found.position)
    return neuron(context.box.read(moved, [found.path])) > found.value


def _projected(
    context: Context, top: TopExamples, field: ReceptiveField, x: Tensor, chosen: Sequence[int]
) -> tuple[Projections | None, str]:
    unit = torch.tensor(chosen).repeat_interleave(top.index.shape[1])
    position = top.position[list(chosen)].flatten(0, 1)
    try:
        found = projections(context.box, x, top.path, unit, position, field=field)
    except OutputError as error:
        return None, f"No projections: {error}."
    words = "Beside them what of each patch counts, by deconvnet: red pixels raise the unit's value, blue lower it."
    if found.rule == "gradient":
        words = f"Beside them the gradient of the unit in each patch (deconvnet can't be had here: {found.why})."
    return found, words


def _unit(top: TopExamples, field: ReceptiveField, x: Tensor, found: Projections | None, i: int, c: int) -> Unit:
    bounds = field.of(top.position[c]).tolist()  # (k, 4)
    image = (x.shape[-2], x.shape[-1])

    def framed(pictures: Tensor) -> Any:
        return np.stack([units.framed(p, b, field.size, image) for p, b in zip(pictures, bounds, strict=True)])

    s, k = top.statistics, len(x)
    maps = framed(found.map[i * k : (i + 1) * k]) if found else None
    counts, edges = s.counts[c].double().cpu().numpy(), s.edges[c].double().cpu().numpy()
    return Unit(c, framed(x), maps, top.value[c].tolist(), counts, edges, bool(top.dead[c]))


def _case(context: Context, seen: _Pictured, c: int, places: Sequence[int]) -> Case:
    top, unit = seen.top, seen.units[c]
    best = f"{unit.values[0]:.3g} to {unit.values[-1]:.3g}"
    classes = labels(context, top, c, places)
    apart = spread(top, c)
    lines = [*([f"spread {apart}"] if apart else []), *([classes] if classes else [])]
    of = f"unit {c} of {top.path}"
    alt = f"the {len(unit.values)} patches that excite {of} most" + (f", {classes}" if classes else "")
    natural = context.pictures.natural
    figures = [Figure(natural(units.patch_grid(unit), alt), "top patches", (f"values {best}",))]
    if seen.scale:
        picture = units.projection_grid(unit, seen.scale)
        figures.append(Figure(natural(picture, f"{seen.projected} of {of} in these patches"), seen.projected))
    spanned = units.value_range(unit)
    alt = f"histogram of the largest value of {of} in each example, from {spanned}"
    drawn = (spanned, "bars: square roots of counts")
    figures.append(Figure(natural(units.histogram(unit), alt), "largest value in each example", drawn))
    return Case(unit.name, tuple(lines), figures)


SECTION = Section("What excites each unit?", "units", build)
