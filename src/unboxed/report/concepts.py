"""Does it answer by simple things? TCAV of concepts that are computed from the inputs, on the most frequent class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .. import concepts
from ..checks.verdict import capitalize_and_end_with_period
from ..concepts import ConceptScores
from ..engine.rows import evenly_spaced_indices
from ..errors import DataError, InputError, LayerError, OutputError
from ..plots.results.concepts_tcav import gradient_alignment_chart, spatial_dependence_sheet
from . import chapters
from .blocks import Block, Figure, FigureGrid, MethodInterpretation, Paragraph
from .context import ReportContext, Section
from .finding import METADATA_OF_FIELD_NOT_IN_JSON, Finding, NotApplicable
from .pictures import PageImage

MAX_EXAMPLES, MIN_EXAMPLES, MIN_EXAMPLES_OF_CLASS = 600, 20, 5
MAX_EXAMPLES_PER_CONCEPT_SET = 30
MAX_TOTAL_FORWARD_FLOPS = 1e12  # of all forward passes, above which the section is left out
TONE_BY_VERDICT = {"pass": "good", "fail": "fair", "not tested": ""}


@dataclass(frozen=True)
class TestedConcept:
    """A concept's figures in the layer in which it is most significant."""

    concept: str
    layer: str
    score: float
    mean_cosine: float
    p_value: float
    is_claimed: bool


@dataclass(frozen=True, eq=False, kw_only=True)
class ConceptsFinding(Finding):
    """How the score of a class depends on computed concepts."""

    target: str
    verdict: str
    reason: str
    diagnosis: tuple[str, ...]
    concepts: tuple[TestedConcept, ...]
    scores: ConceptScores = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)


def find(context: ReportContext) -> ConceptsFinding:
    rows = evenly_spaced_indices(len(context.survey.rows), MAX_EXAMPLES)
    if len(rows) < MIN_EXAMPLES:
        raise NotApplicable(f"Concepts need at least {MIN_EXAMPLES} examples.")
    if context.forward_flops(6 * len(rows)) > MAX_TOTAL_FORWARD_FLOPS:
        raise NotApplicable("The model is too large for so many passes.")
    predicted = torch.as_tensor(context.survey.predicted)[torch.tensor(rows)]
    target = int(predicted.bincount().argmax())
    if int((predicted == target).sum()) < MIN_EXAMPLES_OF_CLASS:
        raise NotApplicable(f"No class has {MIN_EXAMPLES_OF_CLASS} examples.")
    x = context.inputs(rows)
    try:
        computed: dict[str, Any] = dict(concepts.computed_concepts(context.box, context.box.restore_structure(x)))
        result = concepts.tcav(
            context.box,
            context.box.restore_structure(x),
            computed,
            target,
            set_size=MAX_EXAMPLES_PER_CONCEPT_SET,
            seed=context.seed,
        )
    except (DataError, InputError, LayerError, OutputError) as error:
        raise NotApplicable(f"Concepts: {error}.") from error
    return ConceptsFinding(
        answer=_answer(result), target=result.target, verdict=result.verdict, reason=result.reason,
        diagnosis=tuple(result.diagnosis), scores=result,
        concepts=tuple(_tested_concept(result, c) for c in range(len(result.concepts))),
    )  # fmt: skip


def _tested_concept(result: ConceptScores, c: int) -> TestedConcept:
    k = int(result.p_values[c].argmin())
    return TestedConcept(
        result.concepts[c], result.layers[k], float(result.scores[c, k].double().mean()),
        float(result.alignment[c, k]), float(result.p_values[c, k]), bool(result.is_claimed[c, k]),
    )  # fmt: skip


def _answer(result: ConceptScores) -> str:
    if not bool(result.is_claimed.any()):
        return f"The score of {result.target} depends on none of {len(result.concepts)} simple concepts."
    parts = [
        f"{word} with {_concepts_text(found)}" for word, found in _rising_and_falling_concepts(result).items() if found
    ]
    return f"The score of {result.target} {' and '.join(parts)}."


def _concepts_text(names: Sequence[str]) -> str:
    """Concepts, quoted: their names are adjectives and nouns alike.

    >>> _concepts_text(["bright"]), _concepts_text(["bright", "fine texture"])
    ('the concept "bright"', 'the concepts "bright", "fine texture"')
    """
    return f"the concept{'s' * (len(names) > 1)} " + ", ".join(f'"{name}"' for name in names)


def _rising_and_falling_concepts(result: ConceptScores) -> dict[str, list[str]]:
    """The concepts with which the score rises, and those with which it falls, by the layer where that is surest."""
    found: dict[str, list[str]] = {"rises": [], "falls": []}
    for c, name in enumerate(result.concepts):
        if bool(result.is_claimed[c].any()):
            k = int(torch.where(result.is_claimed[c], result.p_values[c], 2.0).argmin())
            found["rises" if result.alignment[c, k] > 0 else "falls"].append(name)
    return found


def show(finding: ConceptsFinding) -> list[Block]:
    result, shown = finding.scores, list(range(len(finding.scores.concepts)))
    text = (
        f"Does the score of {result.target} rise or fall in the direction of a concept? The examples of a concept "
        "are the quarter with the largest values; its direction tells them from random examples. The gray bands are "
        "what directions of random examples give; dots inside them are hollow. The same model with random weights is "
        "tested, too."
    )
    cosines = ", ".join(f"{c.concept} {c.mean_cosine:+.2f} in {c.layer}" for c in finding.concepts)
    charts = [(gradient_alignment_chart(result, shown), f"mean cosine of gradient and concept: {cosines}")]
    diagnostics = result.diagnostics
    if diagnostics is not None and (sheet := spatial_dependence_sheet(result, diagnostics, shown)) is not None:
        charts.append((sheet, "where on the image each concept's vector lies, by layer"))
    note = MethodInterpretation.of(
        concepts.tcav, f"{finding.verdict}: {finding.reason}", TONE_BY_VERDICT[finding.verdict]
    )
    return [
        Paragraph(text), note, FigureGrid([Figure(PageImage.of_chart(chart, alt), "") for chart, alt in charts]),
        *(Paragraph(capitalize_and_end_with_period(sentence)) for sentence in finding.diagnosis),
    ]  # fmt: skip


SECTION = Section(
    "Does it answer by simple concepts?",
    "concepts",
    find,
    show,
    needs=("classes", "exclusive classes"),
    chapter=chapters.KNOWLEDGE,
)
