"""Next to another model: what training made of each layer, and which units the answers can't do without."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from ..activations import Ablation, Similarity, ablation, filters, similarity
from ..activations.ablating import hidden
from ..box import Box
from ..comparing import compare
from ..engine.read.channel_axes import channels_first
from ..errors import LayerError, UnboxedError, UnboxedWarning
from ..plots import compare as plots
from ..plots import draw
from .blocks import Block, Figure, Figures, Files, Head, Method, Note, Scales, Table, Text
from .context import Context, Section
from .survey import spread
from .words import many, percent, sentence

EXAMPLES = 256  # that layers and units are compared on; fewer for large models
FEW = 48
ENOUGH = 16  # examples in each half, to check one by the other
LAYERS = 8  # of a model in the picture
BOARD = 300  # pixels of a picture's cells a side
PAIRS, PAIRS_EACH = 128 * 128, 64  # of example and silenced unit: at most, and for each example that a batch takes
SHOWN = 10
LOGITS = 10**7  # held by it
MAPS = 24
TRAINED, UNTRAINED, JUDGE = "this model", "the untrained model", "the judge"


def build(context: Context) -> Sequence[Block]:
    others, notes = _others(context)
    blocks: list[Block] = [Note(note) for note in notes]
    x = context.inputs(spread(len(context.survey.rows), _examples(context)))
    if others:
        blocks += [*_alike(context, others, x), *_side_by_side(context, others, x)]
    return [*blocks, *_needed(context)]


def _examples(context: Context) -> int:
    return EXAMPLES if context.box.batch_limit >= EXAMPLES else FEW


def _others(context: Context) -> tuple[dict[str, Box], list[str]]:
    """The models to stand beside: the same without training, and the judge where it takes the same inputs."""
    others: dict[str, Box] = {}
    notes = []
    try:
        others[UNTRAINED] = context.untrained
    except UnboxedError as error:  # a model that can't be copied is no reason to show nothing
        notes.append(f"No untrained copy of this model to compare with ({sentence(error)}).")
    judge = context.judge
    if judge is not None and judge.inputs.shape == context.box.inputs.shape:
        others[JUDGE] = judge
    return others, notes


# -- layers ----------------------------------------------------------------------------------------------------------


def _alike(context: Context, others: dict[str, Box], x: Tensor) -> list[Block]:
    """A heatmap of similarities with each other model."""
    found, notes = dict[str, Similarity](), list[Block]()
    verdict = ""
    for name, other in others.items():
        try:
            found[name] = _similarity(context.box, other, x)
            verdict = verdict or _halves(context.box, other, x)
        except UnboxedError as error:
            notes.append(Note(f"No comparison with {name}: {error}."))
    head = Head("Which layers lay the examples out alike?")
    blocks: list[Block] = [head, Method.of(similarity, *_checked(verdict)), *notes]
    if UNTRAINED in found:
        blocks.append(Text(_moved(context, found[UNTRAINED])))
    if found:
        figures = [_heatmap(context, name, s) for name, s in found.items()]
        blocks += [Figures(figures), _sheets(context, found)]
    return blocks


def _similarity(box: Box, other: Box, x: Tensor) -> Similarity:
    with warnings.catch_warnings():  # cells without a value are gray, and the words below say why
        warnings.simplefilter("ignore", UnboxedWarning)
        return similarity(box, other, x, _layers(box), _layers(other), minibatch=max(4, len(x)))


def _halves(box: Box, other: Box, x: Tensor) -> str:
    """How far the similarities of two halves of the examples lie apart."""
    if len(x) < 2 * ENOUGH:
        return ""
    one, two = (_similarity(box, other, half).cka for half in (x[::2], x[1::2]))
    apart = float((one - two).abs().nan_to_num().max())
    return f"Asked of one half of the examples and of the other, no similarity differs by more than {apart:.2f}."


def _checked(verdict: str) -> tuple[str, str]:
    return verdict or "Too few examples to check it on two halves of them.", ""


def _layers(box: Box) -> list[str]:
    """Layers with weights, evenly sampled; where there are fewer than two, all."""
    rows = [row for row in box.layers.leaves if row.takes and row.rows and row.shape]
    chosen = [row for row in rows if row.parameters]
    chosen = chosen if len(chosen) > 1 else rows
    names = [row.addresses[0] for row in chosen]
    if not names:
        raise LayerError("no module of it runs by itself")
    return [names[i] for i in draw.spread(len(names), LAYERS)]


def _moved(context: Context, found: Similarity) -> str:
    """What training changed most and least, in a sentence."""
    own = found.cka.diagonal().cpu()
    known = [(float(v), path) for v, path in zip(own, found.layers_a, strict=True) if not v.isnan()]
    lead = f"On {many(found.examples, 'example')}; 1 is alike up to rotation and scale, 0 nothing in common."
    if not known:
        return lead
    (least, most_moved), (most, kept) = min(known), max(known)
    context.facts["compare"] = {"untrained": {path: v for v, path in known}}
    if len(known) == 1:
        return f"{lead} {kept} and its untrained self: {most:.2f}."
    told = f"Training changed {most_moved} most (its likeness to its untrained self is {least:.2f})"
    return f"{lead} {told} and {kept} least ({most:.2f})."


def _heatmap(context: Context, name: str, found: Similarity) -> Figure:
    picture = plots.heatmap(found.cka.cpu(), found.layers_a, found.layers_b, (TRAINED, name), board=BOARD, clear=True)
    alt = f"similarity (CKA) of each layer of this model, from below, with each layer of {name}, from the left, 0 to 1"
    lines = [f"{many(found.examples, 'example')}, scale 0 to 1"]
    if found.cka.isnan().any():
        lines.append("gray: a layer is the same for all examples")
    return Figure(context.pictures.natural(picture, alt), f"{TRAINED} and {name}", tuple(lines))


def _sheets(context: Context, found: dict[str, Similarity]) -> Files:
    files = []
    for name, s in found.items():
        page = plots.heatmap(s.cka.cpu(), s.layers_a, s.layers_b, (TRAINED, name), title="Similarity of layers (CKA)")
        files.append(
            (context.pictures.keep(f"similarity-{name.split()[1]}.png", page), f"likeness to {name}, as a sheet")
        )
    return Files(files)


# -- the same picture of both ----------------------------------------------------------------------------------------


def _side_by_side(context: Context, others: dict[str, Box], x: Tensor) -> list[Block]:
    """Filters and activation maps of the model and of its untrained self, each pair on one scale."""
    if UNTRAINED not in others or not context.images:
        return []
    boxes = {TRAINED: context.box, UNTRAINED: others[UNTRAINED]}
    blocks: list[Block] = []
    with suppress(UnboxedError):  # no weights on pixels: said where the filters should be
        blocks += _pair(context, {n: _flat(w) for n, w in compare(boxes, filters).items()}, "first-layer filters")
    if (path := _deepest_map(context.box)) is not None:
        maps = {n: box.read(x[:1], [path])[path][0] for n, box in boxes.items()}
        blocks += _pair(context, maps, f"what {path} makes of one example")
    return [Head("The same picture of both"), *blocks] if blocks else []


def _flat(weights: Tensor) -> Tensor:
    return weights if weights.shape[1] == 3 else weights.sum(1)


def _deepest_map(box: Box) -> str | None:
    """The last layer whose channels are still small pictures."""
    rows = [r for r in channels_first(box) if r.takes and r.calls == 1 and len(r.shape) == 3]
    large = [r.path for r in rows if min(r.shape[1:]) >= 8]
    return large[-1] if large else None


def _pair(context: Context, maps: dict[str, Tensor], what: str) -> list[Block]:
    pictures, bar = plots.grids(maps, most=MAPS)
    span = f"{bar.ends[0]} to {bar.ends[-1]}"
    n = min(MAPS, len(next(iter(maps.values()))))
    whole = len(next(iter(maps.values())))
    said = f"{n} of {whole} channels" if n < whole else many(n, "channel")
    figures = [
        Figure(context.pictures.natural(p, f"{what}, {name}, {said}, from {span}"), name, (f"{said}, one scale",))
        for name, p in pictures.items()
    ]
    return [Figures(figures, name=what[0].upper() + what[1:], halves=True), Scales([context.pictures.scale(bar)])]


# -- units -----------------------------------------------------------------------------------------------------------


def _needed(context: Context) -> list[Block]:
    """Units of the last hidden layer, those first whose silence costs most."""
    blocks: list[Block] = [Head("Which units do the answers need?")]
    try:
        layer = _with_channels(context.box, hidden(context.box))
        found, places, width = _silenced(context, layer)
    except UnboxedError as error:
        return [*blocks, Note(f"No unit to silence: {error}.")]
    columns, rows, lead = _told(context, found, places, layer, width)
    numbers = frozenset({1, 2} & set(range(len(columns))))
    return [*blocks, Method.of(ablation, *_checked(_agree(found.change))), Text(lead), Table(columns, rows, numbers)]


def _with_channels(box: Box, address: str) -> str:
    """An address whose units are on axis 1: what a layer receives has as many axes as what it gives."""
    if box.layers[address.replace(":input", "")] not in channels_first(box):
        raise LayerError(f"{address} has units on an axis that can't be told from those of its positions")
    return address


def _agree(change: Tensor) -> str:
    """Whether two halves of the examples rank the units (N, U) alike."""
    if len(change) < 2 * ENOUGH or change.shape[1] < 3:
        return ""
    ranks = torch.stack([half.mean(0).argsort().argsort() for half in (change[::2], change[1::2])])
    agree = float(torch.corrcoef(ranks.double())[0, 1])
    return f"Rank correlation of the units between two halves of the examples: {agree:.2f}."


def _silenced(context: Context, layer: str) -> tuple[Ablation, list[int], int]:
    """The units of a layer silenced, on as many examples as fit: (result, places, width of the layer)."""
    box, total = context.box, len(context.survey.rows)
    h = box.read(context.inputs(spread(total, FEW)), [layer])[layer]
    values = h.flatten(2).mean(2) if h.ndim > 2 else h  # (n, C)
    pairs = min(PAIRS, PAIRS_EACH * box.batch_limit)  # of example and unit: a large model takes few at a time
    vary = values.float().std(0, correction=0)
    units = sorted(vary.topk(min(len(vary), math.isqrt(pairs))).indices.tolist())
    most = min(EXAMPLES, pairs // len(units), LOGITS // (len(units) * len(box.classes)))
    places = list(spread(total, max(2, most)))
    return ablation(box, context.inputs(places), layer, units), places, len(vary)


def _told(
    context: Context, found: Ablation, places: list[int], layer: str, width: int
) -> tuple[list[str], list[list[str]], str]:
    """The columns and rows of the table, and the sentence above it."""
    s, change, n = context.survey, found.change.mean(0).cpu(), len(found.units)
    silenced = f"{n} of the {width} units (those that vary most)" if n < width else f"each of the {many(n, 'unit')}"
    name = f"what {layer.partition(':')[0]} receives" if ":input" in layer else layer
    lead = f"With {silenced} of {name} set to zero, one at a time, on {many(len(places), 'example')}. "
    if s.labels is None or not s.named or context.source.binary:
        order = change.abs().argsort(descending=True)[:SHOWN].tolist()
        rows = [[str(int(found.units[i])), _signed(float(change[i]))] for i in order]
        score = "output" if context.box.outputs == "regression" else "answer's logit"
        lead += f"Unit {rows[0][0]} matters most: the {score} changes by {rows[0][1]} on average."
        _keep(context, layer, rows)
        return ["unit", f"change of the {score}"], rows, lead
    whole, right = found.accuracy(s.labels[places])
    right = right.cpu()
    order = sorted(range(n), key=lambda i: (float(right[i]), float(change[i])))[:SHOWN]
    rows = [[str(int(found.units[i])), percent(float(right[i])), _signed(float(change[i])), _hurt(context, found, i)]
            for i in order]  # fmt: skip
    lead += _answer(whole, float(right[order[0]]), rows[0][0], right)
    _keep(context, layer, rows)
    return ["unit", "accuracy without it", "change of the answer's logit", "hurts most"], rows, lead


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "\u2212")


def _answer(whole: float, worst: float, unit: str, right: Tensor) -> str:
    if worst >= whole:
        return f"No single unit is needed: without any one of them the accuracy stays at {percent(whole)}" + (
            " or more." if whole < 1 else "."
        )
    idle = int((right >= whole).sum())
    told = f"Unit {unit} is needed most: without it the accuracy falls from {percent(whole)} to {percent(worst)}."
    return f"{told} {many(idle, 'unit')} can be missed without loss." if idle else told


def _hurt(context: Context, found: Ablation, i: int) -> str:
    """The answer whose logit falls most, on average over the examples that are given it."""
    answers, change = found.logits.argmax(1), found.change[:, i]
    means = {k: float(change[answers == k].mean()) for k in set(answers.tolist())}
    k = min(means, key=lambda k: means[k])
    return f"{context.name(k)} ({_signed(means[k])})" if means[k] < 0 else "–"


def _keep(context: Context, layer: str, rows: list[list[str]]) -> None:
    facts = context.facts.setdefault("compare", {})
    if isinstance(facts, dict):
        facts["needed"] = {"layer": layer, "units": [row[:-1] if len(row) > 2 else row for row in rows]}


SECTION = Section("Next to another model", "compare", build)
