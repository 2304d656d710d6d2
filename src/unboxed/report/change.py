"""What would change its mind? Morphs, with a slider over their frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..plots import colors, draw
from ..plots.colors import Array
from ..plots.files import gif_bytes
from ..synthesis import Morph, morph
from .blocks import Block, Figure, Files, ImageRef, MethodNote, Slider
from .context import ReportContext, Section
from .judge import judge_images, usable_judge
from .pictures import file_name
from .words import count_noun, format_p, format_prob

MAX_FRAMES = 25  # under a slider
STRIP_FRAMES = 6
SHOWN_CLASSES = 5  # classes whose probability is shown
FRAME_PIXELS = 224
MORPH_STEPS = 200
MIN_CHANGE = 1 / 255  # of the pixel range: what changes or varies less shows nothing


@dataclass(frozen=True)
class MorphPlan:
    """An example, and what to make of it."""

    index: int
    target: int
    title: str


@dataclass(frozen=True)
class MorphFrame:
    """One frame of a morph."""

    step: int
    image: Array  # (C, H, W)
    probs: Array  # (K,)


def build(context: ReportContext) -> Sequence[Block]:
    plans = _morph_plans(context)
    x = context.inputs([p.index for p in plans])
    frame_every = max(1, math.ceil(x[0].numel() * MORPH_STEPS * len(x) / 40_000_000))  # frames of photos are large
    morphs = morph(context.box, x, torch.tensor([p.target for p in plans]), steps=MORPH_STEPS, frame_every=frame_every)
    context.interrupted |= morphs.interrupted
    context.facts["changes"] = [_morph_facts(context, plan, morphs, i) for i, plan in enumerate(plans)]
    method_note = MethodNote.of(morph, *_verdict_text(context, plans, morphs))
    return [method_note, *(_morph_slider(context, plan, morphs, i, frame_every) for i, plan in enumerate(plans))]


def _verdict_text(context: ReportContext, plans: Sequence[MorphPlan], morphs: Morph) -> tuple[str, str]:
    """Whether the judge, too, sees the class that the model was led to."""
    judge, why = usable_judge(context)
    if judge is None:
        return why, ""
    wanted = [p.target for p in plans]
    after, before = judge_images(judge, morphs.images, wanted), judge_images(judge, morphs.input, wanted)
    text = (
        f"The judge sees the class aimed at in {after.n_recognized or 'none'} of {count_noun(len(plans), 'result')} "
        f"(mean\u00a0p\u00a0{after.mean_target_prob:.2f})"
    )
    if before.n_recognized:
        inputs = f"all {before.n_recognized}" if before.n_recognized == len(plans) > 1 else f"{before.n_recognized}"
        text += f"; in {inputs} of the inputs it saw it already, before any change"
    convinced = after.n_recognized == len(plans) > before.n_recognized
    return f"{text}.", "good" if convinced else "" if after.n_recognized == len(plans) else "bad"


def _morph_plans(context: ReportContext) -> list[MorphPlan]:
    """The surest mistake to its label, the most undecided to its rival, a right one to its runner-up."""
    s = context.survey
    plans = []
    if s.misclassified and s.labels is not None:
        p = s.misclassified[0]
        plans.append(MorphPlan(p, int(s.labels[p]), "The surest mistake, to what it is"))
    used = {plan.index for plan in plans}
    p = next((p for p in s.by_margin if p not in used), s.by_margin[0])
    plans.append(
        MorphPlan(
            p, int(s.runner_up[p]), f"{'The most undecided' if s.exclusive_classes else 'An example'}, to its rival"
        )
    )
    used.add(p)
    if unused := [p for p in s.typical if p not in used]:
        plans.append(MorphPlan(unused[0], int(s.runner_up[unused[0]]), "A typical one, to its runner-up"))
    return plans


def _morph_slider(context: ReportContext, plan: MorphPlan, morphs: Morph, i: int, frame_every: int) -> Slider:
    """One morph: a slider over its frames, a strip of some, and both as files."""
    frames, probs = draw.morph_frames(morphs, i)
    all_frames = [
        MorphFrame(min(t * frame_every, int(morphs.steps[i])), frames[t], probs[t]) for t in range(len(frames))
    ]
    name = context.class_name(plan.target)
    strip = [
        _frame_figure(context, all_frames[t], plan.target) for t in draw.evenly_spaced(len(all_frames), STRIP_FRAMES)
    ]
    strip.insert(1, _gradient_figure(context, plan, morphs, i))
    if i == 0:
        context.cover.append(
            _frame_figure(context, all_frames[-1], plan.target, side=112, head=_outcome_text(morphs, i, name))
        )
    stem = file_name("morph", context.survey.rows[plan.index], "to", name)
    gif_content = gif_bytes([colors.image_to_rgb(frames[t]) for t in draw.evenly_spaced(len(frames), MAX_FRAMES)])
    strip_image = draw.morph_strip(morphs, i)
    gif, png = (
        context.pictures.save_file(f"{stem}.gif", gif_content),
        context.pictures.save_file(f"{stem}.png", strip_image),
    )
    slider_frames = [all_frames[t] for t in draw.evenly_spaced(len(all_frames), MAX_FRAMES)]
    shown_classes = _top_classes(slider_frames, plan.target)
    return Slider(
        slug=f"morph-{i}",
        name=plan.title,
        lines=_morph_lines(context, plan, morphs, i, all_frames[-1]),
        frames=[_frame_image(context, shot, name) for shot in slider_frames],
        classes=[context.class_name(k) for k in shown_classes],
        probs=[[round(float(shot.probs[k]), 4) for k in shown_classes] for shot in slider_frames],
        target=shown_classes.index(plan.target),
        steps=[shot.step for shot in slider_frames],
        strip=strip,
        files=Files([(gif, "as a GIF"), (png, "as a strip")]),
    )


def _outcome_text(morphs: Morph, i: int, name: str) -> str:
    return f"morphed to {name}" if bool(morphs.confidence_reached[i]) else f"toward {name}: not\u00a0reached"


def _frame_image(context: ReportContext, frame: MorphFrame, name: str) -> ImageRef:
    return context.pictures.inline(
        colors.image_to_rgb(frame.image), f"step {frame.step} of the morph to {name}", FRAME_PIXELS
    )


def _top_classes(frames: Sequence[MorphFrame], target: int) -> list[int]:
    """The classes that get the most probability in any frame, the target among them, in their order."""
    peak = np.max([s.probs for s in frames], 0)
    classes = sorted(range(len(peak)), key=lambda k: (k != target, -peak[k]))[:SHOWN_CLASSES]
    return sorted(classes)


def _morph_lines(
    context: ReportContext, plan: MorphPlan, morphs: Morph, i: int, last_frame: MorphFrame
) -> tuple[str, ...]:
    name, p = context.class_name(plan.target), float(last_frame.probs[plan.target])
    change = float((morphs.images[i] - morphs.input[i]).norm())
    reached = "reached" if bool(morphs.confidence_reached[i]) else "not reached"
    label = context.label_name(plan.index)
    first = f"Example {context.survey.rows[plan.index]}: says {context.answer_text(plan.index)}"
    lines = [
        first + (f"; label {label}." if label is not None else "."),
        f"{count_noun(last_frame.step, 'step')} toward {name}: {format_p(p)} "
        f"({reached}), changed by {change:.2f} (Euclidean norm).",
    ]
    if float((morphs.images[i] - morphs.input[i]).abs().max()) < MIN_CHANGE:
        lines.append("The ascent hardly moved; this morph tells nothing.")
    elif float(morphs.images[i].flatten(1).std(1, correction=0).max()) < MIN_CHANGE:
        lines.append("The ascent ended in one even color; this morph tells nothing.")
    if bool(morphs.before_clamp[i]):
        lines.append("Some gradients were taken before the clamp: a final ReLU holds this logit at zero.")
    return tuple(lines)


def _frame_figure(context: ReportContext, frame: MorphFrame, target: int, side: int = 84, head: str = "") -> Figure:
    name = context.class_name(target)
    p = float(frame.probs[target])
    alt = f"step {frame.step}: p of {name} is {format_prob(p)}"
    picture = context.pictures.inline(colors.image_to_rgb(frame.image), alt, side)
    return Figure(picture, head, (f"step\u00a0{frame.step}", f"p\u00a0of\u00a0{name} {format_prob(p)}"))


def _gradient_figure(context: ReportContext, plan: MorphPlan, morphs: Morph, i: int) -> Figure:
    scale = draw.shared_vmax(morphs.initial_gradient[i])
    name = context.class_name(plan.target)
    alt = f"gradient of {name} at the input, scale ±{scale:.3g}"
    picture = context.pictures.inline(draw.signed_map(morphs.initial_gradient[i], scale), alt, 84)
    return Figure(picture, "", (f"gradient of {name}", f"scale\u00a0±{scale:.3g}"))


def _morph_facts(context: ReportContext, plan: MorphPlan, morphs: Morph, i: int) -> dict[str, object]:
    return {
        "example": context.survey.rows[plan.index],
        "target": context.class_name(plan.target),
        "reached": bool(morphs.confidence_reached[i]),
        "steps": int(morphs.steps[i]),
        "p": float(morphs.probs[-1, i, plan.target]),
        "change": float((morphs.images[i] - morphs.input[i]).norm()),
        "before_clamp": bool(morphs.before_clamp[i]),
    }


SECTION = Section("What would change its mind?", "changes", build, needs=("pixels", "classes"))
