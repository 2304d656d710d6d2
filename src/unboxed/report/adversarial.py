"""How little change fools it? Robust accuracy within eps, the smallest change, and a robust model for comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from .. import zoo
from ..adversarial.changes import PredictionChange, prediction_changes
from ..adversarial.deepfool import deepfool
from ..box import Box
from ..engine.optimize.constraints import format_eps
from ..plots import attack_sheet, colors
from ..plots.sheet import ColorBar
from ..robustness.evaluate import evaluate
from ..robustness.result import Robustness
from . import chapters
from .attack_budget import (
    affordable_deepfool_steps,
    default_attacks_in_few_steps,
    eps_values,
    fewer_steps_cautions,
    is_single_channel_or_flat,
    n_attacked_examples,
)
from .attack_figures import (
    THIS_MODEL,
    accuracy_by_class_table,
    after_and_change_figures,
    after_figure,
    before_after_and_change_figures,
    smallest_change_grid,
)
from .attack_words import (
    ACCURACY_TABLE_NOTE_TEMPLATE,
    ROBUST_ACCURACY_NOTE_TEMPLATE,
    SMALLEST_CHANGE_NOTE_TEXT,
    attack_sentence,
    attacked_count_text,
)
from .attacked_examples import (
    N_PREVIEW_EXAMPLES,
    attacked_indices,
    clearly_decided_indices,
    labels_or_predictions,
    shown_example_indices,
)
from .blocks import (
    Block,
    Caution,
    Collapsible,
    ColorScaleImages,
    Figure,
    FigureGrid,
    FileLinks,
    Heading,
    MethodInterpretation,
    Paragraph,
    PerExample,
    Table,
)
from .context import OUTPUT_VALUES_NEED, ReportContext, Section, require_uninterrupted
from .finding import METADATA_OF_FIELD_NOT_IN_JSON, CheckNote, Example, Finding
from .input_nouns import InputNouns
from .judge_model import judge_or_missing_reason
from .output_attacks import (
    OutputRobustnessFinding,
    best_output_robustness,
    find_output_robustness,
    show_output_robustness,
)
from .pictures import PageFile
from .rows import show_by_type
from .words import format_percent


@dataclass(frozen=True, eq=False)
class AttackedModel:
    """One of the models compared: its robustness, and the smallest changes of the examples shown."""

    name: str
    robustness: Robustness
    changes: list[PredictionChange]


@dataclass(frozen=True, eq=False, kw_only=True)
class RobustnessFinding(Finding):
    """Robust accuracy of the model and, where there is one, of a robust model."""

    attacked: list[int]  # indices in the data
    models: list[AttackedModel]  # this model first
    no_robust_model_reason: str
    shown: list[Example]
    classes: tuple[str, ...] = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)
    nouns: InputNouns
    accuracy: float | None  # on all examples
    deepfool_steps: int
    n_examples: int
    has_labels: bool
    has_images: bool
    is_grayscale: bool

    @property
    def robustness(self) -> Robustness:
        """Of this model."""
        return self.models[0].robustness

    n_followed: int = 1  # of the examples shown, the first
    decided: list[int] = field(default_factory=list)  # of the examples shown: right and clearly decided

    def cover(self, place: int) -> Sequence[Figure]:
        if not self.has_images or place >= self.n_followed:
            return ()
        return [after_figure(THIS_MODEL, self.models[0].changes[place], self.shown[place], self.classes)]

    def to_dict(self) -> dict[str, Any]:
        changes = {m.name: [{"distance": c.distance, "is_adversarial": c.is_adversarial} for c in m.changes]
                   for m in self.models}  # fmt: skip
        robustness = {m.name: m.robustness.to_dict() for m in self.models}
        facts = {name: value for name, value in super().to_dict().items() if name != "models"}
        return {**facts, "robustness": robustness, "changes": changes}


# -- find --------------------------------------------------------------------------------------------------------------


def find(context: ReportContext) -> RobustnessFinding:
    attacked, shown = attacked_indices(context), shown_example_indices(context)
    models = [_attack_model(context, THIS_MODEL, context.box, attacked, shown)]
    robust_box, name, no_robust_model_reason = _robust_model_name_and_reason(context)
    if robust_box is not None:
        models.append(_attack_model(context, name, robust_box, attacked, shown))
    s, nouns, robustness = context.survey, context.input_nouns, models[0].robustness
    has_labels = s.labels is not None and s.exclusive_classes
    sentence = attack_sentence(robustness, nouns, has_labels, len(s.rows))
    return RobustnessFinding(
        answer=sentence, headline=(sentence,), attacked=[s.rows[i] for i in attacked], models=models,
        no_robust_model_reason=no_robust_model_reason, shown=context.examples(shown), classes=s.classes, nouns=nouns,
        accuracy=s.accuracy, deepfool_steps=affordable_deepfool_steps(context, len(attacked) + len(shown)),
        n_examples=len(s.rows), has_labels=has_labels, has_images=context.has_images,
        is_grayscale=is_single_channel_or_flat(context.box), n_followed=len(context.followed_indices),
        decided=[shown.index(i) for i in clearly_decided_indices(context) if i in shown],
    )  # fmt: skip


def _attack_model(
    context: ReportContext, name: str, box: Box, attacked_indices: Sequence[int], figure_indices: Sequence[int]
) -> AttackedModel:
    y = labels_or_predictions(context)[list(attacked_indices)]
    x = context.inputs(attacked_indices)
    smallest = partial(deepfool, steps=affordable_deepfool_steps(context, len(x) + len(figure_indices)))
    attacks = default_attacks_in_few_steps()
    result = evaluate(
        box, (x, y), attacks, eps=eps_values(box), minimal_attack=smallest, check_masking=False, seed=context.seed
    )
    require_uninterrupted(result)
    x = context.inputs(figure_indices)
    minimal = require_uninterrupted(smallest(box, x, box.predict(x), norm="linf"))
    return AttackedModel(name, result, prediction_changes(box, x, minimal))


def _robust_model_name_and_reason(context: ReportContext) -> tuple[Box | None, str, str]:
    """An adversarially trained model: the judge, or for MNIST that of the zoo; its name; why there is none."""
    judge, _ = judge_or_missing_reason(context)
    if judge is not None:
        return judge, "the second model", ""
    if "mnist" in context.data.name.lower() and "fashion" not in context.data.name.lower():
        model, inputs = zoo.load("mnist-robust")
        if inputs.shape == context.box.inputs.shape and len(context.box.classes) == 10:
            return Box(model, inputs, classes=context.box.classes, outputs="logits"), "the zoo's robust model", ""
    return (
        None,
        "",
        "No robust model to compare with: give one as judge (--judge), such as one made by unboxed train --defend.",
    )


# -- show --------------------------------------------------------------------------------------------------------------


def show(finding: RobustnessFinding) -> list[Block]:
    blocks: list[Block] = [
        MethodInterpretation.of(deepfool, *_recheck_note_of_changed_examples(finding)),
        Paragraph(_adversarial_lead_text(finding)),
        Heading("Robust accuracy"),
        _accuracy_table(finding, finding.models),
        Paragraph(ROBUST_ACCURACY_NOTE_TEMPLATE.format(value=finding.nouns.value, unit=finding.nouns.unit), "soft"),
    ]
    if finding.no_robust_model_reason:
        blocks.append(Caution(finding.no_robust_model_reason))
    if finding.has_images:
        blocks += [
            Heading("The smallest change that fools it"),
            Paragraph(SMALLEST_CHANGE_NOTE_TEXT, "soft"),
            *_prediction_change_blocks(finding),
            *fewer_steps_cautions(finding.deepfool_steps),
        ]
    if len(classes := finding.robustness.accuracy_by_class()) > 1:
        blocks.append(Collapsible("By class", [accuracy_by_class_table(classes, finding.robustness.eps[-1])]))
    return blocks


def best(finding: RobustnessFinding) -> list[Block]:
    """Examples that were right, before and after the smallest change that fools the model; accuracies where inputs are
    no images."""
    if not finding.has_images:
        note = ACCURACY_TABLE_NOTE_TEMPLATE.format(value=finding.nouns.value, unit=finding.nouns.unit)
        return [_accuracy_table(finding, finding.models[:1]), Paragraph(note, "soft")]
    return [PerExample([[_preview_grid(finding, i)] for i in range(finding.n_followed)])]


def _preview_grid(finding: RobustnessFinding, followed: int) -> FigureGrid:
    """Examples that were right and clearly decided, the followed one first if it was; where none is, it and others."""
    decided, lead = sorted(finding.decided, key=lambda i: i != followed), "Examples that it clearly got right"
    if not decided:
        decided, lead = [followed, *(i for i in range(len(finding.shown)) if i != followed)], "Examples"
    elif not finding.has_labels:
        lead = "Examples that it was sure of"
    chosen, changes = decided[:N_PREVIEW_EXAMPLES], finding.models[0].changes
    return smallest_change_grid([changes[i] for i in chosen], [finding.shown[i] for i in chosen], finding.classes, lead)


def _adversarial_lead_text(finding: RobustnessFinding) -> str:
    text = f"{_attacked_examples_text(finding)} {_clean_and_robust_accuracy_text(finding)}"
    medians = [m.robustness.median_distance for m in finding.models]
    if len(medians) > 1 and all(0 < median < math.inf for median in medians):
        text += (
            f" The median adversarial distance is {medians[0]:.2g}; that of {finding.models[1].name} is "
            f"{medians[1]:.2g}, {medians[1] / medians[0]:.1f} times as much."
        )
    return text


def _attacked_examples_text(finding: RobustnessFinding) -> str:
    """Which of the examples were attacked."""
    n = len(finding.attacked)
    if n == finding.n_examples:
        return "All examples were attacked." if n > 1 else "The one example was attacked."
    over = "the classes" if finding.has_labels else "the predictions"
    return f"{n:,} of the {finding.n_examples:,} examples were attacked, evenly spread over {over}."


def _clean_and_robust_accuracy_text(finding: RobustnessFinding) -> str:
    """Clean and robust accuracy of the examples attacked, and the accuracy on all."""
    clean, robust = finding.robustness.clean_accuracy, finding.robustness.robust_accuracy()
    n, amount = len(finding.attacked), f"{format_eps(finding.robustness.eps[-1])} {finding.nouns.unit}"
    if not finding.has_labels:
        stay = f"{robust.count} of {n} stay the same within {amount}"
        return f"There are no labels, so every prediction counts as correct; {stay}."
    overall = (
        f"; {format_percent(finding.accuracy)} of all examples"
        if finding.accuracy is not None and n < finding.n_examples
        else ""
    )
    return (
        f"Clean accuracy {format_percent(clean.value)} ({clean.count} of these {n} examples{overall}); robust accuracy "
        f"within {amount} {format_percent(robust.value)} ({robust.count})."
    )


def _recheck_note_of_changed_examples(finding: RobustnessFinding) -> CheckNote:
    """Whether the changed examples fool their model when it classifies them once more."""
    changes = [c for m in finding.models for c in m.changes]
    if not changes:
        return CheckNote()
    n_fooled = sum(c.is_adversarial and c.class_after != c.class_before for c in changes)
    noun = finding.nouns.example
    text = f"Classified once more, {n_fooled} of the {len(changes)} changed {noun}s get another prediction."
    return CheckNote(text, "good" if n_fooled == len(changes) else "fair")


def _accuracy_table(finding: RobustnessFinding, models: Sequence[AttackedModel]) -> Table:
    columns = [
        "model",
        "attack",
        *(f"eps {format_eps(e)}" for e in models[0].robustness.eps),
        "median adversarial distance",
    ]
    none, rows = f"none, on {attacked_count_text(len(finding.attacked), finding.n_examples)}", []
    for m in models:
        r = m.robustness
        none_found = "none found" if r.clean_accuracy.count else "no correct example"
        distance = f"{r.median_distance:.2g}" if r.median_distance < math.inf else none_found
        rows.append([m.name, none, *[format_percent(r.clean_accuracy.value)] * len(r.eps), distance])
        names: dict[str | None, str] = {**{a: a for a in r.attacks}, None: "all, and the smallest changes found"}
        robust = {text: [r.robust_accuracy(e, a).value for e in r.eps] for a, text in names.items()}
        rows += [["", text, *map(format_percent, values), ""] for text, values in robust.items()]
    return Table(columns, rows, frozenset(range(2, len(columns))))


def _prediction_change_blocks(finding: RobustnessFinding) -> list[Block]:
    factor = attack_sheet.largest_round_magnification(
        colors.max_magnitude(*(c.delta for m in finding.models for c in m.changes))
    )
    blocks: list[Block] = []
    for i, example in enumerate(finding.shown):
        figures = before_after_and_change_figures(finding.models[0].changes[i], example, finding.classes, factor)
        for m in finding.models[1:]:
            figures += after_and_change_figures(m.name, m.changes[i], example, finding.classes, factor)
        blocks.append(example.with_figures(figures))
    if finding.is_grayscale:
        blocks.append(ColorScaleImages([ColorBar("signed", 1 / factor, f"change, times {factor:g}")]))
    else:
        blocks.append(Paragraph(f"Changes are shown times {factor:g} around gray.", "soft"))
    sheet = attack_sheet.attack_sheet(
        finding.models[0].changes, finding.classes, norm="linf", title="The smallest change that fools it"
    )
    return [*blocks, FileLinks([PageFile("fooled.png", sheet, "these images as a sheet")])]


def find_accuracy_or_errors(context: ReportContext) -> Finding:
    """Robust accuracy of classes; the errors of other outputs, where the data say what they should be."""
    if context.survey.has_output_values:
        return find_output_robustness(context, n_attacked_examples(context), eps_values(context.box))
    return find(context)


SECTION = Section(
    "How little change fools it?",
    "attacks",
    find_accuracy_or_errors,
    show_by_type(show, OutputRobustnessFinding, show_output_robustness),
    ("classes", "exclusive classes", OUTPUT_VALUES_NEED),
    chapter=chapters.FOOLED,
    best=show_by_type(best, OutputRobustnessFinding, best_output_robustness),
)
