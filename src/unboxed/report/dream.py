"""What it sees in an example: the image dreamed on at several depths, and what is left of it without places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..box import Box
from ..engine.read.channel_axes import channels_first
from ..errors import UnboxedError
from ..objectives import Objective, energy, logit
from ..plots import colors
from ..plots.sheet import Tile, sheet
from ..synthesis import deepdream, texture
from ..synthesis.drawn import Drawn
from .blocks import Block, Figure, Figures, Files, Head, Method, Note, Text
from .context import Context, Section
from .words import many, p_of, sentence
from .words import size as shaped

EXAMPLES = 2  # of small images; of photos one
WORK = 6e11  # FLOPs for the dreams; the texture takes about half as many
STEPS, FEWEST = 10, 4  # of a dream, an octave
STEP = 0.006  # the method's own; fewer steps are longer ones
LOOK = 1.8  # forward passes of the whole model that a step costs: three as far as the layer, which lies anywhere
SCALES = {1.4: 2.0, 1.8: 1.45}  # of the octaves: their area, in images
TEXTURE, ENOUGH = 200, 80  # steps; fewer than these leave noise
DEPTHS = (0.25, 0.6, 0.95)
SIDE = 196
ALIKE = 0.5  # cosine of two changes from which they count as the same


@dataclass(frozen=True)
class _Place:
    """Where a dream looks."""

    title: str
    line: str
    objective: Objective


@dataclass(frozen=True)
class _Pace:
    """What the work allows."""

    depths: list[_Place]
    scale: float
    steps: int
    texture: int

    @property
    def told(self) -> list[Block]:
        fewer = "" if self.scale == min(SCALES) else ", and fewer sizes and depths"
        if self.steps == STEPS and not fewer:
            return []
        return [Note(f"This model is large: {self.steps} longer steps a size instead of {STEPS}{fewer}.")]


def build(context: Context) -> Sequence[Block]:
    places = _examples(context)
    x = context.inputs(places)
    depths = _depths(context, x)
    if not depths:
        return [
            Note("No layer of this model has positions, and its outputs are no classes: there is nothing to dream of.")
        ]
    pace = _pace(context, x, depths)
    dreams = [_dream(context, context.box, x, d, pace) for d in pace.depths]
    lead = "The image is changed, step by step, towards more of what a layer answers to in it."
    verdict = _control(context, x, pace, dreams)
    blocks: list[Block] = [Method.of(deepdream, *verdict), Text(lead, "soft"), *pace.told]
    blocks += [Figures(_row(context, p, i, x, pace.depths, dreams)) for i, p in enumerate(places)]
    blocks += _texture(context, x, places, pace.texture)
    return [*blocks, _sheet(context, places, x, pace.depths, dreams)]


def _dream(context: Context, box: Box, x: Tensor, depth: _Place, pace: _Pace) -> Drawn:
    step = None if pace.steps == STEPS else STEP * STEPS / pace.steps
    scale, seed = pace.scale, context.seed
    return _whole(deepdream(box, x, depth.objective, scale=scale, steps=pace.steps, step=step, seed=seed))


def _control(context: Context, x: Tensor, pace: _Pace, dreams: Sequence[Drawn]) -> tuple[str, str]:
    """Whether the deepest dream is the trained model's own: the same model without its training dreams too."""
    depth, drawn = pace.depths[-1], dreams[-1].images
    try:
        other = _dream(context, context.untrained, x, depth, pace).images
    except UnboxedError as error:  # a model that can't be copied is no reason to show nothing
        return f"No untrained copy of this model to compare with ({sentence(error)}).", ""
    ours, others = ((images.to(x) - x).flatten(1) for images in (drawn, other))
    r = float(torch.cosine_similarity(ours, others, dim=1).mean())
    context.facts["dream"] = {"at": depth.title, "untrained": r}
    told = f"The same model without its training, dreaming {depth.title}, changes the image otherwise (cosine {r:.2f})."
    if r < ALIKE:
        return told, "good"
    return f"The same model without its training changes the image alike (cosine {r:.2f}): believe little of it.", "bad"


def _examples(context: Context) -> list[int]:
    s = context.survey
    most = EXAMPLES if max(context.box.inputs.shape[1:]) <= colors.HARD else 1
    return list(dict.fromkeys([*s.typical[:most], *s.undecided[:1]]))[:most]


def _depths(context: Context, x: Tensor) -> list[_Place]:
    """An early, a middle and a late layer that has positions, and the answer itself."""
    rows = [r for r in context.box.layers.leaves if len(r.shape) == 3 and min(r.shape[1:]) > 1 and r.rows]
    chosen = dict.fromkeys(rows[round(d * (len(rows) - 1))] for d in DEPTHS) if rows else {}
    first, found = channels_first(context.box), []
    for row in chosen:
        path = row.addresses[0]
        size = f"{many(row.shape[0], 'channel')} of {shaped(row.shape[1:])}"
        what = size if row in first else f"{shaped(row.shape)} values"
        found.append(_Place(f"at {path}", f"{row.type}: {what}", energy(path)))
    if context.survey.named and len(context.box.classes) > 1:
        said = context.box.predict(x)  # of the image as it is: a dream may change the answer
        found.append(_Place("at the answer", "the logit of its class", logit(said)))
    return found


def _pace(context: Context, x: Tensor, depths: list[_Place]) -> _Pace:
    """As many depths, sizes and steps as the work of one forward pass allows."""
    looks = WORK / (LOOK * context.work(len(x)))
    near, far = SCALES
    plans = [(depths, near), (depths[-3:-1] or depths, far), (depths[-3:-2] or depths[:1], far)]
    found = [(d, scale, int(looks / (len(d) * SCALES[scale]))) for d, scale in plans]
    chosen, scale, steps = next((f for f in found if f[2] >= FEWEST), found[-1])
    return _Pace(chosen, scale, max(FEWEST, min(STEPS, steps)), int(min(TEXTURE, looks / 3)))


def _whole(drawn: Drawn) -> Drawn:
    if drawn.interrupted:  # half-drawn images beside whole ones would mislead
        raise KeyboardInterrupt
    return drawn


def _row(
    context: Context, place: int, i: int, x: Tensor, depths: Sequence[_Place], dreams: Sequence[Drawn]
) -> list[Figure]:
    figures = [context.example(place, x[i], SIDE)]
    for depth, drawn in zip(depths, dreams, strict=True):
        said = _said(context, drawn.images[i])
        alt = f"example {context.survey.rows[place]} dreamed on {depth.title}{'; ' + said if said else ''}"
        picture = context.pictures.inline(colors.image(drawn.images[i]), alt, SIDE)
        figures.append(Figure(picture, depth.title, (depth.line, *([said] if said else []))))
    return figures


def _said(context: Context, image: Tensor) -> str:
    """What the model says of a drawn image."""
    if not context.survey.named:
        return ""
    p = context.box.probs(image[None])[0]
    k = int(p.argmax())
    return f"model: {context.name(k)}, {p_of(float(p[k]))}" if len(p) > 1 else ""


def _texture(context: Context, x: Tensor, places: Sequence[int], steps: int) -> list[Block]:
    if steps < ENOUGH:
        return [Note("Its texture is left out: for a model of this size it would take too long.")]
    try:
        drawn = _whole(texture(context.box, x, steps=steps, seed=context.seed))
    except LookupError as error:  # no layer has positions
        return [Note(f"No texture: {error}.")]
    figures, worst = [], f"{-float(drawn.scores.min()):.1%}"
    for i, place in enumerate(places):
        row, said = context.survey.rows[place], _said(context, drawn.images[i])
        off = f"{-float(drawn.scores[i]):.1%}"
        lines = (f"{off} off in its correlations", *([said] if said else []))
        picture = context.pictures.inline(colors.image(drawn.images[i]), f"texture of example {row}", SIDE)
        figures.append(Figure(picture, f"of example {row}", lines))
    verdict = f"What it was to keep, it keeps: the channels' correlations are those of the image to {worst}."
    return [Head("The same without places"), Method.of(texture, verdict), Figures(figures)]


def _sheet(
    context: Context, places: Sequence[int], x: Tensor, depths: Sequence[_Place], dreams: Sequence[Drawn]
) -> Files:
    rows = [[Tile(colors.image(v[i])) for v in (x, *(d.images for d in dreams))] for i in range(len(places))]
    names = [f"example {context.survey.rows[p]}" for p in places]
    picture = sheet(rows, title="Deep dreams", columns=["input", *(d.title for d in depths)], names=names)
    return Files([(context.pictures.keep("dreams.png", picture), "the dreams as a sheet")])


SECTION = Section("What it sees in an example", "dream", build, needs=("pixels",))
