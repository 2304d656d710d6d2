"""Which parts does it see in examples? Concepts found by themselves, and a dictionary of features, with controls."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image
from torch import Tensor

from .. import concepts, synthesis
from ..checks.verdict import capitalize_and_end_with_period
from ..concepts import Dictionary, DiscoveredConcepts
from ..concepts.discover import DiscoveredConcept
from ..engine.read.features import default_feature_layer
from ..engine.read.unit_rows import UnitRowLayout
from ..engine.rows import evenly_spaced_indices
from ..errors import DataError, InputError, LayerError, OutputError
from ..objectives import INPUT_OUTPUT_ADDRESSES
from ..plots import colors
from ..plots.results.concepts_dictionary import feature_example_tiles
from ..plots.results.concepts_discover import concept_tiles, faithfulness_rows
from ..plots.sheet import Tile
from . import chapters
from .blocks import Block, ExampleWithFigures, Figure, FigureGrid, Heading, MethodInterpretation, Paragraph, Table
from .context import ReportContext, Section
from .finding import METADATA_OF_FIELD_NOT_IN_JSON, Finding, NotApplicable
from .pictures import PageImage
from .words import layer_display_name

MAX_EXAMPLES, MIN_EXAMPLES = 300, 40
N_EVALUATED_EXAMPLES, N_MASKS, N_RANDOM, N_CONCEPTS = 48, 8, 5, 8
MAX_FEATURES, DICTIONARY_FIT_STEPS, N_SEEDS = 128, 200, 2
MAX_TOTAL_FORWARD_FLOPS = 1e12  # of all forward passes of concepts, above which they are left out
MAX_DICTIONARY_FIT_FLOPS = 5e10  # of the fit of a dictionary, above which it is left out
N_SHOWN_CONCEPTS, N_SHOWN_FEATURES, FEATURE_VISUALIZATION_STEPS = 4, 3, 64
N_PREVIEW_CONCEPTS = 2  # before the section is opened
TILE_SIDE_PIXELS = 84
TONE_BY_VERDICT = {"pass": "good", "fail": "bad", "not tested": ""}
CHECKS_BY_VERDICT = {"pass": "their checks pass", "fail": "their checks fail", "not tested": "not checked"}
MIN_VISIBLE_CROP_STD = 0.02  # of the pixels of a crop, below which it is a blank picture


@dataclass(frozen=True, eq=False, kw_only=True)
class PartsFinding(Finding):
    """Concepts and a dictionary; None where they were left out."""

    concepts: DiscoveredConcepts | None
    dictionary: Dictionary | None
    reasons: tuple[str, ...]  # their verdicts in words
    examples: Tensor | None = field(
        metadata=METADATA_OF_FIELD_NOT_IN_JSON
    )  # (N, ...) that the dictionary's indices refer to
    drawings: tuple[Tensor, ...] = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # (C, H, W) of the first features


# -- find --------------------------------------------------------------------------------------------------------------


def find(context: ReportContext) -> PartsFinding:
    rows = evenly_spaced_indices(len(context.survey.rows), MAX_EXAMPLES)
    if len(rows) < MIN_EXAMPLES:
        raise NotApplicable(f"Concepts and dictionaries need at least {MIN_EXAMPLES} examples.")
    x, labels = context.box.restore_structure(context.inputs(rows)), context.survey.labels
    data = x if labels is None else (x, labels[rows])
    found, problems = list[Any](), list[str]()
    for make in (_discover_concepts_or_none, _fit_dictionary_or_none):
        try:
            found.append(make(context, data, len(rows)))
        except (DataError, InputError, LayerError, OutputError) as error:  # such as of no hidden layer
            found.append(None)
            problems.append(str(error))
    discovered, dictionary = found
    if discovered is None and dictionary is None:
        problem = "; ".join(problems) or "the model is too large for so many passes"
        raise NotApplicable(f"No concepts or features were looked for: {problem}.")
    return PartsFinding(
        answer=_answer(discovered, dictionary), concepts=discovered, dictionary=dictionary,
        reasons=tuple(f"{r.verdict}: {r.reason}" for r in found if r is not None),
        examples=x if context.has_images and isinstance(x, Tensor) else None,
        drawings=_feature_visualizations(context, dictionary),
    )  # fmt: skip


def _discover_concepts_or_none(context: ReportContext, data: Any, n: int) -> DiscoveredConcepts | None:
    n_passes = 10 * n + N_EVALUATED_EXAMPLES * (N_MASKS * (N_CONCEPTS + 2) + 2 * N_RANDOM)
    if context.forward_flops(n_passes) > MAX_TOTAL_FORWARD_FLOPS:
        return None
    return concepts.discover(
        context.box, data, n_concepts=N_CONCEPTS, n_masks=N_MASKS, n_evaluated=N_EVALUATED_EXAMPLES, n_random=N_RANDOM,
        seed=context.seed,
    )  # fmt: skip


def _fit_dictionary_or_none(context: ReportContext, data: Any, n: int) -> Dictionary | None:
    layer = default_feature_layer(context.box)
    if layer in INPUT_OUTPUT_ADDRESSES or context.forward_flops(4 * n) > MAX_TOTAL_FORWARD_FLOPS:
        return None
    units = UnitRowLayout.of(context.box, layer).n_units
    n_features = min(MAX_FEATURES, 2 * units, n // 2)
    if 2 * N_SEEDS * DICTIONARY_FIT_STEPS * 256 * 6 * units * n_features > MAX_DICTIONARY_FIT_FLOPS:
        return None
    return concepts.dictionary(
        context.box,
        data,
        layer,
        n_features=n_features,
        n_steps=DICTIONARY_FIT_STEPS,
        n_seeds=N_SEEDS,
        seed=context.seed,
    )


def _feature_visualizations(context: ReportContext, dictionary: Dictionary | None) -> tuple[Tensor, ...]:
    """Images that the strongest features respond to most, by feature visualization."""
    if dictionary is None or not context.has_images or dictionary.unit_axis != 1:
        return ()
    objectives = [dictionary.objective(i) for i in range(min(N_SHOWN_FEATURES, dictionary.n_features))]
    drawn = [
        synthesis.feature(context.box, o, steps=FEATURE_VISUALIZATION_STEPS, seed=context.seed) for o in objectives
    ]
    return tuple(d.images[0].cpu() for d in drawn)


def _answer(discovered: DiscoveredConcepts | None, dictionary: Dictionary | None) -> str:
    sentences = list[str]()
    if discovered is not None:
        f = discovered.faithfulness
        kept = "" if f.concepts.kept is None else f" are enough for {f.concepts.kept:.0%} of its answers"
        found = f"{len(discovered.concepts)} concepts found in {layer_display_name(discovered.layer)}{kept}"
        sentences.append(f"{found} ({CHECKS_BY_VERDICT[discovered.verdict]})")
    if dictionary is not None:
        own = dictionary.scores[0].explained_variance.mean
        features = f"{dictionary.n_features} features explain {own:.0%} of {layer_display_name(dictionary.layer)}"
        sentences.append(f"{features} ({CHECKS_BY_VERDICT[dictionary.verdict]})")
    return "; ".join(sentences) + "."


# -- show --------------------------------------------------------------------------------------------------------------


def show(finding: PartsFinding) -> list[Block]:
    return [*_concept_blocks(finding.concepts), *_dictionary_blocks(finding)]


def best(finding: PartsFinding) -> list[Block]:
    """Of the concepts that matter most and can be seen, two, each by the crops that have most of it."""
    found = [] if finding.concepts is None else [*enumerate(finding.concepts.concepts)]
    shown = [(i, c) for i, c in found if _has_visible_crops(c)][:N_PREVIEW_CONCEPTS]
    return [_concept_grid(i, c) for i, c in shown]


def _has_visible_crops(concept: DiscoveredConcept) -> bool:
    """Whether its crops are pictures of something: a corner of a digit's image is black."""
    if not concept.crops or concept.images is None:
        return False
    return float(concept.images.flatten(1).std(1).median()) >= MIN_VISIBLE_CROP_STD


def _concept_grid(i: int, concept: DiscoveredConcept) -> FigureGrid:
    ((_, *tiles),) = concept_tiles([concept])
    figures = _tiles_to_figures(tiles, f"with most of concept {i}")
    rows = concept.example_index.tolist()
    captioned = [replace(f, lines=(f"example {row}",)) for f, row in zip(figures, rows, strict=False)]
    worth = f"Concept {i}, worth {concept.importance.mean:.0%} of the score's variance"
    text = f"{worth}: the parts of images that have most of it."
    return FigureGrid(captioned, text)


def _concept_blocks(result: DiscoveredConcepts | None) -> list[Block]:
    if result is None:
        return []
    what = "crops of the images" if result.concepts[0].crops else "the examples"
    text = (
        f"The activations of {result.layer} on {what}, as sums of a few directions. Each is shown by what has most of "
        "it, with its importance: the share of the score's variance that is lost without it. Then the layer is rebuilt "
        "from these directions alone, and the model runs on."
    )
    note = MethodInterpretation.of(
        concepts.discover, capitalize_and_end_with_period(result.reason), TONE_BY_VERDICT[result.verdict]
    )
    shown = result.concepts[:N_SHOWN_CONCEPTS]
    cases = [
        ExampleWithFigures(
            f"concept {i}", (f"importance {c.importance.mean:.2f}", f"derivative {c.sensitivity.mean:+.2f}"),
            [_importance_bar_figure(tiles[0], i), *_tiles_to_figures(tiles[1:], f"with most of concept {i}")],
        )
        for i, (c, tiles) in enumerate(zip(shown, concept_tiles(shown), strict=True))
    ]  # fmt: skip
    columns = "layer rebuilt from", f"change of the outputs ({result.unit})", "predictions kept", "accuracy"
    rows = [(name, f"{change:.2g}", _ratio_text(kept), _ratio_text(accuracy))
            for name, (change, kept, accuracy) in faithfulness_rows(result)]  # fmt: skip
    return [Heading("Concepts"), Paragraph(text), note, *cases, Table(columns, rows, frozenset({1, 2, 3}))]


def _importance_bar_figure(tile: Tile | None, i: int) -> Figure:
    """The importance as a bar, on one scale for all concepts."""
    image = tile.image if tile is not None else Image.new("RGB", (1, 1), "white")
    return Figure(PageImage(image, f"importance of concept {i} as a bar", TILE_SIDE_PIXELS), "", ("importance",))


def _dictionary_blocks(finding: PartsFinding) -> list[Block]:
    result = finding.dictionary
    if result is None:
        return []
    text = (
        f"A sparse dictionary of {result.layer}: {result.n_features} directions, of which each activation has "
        f"{result.autoencoder.k}. Beside it stand as many random directions that were never fitted, and dense "
        "dictionaries. A feature that other seeds do not find again is one of many ways to take the layer apart."
    )
    note = MethodInterpretation.of(
        concepts.dictionary, capitalize_and_end_with_period(result.reason), TONE_BY_VERDICT[result.verdict]
    )
    columns = "dictionary", "directions", "active", "explained variance", "with k", "dead", "seeds agree", "kept"
    rows = [
        (s.name, str(s.n_features), f"{s.active:.3g}", f"{s.explained_variance.mean:.1%}", f"{s.explained_at_k:.1%}",
         f"{s.dead:.0%}", "" if s.stability is None else f"{s.stability:.2f}", _ratio_text(s.rebuilt.kept))
        for s in result.scores
    ]  # fmt: skip
    tiles = [] if finding.examples is None else feature_example_tiles(result, None, finding.examples)[:N_SHOWN_FEATURES]
    cases = [_feature_block(result, finding.drawings, i, row) for i, row in enumerate(tiles)]
    return [Heading("A dictionary"), Paragraph(text), note, Table(columns, rows, frozenset(range(1, 8))), *cases]


def _feature_block(
    result: Dictionary, drawings: tuple[Tensor, ...], i: int, tiles: list[Tile | None]
) -> ExampleWithFigures:
    figures = _tiles_to_figures(tiles, f"with most of feature {i}")
    if i < len(drawings):
        alt = f"image that feature {i} responds to most"
        picture = PageImage(colors.image_to_rgb(drawings[i]), alt, TILE_SIDE_PIXELS)
        figures.insert(0, Figure(picture, "", ("drawn",)))
    return ExampleWithFigures(f"feature {i}", (f"{float(result.frequency[i]):.0%} have it",), figures)


def _ratio_text(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.1%}"


def _tiles_to_figures(tiles: list[Tile | None], what: str) -> list[Figure]:
    return [Figure(PageImage(t.image, f"image {what}", TILE_SIDE_PIXELS), "", (t.caption,) if t.caption else ())
            for t in tiles if t is not None]  # fmt: skip


SECTION = Section(
    "Which parts does it see in examples?",
    "parts",
    find,
    show,
    needs=("classes", "exclusive classes"),
    chapter=chapters.KNOWLEDGE,
    best=best,
)
