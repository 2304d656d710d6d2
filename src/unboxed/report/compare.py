"""Next to another model: what training made of each layer, and which units the answers can't do without."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from ..activations import CKA, Ablation, ablation, cka, filters
from ..activations.ablation import last_hidden_layer
from ..box import Box
from ..comparing import compare
from ..engine.read.channel_axes import channels_first_layers
from ..errors import LayerError, UnboxedError, UnboxedWarning
from ..plots import compare as plots
from ..plots import draw
from .blocks import Block, ColorScales, Figure, FigureGrid, Files, Heading, MethodNote, Note, Table, Text
from .context import ReportContext, Section
from .survey import evenly_spaced
from .words import count_noun, error_sentence, format_percent

MAX_EXAMPLES = 256  # that layers and units are compared on; fewer for large models
MAX_EXAMPLES_LARGE_MODEL = 48
MIN_HALF_SIZE = 16  # examples in each half, to check one by the other
MAX_LAYERS = 8  # of a model in the picture
CELLS_PIXELS = 300  # pixels of a picture's cells a side
MAX_ABLATION_PAIRS, PAIRS_PER_BATCH_ROW = (
    128 * 128,
    64,
)  # of example and silenced unit: at most, and for each example that a batch takes
TABLE_ROWS = 10
MAX_LOGITS = 10**7  # held by it
MAX_MAPS = 24
TRAINED, UNTRAINED, JUDGE = "this model", "the untrained model", "the judge"


def build(context: ReportContext) -> Sequence[Block]:
    others, notes = _models_to_compare(context)
    blocks: list[Block] = [Note(note) for note in notes]
    x = context.inputs(evenly_spaced(len(context.survey.rows), _n_examples(context)))
    if others:
        blocks += [*_similarity_blocks(context, others, x), *_side_by_side_blocks(context, others, x)]
    return [*blocks, *_unit_blocks(context)]


def _n_examples(context: ReportContext) -> int:
    return MAX_EXAMPLES if context.box.batch_limit >= MAX_EXAMPLES else MAX_EXAMPLES_LARGE_MODEL


def _models_to_compare(context: ReportContext) -> tuple[dict[str, Box], list[str]]:
    """The models to stand beside: the same without training, and the judge where it takes the same inputs."""
    others: dict[str, Box] = {}
    notes = []
    try:
        others[UNTRAINED] = context.untrained
    except UnboxedError as error:  # a model that can't be copied is no reason to show nothing
        notes.append(f"No untrained copy of this model to compare with ({error_sentence(error)}).")
    judge = context.judge
    if judge is not None and judge.inputs.shape == context.box.inputs.shape:
        others[JUDGE] = judge
    return others, notes


# -- layers ----------------------------------------------------------------------------------------------------------


def _similarity_blocks(context: ReportContext, others: dict[str, Box], x: Tensor) -> list[Block]:
    """A heatmap of similarities with each other model."""
    similarities, notes = dict[str, CKA](), list[Block]()
    verdict = ""
    for name, other in others.items():
        try:
            similarities[name] = _layer_cka(context.box, other, x)
            verdict = verdict or _split_half_verdict(context.box, other, x)
        except UnboxedError as error:
            notes.append(Note(f"No comparison with {name}: {error}."))
    head = Heading("Which layers lay the examples out alike?")
    blocks: list[Block] = [head, MethodNote.of(cka, *_verdict_or_default(verdict)), *notes]
    if UNTRAINED in similarities:
        blocks.append(Text(_training_change_text(context, similarities[UNTRAINED])))
    if similarities:
        figures = [_cka_figure(context, name, s) for name, s in similarities.items()]
        blocks += [FigureGrid(figures), _cka_files(context, similarities)]
    return blocks


def _layer_cka(box: Box, other: Box, x: Tensor) -> CKA:
    with warnings.catch_warnings():  # cells without a value are gray, and the words below say why
        warnings.simplefilter("ignore", UnboxedWarning)
        return cka(box, other, x, _sampled_layers(box), _sampled_layers(other), minibatch_size=max(4, len(x)))


def _split_half_verdict(box: Box, other: Box, x: Tensor) -> str:
    """How far the similarities of two halves of the examples lie apart."""
    if len(x) < 2 * MIN_HALF_SIZE:
        return ""
    first_half, second_half = (_layer_cka(box, other, half).cka for half in (x[::2], x[1::2]))
    max_difference = float((first_half - second_half).abs().nan_to_num().max())
    return (
        f"Asked of one half of the examples and of the other, no similarity differs by more than {max_difference:.2f}."
    )


def _verdict_or_default(verdict: str) -> tuple[str, str]:
    return verdict or "Too few examples to check it on two halves of them.", ""


def _sampled_layers(box: Box) -> list[str]:
    """Layers with weights, evenly sampled; where there are fewer than two, all."""
    rows = [row for row in box.layers.leaves if row.has_input and row.has_batch_axis and row.shape]
    with_weights = [row for row in rows if row.n_parameters]
    with_weights = with_weights if len(with_weights) > 1 else rows
    names = [row.addresses[0] for row in with_weights]
    if not names:
        raise LayerError("no module of it runs by itself")
    return [names[i] for i in draw.evenly_spaced(len(names), MAX_LAYERS)]


def _training_change_text(context: ReportContext, cka: CKA) -> str:
    """What training changed most and least, in a sentence."""
    self_similarity = cka.cka.diagonal().cpu()
    measured = [(float(v), path) for v, path in zip(self_similarity, cka.layers_a, strict=True) if not v.isnan()]
    lead = f"On {count_noun(cka.n_examples, 'example')}; 1 is alike up to rotation and scale, 0 nothing in common."
    if not measured:
        return lead
    (lowest, most_changed), (highest, least_changed) = min(measured), max(measured)
    context.facts["compare"] = {"untrained": {path: v for v, path in measured}}
    if len(measured) == 1:
        return f"{lead} {least_changed} and its untrained self: {highest:.2f}."
    text = f"Training changed {most_changed} most (its likeness to its untrained self is {lowest:.2f})"
    return f"{lead} {text} and {least_changed} least ({highest:.2f})."


def _cka_figure(context: ReportContext, name: str, cka: CKA) -> Figure:
    picture = plots.cka_plot(
        cka.cka.cpu(), cka.layers_a, cka.layers_b, (TRAINED, name), max_pixels=CELLS_PIXELS, transparent=True
    )
    alt = f"similarity (CKA) of each layer of this model, from below, with each layer of {name}, from the left, 0 to 1"
    lines = [f"{count_noun(cka.n_examples, 'example')}, scale 0 to 1"]
    if cka.cka.isnan().any():
        lines.append("gray: a layer is the same for all examples")
    return Figure(context.pictures.full_size(picture, alt), f"{TRAINED} and {name}", tuple(lines))


def _cka_files(context: ReportContext, similarities: dict[str, CKA]) -> Files:
    files = []
    for name, s in similarities.items():
        page = plots.cka_plot(s.cka.cpu(), s.layers_a, s.layers_b, (TRAINED, name), title="Similarity of layers (CKA)")
        files.append(
            (context.pictures.save_file(f"similarity-{name.split()[1]}.png", page), f"likeness to {name}, as a sheet")
        )
    return Files(files)


# -- the same picture of both ----------------------------------------------------------------------------------------


def _side_by_side_blocks(context: ReportContext, others: dict[str, Box], x: Tensor) -> list[Block]:
    """Filters and activation maps of the model and of its untrained self, each pair on one scale."""
    if UNTRAINED not in others or not context.has_images:
        return []
    boxes = {TRAINED: context.box, UNTRAINED: others[UNTRAINED]}
    blocks: list[Block] = []
    with suppress(UnboxedError):  # no weights on pixels: said where the filters should be
        blocks += _pair_blocks(
            context, {n: _to_images(w) for n, w in compare(boxes, filters).items()}, "first-layer filters"
        )
    if (path := _deepest_map(context.box)) is not None:
        maps = {n: box.read(x[:1], [path])[path][0] for n, box in boxes.items()}
        blocks += _pair_blocks(context, maps, f"what {path} makes of one example")
    return [Heading("The same picture of both"), *blocks] if blocks else []


def _to_images(weights: Tensor) -> Tensor:
    return weights if weights.shape[1] == 3 else weights.sum(1)


def _deepest_map(box: Box) -> str | None:
    """The last layer whose channels are still small pictures."""
    rows = [r for r in channels_first_layers(box) if r.has_input and r.n_calls == 1 and len(r.shape) == 3]
    large = [r.path for r in rows if min(r.shape[1:]) >= 8]
    return large[-1] if large else None


def _pair_blocks(context: ReportContext, maps: dict[str, Tensor], title: str) -> list[Block]:
    pictures, bar = plots.map_grids(maps, max_maps=MAX_MAPS)
    scale_text = f"{bar.tick_labels[0]} to {bar.tick_labels[-1]}"
    n_shown = min(MAX_MAPS, len(next(iter(maps.values()))))
    n_channels = len(next(iter(maps.values())))
    count_text = f"{n_shown} of {n_channels} channels" if n_shown < n_channels else count_noun(n_shown, "channel")
    figures = [
        Figure(
            context.pictures.full_size(p, f"{title}, {name}, {count_text}, from {scale_text}"),
            name,
            (f"{count_text}, one scale",),
        )
        for name, p in pictures.items()
    ]
    return [
        FigureGrid(figures, name=title[0].upper() + title[1:], two_per_row=True),
        ColorScales([context.pictures.color_scale(bar)]),
    ]


# -- units -----------------------------------------------------------------------------------------------------------


def _unit_blocks(context: ReportContext) -> list[Block]:
    """Units of the last hidden layer, those first whose silence costs most."""
    blocks: list[Block] = [Heading("Which units do the answers need?")]
    try:
        layer = _require_channel_axis(context.box, last_hidden_layer(context.box))
        ablations, indices, width = _ablate_units(context, layer)
    except UnboxedError as error:
        return [*blocks, Note(f"No unit to silence: {error}.")]
    columns, rows, lead = _unit_table(context, ablations, indices, layer, width)
    numbers = frozenset({1, 2} & set(range(len(columns))))
    return [
        *blocks,
        MethodNote.of(ablation, *_verdict_or_default(_split_half_agreement(ablations.score_change))),
        Text(lead),
        Table(columns, rows, numbers),
    ]


def _require_channel_axis(box: Box, address: str) -> str:
    """An address whose units are on axis 1: what a layer receives has as many axes as what it gives."""
    if box.layers[address.replace(":input", "")] not in channels_first_layers(box):
        raise LayerError(f"{address} has units on an axis that can't be told from those of its positions")
    return address


def _split_half_agreement(change: Tensor) -> str:
    """Whether two halves of the examples rank the units (N, U) alike."""
    if len(change) < 2 * MIN_HALF_SIZE or change.shape[1] < 3:
        return ""
    ranks = torch.stack([half.mean(0).argsort().argsort() for half in (change[::2], change[1::2])])
    correlation = float(torch.corrcoef(ranks.double())[0, 1])
    return f"Rank correlation of the units between two halves of the examples: {correlation:.2f}."


def _ablate_units(context: ReportContext, layer: str) -> tuple[Ablation, list[int], int]:
    """The units of a layer silenced, on as many examples as fit: (result, places, width of the layer)."""
    box, total = context.box, len(context.survey.rows)
    h = box.read(context.inputs(evenly_spaced(total, MAX_EXAMPLES_LARGE_MODEL)), [layer])[layer]
    values = h.flatten(2).mean(2) if h.ndim > 2 else h  # (n, C)
    pairs = min(
        MAX_ABLATION_PAIRS, PAIRS_PER_BATCH_ROW * box.batch_limit
    )  # of example and unit: a large model takes few at a time
    spread_of_unit = values.float().std(0, correction=0)
    units = sorted(spread_of_unit.topk(min(len(spread_of_unit), math.isqrt(pairs))).indices.tolist())
    n_examples = min(MAX_EXAMPLES, pairs // len(units), MAX_LOGITS // (len(units) * len(box.classes)))
    indices = list(evenly_spaced(total, max(2, n_examples)))
    return ablation(box, context.inputs(indices), layer, units), indices, len(spread_of_unit)


def _unit_table(
    context: ReportContext, ablations: Ablation, indices: list[int], layer: str, width: int
) -> tuple[list[str], list[list[str]], str]:
    """The columns and rows of the table, and the sentence above it."""
    s, change, n = context.survey, ablations.score_change.mean(0).cpu(), len(ablations.units)
    ablated_text = (
        f"{n} of the {width} units (those that vary most)" if n < width else f"each of the {count_noun(n, 'unit')}"
    )
    name = f"what {layer.partition(':')[0]} receives" if ":input" in layer else layer
    lead = f"With {ablated_text} of {name} set to zero, one at a time, on {count_noun(len(indices), 'example')}. "
    if s.labels is None or not s.exclusive_classes or context.data.binary:
        order = change.abs().argsort(descending=True)[:TABLE_ROWS].tolist()
        rows = [[str(int(ablations.units[i])), _signed_text(float(change[i]))] for i in order]
        score = "output" if context.box.outputs == "regression" else "answer's logit"
        lead += f"Unit {rows[0][0]} matters most: the {score} changes by {rows[0][1]} on average."
        _record_facts(context, layer, rows)
        return ["unit", f"change of the {score}"], rows, lead
    full_accuracy, accuracy_without = ablations.accuracy(s.labels[indices])
    accuracy_without = accuracy_without.cpu()
    order = sorted(range(n), key=lambda i: (float(accuracy_without[i]), float(change[i])))[:TABLE_ROWS]
    rows = [
        [
            str(int(ablations.units[i])),
            format_percent(float(accuracy_without[i])),
            _signed_text(float(change[i])),
            _most_affected_class(context, ablations, i),
        ]
        for i in order
    ]
    lead += _accuracy_drop_text(full_accuracy, float(accuracy_without[order[0]]), rows[0][0], accuracy_without)
    _record_facts(context, layer, rows)
    return ["unit", "accuracy without it", "change of the answer's logit", "hurts most"], rows, lead


def _signed_text(value: float) -> str:
    return f"{value:+.3g}".replace("-", "\u2212")


def _accuracy_drop_text(full_accuracy: float, lowest_accuracy: float, unit: str, accuracy_without: Tensor) -> str:
    if lowest_accuracy >= full_accuracy:
        return (
            f"No single unit is needed: without any one of them the accuracy stays at {format_percent(full_accuracy)}"
            + (" or more." if full_accuracy < 1 else ".")
        )
    n_unneeded = int((accuracy_without >= full_accuracy).sum())
    text = (
        f"Unit {unit} is needed most: without it the accuracy falls from "
        f"{format_percent(full_accuracy)} to {format_percent(lowest_accuracy)}."
    )
    return f"{text} {count_noun(n_unneeded, 'unit')} can be missed without loss." if n_unneeded else text


def _most_affected_class(context: ReportContext, ablations: Ablation, i: int) -> str:
    """The answer whose logit falls most, on average over the examples that are given it."""
    answers, change = ablations.original_logits.argmax(1), ablations.score_change[:, i]
    means = {k: float(change[answers == k].mean()) for k in set(answers.tolist())}
    k = min(means, key=lambda k: means[k])
    return f"{context.class_name(k)} ({_signed_text(means[k])})" if means[k] < 0 else "–"


def _record_facts(context: ReportContext, layer: str, rows: list[list[str]]) -> None:
    facts = context.facts.setdefault("compare", {})
    if isinstance(facts, dict):
        facts["needed"] = {"layer": layer, "units": [row[:-1] if len(row) > 2 else row for row in rows]}


SECTION = Section("Next to another model", "compare", build)
