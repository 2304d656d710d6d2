"""What activates each unit? The top examples, the part of each that matters, and which units are dead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from ..activations import TopExamples, projections, top_examples
from ..engine.read.channel_axes import channels_first_layers
from ..model.layers import Layer
from ..plots import draw, units
from ..plots.sheet import ColorBar
from ..plots.units import PlottedUnit
from . import chapters
from .blocks import (
    Block,
    Collapsible,
    ColorScaleImages,
    ExampleWithFigures,
    Figure,
    FileLinks,
    Heading,
    MethodInterpretation,
    Paragraph,
    Table,
)
from .context import ReportContext, Section
from .finding import METADATA_OF_FIELD_NOT_IN_JSON, CheckNote, Finding, NotApplicable
from .pictures import PageFile, PageImage
from .unit_patches import SurveyInputsDataset, UnitPatches, find_unit_patches
from .unit_words import distinctive_input_columns_table, label_counts_text, top_examples_distance_text
from .words import count_noun, format_shape, join_names_with_limit, layer_display_name

MAX_SHOWN_UNITS = 12  # shown of a layer, half of them folded
MIN_SHOWN_UNITS = 4  # shown, for large photos
MAX_PROJECTION_VALUES_PER_LAYER = 6_000_000  # of a layer: each projection takes a backward pass
MAX_TOP_EXAMPLES_PER_UNIT = 9  # examples of a unit, but no more than a quarter of all
MAX_SEARCHED_EXAMPLES = 2000  # among which the top examples are searched
MAX_SEARCHED_INPUT_VALUES = 20_000_000  # in these examples: photos have many values each
ACTIVATION_OR_NORM_TYPES = ("ReLU", "GELU", "SiLU", "ELU", "Mish", "Hardswish", "Norm", "Tanh", "Sigmoid", "Softplus")
MIN_INCREASED_FRACTION = 0.8  # of the examples, for the projections to pass


@dataclass(frozen=True, eq=False)
class LayerUnits:
    """One layer: all its units counted, and some of them to show."""

    units: int
    dead: int
    top: TopExamples = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)
    type: str = ""
    chosen: list[int] = field(default_factory=list)  # units to show, those that are not folded first
    labels: list[str] = field(default_factory=list)  # of the top examples of each
    patches: UnitPatches | None = None
    features: Table | None = None  # for rows of features, in place of patches


@dataclass(frozen=True, eq=False, kw_only=True)
class UnitsFinding(Finding):
    """Top examples of the units of one or two layers."""

    layers: dict[str, LayerUnits]
    n_unfolded: int  # units of a layer that are shown at once
    has_images: bool


# -- find --------------------------------------------------------------------------------------------------------------


def find(context: ReportContext) -> UnitsFinding:
    paths = _last_and_middle_layers(context)
    if not paths:
        raise NotApplicable(_no_units_layer_reason(context))
    indices = draw.evenly_spaced_indices(len(context.survey.rows), _max_searched_examples(context))
    k = max(1, min(MAX_TOP_EXAMPLES_PER_UNIT, len(indices) // 4))
    tops = top_examples(context.box, SurveyInputsDataset(context, indices), paths, k)
    n_units, n_dead = sum(len(t.dead) for t in tops), sum(int(t.dead.sum()) for t in tops)
    verb, listed = "is" if n_dead < 2 else "are", join_names_with_limit([layer_display_name(path) for path in paths])
    return UnitsFinding(
        answer=f"{n_dead or 'None'} of {count_noun(n_units, 'unit')} in {listed} {verb} dead "
        "(never active on these examples); the others are shown by the examples that they respond to most.",
        layers={top.path: _make_layer_units(context, top, indices) for top in tops},
        n_unfolded=_n_units_shown(context) // 2,
        has_images=context.has_images,
    )


def _make_layer_units(context: ReportContext, top: TopExamples, indices: Sequence[int]) -> LayerUnits:
    chosen = _units_by_uniformity(top, _n_units_shown(context))
    labels = [label_counts_text(context, top, c, indices) for c in chosen]
    patches = find_unit_patches(context, top, indices, chosen) if chosen and context.has_images else None
    features = (
        distinctive_input_columns_table(context, top, chosen, labels, indices)
        if chosen and not context.has_images
        else None
    )
    n_dead, layer_type = int(top.dead.sum()), context.box.layers[top.path].type
    return LayerUnits(len(top.dead), n_dead, top, layer_type, chosen, labels, patches, features)


def _no_units_layer_reason(context: ReportContext) -> str:
    """Why no layer is shown."""
    if any(r.n_parameters and r.runs_per_example and r.shape for r in context.box.layers.leaves):
        return "No layer of this model is known to have its units on axis 1; those of tokens are on the last axis."
    return "No layer of this model has units: no module with weights outputs one row per example."


def _max_searched_examples(context: ReportContext) -> int:
    return max(32, min(MAX_SEARCHED_EXAMPLES, MAX_SEARCHED_INPUT_VALUES // max(1, math.prod(context.box.inputs.shape))))


def _last_and_middle_layers(context: ReportContext) -> list[str]:
    """The last layer with weights that has positions, and the middle one of those before; else the last hidden one.

    Each after its activation function, if that is a module.
    """
    rows = [r for r in context.box.layers.leaves if r.runs_per_example and r.shape]
    channel_layers = {r.path for r in channels_first_layers(context.box)}
    with_weights = [i for i, r in enumerate(rows) if r.n_parameters and not _is_activation_or_norm(r)]
    with_channels = [i for i in with_weights if rows[i].path in channel_layers]
    with_positions = [i for i in with_channels if len(rows[i].shape) == 3]
    if len(with_positions) > 1 and with_positions[-1] == with_weights[-1]:
        with_positions.pop()  # its units are the outputs
    if with_positions and context.has_images:
        chosen = list(dict.fromkeys([with_positions[-1], with_positions[(len(with_positions) - 1) // 2]]))
    else:
        chosen = with_channels[-2:-1] or with_channels
    return [_address_after_activation(rows, i) for i in chosen]


def _address_after_activation(rows: Sequence[Layer], row_index: int) -> str:
    """The address of layer i, or of the normalization and activation right after it."""
    last = rows[row_index]
    for row in rows[row_index + 1 :]:
        if row.shape != last.shape or row.n_calls > 1 or not _is_activation_or_norm(row):
            break
        last = row
    return last.addresses[-1]


def _is_activation_or_norm(row: Layer) -> bool:
    return any(name in row.type for name in ACTIVATION_OR_NORM_TYPES)


def _n_units_shown(context: ReportContext) -> int:
    values = MAX_TOP_EXAMPLES_PER_UNIT * max(1, math.prod(context.box.inputs.shape))
    return max(MIN_SHOWN_UNITS, min(MAX_SHOWN_UNITS, MAX_PROJECTION_VALUES_PER_LAYER // values))


def _units_by_uniformity(top: TopExamples, max_units: int) -> list[int]:
    """Units from the most to the least uniform top examples, evenly spread; the half that is not folded first."""
    order = _active_units_by_distance(top) or (~top.dead).nonzero()[:, 0].tolist()
    first = [order[i] for i in draw.evenly_spaced_indices(len(order), max_units // 2)]
    rest = [c for c in order if c not in first]
    return [*first, *(rest[i] for i in draw.evenly_spaced_indices(len(rest), max_units - max_units // 2))]


# -- show --------------------------------------------------------------------------------------------------------------


def show(finding: UnitsFinding) -> list[Block]:
    layers = list(finding.layers.values())
    blocks: list[Block] = [MethodInterpretation.of(top_examples, _top_examples_alikeness_check_text(layers))]
    if finding.has_images:
        blocks.append(MethodInterpretation.of(projections, *_projection_step_check(layers)))
    return [*blocks, *(block for layer in layers for block in _unit_layer_blocks(layer, finding.n_unfolded))]


def _top_examples_alikeness_check_text(layers: Sequence[LayerUnits]) -> str:
    """Whether the top examples of a unit are alike."""
    tops = [layer.top for layer in layers]
    distances = [
        (float(top.mean_distance[c]), top.baseline_distance) for top in tops for c in _active_units_by_distance(top)
    ]
    if not distances:
        return "Too few examples to say whether the top examples of a unit are alike."
    n_closer = sum(distance < baseline for distance, baseline in distances)
    return (f"The top examples of {n_closer} of {len(distances)} active units are more alike than "
            f"any two examples are.")  # fmt: skip


def _projection_step_check(layers: Sequence[LayerUnits]) -> CheckNote:
    """Whether the projections point in a direction that raises the unit."""
    increases = [value for layer in layers if layer.patches for value in layer.patches.increases]
    if not increases:
        return CheckNote("There are no projections.")
    text = (f"Changed a little along its projection, {sum(increases)} of {len(increases)} examples activate "
            f"their neuron more.")  # fmt: skip
    return CheckNote(text, "good" if sum(increases) / len(increases) > MIN_INCREASED_FRACTION else "bad")


def _unit_layer_blocks(layer: LayerUnits, n_unfolded: int) -> list[Block]:
    path, name = layer.top.path, layer_display_name(layer.top.path)
    blocks: list[Block] = [
        Heading(f"Layer {path}: {count_noun(layer.units, 'unit')}"),
        Paragraph(_dead_and_selective_units_text(layer)),
    ]
    if layer.features is not None:
        blocks.append(layer.features)
    if layer.patches is None:
        return blocks
    field_text = (
        f"{format_shape(layer.patches.receptive_field.size)} pixels, the receptive field of {name} ({layer.type})"
    )
    legend = f"Patches are {field_text}; the strongest first, each from another example. "
    legend += _projections_legend(layer.patches)
    blocks.append(Paragraph(legend, "soft"))
    pictured = {c: _make_plotted_unit(layer.top, layer.patches, i, c) for i, c in enumerate(layer.chosen)}
    rule = layer.patches.projections.rule if layer.patches.projections else ""
    vmax = units.back_projection_vmax(list(pictured.values())) if rule else 0.0
    if vmax:
        blocks.append(
            ColorScaleImages([ColorBar("signed", vmax, f"{rule}: change of the unit per unit of pixel value")])
        )
    rows = [
        _unit_example_block(layer, unit, text, rule, vmax)
        for unit, text in zip(pictured.values(), layer.labels, strict=True)
    ]
    blocks += rows[:n_unfolded]
    if rest := rows[n_unfolded:]:
        blocks.append(Collapsible(f"{count_noun(len(rest), 'more unit')} of {name}", rest))
    sheet = units.units_sheet(list(pictured.values()), title=f"Units of {name}", projection_name=rule)
    stem = "".join(c if c.isalnum() else "-" for c in path)
    return [*blocks, FileLinks([PageFile(f"units-{stem}.png", sheet, "these units as a sheet")])]


def _projections_legend(patches: UnitPatches) -> str:
    result = patches.projections
    if result is None:
        return patches.no_projections_reason
    if result.rule == "gradient":
        reason = f"deconvnet is not possible here: {result.fallback_reason}"
        return f"Beside them the gradient of the unit in each patch ({reason})."
    return "Beside them the projection of the unit by deconvnet: red pixels raise its value, blue lower it."


def _dead_and_selective_units_text(layer: LayerUnits) -> str:
    """How many units are dead, and which has the most and the least uniform top examples."""
    top, n, dead = layer.top, layer.units, layer.dead
    count_text = f"{dead} of {count_noun(n, 'unit')}" if dead else f"None of the {count_noun(n, 'unit')}"
    verb, examples_text = "is" if dead <= 1 else "are", count_noun(top.statistics.n_examples, "example")
    text = f"{count_text} {verb} dead (never above zero, or the same everywhere) on {examples_text}."
    order = _active_units_by_distance(top)
    if len(order) < 2:
        return text
    first, last = order[0], order[-1]
    return (
        f"{text} The most selective is unit {first}: its top examples are alike (mean cosine distance "
        f"{float(top.mean_distance[first]):.2f} in {top.features}; "
        f"{top.baseline_distance:.2f} between any two examples). "
        f"The least selective is unit {last} ({float(top.mean_distance[last]):.2f})."
    )


def _active_units_by_distance(top: TopExamples) -> list[int]:
    """Units that all their top examples activate, those with the most similar ones first."""
    active = top.value[:, -1] > top.statistics.minimum.to(top.value)  # else the last are just the first of many
    usable = (~top.dead & active & top.mean_distance.isfinite()).nonzero()[:, 0]
    return [int(i) for i in usable[top.mean_distance[usable].argsort(stable=True)]]


def _make_plotted_unit(top: TopExamples, patches: UnitPatches, shown_index: int, unit: int) -> PlottedUnit:
    """Unit `unit` of a layer, the i-th of those shown, as `plots.units` draws it."""
    x, size = patches.x[shown_index], patches.receptive_field.size
    image_size = (x.shape[-2], x.shape[-1])
    bounds = patches.receptive_field.bounds_at(top.position[unit]).tolist()  # (k, 4)

    def crop_receptive_field_patches(images: Tensor) -> Any:
        return np.stack([units.crop_with_padding(p, b, size, image_size) for p, b in zip(images, bounds, strict=True)])

    s, k, result = top.statistics, len(x), patches.projections
    maps = crop_receptive_field_patches(result.map[shown_index * k : (shown_index + 1) * k]) if result else None
    counts, edges = s.counts[unit].double().cpu().numpy(), s.edges[unit].double().cpu().numpy()
    value_range = s.histogram_range[unit].tolist()
    return PlottedUnit(
        unit,
        crop_receptive_field_patches(x),
        maps,
        top.value[unit].tolist(),
        counts,
        edges,
        value_range,
        bool(top.dead[unit]),
    )


def _unit_example_block(
    layer: LayerUnits, unit: PlottedUnit, labels: str, rule: str, vmax: float
) -> ExampleWithFigures:
    distance = top_examples_distance_text(layer.top, unit.number)
    unit_text = f"unit {unit.number} of {layer_display_name(layer.top.path)}"
    alt = f"the {len(unit.values)} patches that activate {unit_text} most" + (f", {labels}" if labels else "")
    values = f"values {unit.values[0]:.3g} to {unit.values[-1]:.3g}"
    figures = [Figure(PageImage(units.patch_grid(unit), alt, None), "top patches", (values,))]
    if vmax:
        alt = f"{rule} of {unit_text} in these patches"
        figures.append(Figure(PageImage(units.back_projection_grid(unit, vmax), alt, None), rule))
    range_text = units.value_range_text(unit)
    alt = f"histogram of the largest value of {unit_text} in each example, from {range_text}"
    lines = (range_text, "bars: square roots of counts")
    figures.append(Figure(PageImage.of_chart(units.histogram_image(unit), alt), "largest value in each example", lines))
    words = (f"distance {distance}" if distance else "", labels)
    return ExampleWithFigures(unit.name, tuple(filter(None, words)), figures)


SECTION = Section("What activates each unit?", "units", find, show, chapter=chapters.KNOWLEDGE)
