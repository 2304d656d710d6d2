"""What fools it? The least change that does, how many answers stay right within eps, and a robust model beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from .. import zoo
from ..adversarial.changes import PredictionChange, prediction_changes
from ..adversarial.deepfool import deepfool
from ..adversarial.fgsm import fgsm
from ..adversarial.pgd import pgd
from ..box import Box
from ..engine.optimize.constraints import format_eps
from ..plots import attack_sheet, colors
from ..plots.sheet import ColorBar
from ..robustness.evaluate import Attack, evaluate
from ..robustness.proportion import Proportion
from ..robustness.result import Robustness
from .blocks import Block, ColorScales, ExampleRow, Figure, Files, Fold, Heading, MethodNote, Note, Table, Text
from .context import ReportContext, Section
from .input_nouns import categorical_columns, standardize
from .judge import usable_judge
from .survey import evenly_spaced
from .words import format_p, format_percent, format_prob, join_names

MAX_FIGURES = 4  # examples with pictures
FIGURE_PIXELS = 112
PGD_STEPS = 20  # of PGD
MAX_ATTACKED, MIN_ATTACKED = 100, 8  # examples attacked
MAX_FLOPS = 1.5e11  # FLOPs of all attacks on one model
QUERIES_PER_EXAMPLE = 200  # that one example may take, back and forth through the model
EPS_GRAYSCALE, EPS_COLOR = (0.1, 0.2, 0.3), (1 / 255, 2 / 255, 4 / 255, 8 / 255)
"""How far attacks go, for line drawings of one channel (and tables), and for photos (Madry et al. 2018)."""
ATTACKS: Mapping[str, Attack] = {"FGSM": fgsm, f"PGD-{PGD_STEPS}": partial(pgd, steps=PGD_STEPS)}
LEAD_TEXT = (
    "Each picture was changed just enough for another answer, by the shortest way that the gradients show (DeepFool). "
    "A model that sees what people see should need a change that people see."
)
WITHIN_EPS_TEXT = (
    "Right within eps: still right after an attack moved every {value} by at most eps {unit}. Stronger attacks may "
    "leave less; unboxed attack asks them."
)


@dataclass(frozen=True)
class AttackedModel:
    """One of the models compared, with what was found on it."""

    name: str
    box: Box
    robustness: Robustness
    changes: list[PredictionChange]  # of the examples with pictures


def build(context: ReportContext) -> Sequence[Block]:
    if fixed_columns := categorical_columns(context.box.inputs):
        return [
            Note(
                f"Not asked: attacks move every column a little, and {join_names(fixed_columns)} can't be (categories)."
            )
        ]
    attacked_indices, figure_indices = _attacked_indices(context), _figure_indices(context)
    attacked_model = _attack_model(context, "this model", context.box, attacked_indices, figure_indices)
    models, why = [attacked_model], ""
    robust_box, name, why = _robust_model(context)
    if robust_box is not None:
        models.append(_attack_model(context, name, robust_box, attacked_indices, figure_indices))
    blocks: list[Block] = [MethodNote.of(deepfool, *_verdict_text(context, models)), Text(_lead_text(context, models))]
    kind = context.input_nouns
    blocks += [
        Heading("Right within eps"),
        _accuracy_table(models),
        Text(WITHIN_EPS_TEXT.format(value=kind.value, unit=kind.unit), "soft"),
    ]
    if why:
        blocks.append(Note(why))
    if context.has_images:
        blocks += [
            Heading("The least change that fools it"),
            Text(LEAD_TEXT, "soft"),
            *_change_blocks(context, models, figure_indices),
        ]
    if len(classes := attacked_model.robustness.accuracy_by_class()) > 1:
        blocks.append(Fold("By class", [_class_table(classes, attacked_model.robustness.eps[-1])]))
    _record_facts(context, models, attacked_indices)
    return blocks


def _attacked_indices(context: ReportContext) -> list[int]:
    """Places of the examples attacked, evenly spread over the examples in the order of their classes."""
    n = max(
        MIN_ATTACKED,
        min(MAX_ATTACKED, int(MAX_FLOPS / (3 * QUERIES_PER_EXAMPLE * max(context.box.flops_per_example, 1)))),
    )
    order = _reference_labels(context).argsort(stable=True)
    return sorted(int(order[i]) for i in evenly_spaced(len(order), n))


def _figure_indices(context: ReportContext) -> list[int]:
    """Places of the examples with pictures: right answers; where no answer is right, any."""
    s = context.survey
    return list(dict.fromkeys((s.typical or s.by_margin)[:MAX_FIGURES]))


def _reference_labels(context: ReportContext) -> Tensor:
    """What the examples are, (n,); without labels, what the model says of them."""
    s = context.survey
    return s.answers if s.labels is None or not s.exclusive_classes else s.labels


def _attack_model(
    context: ReportContext, name: str, box: Box, attacked_indices: Sequence[int], figure_indices: Sequence[int]
) -> AttackedModel:
    eps = EPS_GRAYSCALE if _is_grayscale(box) else EPS_COLOR
    standardized_box, x = standardize(box, context.inputs(attacked_indices))
    result = evaluate(
        standardized_box,
        (x, _reference_labels(context)[list(attacked_indices)]),
        ATTACKS,
        eps=eps,
        check_masking=False,
        seed=context.seed,
    )
    standardized_box, x = standardize(box, context.inputs(figure_indices))
    deepfool_result = deepfool(standardized_box, x, standardized_box.predict(x), norm="linf")
    if result.interrupted or deepfool_result.interrupted:
        raise KeyboardInterrupt
    return AttackedModel(name, box, result, prediction_changes(standardized_box, x, deepfool_result))


def _is_grayscale(box: Box) -> bool:
    """Whether the inputs are drawings of one channel, which bear larger changes."""
    return box.inputs.shape[0] == 1 or len(box.inputs.shape) == 1


def _robust_model(context: ReportContext) -> tuple[Box | None, str, str]:
    """A model trained against attacks: the judge, or for MNIST the zoo's own; its name; why there is none."""
    judge, _ = usable_judge(context)
    if judge is not None:
        return judge, "the second model", ""
    if "mnist" in context.data.name.lower() and "fashion" not in context.data.name.lower():
        model, inputs = zoo.load("mnist-robust")
        if inputs.shape == context.box.inputs.shape and len(context.box.classes) == 10:
            return Box(model, inputs, classes=context.box.classes, outputs="logits"), "the zoo's robust model", ""
    return (
        None,
        "",
        "No robust model to compare with: give one as judge (--judge), such as one of unboxed train --defend.",
    )


def _lead_text(context: ReportContext, models: Sequence[AttackedModel]) -> str:
    text = f"{_attacked_text(context, models[0].robustness)} {_accuracy_text(context, models[0].robustness)}"
    result = models[0].robustness
    if (
        len(models) > 1
        and 0 < result.median_distance < math.inf
        and 0 < models[1].robustness.median_distance < math.inf
    ):
        ratio = models[1].robustness.median_distance / result.median_distance
        text += (
            " Half of the right answers fall to changes of "
            f"{result.median_distance:.2g} at most; {models[1].name} takes "
            f"{models[1].robustness.median_distance:.2g}, {ratio:.1f} times as much."
        )
    return text


def _attacked_text(context: ReportContext, result: Robustness) -> str:
    """Which of the examples were attacked."""
    n, total = len(result.is_correct), len(context.survey.rows)
    if n == total:
        return "All examples were attacked." if n > 1 else "The one example was attacked."
    over = "the classes" if context.survey.labels is not None and context.survey.exclusive_classes else "the answers"
    return f"{n:,} of the {total:,} examples were attacked, evenly spread over {over}."


def _accuracy_text(context: ReportContext, result: Robustness) -> str:
    """How many of the examples attacked are right, and how many of those stay so; beside the accuracy on all."""
    n, clean, top = len(result.is_correct), result.clean_accuracy, format_eps(result.eps[-1])
    accuracy = context.survey.accuracy
    percentage = format_percent(clean.value)
    if accuracy is not None and n < len(context.survey.rows):
        percentage += f"; {format_percent(accuracy)} of all examples"
    return (
        f"Without an attack {clean.count} of these {n} answers "
        f"{'is' if clean.count == 1 else 'are'} right ({percentage}); "
        f"within {top} {context.input_nouns.unit} an attack leaves {result.robust_accuracy().count}."
    )


def _verdict_text(context: ReportContext, models: Sequence[AttackedModel]) -> tuple[str, str]:
    """Whether the examples shown do what is said of them: each was given to its model once more."""
    all_changes = [c for n in models for c in n.changes]
    fooled = sum(c.is_adversarial and c.class_after != c.class_before for c in all_changes)
    if not all_changes:
        return "", ""
    text = (
        f"Asked once more, {fooled} of the {len(all_changes)} "
        f"changed {context.input_nouns.example}s get another answer."
    )
    return text, "good" if fooled == len(all_changes) else "fair"


def _accuracy_table(models: Sequence[AttackedModel]) -> Table:
    columns = ["", "attack", *(f"eps {format_eps(e)}" for e in models[0].robustness.eps), "median change that fools"]
    rows = []
    for n in models:
        r = n.robustness
        length = (
            f"{r.median_distance:.2g}"
            if r.median_distance < math.inf
            else "none found"
            if r.clean_accuracy.count
            else "no answer is right"
        )
        rows.append([n.name, "none", *[format_percent(r.clean_accuracy.value)] * len(r.eps), length])
        rows += [["", a, *(format_percent(r.robust_accuracy(e, a).value) for e in r.eps), ""] for a in r.attacks]
    return Table(columns, rows, frozenset(range(2, len(columns))))


def _class_table(by_class: Mapping[str, tuple[Proportion, Proportion]], eps: float) -> Table:
    rows = [
        [name, format_percent(clean.value), format_percent(robust.value), f"{clean.n:,}"]
        for name, (clean, robust) in by_class.items()
    ]
    return Table(["class", "right", f"right within {format_eps(eps)}", "examples"], rows, frozenset({1, 2, 3}))


# -- pictures --------------------------------------------------------------------------------------------------------


def _change_blocks(context: ReportContext, models: Sequence[AttackedModel], indices: Sequence[int]) -> list[Block]:
    all_changes = [c for n in models for c in n.changes]
    factor = attack_sheet.round_magnification(colors.max_magnitude(*(c.delta for c in all_changes)))
    blocks: list[Block] = []
    for i, index in enumerate(indices):
        c = models[0].changes[i]
        figures = [
            _figure(
                context,
                colors.image_to_rgb(c.original),
                "input",
                (_prediction_text(c.class_before, c.probs_before[0], context),),
            )
        ]
        for n in models:
            figures += _adversarial_figures(context, n, n.changes[i], factor)
        blocks.append(
            ExampleRow(
                context.answer_title(index), context.example_lines(index), figures, context.correctness_tone(index)
            )
        )
    if _is_grayscale(context.box):
        blocks.append(
            ColorScales([context.pictures.color_scale(ColorBar("signed", 1 / factor, f"change, times {factor:g}"))])
        )
    else:
        blocks.append(Text(f"Changes are shown times {factor:g} around gray.", "soft"))
    sheet = attack_sheet.attack_sheet(
        models[0].changes, context.survey.classes, norm="linf", title="The least change that fools it"
    )
    return [*blocks, Files([(context.pictures.save_file("fooled.png", sheet), "the same as one picture")])]


def _adversarial_figures(
    context: ReportContext, model: AttackedModel, c: PredictionChange, factor: float
) -> list[Figure]:
    if not c.is_adversarial:
        return [_figure(context, colors.image_to_rgb(c.image), model.name, ("was not fooled",))]
    lines = (_prediction_text(c.class_after, c.probs_after[1], context), f"before: {format_prob(c.probs_before[1])}")
    return [
        _figure(context, colors.image_to_rgb(c.image), f"fools {model.name}", lines, "bad"),
        _figure(
            context,
            attack_sheet.change_image(c, factor),
            "change",
            (f"{c.distance:.2g} at most", f"shown × {factor:g}"),
        ),
    ]


def _figure(context: ReportContext, picture: object, head: str, lines: tuple[str, ...], tone: str = "") -> Figure:
    return Figure(context.pictures.inline(picture, f"{head}: {', '.join(lines)}", FIGURE_PIXELS), head, lines, tone)  # type: ignore[arg-type]


def _prediction_text(k: int, p: float, context: ReportContext) -> str:
    return f"says {context.class_name(k)}, {format_p(p)}"


def _record_facts(context: ReportContext, models: Sequence[AttackedModel], attacked_indices: Sequence[int]) -> None:
    r = models[0].robustness
    context.facts["attacked"] = [context.survey.rows[p] for p in attacked_indices]
    context.facts["robustness"] = {n.name: n.robustness.to_dict() for n in models}
    eps_with_unit = f"{format_eps(r.eps[-1])} {context.input_nouns.unit}"
    context.headline.append(
        f"Within {eps_with_unit} attacks leave {format_percent(r.robust_accuracy().value)} of the answers right."
    )


SECTION = Section("What fools it?", "fooled", build, ("classes",))
