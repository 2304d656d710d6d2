"""What would change its prediction? Morphs to another class, with a slider over their frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..model.output_advice import MINIMAL_ATTACK_CALL_TEMPLATE
from ..plots import colors, draw
from ..plots.colors import Array
from ..plots.files import gif_bytes
from ..synthesis import Morph, morph
from . import chapters
from .blocks import Block, Caution, Figure, FigureGrid, FileLinks, FrameSlider, MethodInterpretation, PerExample
from .context import ReportContext, Section
from .finding import METADATA_OF_FIELD_NOT_IN_JSON, CheckNote, Example, Finding
from .judge_model import classify_by_judge, judge_or_missing_reason
from .pictures import PageFile, PageImage, to_file_name
from .rows import (
    MORPH_CONFIDENCE,
    CounterfactualFinding,
    best_counterfactuals,
    find_counterfactuals,
    is_predicted,
    is_table,
    show_by_type,
    show_counterfactuals,
)
from .words import count_noun, format_named_prob, format_prob, format_range

MAX_SLIDER_FRAMES = 25  # under a slider
N_FRAMES_IN_STRIP, MAX_SLIDERS = 6, 4
N_SHOWN_CLASS_PROBABILITIES = 5  # classes whose probability is shown
FRAME_SIDE_PIXELS, STRIP_FRAME_SIDE_PIXELS, COVER_SIDE_PIXELS = 224, 84, 112
MAX_MORPH_ITERATIONS, MIN_MORPH_STEP_BUDGET = 200, 40
MAX_MORPH_FLOPS = 4e11  # of all morphs; a step takes three forward passes
N_MORPHS_OF_LARGE_MODEL = 2  # where more could not take all steps
MAX_VALUES_OF_ALL_FRAMES = 40_000_000  # of all frames: photos keep fewer of them
MIN_VISIBLE_PIXEL_CHANGE = 1 / 255  # of the pixel range: what changes or varies less shows nothing


@dataclass(frozen=True)
class MorphPlan:
    """An example by its index in the survey, and the class that it is changed to."""

    index: int
    target: int
    title: str


@dataclass(frozen=True, eq=False)
class MorphOutcome:
    """One morph in numbers."""

    title: str
    source: Example
    example: int  # its index in the data
    target: str
    target_index: int
    changed: bool  # whether the model predicts the target, in the last frame
    reached: bool  # the confidence that was wanted
    steps: int
    p: float  # of the target, in the last frame
    change: float  # Euclidean norm
    max_change: float  # of a pixel
    is_uniform: bool  # the result is one even color
    before_clamp: bool


@dataclass(frozen=True, eq=False, kw_only=True)
class MorphFinding(Finding):
    """Morphs of some examples, and what the judge predicts of their results."""

    outcomes: list[MorphOutcome]
    frame_every: int  # steps between two frames
    check: CheckNote
    max_steps: int  # of each
    frames: Morph = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)
    classes: tuple[str, ...] = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)
    n_followed: int = 1  # of the outcomes, the first

    def cover(self, place: int) -> Sequence[Figure]:
        if place >= self.n_followed:
            return ()
        outcome = self.outcomes[place]
        words = f"morphed to {outcome.target}" if outcome.changed else f"toward {outcome.target}: not\u00a0reached"
        return [_morph_frame_figure(outcome, _morph_frames(self, place)[-1], COVER_SIDE_PIXELS, words)]


@dataclass(frozen=True)
class MorphFrame:
    """One frame of a morph."""

    step: int
    image: Array  # (C, H, W)
    probs: Array  # (K,)


# -- find --------------------------------------------------------------------------------------------------------------


def find(context: ReportContext) -> MorphFinding:
    plans, steps = _affordable_plans_and_steps(context, _morph_plans(context))
    examples = context.examples([p.index for p in plans])
    x, targets = context.inputs([p.index for p in plans]), torch.tensor([p.target for p in plans])
    frame_every = max(1, math.ceil(x[0].numel() * steps * len(x) / MAX_VALUES_OF_ALL_FRAMES))
    morphs = morph(
        context.box, x, targets, score="log-odds", steps=steps, frame_every=frame_every, confidence=MORPH_CONFIDENCE
    )
    outcomes = [_morph_outcome(context, plan, examples[i], morphs, i) for i, plan in enumerate(plans)]
    n_changed, n_reached = (sum(getattr(outcome, name) for outcome in outcomes) for name in ("changed", "reached"))
    confident = "" if n_reached == n_changed else f" ({n_reached} of them until p {MORPH_CONFIDENCE})"
    norms = format_range([o.change for o in outcomes])
    return MorphFinding(
        answer=f"{n_changed} of {count_noun(len(plans), 'example')} could be changed step by step into another class"
        f"{confident}; the size of the change is {norms} (Euclidean norm), and less may do.",
        interrupted=morphs.interrupted,
        outcomes=outcomes,
        frame_every=frame_every,
        check=_judge_check_of_morphs(context, plans, morphs),
        max_steps=steps,
        frames=morphs,
        classes=context.survey.classes,
        n_followed=min(len(plans), len(context.followed_indices)),
    )


def _affordable_plans_and_steps(context: ReportContext, plans: list[MorphPlan]) -> tuple[list[MorphPlan], int]:
    """The morphs and the most steps of each within MAX_MORPH_FLOPS."""
    steps = int(MAX_MORPH_FLOPS / (3 * context.forward_flops(len(plans))))
    if steps < MAX_MORPH_ITERATIONS:
        plans = plans[:N_MORPHS_OF_LARGE_MODEL]
        steps = int(MAX_MORPH_FLOPS / (3 * context.forward_flops(len(plans))))
    return plans, max(MIN_MORPH_STEP_BUDGET, min(MAX_MORPH_ITERATIONS, steps))


def _morph_plans(context: ReportContext) -> list[MorphPlan]:
    """The followed examples; the most confident error to its label, the lowest margin and a typical example to their
    runner-ups."""
    s = context.survey
    plans, used = [_followed_morph_plan(context, i) for i in context.followed_indices], {*context.followed_indices}
    if s.misclassified and s.labels is not None and (i := s.misclassified[0]) not in used:
        plans.append(MorphPlan(i, int(s.labels[i]), "The most confident error, to its label"))
        used.add(i)
    if (i := s.indices_by_margin[0]) not in used:
        name = "The lowest margin" if s.exclusive_classes else "An example"
        plans.append(MorphPlan(i, int(s.runner_up[i]), f"{name}, to its runner-up"))
        used.add(i)
    if s.typical_indices and not used.intersection(s.typical_indices):
        i = s.typical_indices[0]
        plans.append(MorphPlan(i, int(s.runner_up[i]), "A typical example, to its runner-up"))
    return plans


def _followed_morph_plan(context: ReportContext, i: int) -> MorphPlan:
    """A followed example: to its label where the model is wrong, else to its runner-up."""
    s = context.survey
    if s.labels is not None and s.is_correct is not None and not s.is_correct[i]:
        name = "The most confident error" if i == s.misclassified[0] else "An error"
        return MorphPlan(i, int(s.labels[i]), f"{name}, to its label")
    is_lowest, is_typical = s.exclusive_classes and i == s.indices_by_margin[0], i in s.typical_indices
    name = "The lowest margin" if is_lowest else "A typical example" if is_typical else "The followed example"
    return MorphPlan(i, int(s.runner_up[i]), f"{name}, to its runner-up")


def _morph_outcome(
    context: ReportContext, plan: MorphPlan, example: Example, morphs: Morph, morph_index: int
) -> MorphOutcome:
    result = morphs.frames[-1, morph_index]  # (C, H, W)
    change = result - morphs.input[morph_index]
    return MorphOutcome(
        title=plan.title,
        source=example,
        example=example.row,
        target=context.class_name(plan.target),
        target_index=plan.target,
        changed=is_predicted(context, morphs.probs[-1, morph_index], plan.target),
        reached=bool(morphs.confidence_reached[morph_index]),
        steps=int(morphs.steps[morph_index]),
        p=float(morphs.probs[-1, morph_index, plan.target]),
        change=float(change.norm()),
        max_change=float(change.abs().max()),
        is_uniform=float(result.flatten(1).std(1, correction=0).max()) < MIN_VISIBLE_PIXEL_CHANGE,
        before_clamp=bool(morphs.before_clamp[morph_index]),
    )


def _judge_check_of_morphs(context: ReportContext, plans: Sequence[MorphPlan], morphs: Morph) -> CheckNote:
    """Whether the judge, too, predicts the class that the model was led to."""
    judge, no_judge_reason = judge_or_missing_reason(context)
    if judge is None:
        return CheckNote(no_judge_reason)
    targets, n = [p.target for p in plans], len(plans)
    after, before = (classify_by_judge(judge, images, targets) for images in (morphs.frames[-1], morphs.input))
    text = (
        f"The judge predicts the target class for {after.n_recognized or 'none'} of {count_noun(n, 'result')} "
        f"(mean\u00a0p\u00a0{after.mean_target_prob:.2f})"
    )
    if before.n_recognized:
        inputs = f"all {before.n_recognized}" if before.n_recognized == n > 1 else f"{before.n_recognized}"
        text += f"; for {inputs} of the inputs it did so before any change"
    convinced = after.n_recognized == n > before.n_recognized
    return CheckNote(f"{text}.", "good" if convinced else "" if after.n_recognized == n else "bad")


# -- show --------------------------------------------------------------------------------------------------------------


def show(finding: MorphFinding) -> list[Block]:
    return [
        MethodInterpretation.of(morph, *finding.check),
        *_reduced_steps_cautions(finding),
        *(_morph_frame_slider(finding, i) for i in range(min(MAX_SLIDERS, len(finding.outcomes)))),
    ]


def _reduced_steps_cautions(finding: MorphFinding) -> list[Block]:
    if finding.max_steps == MAX_MORPH_ITERATIONS:
        return []
    text = f"To save time: {count_noun(len(finding.outcomes), 'morph')} of at most {finding.max_steps} steps. "
    return [Caution(text + "unboxed run morph takes any example, and more steps.")]


def best(finding: MorphFinding) -> list[Block]:
    """The followed example on its way to the other class."""
    return [PerExample([[_morph_strip(finding, i)] for i in range(finding.n_followed)])]


def _morph_strip(finding: MorphFinding, morph_index: int) -> FigureGrid:
    outcome, frames = finding.outcomes[morph_index], _morph_frames(finding, morph_index)
    shown = [frames[t] for t in draw.evenly_spaced_indices(len(frames), N_FRAMES_IN_STRIP)]
    until = "until the model predicts" if outcome.changed else "toward"
    name = f"{outcome.source.heading}, changed step by step {until} {outcome.target}:"
    return FigureGrid([_morph_frame_figure(outcome, frame) for frame in shown], name)


def _morph_frames(finding: MorphFinding, morph_index: int) -> list[MorphFrame]:
    images, probs = draw.morph_frames(finding.frames, morph_index)
    last = finding.outcomes[morph_index].steps
    return [MorphFrame(min(t * finding.frame_every, last), images[t], probs[t]) for t in range(len(images))]


def _morph_frame_slider(finding: MorphFinding, morph_index: int) -> FrameSlider:
    """One morph: a slider over its frames, a strip of some, and both as files."""
    outcome, frames = finding.outcomes[morph_index], _morph_frames(finding, morph_index)
    strip = [
        _morph_frame_figure(outcome, frames[t]) for t in draw.evenly_spaced_indices(len(frames), N_FRAMES_IN_STRIP)
    ]
    strip.insert(1, _morph_gradient_figure(finding, morph_index))
    shown = [frames[t] for t in draw.evenly_spaced_indices(len(frames), MAX_SLIDER_FRAMES)]
    shown_classes = _most_probable_classes_of_frames(shown, outcome.target_index)
    stem = to_file_name("morph", outcome.example, "to", outcome.target)
    gif = PageFile(f"{stem}.gif", gif_bytes([colors.image_to_rgb(frame.image) for frame in shown]), "as a GIF")
    return FrameSlider(
        slug=f"morph-{morph_index}",
        name=outcome.title,
        lines=_morph_caption_lines(outcome, frames[-1]),
        frames=[
            PageImage(
                colors.image_to_rgb(t.image), f"step {t.step} of the morph to {outcome.target}", FRAME_SIDE_PIXELS
            )
            for t in shown
        ],
        classes=[finding.classes[k] for k in shown_classes],
        probs=[[round(float(frame.probs[k]), 4) for k in shown_classes] for frame in shown],
        target=shown_classes.index(outcome.target_index),
        steps=[frame.step for frame in shown],
        strip=strip,
        files=FileLinks([gif, PageFile(f"{stem}.png", draw.morph_strip(finding.frames, morph_index), "as a strip")]),
    )


def _most_probable_classes_of_frames(frames: Sequence[MorphFrame], target: int) -> list[int]:
    """The classes with the largest probability in any frame, the target among them, in their order."""
    peak = np.max([frame.probs for frame in frames], 0)
    return sorted(sorted(range(len(peak)), key=lambda k: (k != target, -peak[k]))[:N_SHOWN_CLASS_PROBABILITIES])


def _morph_caption_lines(outcome: MorphOutcome, last_frame: MorphFrame) -> tuple[str, ...]:
    source, p = outcome.source, format_named_prob(float(last_frame.probs[outcome.target_index]))
    label = "" if source.label is None else f"; label {source.label}"
    unsure = f"predicted, with less than p {MORPH_CONFIDENCE}" if outcome.changed else "not reached"
    lines = [
        f"{source.heading}: predicted {source.prediction_text}{label}.",
        f"{count_noun(last_frame.step, 'step')} toward {outcome.target}: {p} "
        f"({'reached' if outcome.reached else unsure}), changed by {outcome.change:.2f} (Euclidean norm).",
    ]
    if outcome.max_change < MIN_VISIBLE_PIXEL_CHANGE:
        lines.append("The ascent hardly moved; this morph shows nothing.")
    elif outcome.is_uniform:
        lines.append("The ascent ended in one even color; this morph shows nothing.")
    if outcome.before_clamp:
        lines.append("Some gradients were taken before a final ReLU, which holds this logit at zero.")
    return tuple(lines)


def _morph_frame_figure(
    outcome: MorphOutcome, frame: MorphFrame, side: int = STRIP_FRAME_SIDE_PIXELS, head: str = ""
) -> Figure:
    name, p = outcome.target, format_prob(float(frame.probs[outcome.target_index]))
    picture = PageImage(colors.image_to_rgb(frame.image), f"step {frame.step}: p of {name} is {p}", side)
    return Figure(picture, head, (f"step\u00a0{frame.step}", f"p\u00a0of\u00a0{name} {p}"))


def _morph_gradient_figure(finding: MorphFinding, morph_index: int) -> Figure:
    gradient, name = finding.frames.initial_gradient[morph_index], finding.outcomes[morph_index].target
    vmax = draw.shared_vmax(gradient)
    alt = f"gradient toward {name} at the input, scale ±{vmax:.3g}"
    picture = PageImage(draw.signed_map_to_rgb(gradient, vmax), alt, STRIP_FRAME_SIDE_PIXELS)
    return Figure(picture, "", (f"gradient toward {name}", f"scale\u00a0±{vmax:.3g}"))


def find_morphs_or_counterfactuals(context: ReportContext) -> Finding:
    """Morphs of images; of rows of a table, the columns that would have to change."""
    if is_table(context):
        return find_counterfactuals(context, [(p.index, p.target, p.title) for p in _morph_plans(context)])
    return find(context)


SECTION = Section(
    "What would change its prediction?",
    "morphs",
    find_morphs_or_counterfactuals,
    show_by_type(show, CounterfactualFinding, show_counterfactuals),
    needs=("pixels or table", "classes"),
    objective_call=MINIMAL_ATTACK_CALL_TEMPLATE,
    chapter=chapters.PICTURES,
    best=show_by_type(best, CounterfactualFinding, best_counterfactuals),
)
