"""What do its units detect? Units against the concepts of digits, beside random models and rotated bases."""

from __future__ import annotations

from dataclasses import dataclass, field

from .. import concepts
from ..checks.verdict import capitalize_and_end_with_period
from ..concepts import Dissection, LayerDissection
from ..concepts.dissect import default_dissected_layers
from ..engine.rows import evenly_spaced_indices
from ..errors import LayerError
from ..plots.results.concepts_dissect import LEGEND, TILE_SIDE_PIXELS, detector_tiles, detectors_chart
from . import chapters
from .blocks import Block, ExampleWithFigures, Figure, FigureGrid, MethodInterpretation, Paragraph
from .context import ReportContext, Section
from .finding import METADATA_OF_FIELD_NOT_IN_JSON, Finding, NotApplicable
from .pictures import PageImage

MAX_EXAMPLES, MIN_EXAMPLES, MAX_EXAMINED_LAYERS = 60, 20, 2
N_TWINS_PER_KIND, N_SHOWN_UNITS, N_SHOWN_EXAMPLES = 19, 4, 3
MAX_TOTAL_FORWARD_FLOPS = 1e12  # of all passes, above which it is left out
TONE_BY_VERDICT = {"pass": "good", "fail": "bad", "not tested": ""}


@dataclass(frozen=True)
class LayerDetectorCounts:
    """How many units of a layer are detectors, in the model and in its twins."""

    layer: str
    units: int
    detectors: int
    concepts: tuple[str, ...]
    random_detectors: float
    rotated_detectors: float
    beyond_chance: tuple[int, ...]
    verdict: str
    reason: str

    @classmethod
    def of(cls, p: LayerDissection) -> LayerDetectorCounts:
        random, rotated = (float(t.n_detectors.double().mean()) for t in (p.random, p.rotated))
        return cls(
            p.layer, len(p.iou), len(p.detectors), p.concepts_detected, random, rotated,
            tuple(p.beyond_chance.tolist()), p.verdict, p.reason,
        )  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class DetectorsFinding(Finding):
    """The units of two layers against concepts."""

    verdict: str
    reason: str
    n_examples: int
    layers: tuple[LayerDetectorCounts, ...]
    dissection: Dissection = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)


def find(context: ReportContext) -> DetectorsFinding:
    box = context.box
    if box.inputs.shape[0] != 1:
        raise NotApplicable(
            "Concepts are known for images of one channel; ub.concepts.dissect takes a segmenter of your own."
        )
    rows = evenly_spaced_indices(len(context.survey.rows), MAX_EXAMPLES)
    if len(rows) < MIN_EXAMPLES:
        raise NotApplicable(f"Dissection needs at least {MIN_EXAMPLES} examples.")
    if context.forward_flops(2 * len(rows) * (2 + N_TWINS_PER_KIND)) > MAX_TOTAL_FORWARD_FLOPS:
        raise NotApplicable("The model is too large for so many passes: ub.concepts.dissect does it.")
    x = box.restore_structure(context.inputs(rows))
    try:
        layers = default_dissected_layers(box, MAX_EXAMINED_LAYERS)
    except LayerError as error:
        raise NotApplicable(f"Dissection: {error}.") from error
    result = concepts.dissect(
        box, x, layers=layers, n_random=N_TWINS_PER_KIND, n_rotations=N_TWINS_PER_KIND, seed=context.seed
    )
    return DetectorsFinding(
        answer=_answer(result), verdict=result.verdict, reason=result.reason, n_examples=result.n_examples,
        layers=tuple(map(LayerDetectorCounts.of, result.layers)), dissection=result,
    )  # fmt: skip


def _answer(result: Dissection) -> str:
    layer = result.best
    n, beyond = len(layer.detectors), len(layer.beyond_chance)
    found = f"{n} of {len(layer.iou)} units of {layer.layer} overlap with a stroke, a hole or a quadrant"
    if not n:
        return f"{found}."
    chance = f"{beyond} of them more than chance" if beyond else "no more than units of random models do"
    return f"{found}, {chance}."


def show(finding: DetectorsFinding) -> list[Block]:
    result = finding.dissection
    layer = result.best
    text = (
        "Where each unit is most active is compared with where ink, strokes of a direction, holes, stroke ends and "
        "quadrants are. Models with random weights, and random directions of the same layer, are compared in the same "
        f"way: what they reach is chance. {LEGEND}"
    )
    note = MethodInterpretation.of(
        concepts.dissect,
        f"{finding.verdict}: {capitalize_and_end_with_period(finding.reason)}",
        TONE_BY_VERDICT[finding.verdict],
    )
    counts = ", ".join(
        f"{p.layer} {p.detectors} of {p.units} ({p.random_detectors:.1f} random)" for p in finding.layers
    )
    chart = Figure(PageImage.of_chart(detectors_chart(result), f"units that are detectors: {counts}"), "")
    cases = [_unit_block(result, layer, i) for i in range(min(N_SHOWN_UNITS, len(layer.shown)))]
    return [Paragraph(text), note, FigureGrid([chart]), *cases]


def _unit_block(result: Dissection, layer: LayerDissection, i: int) -> ExampleWithFigures:
    shown = layer.shown[i]
    k = int(layer.concept[shown.unit])
    name, iou = layer.names[k], float(layer.iou[shown.unit, k])
    is_beyond = shown.unit in layer.beyond_chance.tolist()
    lines = (name, f"IoU {iou:.2f} (at most {float(result.reachable_iou[k]):.2f})", "beyond chance" * is_beyond)
    figures = [
        Figure(PageImage(tile.image, f"unit {shown.unit} and {name} on an image", TILE_SIDE_PIXELS), "")
        for tile in detector_tiles(layer, shown)[:N_SHOWN_EXAMPLES]
        if tile is not None
    ]
    title = f"unit {shown.unit} of {layer.layer}"
    return ExampleWithFigures(title, tuple(filter(None, lines)), figures, "good" if is_beyond else "")


SECTION = Section("What do its units detect?", "detectors", find, show, needs=("pixels",), chapter=chapters.KNOWLEDGE)
