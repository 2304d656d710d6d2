"""Why this answer? Gradients for right, wrong and confused examples, beside the model without its training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..attribution import gradient, guided_backprop
from ..box import Box
from ..engine.gradients.score import Gradients, gradients
from ..errors import UnboxedError
from ..model import relu_rules
from ..objectives import logit
from ..plots import colors, draw
from ..plots.sheet import Bar
from .blocks import Block, Case, Figure, Figures, Files, Head, Method, Note, Scales, Text
from .context import Context, Section
from .words import many, sentence

TONES = {"pass": "good", "doubtful": "fair", "fail": "bad", "not made": ""}
EACH = 3  # examples of a kind
SIDE = 140
PUSH = 0.5  # of the pixel range: how far the strongest pixel moves when an input is pushed along a gradient


@dataclass(frozen=True, eq=False)
class Column:
    """One method's maps for all examples."""

    title: str
    found: Gradients
    targets: Tensor  # (N,)
    scale: float


def build(context: Context) -> Sequence[Block]:
    groups = _groups(context)
    places = [p for group in groups.values() for p in group]
    x = context.inputs(places)
    answers, others = context.survey.answers[places], _others(context, places)
    if context.source.binary:  # no and yes stand on one output
        answers = others = torch.zeros_like(answers)
    columns, notes = _columns(context, x, answers, others)
    blocks: list[Block] = [Text("Every other method, side by side and ranked, stands in the next section.", "soft")]
    blocks += [_method(context, m) for m in (gradient, guided_backprop)]
    blocks += [Note(note) for note in notes]
    bars = [Bar("signed", c.scale, f"{c.title}, logit per pixel range") for c in _scales(columns)]
    blocks.append(Scales([context.pictures.scale(bar) for bar in bars]))
    lead = "Red: more light here would raise the score; blue: less would. Maps of one kind share one scale."
    summed = f" They are summed over {many(x.shape[1], 'channel')}." if x.shape[1] > 1 else ""
    blocks.append(Text(lead + summed, "soft"))
    i = 0
    for title, group in groups.items():
        blocks.append(Head(title))
        for place in group:
            blocks.append(_case(context, place, x[i], columns, i))
            i += 1
    _tell(context, columns)
    context.cover.insert(1, _cover(context, columns[0]))
    return [*blocks, _sheet(context, places, x, columns), *_undecided(context)]


def _method(context: Context, method: Callable[..., Any]) -> Method:
    """What the method tells, and the verdict on it."""
    found = context.verdict(method.__name__)
    return Method.of(method, f"{found.badge.capitalize()}. {found.sentence}", TONES[found.grade])


def _groups(context: Context) -> dict[str, list[int]]:
    """Places of the examples, by what became of them; none twice."""
    s = context.survey
    if s.right is None:
        found = {"Undecided" if s.named else "Examples": s.undecided, "Typical": s.typical}
    else:
        found = {"Taken wrongly": s.mistakes, "Undecided": s.undecided, "Right": s.typical}
    groups: dict[str, list[int]] = {}
    for title, places in found.items():
        seen = {p for group in groups.values() for p in group}
        groups[title] = [p for p in places if p not in seen][:EACH]
    return {title: group for title, group in groups.items() if group}


def _others(context: Context, places: Sequence[int]) -> Tensor:
    """The class each answer is weighed against: the label where the answer is wrong, else the runner-up."""
    s = context.survey
    seconds = s.seconds[list(places)]
    if s.right is None or s.labels is None:
        return seconds
    return torch.where(s.right[list(places)], seconds, s.labels[list(places)])


def _columns(context: Context, x: Tensor, answers: Tensor, others: Tensor) -> tuple[list[Column], list[str]]:
    """Maps of the answer and its rival on one scale, by guided backprop, and of the untrained model."""
    box, notes = context.box, []
    both = [gradients(box, logit(t), x) for t in (answers, others)]
    shared = draw.shared_reach(both[0].map, both[1].map)
    columns = [Column("gradient", both[0], answers, shared), Column("gradient", both[1], others, shared)]
    if len(context.box.classes) == 1:
        del columns[1]
    try:
        columns.append(_column("guided backprop", box, x, answers, relu_rules.guided))
    except UnboxedError as error:
        notes.append(f"No guided backprop for this model: {error}.")
    try:
        columns.append(_column("gradient, untrained model", context.untrained, x, answers, None))
    except UnboxedError as error:  # a model that can't be copied is no reason to show nothing
        notes.append(f"No untrained copy of this model to compare with ({sentence(error)}).")
    return columns, notes


def _column(title: str, box: Box, x: Tensor, targets: Tensor, rule: relu_rules.Rule | None) -> Column:
    found = gradients(box, logit(targets), x, rule=rule)
    return Column(title, found, targets, draw.shared_reach(found.map))


def _scales(columns: Sequence[Column]) -> list[Column]:
    return list({c.title: c for c in columns}.values())


def _case(context: Context, place: int, x: Tensor, columns: Sequence[Column], i: int) -> Case:
    figures = [_input(context, place, x), *(_figure(context, c, i) for c in columns)]
    return Case(context.title(place), context.facts_of(place, second=True), figures, context.tone(place))


def _input(context: Context, place: int, x: Tensor) -> Figure:
    alt = f"input, example {context.survey.rows[place]}"
    return Figure(context.pictures.inline(colors.image(x), alt, SIDE), "", ("input",))


def _figure(context: Context, column: Column, i: int, side: int = SIDE) -> Figure:
    name = context.target_name(int(column.targets[i]))
    m = column.found.map[i]
    words = f"{column.title} of {name}" if column.title == "gradient" else column.title
    notes = ["before the clamp"] * bool(column.found.before_clamp[i]) + ["zero everywhere"] * (not bool(m.any()))
    alt = f"{words} ({', '.join([*notes, f'scale ±{column.scale:.3g}'])})"
    return Figure(context.pictures.inline(draw.signed_map(m, column.scale), alt, side), "", (words, *notes))


def _cover(context: Context, column: Column) -> Figure:
    """The gradient of the page's first example."""
    whole = _figure(context, column, 0, side=112)
    return replace(whole, head=whole.lines[0], lines=(*whole.lines[1:], f"scale ±{column.scale:.3g}"))


def _tell(context: Context, columns: Sequence[Column]) -> None:
    context.facts["why"] = {
        "scales": {c.title: c.scale for c in _scales(columns)},
        "before_clamp": {c.title: int(c.found.before_clamp.sum()) for c in _scales(columns)},
    }


# -- the most undecided example ---------------------------------------------------------------------------


def _undecided(context: Context) -> list[Block]:
    """The example with the closest two outputs, and the same pushed along the gradient of either."""
    s = context.survey
    if not s.named or context.source.binary:
        return []
    place = s.undecided[0]
    x, ks = context.inputs([place]), [int(s.answers[place]), int(s.seconds[place])]
    found = [gradients(context.box, logit(k), x) for k in ks]
    maps = torch.cat([f.map for f in found]).cpu()
    factor = float(f"{PUSH / draw.shared_reach(maps):.2g}")
    names = [context.name(k) for k in ks]
    figures = [context.example(place, x[0], second=True)]
    for name, m in zip(names, maps, strict=True):
        alt = f"the input plus {factor:g} times the gradient of {name}"
        picture = context.pictures.inline(colors.image(x[0].cpu() + factor * m), alt)
        figures.append(Figure(picture, f"pushed to {name}", (f"input + {factor:g} × gradient",)))
    page = draw.confused(
        x[0], maps, names, label=context.label(place) or "", factor=factor,
        logits=[float(f.score) for f in found], before_clamp=[bool(f.before_clamp) for f in found],
    )  # fmt: skip
    path = context.pictures.keep("confused.png", page)
    files = Files([(path, "with both gradients, as a sheet")])
    return [Head("The most undecided, pushed either way"), Figures(figures), files]


def _sheet(context: Context, places: Sequence[int], x: Tensor, columns: Sequence[Column]) -> Files:
    """All maps as one file."""
    rivals = ("gradient of its answer", "gradient of its rival")
    titles = [rivals[i] if c.title == "gradient" else c.title for i, c in enumerate(columns)]
    maps = dict(zip(titles, (c.found.map for c in columns), strict=True))
    own = [t for t in titles if t not in rivals]
    words = [context.says(p) for p in places]
    page = draw.gradients(x, maps, captions=words, own=own, title="Gradients")
    return Files([(context.pictures.keep("gradients.png", page), "these maps as a sheet")])


SECTION = Section("Why this answer?", "why", build, needs=("pixels",))
