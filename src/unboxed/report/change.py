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
from .blocks import Block, Figure, Files, Method, Picture, Slider
from .context import Context, Section
from .judge import fitting, verdict
from .pictures import file_name
from .words import many, p_of, prob

FRAMES = 25  # under a slider
STRIP = 6
BARS = 5  # classes whose probability is shown
SIDE = 224
STEPS = 200
STILL = 1 / 255  # of the pixel range: what changes or varies less shows nothing


@dataclass(frozen=True)
class Plan:
    """An example, and what to make of it."""

    place: int
    target: int
    why: str


@dataclass(frozen=True)
class Shot:
    """One frame of a morph."""

    step: int
    image: Array  # (C, H, W)
    probs: Array  # (K,)


def build(context: Context) -> Sequence[Block]:
    plans = _plans(context)
    x = context.inputs([p.place for p in plans])
    every = max(1, math.ceil(x[0].numel() * STEPS * len(x) / 40_000_000))  # frames of photos are large
    found = morph(context.box, x, torch.tensor([p.target for p in plans]), steps=STEPS, every=every)
    context.interrupted |= found.interrupted
    context.facts["changes"] = [_facts(context, plan, found, i) for i, plan in enumerate(plans)]
    told = Method.of(morph, *_verdict(context, plans, found))
    return [told, *(_one(context, plan, found, i, every) for i, plan in enumerate(plans))]


def _verdict(context: Context, plans: Sequence[Plan], found: Morph) -> tuple[str, str]:
    """Whether the judge, too, sees the class that the model was led to."""
    judge, why = fitting(context)
    if judge is None:
        return why, ""
    wanted = [p.target for p in plans]
    said, before = verdict(judge, found.result, wanted), verdict(judge, found.input, wanted)
    text = (f"The judge sees the class aimed at in {said.names or 'none'} of {many(len(plans), 'result')} "
            f"(mean\u00a0p\u00a0{said.mean:.2f})")  # fmt: skip
    if before.names:
        inputs = f"all {before.names}" if before.names == len(plans) > 1 else f"{before.names}"
        text += f"; in {inputs} of the inputs it saw it already, before any change"
    convinced = said.names == len(plans) > before.names
    return f"{text}.", "good" if convinced else "" if said.names == len(plans) else "bad"


def _plans(context: Context) -> list[Plan]:
    """The surest mistake to its label, the most undecided to its rival, a right one to its runner-up."""
    s = context.survey
    plans = []
    if s.mistakes and s.labels is not None:
        p = s.mistakes[0]
        plans.append(Plan(p, int(s.labels[p]), "The surest mistake, to what it is"))
    taken = {p.place for p in plans}
    p = next((p for p in s.undecided if p not in taken), s.undecided[0])
    plans.append(Plan(p, int(s.seconds[p]), f"{'The most undecided' if s.named else 'An example'}, to its rival"))
    taken.add(p)
    if free := [p for p in s.typical if p not in taken]:
        plans.append(Plan(free[0], int(s.seconds[free[0]]), "A typical one, to its runner-up"))
    return plans


def _one(context: Context, plan: Plan, found: Morph, i: int, every: int) -> Slider:
    """One morph: a slider over its frames, a strip of some, and both as files."""
    frames, probs = draw.morph_frames(found, i)
    shots = [Shot(min(t * every, int(found.steps[i])), frames[t], probs[t]) for t in range(len(frames))]
    name = context.name(plan.target)
    strip = [_figure(context, shots[t], plan.target) for t in draw.spread(len(shots), STRIP)]
    strip.insert(1, _gradient(context, plan, found, i))
    if i == 0:
        context.cover.append(_figure(context, shots[-1], plan.target, side=112, head=_head(found, i, name)))
    stem = file_name("morph", context.survey.rows[plan.place], "to", name)
    moving = gif_bytes([colors.image(frames[t]) for t in draw.spread(len(frames), FRAMES)])
    still = draw.morph_strip(found, i, context.survey.classes, plan.target)
    gif, png = context.pictures.keep(f"{stem}.gif", moving), context.pictures.keep(f"{stem}.png", still)
    chosen = [shots[t] for t in draw.spread(len(shots), FRAMES)]
    shown = _classes(chosen, plan.target)
    return Slider(
        slug=f"morph-{i}",
        name=plan.why,
        lines=_words(context, plan, found, i, shots[-1]),
        frames=[_frame(context, shot, name) for shot in chosen],
        classes=[context.name(k) for k in shown],
        probs=[[round(float(shot.probs[k]), 4) for k in shown] for shot in chosen],
        target=shown.index(plan.target),
        steps=[shot.step for shot in chosen],
        strip=strip,
        files=Files([(gif, "as a GIF"), (png, "as a strip")]),
    )


def _head(found: Morph, i: int, name: str) -> str:
    return f"morphed to {name}" if bool(found.reached[i]) else f"toward {name}: not\u00a0reached"


def _frame(context: Context, shot: Shot, name: str) -> Picture:
    return context.pictures.inline(colors.image(shot.image), f"step {shot.step} of the morph to {name}", SIDE)


def _classes(shots: Sequence[Shot], target: int) -> list[int]:
    """The classes that get the most probability in any frame, the target among them, in their order."""
    peak = np.max([s.probs for s in shots], 0)
    best = sorted(range(len(peak)), key=lambda k: (k != target, -peak[k]))[:BARS]
    return sorted(best)


def _words(context: Context, plan: Plan, found: Morph, i: int, last: Shot) -> tuple[str, ...]:
    name, p = context.name(plan.target), float(last.probs[plan.target])
    change = float((found.result[i] - found.input[i]).norm())
    reached = "reached" if bool(found.reached[i]) else "not reached"
    label = context.label(plan.place)
    first = f"Example {context.survey.rows[plan.place]}: says {context.says(plan.place)}"
    words = [
        first + (f"; label {label}." if label is not None else "."),
        f"{many(last.step, 'step')} toward {name}: {p_of(p)} ({reached}), changed by {change:.2f} (Euclidean norm).",
    ]
    if float((found.result[i] - found.input[i]).abs().max()) < STILL:
        words.append("The ascent hardly moved; this morph tells nothing.")
    elif float(found.result[i].flatten(1).std(1, correction=0).max()) < STILL:
        words.append("The ascent ended in one even color; this morph tells nothing.")
    if bool(found.before_clamp[i]):
        words.append("Some gradients were taken before the clamp: a final ReLU holds this logit at zero.")
    return tuple(words)


def _figure(context: Context, shot: Shot, target: int, side: int = 84, head: str = "") -> Figure:
    name = context.name(target)
    p = float(shot.probs[target])
    alt = f"step {shot.step}: p of {name} is {prob(p)}"
    picture = context.pictures.inline(colors.image(shot.image), alt, side)
    return Figure(picture, head, (f"step\u00a0{shot.step}", f"p\u00a0of\u00a0{name} {prob(p)}"))


def _gradient(context: Context, plan: Plan, found: Morph, i: int) -> Figure:
    scale = draw.shared_reach(found.gradient[i])
    name = context.name(plan.target)
    alt = f"gradient of {name} at the input, scale ±{scale:.3g}"
    picture = context.pictures.inline(draw.signed_map(found.gradient[i], scale), alt, 84)
    return Figure(picture, "", (f"gradient of {name}", f"scale\u00a0±{scale:.3g}"))


def _facts(context: Context, plan: Plan, found: Morph, i: int) -> dict[str, object]:
    return {
        "example": context.survey.rows[plan.place],
        "target": context.name(plan.target),
        "reached": bool(found.reached[i]),
        "steps": int(found.steps[i]),
        "p": float(found.probs[-1, i, plan.target]),
        "change": float((found.result[i] - found.input[i]).norm()),
        "before_clamp": bool(found.before_clamp[i]),
    }


SECTION = Section("What would change its mind?", "changes", build, needs=("pixels", "classes"))
