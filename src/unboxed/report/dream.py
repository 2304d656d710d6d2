"""What it sees in an example: the image dreamed on at several depths, and what is left of it without places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..box import Box
from ..engine.read.channel_axes import channels_first_layers
from ..errors import UnboxedError
from ..objectives import Objective, energy, logit
from ..plots import colors
from ..plots.sheet import Tile, contact_sheet
from ..synthesis import deepdream, texture
from ..synthesis.generated import GeneratedImages
from .blocks import Block, Figure, FigureGrid, Files, Heading, MethodNote, Note, Text
from .context import ReportContext, Section
from .words import count_noun, error_sentence, format_p
from .words import format_shape as shaped

MAX_EXAMPLES = 2  # of small images; of photos one
MAX_FLOPS = 6e11  # FLOPs for the dreams; the texture takes about half as many
MAX_STEPS, MIN_STEPS = 10, 4  # of a dream, an octave
STEP_SIZE = 0.006  # the method's own; fewer steps are longer ones
FORWARDS_PER_STEP = (
    1.8  # forward passes of the whole model that a step costs: three as far as the layer, which lies anywhere
)
AREA_BY_OCTAVE_SCALE = {1.4: 2.0, 1.8: 1.45}  # of the octaves: their area, in images
MAX_TEXTURE_STEPS, MIN_TEXTURE_STEPS = 200, 80  # steps; fewer than these leave noise
LAYER_DEPTHS = (0.25, 0.6, 0.95)
FIGURE_PIXELS = 196
SAME_CHANGE_COSINE = 0.5  # cosine of two changes from which they count as the same


@dataclass(frozen=True)
class _DreamTarget:
    """Where a dream looks."""

    title: str
    description: str
    objective: Objective


@dataclass(frozen=True)
class _DreamBudget:
    """What the work allows."""

    targets: list[_DreamTarget]
    scale: float
    steps: int
    texture_steps: int

    @property
    def notes(self) -> list[Block]:
        reduced_text = "" if self.scale == min(AREA_BY_OCTAVE_SCALE) else ", and fewer sizes and depths"
        if self.steps == MAX_STEPS and not reduced_text:
            return []
        return [Note(f"This model is large: {self.steps} longer steps a size instead of {MAX_STEPS}{reduced_text}.")]


def build(context: ReportContext) -> Sequence[Block]:
    indices = _example_indices(context)
    x = context.inputs(indices)
    targets = _dream_targets(context, x)
    if not targets:
        return [
            Note("No layer of this model has positions, and its outputs are no classes: there is nothing to dream of.")
        ]
    budget = _fit_budget(context, x, targets)
    dreams = [_run_deepdream(context, context.box, x, d, budget) for d in budget.targets]
    lead = "The image is changed, step by step, towards more of what a layer answers to in it."
    verdict = _untrained_control(context, x, budget, dreams)
    blocks: list[Block] = [MethodNote.of(deepdream, *verdict), Text(lead, "soft"), *budget.notes]
    blocks += [FigureGrid(_dream_figures(context, p, i, x, budget.targets, dreams)) for i, p in enumerate(indices)]
    blocks += _texture_blocks(context, x, indices, budget.texture_steps)
    return [*blocks, _dream_sheet(context, indices, x, budget.targets, dreams)]


def _run_deepdream(
    context: ReportContext, box: Box, x: Tensor, target: _DreamTarget, budget: _DreamBudget
) -> GeneratedImages:
    step = None if budget.steps == MAX_STEPS else STEP_SIZE * MAX_STEPS / budget.steps
    scale, seed = budget.scale, context.seed
    return _require_complete(
        deepdream(box, x, target.objective, octave_scale=scale, steps=budget.steps, step=step, seed=seed)
    )


def _untrained_control(
    context: ReportContext, x: Tensor, budget: _DreamBudget, dreams: Sequence[GeneratedImages]
) -> tuple[str, str]:
    """Whether the deepest dream is the trained model's own: the same model without its training dreams too."""
    target, dream_images = budget.targets[-1], dreams[-1].images
    try:
        untrained_images = _run_deepdream(context, context.untrained, x, target, budget).images
    except UnboxedError as error:  # a model that can't be copied is no reason to show nothing
        return f"No untrained copy of this model to compare with ({error_sentence(error)}).", ""
    changes, untrained_changes = ((images.to(x) - x).flatten(1) for images in (dream_images, untrained_images))
    cosine = float(torch.cosine_similarity(changes, untrained_changes, dim=1).mean())
    context.facts["dream"] = {"at": target.title, "untrained": cosine}
    text = (
        f"The same model without its training, dreaming {target.title}, "
        f"changes the image otherwise (cosine {cosine:.2f})."
    )
    if cosine < SAME_CHANGE_COSINE:
        return text, "good"
    return (
        f"The same model without its training changes the image alike (cosine {cosine:.2f}): believe little of it.",
        "bad",
    )


def _example_indices(context: ReportContext) -> list[int]:
    s = context.survey
    max_examples = MAX_EXAMPLES if max(context.box.inputs.shape[1:]) <= colors.NEAREST_MAX_PIXELS else 1
    return list(dict.fromkeys([*s.typical[:max_examples], *s.by_margin[:1]]))[:max_examples]


def _dream_targets(context: ReportContext, x: Tensor) -> list[_DreamTarget]:
    """An early, a middle and a late layer that has positions, and the answer itself."""
    rows = [r for r in context.box.layers.leaves if len(r.shape) == 3 and min(r.shape[1:]) > 1 and r.has_batch_axis]
    chosen = dict.fromkeys(rows[round(d * (len(rows) - 1))] for d in LAYER_DEPTHS) if rows else {}
    channel_layers, targets = channels_first_layers(context.box), []
    for row in chosen:
        path = row.addresses[0]
        size = f"{count_noun(row.shape[0], 'channel')} of {shaped(row.shape[1:])}"
        what = size if row in channel_layers else f"{shaped(row.shape)} values"
        targets.append(_DreamTarget(f"at {path}", f"{row.type}: {what}", energy(path)))
    if context.survey.exclusive_classes and len(context.box.classes) > 1:
        predicted = context.box.predict(x)  # of the image as it is: a dream may change the answer
        targets.append(_DreamTarget("at the answer", "the logit of its class", logit(predicted)))
    return targets


def _fit_budget(context: ReportContext, x: Tensor, targets: list[_DreamTarget]) -> _DreamBudget:
    """As many depths, sizes and steps as the work of one forward pass allows."""
    max_steps_total = MAX_FLOPS / (FORWARDS_PER_STEP * context.forward_flops(len(x)))
    fine, coarse = AREA_BY_OCTAVE_SCALE
    options = [(targets, fine), (targets[-3:-1] or targets, coarse), (targets[-3:-2] or targets[:1], coarse)]
    budgets = [(d, scale, int(max_steps_total / (len(d) * AREA_BY_OCTAVE_SCALE[scale]))) for d, scale in options]
    chosen_targets, scale, steps = next((f for f in budgets if f[2] >= MIN_STEPS), budgets[-1])
    return _DreamBudget(
        chosen_targets, scale, max(MIN_STEPS, min(MAX_STEPS, steps)), int(min(MAX_TEXTURE_STEPS, max_steps_total / 3))
    )


def _require_complete(dream: GeneratedImages) -> GeneratedImages:
    if dream.interrupted:  # half-drawn images beside whole ones would mislead
        raise KeyboardInterrupt
    return dream


def _dream_figures(
    context: ReportContext,
    index: int,
    i: int,
    x: Tensor,
    targets: Sequence[_DreamTarget],
    dreams: Sequence[GeneratedImages],
) -> list[Figure]:
    figures = [context.example_figure(index, x[i], FIGURE_PIXELS)]
    for target, dream in zip(targets, dreams, strict=True):
        prediction = _prediction_text(context, dream.images[i])
        alt = f"example {context.survey.rows[index]} dreamed on {target.title}{'; ' + prediction if prediction else ''}"
        picture = context.pictures.inline(colors.image_to_rgb(dream.images[i]), alt, FIGURE_PIXELS)
        figures.append(Figure(picture, target.title, (target.description, *([prediction] if prediction else []))))
    return figures


def _prediction_text(context: ReportContext, image: Tensor) -> str:
    """What the model says of a drawn image."""
    if not context.survey.exclusive_classes:
        return ""
    p = context.box.probs(image[None])[0]
    k = int(p.argmax())
    return f"model: {context.class_name(k)}, {format_p(float(p[k]))}" if len(p) > 1 else ""


def _texture_blocks(context: ReportContext, x: Tensor, indices: Sequence[int], steps: int) -> list[Block]:
    if steps < MIN_TEXTURE_STEPS:
        return [Note("Its texture is left out: for a model of this size it would take too long.")]
    try:
        textures = _require_complete(texture(context.box, x, steps=steps, seed=context.seed))
    except LookupError as error:  # no layer has positions
        return [Note(f"No texture: {error}.")]
    figures, max_error_text = [], f"{-float(textures.scores.min()):.1%}"
    for i, index in enumerate(indices):
        row, prediction = context.survey.rows[index], _prediction_text(context, textures.images[i])
        error_text = f"{-float(textures.scores[i]):.1%}"
        lines = (f"{error_text} off in its correlations", *([prediction] if prediction else []))
        picture = context.pictures.inline(
            colors.image_to_rgb(textures.images[i]), f"texture of example {row}", FIGURE_PIXELS
        )
        figures.append(Figure(picture, f"of example {row}", lines))
    verdict = f"What it was to keep, it keeps: the channels' correlations are those of the image to {max_error_text}."
    return [Heading("The same without places"), MethodNote.of(texture, verdict), FigureGrid(figures)]


def _dream_sheet(
    context: ReportContext,
    indices: Sequence[int],
    x: Tensor,
    targets: Sequence[_DreamTarget],
    dreams: Sequence[GeneratedImages],
) -> Files:
    rows = [[Tile(colors.image_to_rgb(v[i])) for v in (x, *(d.images for d in dreams))] for i in range(len(indices))]
    names = [f"example {context.survey.rows[p]}" for p in indices]
    picture = contact_sheet(rows, title="Deep dreams", columns=["input", *(d.title for d in targets)], names=names)
    return Files([(context.pictures.save_file("dreams.png", picture), "the dreams as a sheet")])


SECTION = Section("What it sees in an example", "dream", build, needs=("pixels",))
