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
from ..activations.projections import neuron_per_example
from ..engine.optimize.constraints import TINY, l2_norm
from ..engine.read.channel_axes import channels_first_layers
from ..errors import OutputError
from ..model.layers import Layer
from ..plots import draw, units
from ..plots.sheet import ColorBar
from ..plots.units import Unit
from .blocks import Block, ColorScales, ExampleRow, Figure, Files, Fold, Heading, MethodNote, Note, Text
from .context import ReportContext, Section
from .unit_words import feature_table, label_counts_text, spread_text
from .words import count_noun, format_shape

MAX_UNITS = 12  # of a layer that are shown, half of them folded
MIN_UNITS = 4  # of large photos
MAX_PROJECTION_VALUES = 6_000_000  # values of a layer's projections: each takes a backward pass
MAX_TOP_EXAMPLES = 9  # examples of a unit, but no more than a quarter of all
MAX_EXAMPLES = 2000  # passed over
MAX_INPUT_VALUES = 20_000_000  # of input: photos are many values each
MAX_FIELD_PROBES = 28  # bands of rows: fields in photos are rounded up to a 28th of the picture
ACTIVATION_OR_NORM_TYPES = ("ReLU", "GELU", "SiLU", "ELU", "Mish", "Hardswish", "Norm", "Tanh", "Sigmoid", "Softplus")
MIN_INCREASED_FRACTION = 0.8  # of the examples must be excited more, for the projections to be believed
STEP_RMS = 0.01  # root mean square of that change, in pixel range


def build(context: ReportContext) -> Sequence[Block]:
    paths = _chosen_layers(context)
    if not paths:
        return [Note(_no_layer_reason(context))]
    indices = draw.evenly_spaced(len(context.survey.rows), _max_examples(context))
    tops = top_examples(
        context.box, _SurveyInputs(context, indices), paths, max(1, min(MAX_TOP_EXAMPLES, len(indices) // 4))
    )
    facts = {t.path: {"units": len(t.dead), "dead": int(t.dead.sum())} for t in tops}
    context.facts["units"] = facts
    increased: list[Tensor] = []
    layers = [block for top in tops for block in _layer_blocks(context, top, indices, increased)]
    blocks: list[Block] = [MethodNote.of(top_examples, _spread_verdict(tops))]
    if context.has_images:
        blocks.append(MethodNote.of(projections, *_step_verdict(increased)))
    return [*blocks, *layers]


def _no_layer_reason(context: ReportContext) -> str:
    """Why no layer is shown."""
    if any(r.n_parameters and r.has_input and r.has_batch_axis and r.shape for r in context.box.layers.leaves):
        return "No layer of this model surely has its units on the first axis of an example; a token's are on the last."
    return "No layer of this model has units: none of its modules with weights gives a row an example."


def _spread_verdict(tops: Sequence[TopExamples]) -> str:
    """Whether what excites a unit belongs together."""
    spreads = [(float(top.mean_distance[c]), top.baseline_distance) for top in tops for c in _units_by_spread(top)]
    if not spreads:
        return "Too few examples to say whether those of a unit belong together."
    n_closer = sum(spread < baseline for spread, baseline in spreads)
    return f"The top examples of {n_closer} of {len(spreads)} living units are more alike than any two examples are."


def _step_verdict(increased: Sequence[Tensor]) -> tuple[str, str]:
    """Whether the pictures point uphill."""
    if not increased:
        return "No projections were made.", ""
    all_increased = torch.cat(list(increased))
    text = (
        f"Changed a little as its picture says, {int(all_increased.sum())} "
        f"of {len(all_increased)} examples excite their neuron more."
    )
    return text, "good" if float(all_increased.double().mean()) > MIN_INCREASED_FRACTION else "bad"


class _SurveyInputs:
    """The inputs that the report looked at, or some of them, by their places."""

    def __init__(self, context: ReportContext, indices: Sequence[int]) -> None:
        self._context, self._indices = context, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: int) -> Tensor:
        return self._context.inputs([self._indices[i]])[0]


def _max_examples(context: ReportContext) -> int:
    return max(32, min(MAX_EXAMPLES, MAX_INPUT_VALUES // max(1, math.prod(context.box.inputs.shape))))


def _chosen_layers(context: ReportContext) -> list[str]:
    """The last layer with weights that has positions, and that in the middle of those before; else the last hidden one.

    Each where its activation function has been applied, if that is a module: what the model goes on with.
    """
    rows = [r for r in context.box.layers.leaves if r.has_input and r.has_batch_axis and r.shape]
    channel_layers = {r.path for r in channels_first_layers(context.box)}
    with_weights = [i for i, r in enumerate(rows) if r.n_parameters and not _is_activation_or_norm(r)]
    with_channels = [i for i in with_weights if rows[i].path in channel_layers]
    with_positions = [i for i in with_channels if len(rows[i].shape) == 3]
    if len(with_positions) > 1 and with_positions[-1] == with_weights[-1]:
        with_positions.pop()  # its units are the answers
    if with_positions and context.has_images:
        chosen = list(dict.fromkeys([with_positions[-1], with_positions[(len(with_positions) - 1) // 2]]))
    else:
        chosen = with_channels[-2:-1] or with_channels
    return [_address_after_activation(rows, i) for i in chosen]


def _address_after_activation(rows: Sequence[Layer], i: int) -> str:
    """The address of layer i, or of what normalizes and activates it at once."""
    last = rows[i]
    for row in rows[i + 1 :]:
        if row.shape != last.shape or row.n_calls > 1 or not _is_activation_or_norm(row):
            break
        last = row
    return last.addresses[-1]


def _is_activation_or_norm(row: Layer) -> bool:
    return any(name in row.type for name in ACTIVATION_OR_NORM_TYPES)


def _layer_blocks(
    context: ReportContext, top: TopExamples, indices: Sequence[int], increased: list[Tensor]
) -> list[Block]:
    row = context.box.layers[top.path]
    blocks: list[Block] = [
        Heading(f"Layer {top.path}: {count_noun(len(top.example_index), 'unit')}"),
        Text(_dead_units_text(top)),
    ]
    chosen = _chosen_units(top, _n_units_shown(context))
    if not chosen:
        return blocks
    if not context.has_images:
        return [*blocks, feature_table(context, top, chosen, indices)]
    pictured = _LayerPatches.of(context, top, indices, chosen)
    increased += pictured.increased
    cases = [_unit_row(context, pictured, c, indices) for c in chosen]
    field_text = f"{format_shape(pictured.field.size)} pixels, the most that a unit of {top.path} ({row.type}) sees"
    blocks.append(
        Text(f"Patches are {field_text}; its strongest, each from another example. {pictured.legend}", "soft")
    )
    if pictured.scale:
        bar = ColorBar(
            "signed", pictured.scale, f"{pictured.projection_name}: change of the unit per unit of pixel value"
        )
        blocks.append(ColorScales([context.pictures.color_scale(bar)]))
    half = _n_units_shown(context) // 2
    blocks += cases[:half]
    if rest := cases[half:]:
        blocks.append(Fold(f"{count_noun(len(rest), 'more unit')} of {top.path}", rest))
    sheet = units.units_sheet(
        list(pictured.units.values()), title=f"Units of {top.path}", projection_name=pictured.projection_name
    )
    return [
        *blocks,
        Files([(context.pictures.save_file(f"units-{_file_stem(top.path)}.png", sheet), "these units as a sheet")]),
    ]


def _file_stem(path: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in path)


def _dead_units_text(top: TopExamples) -> str:
    """How many are dead, and which answer to one thing and which to many."""
    n, dead = len(top.dead), int(top.dead.sum())
    examples_text = f"{count_noun(top.statistics.n_examples, 'example')}"
    count_text = f"{dead} of {count_noun(n, 'unit')}" if dead else f"None of the {count_noun(n, 'unit')}"
    verb = "is" if dead <= 1 else "are"
    text = f"{count_text} {verb} dead (never above zero, or the same everywhere) on {examples_text}."
    order = _units_by_spread(top)
    if len(order) < 2:
        return text
    clearest, most_mixed = order[0], order[-1]
    return (
        f"{text} The clearest is unit {clearest}: its top examples are alike (mean cosine distance "
        f"{float(top.mean_distance[clearest]):.2f} in {top.features}; "
        f"{top.baseline_distance:.2f} between any two examples). "
        f"The most mixed is unit {most_mixed} ({float(top.mean_distance[most_mixed]):.2f})."
    )


def _units_by_spread(top: TopExamples) -> list[int]:
    """Units that all their top examples excite, the clearest first."""
    excited = top.value[:, -1] > top.statistics.minimum.to(
        top.value
    )  # else those at the end are just the first of many
    usable = (~top.dead & excited & top.mean_distance.isfinite()).nonzero()[:, 0]
    return [int(i) for i in usable[top.mean_distance[usable].argsort(stable=True)]]


def _n_units_shown(context: ReportContext) -> int:
    values = MAX_TOP_EXAMPLES * max(1, math.prod(context.box.inputs.shape))
    return max(MIN_UNITS, min(MAX_UNITS, MAX_PROJECTION_VALUES // values))


def _chosen_units(top: TopExamples, max_units: int) -> list[int]:
    """Units from the clearest to the most mixed, evenly spread; the half that is shown at once first."""
    order = _units_by_spread(top) or (~top.dead).nonzero()[:, 0].tolist()
    first = [order[i] for i in draw.evenly_spaced(len(order), max_units // 2)]
    rest = [c for c in order if c not in first]
    return [*first, *(rest[i] for i in draw.evenly_spaced(len(rest), max_units - max_units // 2))]


@dataclass(frozen=True)
class _LayerPatches:
    top: TopExamples
    field: ReceptiveField
    units: dict[int, Unit]
    scale: float  # of all projections of the layer; 0 where there are none
    legend: str
    projection_name: str
    increased: list[Tensor]  # (N,) bool: a small change along the projection raises the neuron

    @classmethod
    def of(
        cls, context: ReportContext, top: TopExamples, indices: Sequence[int], chosen: Sequence[int]
    ) -> _LayerPatches:
        side = max(context.box.inputs.shape[1:])
        field = receptive_field(context.box, top.path, resolution=max(1, side // MAX_FIELD_PROBES))
        x = top.fetch_examples(_SurveyInputs(context, indices), chosen)  # (U, k, C, H, W)
        projected, legend = _try_projections(context, top, field, x.flatten(0, 1), chosen)
        unit_data = {c: _unit_data(top, field, x[i], projected, i, c) for i, c in enumerate(chosen)}
        scale = units.shared_vmax(list(unit_data.values())) if projected else 0.0
        increased = [_increases_after_step(context, projected, x.flatten(0, 1))] if projected else []
        return cls(top, field, unit_data, scale, legend, projected.rule if projected else "", increased)


def _increases_after_step(context: ReportContext, projected: Projections, x: Tensor) -> Tensor:
    """Which neurons (N,) answer more to their example after a small step along their map."""
    x = x.to(projected.map)
    step = STEP_RMS * math.sqrt(x[0].numel()) * projected.map / l2_norm(projected.map).clamp_min(TINY).view(-1, 1, 1, 1)
    stepped = context.box.inputs.clip(x + step)
    neuron = neuron_per_example(projected.path, projected.unit, projected.position)
    return neuron(context.box.read(stepped, [projected.path])) > projected.value


def _try_projections(
    context: ReportContext, top: TopExamples, field: ReceptiveField, x: Tensor, chosen: Sequence[int]
) -> tuple[Projections | None, str]:
    unit = torch.tensor(chosen).repeat_interleave(top.example_index.shape[1])
    position = top.position[list(chosen)].flatten(0, 1)
    try:
        result = projections(context.box, x, top.path, unit, position, field=field)
    except OutputError as error:
        return None, f"No projections: {error}."
    legend = "Beside them what of each patch counts, by deconvnet: red pixels raise the unit's value, blue lower it."
    if result.rule == "gradient":
        legend = (
            "Beside them the gradient of the unit in each patch "
            f"(deconvnet can't be had here: {result.fallback_reason})."
        )
    return result, legend


def _unit_data(
    top: TopExamples, field: ReceptiveField, x: Tensor, projected: Projections | None, i: int, c: int
) -> Unit:
    bounds = field.bounds_at(top.position[c]).tolist()  # (k, 4)
    image = (x.shape[-2], x.shape[-1])

    def crop_all(images: Tensor) -> Any:
        return np.stack([units.crop_with_padding(p, b, field.size, image) for p, b in zip(images, bounds, strict=True)])

    s, k = top.statistics, len(x)
    maps = crop_all(projected.map[i * k : (i + 1) * k]) if projected else None
    counts, edges = s.counts[c].double().cpu().numpy(), s.edges[c].double().cpu().numpy()
    return Unit(c, crop_all(x), maps, top.value[c].tolist(), counts, edges, bool(top.dead[c]))


def _unit_row(context: ReportContext, pictured: _LayerPatches, c: int, indices: Sequence[int]) -> ExampleRow:
    top, unit = pictured.top, pictured.units[c]
    values_text = f"{unit.values[0]:.3g} to {unit.values[-1]:.3g}"
    classes = label_counts_text(context, top, c, indices)
    spread_value = spread_text(top, c)
    lines = [*([f"spread {spread_value}"] if spread_value else []), *([classes] if classes else [])]
    unit_text = f"unit {c} of {top.path}"
    alt = f"the {len(unit.values)} patches that excite {unit_text} most" + (f", {classes}" if classes else "")
    natural = context.pictures.full_size
    figures = [Figure(natural(units.patch_grid(unit), alt), "top patches", (f"values {values_text}",))]
    if pictured.scale:
        picture = units.projection_grid(unit, pictured.scale)
        figures.append(
            Figure(
                natural(picture, f"{pictured.projection_name} of {unit_text} in these patches"),
                pictured.projection_name,
            )
        )
    range_text = units.value_range_text(unit)
    alt = f"histogram of the largest value of {unit_text} in each example, from {range_text}"
    lines_below = (range_text, "bars: square roots of counts")
    figures.append(Figure(natural(units.histogram(unit), alt), "largest value in each example", lines_below))
    return ExampleRow(unit.name, tuple(lines), figures)


SECTION = Section("What excites each unit?", "units", build)
