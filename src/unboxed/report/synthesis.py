"""What does each class look like to it? Class images beside a control that must fail, and what a judge sees in them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import UnboxedWarning
from ..model.output_advice import FEATURE_CALL_TEMPLATE
from ..plots import colors, draw
from ..synthesis.class_image import CLASS_IMAGE_RECIPE_BY_NAME, ClassImages, RecipeName, class_image
from . import chapters
from .blocks import (
    Block,
    Caution,
    Collapsible,
    Figure,
    FigureGrid,
    FileLinks,
    Heading,
    MethodInterpretation,
    Paragraph,
    Table,
)
from .class_image_budget import ClassImagePlan, affordable_class_image_plan, reduced_plan_cautions
from .context import ReportContext, Section, require_uninterrupted
from .finding import METADATA_OF_FIELD_NOT_IN_JSON, Example, Finding
from .judge_model import (
    JudgePredictions,
    classify_by_judge,
    is_judge_approval_weak_evidence,
    judge_check,
    judge_or_missing_reason,
)
from .pictures import PageFile, PageImage
from .words import count_noun, format_named_prob, join_names_with_limit

FIGURE_SIDE_PIXELS, COVER_SIDE_PIXELS, LARGE_SIDE_PIXELS = 84, 112, 224
N_LARGE_PAIRS = 2  # examples beside their class images: one row
MIN_MEAN_PROB_OF_CONFIDENT_MODEL = 0.9  # mean probability from which the model counts as confident
MIN_RMS_DIFFERENCE_BETWEEN_STARTS = 0.01  # root mean square over the pixel range: images closer than this are the same
MIN_NONUNIFORM_PIXEL_STD = 1 / 255  # standard deviation of the pixels below which an image is empty


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassImageFinding(Finding):
    """Class images by three recipes, and what the judge predicts of them."""

    classes: list[str]  # those with images
    class_indices: list[int]
    n_omitted_classes: int
    images: dict[RecipeName, ClassImages] = field(
        metadata=METADATA_OF_FIELD_NOT_IN_JSON
    )  # {recipe: ...}, one per class, then other starts
    judged: dict[RecipeName, JudgePredictions] = field(
        metadata=METADATA_OF_FIELD_NOT_IN_JSON
    )  # {recipe: report}; empty without a judge
    judge_predictions: dict[str, list[str]] = field(
        metadata=METADATA_OF_FIELD_NOT_IN_JSON
    )  # {recipe: classes by the judge}
    no_judge_reason: str
    differences: dict[str, float]  # {class: root mean square difference between its starts}
    plan: ClassImagePlan  # what the model affords
    followed_classes: list[int | None]  # of each followed example, its class as an index into `classes`
    followed: list[Example] = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)

    def cover(self, place: int) -> Sequence[Figure]:
        if (k := self.followed_classes[place]) is None:
            return ()
        figure = _class_image_figure(self, "robust", k, side=COVER_SIDE_PIXELS)
        tone = "" if self.judged and is_judge_approval_weak_evidence(self.judged) else figure.tone
        return [replace(figure, head=f"image of {figure.head}", tone=tone)]

    def to_dict(self) -> dict[str, Any]:
        recipes: dict[str, Any] = {
            recipe: {
                "recognized": report.n_recognized,
                "of": len(report.predicted),
                "mean_p": report.mean_target_prob,
                "predictions": self.judge_predictions[recipe],
                "p": report.target_probs.tolist(),
            }
            for recipe, report in self.judged.items()
        }
        return {**super().to_dict(), **recipes}


# -- find --------------------------------------------------------------------------------------------------------------


def find(context: ReportContext) -> ClassImageFinding:
    plan = affordable_class_image_plan(context)
    classes = _visualized_classes(context, plan.n_classes)
    images = {recipe: _class_images(context, recipe, classes, plan) for recipe in CLASS_IMAGE_RECIPE_BY_NAME}
    judge, no_judge_reason = judge_or_missing_reason(context)
    judged = (
        {r: classify_by_judge(judge, c.images[: len(classes)], classes) for r, c in images.items()} if judge else {}
    )
    names = [context.class_name(k) for k in classes]
    robust = images["robust"].images
    differences = _rms_difference_between_starts(robust.view(plan.n_starts, len(classes), *robust.shape[1:]))
    n_predicted = int(images["robust"].is_predicted[: len(classes)].sum())
    answer = _class_images_answer_text(judged, len(classes), n_predicted)
    return ClassImageFinding(
        answer=answer,
        headline=(answer,) if judged else (),
        classes=names,
        class_indices=classes,
        n_omitted_classes=len(context.box.classes) - len(classes),
        images=images,
        judged=judged,
        judge_predictions={r: [context.class_name(int(a)) for a in v.predicted] for r, v in judged.items()},
        no_judge_reason=no_judge_reason,
        differences=dict(zip(names, differences.tolist(), strict=True)),
        plan=plan,
        followed_classes=_class_image_indices_of_followed_examples(context, classes),
        followed=context.examples(context.followed_indices) if len(classes) < len(context.box.classes) else [],
    )


def _class_images_answer_text(judged: dict[RecipeName, JudgePredictions], n_classes: int, n_predicted: int) -> str:
    if not judged:
        classes = count_noun(n_classes, "class", "classes")
        own = "" if n_predicted == n_classes else f", {n_predicted} of which the model predicts as their class"
        return f"An image made for each of {classes}{own}; no second model was given that checks what they show."
    robust, control = judged["robust"], judged["noise"]
    images = f"{robust.n_recognized} of {len(robust.predicted)} images made for a class"
    recognized = f"A second model, the judge, recognizes {images}"
    controls = f"{control.n_recognized} of {len(control.predicted)} control images, which should show nothing"
    if not is_judge_approval_weak_evidence(judged) or not robust.n_recognized:
        return f"{recognized}, and {controls}."
    return f"{recognized}, but also {controls}: this is weak evidence."


def _visualized_classes(context: ReportContext, max_classes: int) -> list[int]:
    """All classes, or of many those of the followed examples, then those that are confused (or, without labels,
    predicted) most often."""
    s = context.survey
    k = len(s.classes)
    if k <= max_classes:
        return list(range(k))
    followed = [*dict.fromkeys(s.predicted[context.followed_indices].tolist())][:max_classes]
    answer_counts = torch.bincount(s.predicted, minlength=k)
    off_diagonal = s.confusion.clone().fill_diagonal_(0)
    weight = (off_diagonal.sum(0) + off_diagonal.sum(1)) * len(s.rows) + answer_counts
    others = [c for c in weight.topk(max_classes).indices.tolist() if c not in followed]
    return sorted([*followed, *others][:max_classes])


def _class_images(context: ReportContext, recipe: RecipeName, classes: list[int], plan: ClassImagePlan) -> ClassImages:
    n_starts, steps = plan.n_starts if recipe == "robust" else 1, plan.steps(recipe)
    with warnings.catch_warnings():  # the page says it above the row concerned
        warnings.filterwarnings("ignore", "the gradient is exactly zero", UnboxedWarning)
        warnings.filterwarnings("ignore", ".* not predicted as their class", UnboxedWarning)
        images = class_image(context.box, classes * n_starts, recipe=recipe, steps=steps, seed=context.seed)
    return require_uninterrupted(images)


def _rms_difference_between_starts(images: Tensor) -> Tensor:
    """(S, K, ...) -> (K,): root mean square difference of the pixels, mean over the pairs of starts; NaN of one."""
    flat = images.flatten(2).double()
    pairs = [(a, b) for a in range(len(flat)) for b in range(a)]
    differences = [(flat[a] - flat[b]).pow(2).mean(1).sqrt() for a, b in pairs]
    return torch.stack(differences).mean(0).cpu() if pairs else torch.full((len(flat[0]),), torch.nan)


def _class_image_indices_of_followed_examples(context: ReportContext, classes: Sequence[int]) -> list[int | None]:
    """The indices of the classes that the followed examples are classified as; None where it has no image."""
    answers = context.survey.predicted[context.followed_indices].tolist()
    return [classes.index(answer) if answer in classes else None for answer in answers]


# -- show --------------------------------------------------------------------------------------------------------------


def show(finding: ClassImageFinding) -> list[Block]:
    blocks: list[Block] = [MethodInterpretation.of(class_image, *judge_check(finding.judged, finding.no_judge_reason))]
    if finding.n_omitted_classes:
        selected = count_noun(len(finding.classes), "class", "classes")
        blocks.append(
            Caution(
                f"{selected}, of the followed examples and those confused most; "
                f"{finding.n_omitted_classes:,} more are left out."
            )
        )
    blocks += reduced_plan_cautions(finding.plan)
    for recipe, text in CLASS_IMAGE_RECIPE_BY_NAME.items():
        lead = text.description
        if recipe == "noise" and finding.judged and _is_model_confident(finding.images[recipe]):
            lead = "The model is confident of these, too; a judge should not be."
        figures = [_class_image_figure(finding, recipe, i) for i in range(len(finding.classes))]
        blocks += [
            Heading(text.title),
            Paragraph(lead, "soft"),
            *_failed_ascent_cautions(finding, recipe),
            FigureGrid(figures),
        ]
    return [*blocks, *_start_difference_blocks(finding), _class_image_sheet_links(finding)]


def best(finding: ClassImageFinding) -> list[Block]:
    """The class images, one per class; of many classes, those of the followed examples, large and beside them."""
    if not any(k is not None for k in finding.followed_classes[: len(finding.followed)]):
        return [FigureGrid([_class_image_figure(finding, "robust", i) for i in range(len(finding.classes))])]
    pairs: dict[int, list[Figure]] = {}
    for example, i in zip(finding.followed, finding.followed_classes, strict=True):
        if i is not None and i not in pairs:
            image = _class_image_figure(finding, "robust", i, side=LARGE_SIDE_PIXELS)
            pairs[i] = [example.figure(LARGE_SIDE_PIXELS), replace(image, head=f"image of {image.head}")]
    lead = "Beside each example: an image made from noise until the model predicts the example's class."
    shown = [*pairs.values()][:N_LARGE_PAIRS]
    return [FigureGrid([figure for pair in shown for figure in pair], lead, n_together=2)]


def _is_model_confident(images: ClassImages) -> bool:
    target_probs = images.probs.gather(1, images.targets.to(images.probs.device)[:, None])
    return float(target_probs.mean()) >= MIN_MEAN_PROB_OF_CONFIDENT_MODEL


def _uniform_image_mask(images: ClassImages) -> list[bool]:
    """Which images (N) are of one even color."""
    return (images.images.flatten(2).std(2, correction=0).amax(1) < MIN_NONUNIFORM_PIXEL_STD).tolist()


def _failed_ascent_cautions(finding: ClassImageFinding, recipe: RecipeName) -> list[Block]:
    """Where the ascent failed, and where its gradient was taken before the ReLUs."""
    images, n = finding.images[recipe], len(finding.classes)
    notes: list[Block] = []
    if empty := [name for name, flat in zip(finding.classes, _uniform_image_mask(images), strict=False) if flat]:
        these = "this image shows" if len(empty) == 1 else "these images show"
        why = "The ascent hardly moved, or ended in one even color"
        notes.append(Caution(f"{why}, for {join_names_with_limit(empty)}; {these} nothing."))
    if n_bypassed := int(images.before_clamp[:n].sum()):
        start = "On black" if recipe == "faithful" else "At some steps"
        how = f"{start}, no unit of a hidden layer is active, so the gradient is exactly zero"
        notes.append(Caution(f"{how}; there it is taken before the ReLUs ({n_bypassed} of {n} images)."))
    return notes


def _class_image_figure(
    finding: ClassImageFinding, recipe: RecipeName, class_position: int, start: int = 0, side: int = FIGURE_SIDE_PIXELS
) -> Figure:
    """The image of the i-th class from one of its starts; the judge has seen the first."""
    images, k, row = (
        finding.images[recipe],
        finding.class_indices[class_position],
        start * len(finding.classes) + class_position,
    )
    lines, tone = [f"model: {format_named_prob(float(images.probs[row, k]))}"], ""
    if recipe in finding.judged and start == 0:
        is_recognized = int(finding.judged[recipe].predicted[class_position]) == k
        tone = "" if recipe == "noise" else "good" if is_recognized else "bad"  # of the control, no praise
        lines.append(f"judge: {finding.judge_predictions[recipe][class_position]}")
        p = format_named_prob(float(finding.judged[recipe].target_probs[class_position]))
        if recipe == "noise":
            lines.append("recognized" if is_recognized else "not recognized")
        else:
            lines.append(p if is_recognized else f"{finding.classes[class_position]}: {p}")
    if _uniform_image_mask(images)[row]:
        lines, tone = [*lines, "shows\u00a0nothing"], ""
    alt = f"image of class {finding.classes[class_position]}; {', '.join(lines)}"
    return Figure(
        PageImage(colors.image_to_rgb(images.images[row]), alt, side),
        finding.classes[class_position],
        tuple(lines),
        tone,
    )


def _start_difference_blocks(finding: ClassImageFinding) -> list[Block]:
    """The other starts, where there are any, and how much the images of one class differ."""
    if finding.plan.n_starts == 1:
        return []
    order = sorted(finding.differences, key=lambda name: -finding.differences[name])
    largest = finding.differences[order[0]]
    lead = f"Each class from {finding.plan.n_starts} starts."
    if largest >= MIN_RMS_DIFFERENCE_BETWEEN_STARTS:
        lead += (f" The images of {order[0]} differ most "
                 f"(root mean square {largest:.2f} of the pixel range).")  # fmt: skip
    rows = [
        FigureGrid(
            [_class_image_figure(finding, "robust", i, start) for i in range(len(finding.classes))],
            f"start {start + 1}",
        )
        for start in range(1, finding.plan.n_starts)
    ]
    columns = ("class", "root mean square difference")
    table = Table(columns, [(name, f"{finding.differences[name]:.3f}") for name in order], frozenset({1}))
    return [Heading("How much do the starts differ?"), Paragraph(lead), Collapsible("The other starts", [*rows, table])]


def _class_image_sheet_links(finding: ClassImageFinding) -> FileLinks:
    captions = {
        CLASS_IMAGE_RECIPE_BY_NAME[r].title: [
            f"judge: {name}\n{format_named_prob(float(p))}"
            for name, p in zip(finding.judge_predictions[r], v.target_probs, strict=True)
        ]
        for r, v in finding.judged.items()
    }
    rows = {CLASS_IMAGE_RECIPE_BY_NAME[r].title: c.images[: len(finding.classes)] for r, c in finding.images.items()}
    page = draw.class_sheet(rows, finding.classes, captions, title="What the model looks for, class by class")
    return FileLinks([PageFile("class-images.png", page, "these images as a sheet")])


SECTION = Section(
    "What does each class look like to it?",
    "class-images",
    find,
    show,
    needs=("pixels", "classes"),
    objective_call=FEATURE_CALL_TEMPLATE,
    chapter=chapters.PICTURES,
    best=best,
)
