"""What does each layer know? Probes of the labels by layer, and whether the model uses what they read."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .. import concepts
from ..concepts import Probing
from ..engine.read.features import input_and_hidden_layer_addresses
from ..engine.rows import evenly_spaced_indices
from ..errors import DataError
from ..plots.results.concepts_probe import erasure_effect_chart, probe_accuracy_chart
from . import chapters
from .blocks import Block, Figure, FigureGrid, MethodInterpretation, Paragraph
from .context import ReportContext, Section
from .finding import METADATA_OF_FIELD_NOT_IN_JSON, Finding, NotApplicable
from .pictures import PageImage
from .words import layer_display_name

MAX_PROBED_EXAMPLES, MAX_EXAMINED_LAYERS = 150, 3
MIN_PROBED_EXAMPLES = 20
TONE_BY_VERDICT = {"used": "good", "not used": "fair", "not decodable": "bad", "not tested": ""}


@dataclass(frozen=True)
class ProbedLayer:
    """What a probe reads from a layer."""

    layer: str
    accuracy: float
    control: float
    verdict: str
    reason: str


@dataclass(frozen=True, eq=False, kw_only=True)
class ProbesFinding(Finding):
    """The labels read by probes, layer by layer."""

    verdict: str
    reason: str
    n_examples: int
    majority: float
    layers: tuple[ProbedLayer, ...]
    probing: Probing = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)


def find(context: ReportContext) -> ProbesFinding:
    labels = context.survey.labels
    if labels is None:
        raise NotApplicable("Probes of the labels need data with labels.")
    rows = evenly_spaced_indices(len(labels), MAX_PROBED_EXAMPLES)
    if len(rows) < MIN_PROBED_EXAMPLES:
        raise NotApplicable(f"Probes need at least {MIN_PROBED_EXAMPLES} examples.")
    x, y = context.inputs(rows), torch.as_tensor(labels)[torch.tensor(rows)]
    try:
        result = concepts.probe(
            context.box,
            context.box.restore_structure(x),
            y,
            input_and_hidden_layer_addresses(context.box, MAX_EXAMINED_LAYERS),
            n_folds=3,
            n_controls=2,
            description_length=False,
            seed=context.seed,
        )
    except DataError as error:  # one class, or too few of each
        raise NotApplicable(f"Probes of the labels: {error}.") from error
    best = result.best
    layers = tuple(
        ProbedLayer(p.layer, p.probe.accuracy.mean, p.probe.control.mean, p.verdict, p.reason) for p in result.layers
    )
    return ProbesFinding(
        answer=f"A linear classifier (a probe) reads the label best from {layer_display_name(best.layer)}: "
        f"{best.probe.accuracy.mean:.0%} right.",
        verdict=result.verdict,
        reason=result.reason,
        n_examples=result.n_examples,
        majority=best.probe.majority,
        layers=layers,
        probing=result,
    )


def show(finding: ProbesFinding) -> list[Block]:
    result = finding.probing
    text = (
        "What a linear classifier reads of the label from each layer, on examples that it was not fitted to; as a "
        "control, how well it reads random classes of similar inputs. Then the label is erased from the layer: if the "
        "model uses it, its answers change more than by as many random directions."
    )
    layers = ", ".join(f"{p.layer} {p.accuracy:.0%} (control {p.control:.0%}): {p.verdict}" for p in finding.layers)
    charts = [probe_accuracy_chart(result)]
    charts += [erasure_effect_chart(result)] if any(p.erasure is not None for p in result.layers) else []
    alts = f"accuracy of probes by layer: {layers}", "change of the outputs with the label erased, by layer"
    figures = [Figure(PageImage.of_chart(c, alt), "") for c, alt in zip(charts, alts, strict=False)]
    note = MethodInterpretation.of(
        concepts.probe, f"{finding.verdict}: {finding.reason}", TONE_BY_VERDICT[finding.verdict]
    )
    return [Paragraph(text), note, FigureGrid(figures)]


SECTION = Section(
    "What does each layer know?",
    "probes",
    find,
    show,
    needs=("classes", "exclusive classes"),
    chapter=chapters.KNOWLEDGE,
)
