"""How does it compare with another model? What training changed in each layer, and which units it needs."""

from __future__ import annotations

import math
import warnings
from contextlib import suppress
from dataclasses import dataclass, field

from torch import Tensor

from ..activations import CKA, cka, filters
from ..box import Box
from ..comparing import compare
from ..engine.read.channel_axes import channels_first_layers
from ..errors import LayerError, UnboxedError, UnboxedWarning
from ..plots import compare as plots
from ..plots import draw
from . import chapters
from .blocks import (
    Block,
    Caution,
    ColorScaleImages,
    Figure,
    FigureGrid,
    FileLinks,
    Heading,
    MethodInterpretation,
    Paragraph,
)
from .context import ReportContext, Section
from .finding import METADATA_OF_FIELD_NOT_IN_JSON, Finding
from .pictures import PageFile, PageImage
from .survey import evenly_spaced_indices
from .unit_ablation import (
    MAX_ABLATION_EXAMPLES,
    MAX_ABLATION_EXAMPLES_LARGE_MODEL,
    MIN_EXAMPLES_PER_HALF,
    TOO_FEW_EXAMPLES_TEXT,
    UnitImportanceTable,
    unit_importance_blocks,
    unit_table_or_reason,
)
from .words import count_noun, error_sentence, layer_display_name

MAX_CKA_HEATMAP_LAYERS = 8  # of a model, in the heatmap
CKA_HEATMAP_SIDE_PIXELS = 300  # a side of a heatmap's cells
MAX_MAPS_PER_MODEL = 24
TRAINED_MODEL_NAME, UNTRAINED_MODEL_NAME, JUDGE_MODEL_NAME = "this model", "the untrained model", "the judge"


@dataclass(frozen=True, eq=False)
class CKAComparison:
    """The similarity of the layers of this model with those of another."""

    name: str
    cka: CKA
    max_half_difference: float | None  # between two halves of the examples; None where they are too few


@dataclass(frozen=True, eq=False)
class MapPair:
    """The same maps of both models, {model: (C, H, W)}."""

    title: str
    maps: dict[str, Tensor] = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)


@dataclass(frozen=True, eq=False, kw_only=True)
class CompareFinding(Finding):
    """Similarity with other models, maps of both, and the units that the predictions need."""

    untrained: dict[str, float]  # {layer: its similarity with that of an untrained copy of the model}
    comparisons: list[CKAComparison]
    has_others: bool
    notes: list[str]  # why a model is missing
    comparison_notes: list[str]  # why a comparison is missing
    pairs: list[MapPair]
    units: UnitImportanceTable | None
    no_units_reason: str


# -- find --------------------------------------------------------------------------------------------------------------


def find(context: ReportContext) -> CompareFinding:
    others, notes = _other_models_and_notes(context)
    x = context.inputs(evenly_spaced_indices(len(context.survey.rows), _n_compared_examples(context)))
    comparisons, comparison_notes = _cka_comparisons_and_notes(context.box, others, x)
    units, no_units_reason = unit_table_or_reason(context)
    untrained = next((_same_layer_similarity(c.cka) for c in comparisons if c.name == UNTRAINED_MODEL_NAME), {})
    return CompareFinding(
        answer=_training_change_text(untrained) or "Which units the predictions need.",
        untrained=untrained,
        comparisons=comparisons,
        has_others=bool(others),
        notes=notes,
        comparison_notes=comparison_notes,
        pairs=_map_pairs_before_and_after_training(context, others, x),
        units=units,
        no_units_reason=no_units_reason,
    )


def _n_compared_examples(context: ReportContext) -> int:
    return (
        MAX_ABLATION_EXAMPLES if context.box.batch_limit >= MAX_ABLATION_EXAMPLES else MAX_ABLATION_EXAMPLES_LARGE_MODEL
    )


def _other_models_and_notes(context: ReportContext) -> tuple[dict[str, Box], list[str]]:
    """The other models: this one without training, and the judge where it takes the same inputs."""
    others: dict[str, Box] = {}
    notes = []
    try:
        others[UNTRAINED_MODEL_NAME] = context.untrained
    except UnboxedError as error:  # a model that can't be copied is no reason to show nothing
        notes.append(f"No untrained copy of this model to compare with ({error_sentence(error)}).")
    judge = context.judge
    if judge is not None and judge.inputs.shape == context.box.inputs.shape:
        others[JUDGE_MODEL_NAME] = judge
    return others, notes


def _cka_comparisons_and_notes(box: Box, others: dict[str, Box], x: Tensor) -> tuple[list[CKAComparison], list[str]]:
    comparisons, notes = list[CKAComparison](), list[str]()
    for name, other in others.items():
        try:
            comparisons.append(
                CKAComparison(
                    name, _sampled_layer_cka(box, other, x), _max_cka_difference_between_halves(box, other, x)
                )
            )
        except UnboxedError as error:
            notes.append(f"No comparison with {name}: {error}.")
    return comparisons, notes


def _sampled_layer_cka(box: Box, other: Box, x: Tensor) -> CKA:
    with warnings.catch_warnings():  # cells without a value are gray, and the caption says why
        warnings.simplefilter("ignore", UnboxedWarning)
        return cka(
            box,
            other,
            x,
            _evenly_sampled_weighted_layers(box),
            _evenly_sampled_weighted_layers(other),
            minibatch_size=max(4, len(x)),
        )


def _max_cka_difference_between_halves(box: Box, other: Box, x: Tensor) -> float | None:
    """The largest difference between the similarities of two halves of the examples."""
    if len(x) < 2 * MIN_EXAMPLES_PER_HALF:
        return None
    first_half, second_half = (_sampled_layer_cka(box, other, half).cka for half in (x[::2], x[1::2]))
    return float((first_half - second_half).abs().nan_to_num().max())


def _evenly_sampled_weighted_layers(box: Box) -> list[str]:
    """Layers with weights, evenly sampled; where there are fewer than two, all."""
    rows = [row for row in box.layers.leaves if row.runs_per_example and row.shape]
    with_weights = [row for row in rows if row.n_parameters]
    with_weights = with_weights if len(with_weights) > 1 else rows
    names = [row.addresses[0] for row in with_weights]
    if not names:
        raise LayerError("no module of it runs alone")
    return [names[i] for i in draw.evenly_spaced_indices(len(names), MAX_CKA_HEATMAP_LAYERS)]


def _same_layer_similarity(result: CKA) -> dict[str, float]:
    """{layer: its similarity with the same layer of the other model}, where it has a value."""
    pairs = zip(result.layers_a, result.cka.diagonal().tolist(), strict=True)
    return {path: value for path, value in pairs if not math.isnan(value)}


def _map_pairs_before_and_after_training(context: ReportContext, others: dict[str, Box], x: Tensor) -> list[MapPair]:
    """Filters and activation maps of the model and of its untrained copy."""
    if UNTRAINED_MODEL_NAME not in others or not context.has_images:
        return []
    boxes = {TRAINED_MODEL_NAME: context.box, UNTRAINED_MODEL_NAME: others[UNTRAINED_MODEL_NAME]}
    pairs: list[MapPair] = []
    with suppress(UnboxedError):  # no weights on pixels: the section of the filters says so
        weights = {n: _filters_to_images(result.weights) for n, result in compare(boxes, filters).items()}
        pairs.append(MapPair("first-layer filters", weights))
    if (path := _deepest_large_map_layer(context.box)) is not None:
        maps = {n: box.read(x[:1], [path])[path][0] for n, box in boxes.items()}
        pairs.append(MapPair(f"activations of {layer_display_name(path)} for one example", maps))
    return pairs


def _filters_to_images(weights: Tensor) -> Tensor:
    return weights if weights.shape[1] == 3 else weights.sum(1)


def _deepest_large_map_layer(box: Box) -> str | None:
    """The last layer whose channels are still small images."""
    rows = [r for r in channels_first_layers(box) if r.has_input and r.n_calls == 1 and len(r.shape) == 3]
    large = [r.path for r in rows if min(r.shape[1:]) >= 8]
    return large[-1] if large else None


def _training_change_text(untrained: dict[str, float]) -> str:
    """Which layers differ most and least from an untrained copy, in a sentence."""
    if not untrained:
        return ""
    by_similarity = sorted(untrained, key=lambda path: untrained[path])
    most_changed, least_changed = layer_display_name(by_similarity[0]), layer_display_name(by_similarity[-1])
    lowest, highest = untrained[by_similarity[0]], untrained[by_similarity[-1]]
    if len(untrained) == 1:
        return f"What {least_changed} computes has a similarity of {highest:.2f} with that of an untrained copy."
    similarity = f"similarity with an untrained copy {lowest:.2f}; 1 is the same"
    return (
        f"Training changed what {most_changed} computes most ({similarity}), and {least_changed} least ({highest:.2f})."
    )


# -- show --------------------------------------------------------------------------------------------------------------


def show(finding: CompareFinding) -> list[Block]:
    notes: list[Block] = [Caution(note) for note in finding.notes]
    return [
        *notes,
        *(_similarity_blocks(finding) if finding.has_others else []),
        *_map_pair_blocks(finding),
        *unit_importance_blocks(finding.units, finding.no_units_reason),
    ]


def _similarity_blocks(finding: CompareFinding) -> list[Block]:
    """A heatmap of similarities with each other model."""
    differences = [c.max_half_difference for c in finding.comparisons if c.max_half_difference is not None]
    verdict = TOO_FEW_EXAMPLES_TEXT
    if differences:
        verdict = f"Between two halves of the examples no similarity differs by more than {differences[0]:.2f}."
    blocks: list[Block] = [Heading("Which layers represent the examples alike?"), MethodInterpretation.of(cka, verdict)]
    blocks += [Caution(note) for note in finding.comparison_notes]
    if finding.comparisons:
        n = count_noun(finding.comparisons[0].cka.n_examples, "example")
        blocks.append(Paragraph(f"On {n}; 1: the same up to rotation and scale, 0: nothing in common.", "soft"))
        blocks += [
            FigureGrid([_cka_figure(c) for c in finding.comparisons]),
            FileLinks([_cka_sheet_file(c) for c in finding.comparisons]),
        ]
    return blocks


def _cka_figure(comparison: CKAComparison) -> Figure:
    image = plots.cka_plot(
        comparison.cka.cka.cpu(),
        comparison.cka.layers_a,
        comparison.cka.layers_b,
        (TRAINED_MODEL_NAME, comparison.name),
        max_pixels=CKA_HEATMAP_SIDE_PIXELS,
        transparent=True,
    )
    alt = f"similarity (CKA) of each layer of this model (rows) with each layer of {comparison.name} (columns), 0 to 1"
    lines = [f"{count_noun(comparison.cka.n_examples, 'example')}, scale 0 to 1"]
    if comparison.cka.cka.isnan().any():
        lines.append("gray: a layer is the same for all examples")
    return Figure(PageImage(image, alt, None), f"{TRAINED_MODEL_NAME} and {comparison.name}", tuple(lines))


def _cka_sheet_file(comparison: CKAComparison) -> PageFile:
    page = plots.cka_plot(
        comparison.cka.cka.cpu(),
        comparison.cka.layers_a,
        comparison.cka.layers_b,
        (TRAINED_MODEL_NAME, comparison.name),
        title="Similarity of layers (CKA)",
    )
    return PageFile(
        f"similarity-{comparison.name.split()[1]}.png", page, f"similarity with {comparison.name}, as a sheet"
    )


def _map_pair_blocks(finding: CompareFinding) -> list[Block]:
    """The same maps of both models, each pair on one scale."""
    blocks: list[Block] = []
    for pair in finding.pairs:
        images, bar = plots.map_grid_by_model(pair.maps, max_maps=MAX_MAPS_PER_MODEL)
        span = f"{bar.tick_labels[0]} to {bar.tick_labels[-1]}"
        n_channels = len(next(iter(pair.maps.values())))
        n_shown = min(MAX_MAPS_PER_MODEL, n_channels)
        count = f"{n_shown} of {n_channels} channels" if n_shown < n_channels else count_noun(n_shown, "channel")
        figures = [
            Figure(
                PageImage(image, f"{pair.title}, {name}, {count}, from {span}", None), name, (f"{count}, one scale",)
            )
            for name, image in images.items()
        ]
        blocks.append(FigureGrid(figures, name=pair.title[0].upper() + pair.title[1:], two_per_row=True))
        blocks.append(ColorScaleImages([bar]))
    return [Heading("The same maps of both models"), *blocks] if blocks else []


SECTION = Section("How does it compare with another model?", "compare", find, show, chapter=chapters.KNOWLEDGE)
