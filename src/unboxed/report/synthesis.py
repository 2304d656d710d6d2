"""What does it look for? Class images, beside a control that must fail, judged by another model where one is given."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ..errors import UnboxedWarning
from ..plots import colors, draw
from ..synthesis import ClassImages, class_image
from .blocks import Block, Figure, FigureGrid, Files, Fold, Heading, MethodNote, Note, Table, Text
from .context import ReportContext, Section
from .judge import JUDGE_DESCRIPTION, JudgeReport, judge_images, usable_judge
from .words import count_noun, format_p, join_names

if TYPE_CHECKING:
    from ..synthesis.class_image import Recipe

MAX_CLASSES = 10  # drawn; with more, those that are confused most
STARTS_PER_CLASS = 3  # starts per class
FIGURE_PIXELS = 84
MIN_JUDGE_MARGIN = 0.1  # of the judge's mean probability, by which the class images must beat the control
WEAK_JUDGE_RATIO = 0.8  # of the class images named: where the judge names that share of the control, its word is weak
CONFIDENT_PROB = 0.9  # mean probability from which a model is called sure
MIN_RMS_DIFFERENCE = 0.01  # root mean square of the pixel range: drawings closer than this are the same
MIN_PIXEL_STD = 1 / 255  # standard deviation of the pixels below which a picture holds nothing
RECIPE_TEXTS = {
    "robust": ("Class images", "From smooth noise, turned and shifted a little at each step."),
    "faithful": ("The published recipe", "Fifty rounds from black, each pixel moved by the sign of its gradient."),
    "noise": ("Control: raw ascent from noise", "Plain ascent: what it draws should not be recognized."),
}


WEAK_EVIDENCE_TEXT = "That it names so many of the control makes its approval weak evidence."


def build(context: ReportContext) -> Sequence[Block]:
    classes = _chosen_classes(context)
    images_by_recipe = {recipe: _class_images(context, recipe, classes) for recipe in RECIPE_TEXTS}
    judge, why = usable_judge(context)
    verdicts = (
        {r: judge_images(judge, c.images[: len(classes)], classes) for r, c in images_by_recipe.items()}
        if judge
        else {}
    )
    _record_facts(context, classes, images_by_recipe["robust"], verdicts)
    blocks: list[Block] = [MethodNote.of(class_image, *_verdict_text(verdicts, why))]
    if n_omitted := len(context.box.classes) - len(classes):
        selected = count_noun(len(classes), "class", "classes")
        blocks.append(Note(f"The {selected} that are confused most; {n_omitted:,} more are left out."))
    for recipe, (title, lead) in RECIPE_TEXTS.items():
        if recipe == "noise" and verdicts and _is_confident(images_by_recipe[recipe]):
            lead = "The model is sure of these, too; a judge should not be."
        blocks += [
            Heading(title),
            Text(lead, "soft"),
            *_warning_notes(context, recipe, classes, images_by_recipe[recipe]),
        ]
        judge_report = verdicts.get(recipe)
        blocks.append(
            FigureGrid(
                [
                    _class_figure(context, k, images_by_recipe[recipe], i, judge_report, recipe)
                    for i, k in enumerate(classes)
                ]
            )
        )
    return [
        *blocks,
        *_variation_blocks(context, classes, images_by_recipe["robust"]),
        _class_image_sheet(context, classes, images_by_recipe, verdicts),
    ]


def _chosen_classes(context: ReportContext) -> list[int]:
    """All classes, or of many those that are confused (or, without labels, said) most often."""
    s = context.survey
    k = len(s.classes)
    if k <= MAX_CLASSES:
        return list(range(k))
    answer_counts = torch.bincount(s.answers, minlength=k)
    off_diagonal = s.confusion.clone().fill_diagonal_(0)
    weight = (off_diagonal.sum(0) + off_diagonal.sum(1)) * len(s.rows) + answer_counts
    return sorted(weight.topk(MAX_CLASSES).indices.tolist())


def _class_images(context: ReportContext, recipe: str, classes: list[int]) -> ClassImages:
    n_starts = STARTS_PER_CLASS if recipe == "robust" else 1
    with warnings.catch_warnings():  # told beside the row it is about
        warnings.filterwarnings("ignore", "the gradient is exactly zero", UnboxedWarning)
        images = class_image(context.box, classes * n_starts, recipe=cast("Recipe", recipe), seed=context.seed)
    if images.interrupted:  # half-drawn images beside whole ones would mislead
        raise KeyboardInterrupt
    return images


def _is_confident(images: ClassImages) -> bool:
    target_probs = images.probs.gather(1, images.targets.to(images.probs.device)[:, None])
    return float(target_probs.mean()) >= CONFIDENT_PROB


def _is_uniform(images: ClassImages) -> list[bool]:
    """Which images (N) are of one even color."""
    return (images.images.flatten(2).std(2, correction=0).amax(1) < MIN_PIXEL_STD).tolist()


def _warning_notes(context: ReportContext, recipe: str, classes: Sequence[int], images: ClassImages) -> list[Block]:
    """What one must know before looking at a row: where the ascent came to nothing, and where it needed help."""
    notes: list[Block] = []
    empty = [context.class_name(k) for k, flat in zip(classes, _is_uniform(images), strict=False) if flat]
    if empty:
        these = "this picture tells" if len(empty) == 1 else "these pictures tell"
        why = "The ascent hardly moved, or ended in one even color"
        notes.append(Note(f"{why}, for {join_names(empty)}; {these} nothing."))
    n_bypassed = int(images.before_clamp[: len(classes)].sum())
    if n_bypassed:
        start = "On black" if recipe == "faithful" else "At some steps"
        how = f"{start}, no unit of a hidden layer answers, so the gradient is exactly zero"
        notes.append(Note(f"{how}; there it is taken before the ReLUs ({n_bypassed} of {len(classes)} images)."))
    return notes


# -- the judge --------------------------------------------------------------------------------


def _verdict_text(verdicts: dict[str, JudgeReport], why: str) -> tuple[str, str]:
    if not verdicts:
        return why, ""
    recognized_text = {
        r: f"{v.n_recognized} of {len(v.answers)} (mean\u00a0p\u00a0{v.mean_target_prob:.2f})"
        for r, v in verdicts.items()
    }
    text = (
        f"The judge names {recognized_text['robust']} of these as their "
        f"class; {recognized_text['faithful']} by the published recipe, "
        f"{recognized_text['noise']} of the control."
    )
    if passes_control(verdicts):
        return (f"{text} {WEAK_EVIDENCE_TEXT}", "") if is_weak_evidence(verdicts) else (text, "good")
    robust = verdicts["robust"]
    why = (
        "do no better than the control"
        if 2 * robust.n_recognized > len(robust.answers)
        else "are mostly not what they should be"
    )
    return f"{text} The pictures {why}: believe nothing of them.", "bad"


def passes_control(verdicts: dict[str, JudgeReport]) -> bool:
    """Whether the judge names most of the class images, and the control clearly less surely."""
    robust, control = verdicts["robust"], verdicts["noise"]
    return (
        2 * robust.n_recognized > len(robust.answers)
        and robust.n_recognized >= control.n_recognized
        and robust.mean_target_prob > control.mean_target_prob + MIN_JUDGE_MARGIN
    )


def is_weak_evidence(verdicts: dict[str, JudgeReport]) -> bool:
    """Whether the judge names most of the control too, or nearly as much of it as of the class images."""
    robust, control = verdicts["robust"], verdicts["noise"]
    return (
        2 * control.n_recognized > len(control.answers)
        or control.n_recognized >= WEAK_JUDGE_RATIO * robust.n_recognized
    )


# -- the pictures --------------------------------------------------------------------------------


def _class_figure(
    context: ReportContext,
    k: int,
    images: ClassImages,
    i: int,
    judge_report: JudgeReport | None,
    recipe: str = "robust",
    side: int = FIGURE_PIXELS,
) -> Figure:
    name, model_prob = context.class_name(k), float(images.probs[i, k])
    lines, tone = [f"model: {format_p(model_prob)}"], ""
    if judge_report is not None:
        answer = int(judge_report.answers[i])
        tone = ("good" if answer == k else "bad") if recipe == "robust" else ""
        lines += [
            f"judge: {context.class_name(answer)}",
            *_judge_lines(name, float(judge_report.target_probs[i]), answer == k, recipe),
        ]
    if _is_uniform(images)[i]:
        lines, tone = [*lines, "tells\u00a0nothing"], ""
    alt = f"image drawn for class {name}; {', '.join(lines)}"
    return Figure(context.pictures.inline(colors.image_to_rgb(images.images[i]), alt, side), name, tuple(lines), tone)


def _judge_lines(name: str, p: float, is_recognized: bool, recipe: str) -> list[str]:
    """How the judge sees the class that was meant; of the control, being seen is no praise."""
    if recipe == "noise":
        return ["taken\u00a0for its\u00a0class" if is_recognized else "not its\u00a0class"]
    return [format_p(p) if is_recognized else f"{name}: {format_p(p)}"]


def _variation_blocks(context: ReportContext, classes: Sequence[int], class_images: ClassImages) -> list[Block]:
    """The other starts, and how far the images of one class lie apart."""
    n = len(classes)
    images = class_images.images.view(STARTS_PER_CLASS, n, *class_images.images.shape[1:])  # (S, K, C, H, W)
    differences = _rms_difference(images)
    context.facts["spread"] = {context.class_name(k): float(a) for k, a in zip(classes, differences, strict=True)}
    most_varied = int(differences.argmax())
    lead = f"Each class drawn from {STARTS_PER_CLASS} starts."
    if float(differences[most_varied]) >= MIN_RMS_DIFFERENCE:
        lead += (f" The drawings of {context.class_name(classes[most_varied])} differ most "
                 f"(root mean square {float(differences[most_varied]):.2f} of the pixel range).")  # fmt: skip
    rows = [
        FigureGrid(
            [_class_figure(context, k, class_images, s * n + i, None) for i, k in enumerate(classes)], f"start {s + 1}"
        )
        for s in range(1, STARTS_PER_CLASS)
    ]
    order = differences.argsort(descending=True).tolist()
    rms = [(context.class_name(classes[i]), f"{float(differences[i]):.3f}") for i in order]
    table = Table(("class", "root mean square difference"), rms, frozenset({1}))
    return [Heading("How many forms does a class have?"), Text(lead), Fold("The other starts", [*rows, table])]


def _rms_difference(images: Tensor) -> Tensor:
    """(S, K, ...) -> (K,): root mean square difference of the pixels, mean over the pairs of starts."""
    flat = images.flatten(2).double()
    pairs = [(a, b) for a in range(len(flat)) for b in range(a)]
    return torch.stack([(flat[a] - flat[b]).pow(2).mean(1).sqrt() for a, b in pairs]).mean(0).cpu()


def _class_image_sheet(
    context: ReportContext,
    classes: Sequence[int],
    images_by_recipe: dict[str, ClassImages],
    verdicts: dict[str, JudgeReport],
) -> Files:
    def judge_captions(v: JudgeReport) -> list[str]:
        return [
            f"judge: {context.class_name(int(a))}\n{format_p(float(p))}"
            for a, p in zip(v.answers, v.target_probs, strict=True)
        ]

    names = [context.class_name(k) for k in classes]
    judge_texts = {RECIPE_TEXTS[r][0]: judge_captions(v) for r, v in verdicts.items()}
    rows = {RECIPE_TEXTS[r][0]: c.images[: len(classes)] for r, c in images_by_recipe.items()}
    page = draw.class_sheet(rows, names, judge_texts, title="What the model looks for, class by class")
    return Files([(context.pictures.save_file("class-images.png", page), "these images as a sheet")])


def _record_facts(
    context: ReportContext, classes: Sequence[int], images: ClassImages, verdicts: dict[str, JudgeReport]
) -> None:
    """Facts for the page's opening and for report.json."""
    facts: dict[str, object] = {"classes": [context.class_name(k) for k in classes]}
    for recipe, v in verdicts.items():
        answers = [context.class_name(int(a)) for a in v.answers]
        recipe_facts = {
            "named": v.n_recognized,
            "of": len(answers),
            "mean_p": v.mean_target_prob,
            "answers": answers,
            "p": v.target_probs.tolist(),
        }
        facts[recipe] = recipe_facts
    context.facts["looks_for"] = facts
    if verdicts:
        robust, control = verdicts["robust"], verdicts["noise"]
        recognized_text = (
            f"A judge ({JUDGE_DESCRIPTION}) recognizes {robust.n_recognized} "
            f"of the {len(classes)} images drawn of its classes"
        )
        caveat = ": its approval is weak evidence" if is_weak_evidence(verdicts) and robust.n_recognized else ""
        context.headline.append(f"{recognized_text} and {control.n_recognized} of the noise control{caveat}.")
    k = _first_example_class(context, classes)
    picture = _class_figure(context, classes[k], images, k, verdicts.get("robust"), side=112)
    tone = "" if verdicts and is_weak_evidence(verdicts) else picture.tone
    context.cover.append(replace(picture, head=f"image of {picture.head}", tone=tone))


def _first_example_class(context: ReportContext, classes: Sequence[int]) -> int:
    """The place of the class that the page's first example is taken for."""
    s = context.survey
    answer = int(s.answers[(s.misclassified or s.by_margin)[0]])
    return classes.index(answer) if answer in classes else 0


SECTION = Section("What does it look for?", "looks-for", build, needs=("pixels", "classes"))
