"""What does it see in an example? DeepDreams of layers at several depths, and the texture of the image."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..box import Box
from ..engine.read.channel_axes import channels_first_layers
from ..errors import UnboxedError
from ..objectives import Objective, energy
from ..plots import class_sheet, colors
from ..synthesis import deepdream, texture
from ..synthesis.generated import GeneratedImages
from . import chapters
from .blocks import Block, Caution, Figure, FigureGrid, FileLinks, Heading, MethodInterpretation, Paragraph
from .context import ReportContext, Section, require_uninterrupted
from .finding import METADATA_OF_FIELD_NOT_IN_JSON, CheckNote, Example, Finding, NotApplicable
from .pictures import PageFile, PageImage
from .words import count_noun, error_sentence, format_named_prob, join_names_with_limit, layer_display_name
from .words import format_shape as shaped

MAX_DREAMED_EXAMPLES = 2  # of small images; of photos one
MAX_DREAM_FLOPS = 6e11  # of the dreams; the texture takes about half as many
MAX_STEPS_PER_OCTAVE, MIN_STEPS_PER_OCTAVE = 10, 4  # of a dream, per octave
DEFAULT_DREAM_STEP_SIZE = 0.006  # the method's default; fewer steps are longer
DREAM_STEP_COST_IN_FORWARDS = 1.8  # forward passes of the whole model that a step costs: three up to the layer
TOTAL_OCTAVE_AREA_IN_IMAGES_BY_SCALE = {1.4: 2.0, 1.8: 1.45}  # of the octaves: their area, in images
MAX_TEXTURE_STEPS, MIN_TEXTURE_STEPS = 200, 80  # steps; fewer than these leave noise
DREAMED_LAYER_DEPTH_FRACTIONS = (0.25, 0.6, 0.95)
FIGURE_SIDE_PIXELS, SHEET_TILE_SIDE_PIXELS = 196, 140
MIN_COSINE_OF_EQUAL_IMAGE_CHANGES = 0.5  # from which two changes count as the same


@dataclass(frozen=True)
class _DreamTarget:
    """What a dream maximizes."""

    name: str
    description: str
    objective: Objective


@dataclass(frozen=True)
class _DreamSettings:
    """What MAX_DREAM_FLOPS allow."""

    targets: list[_DreamTarget]
    scale: float
    steps: int
    texture_steps: int


@dataclass(frozen=True, eq=False, kw_only=True)
class DreamFinding(Finding):
    """DeepDreams of some layers and of the predicted class, the control, and textures, of N examples."""

    examples: list[Example]
    targets: dict[str, str]  # {name: description}: what each dream maximizes
    predictions: list[list[str]]  # (T, N) what the model predicts of each dream
    dreams: list[Tensor] = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # T of (N, C, H, W)
    control: str  # the name of the dream that the model was compared with its untrained copy on
    control_cosine: float | None  # of the two changes of the image; None where the model can't be copied
    no_control_reason: str
    steps: int
    is_reduced: bool  # fewer sizes and depths than usual
    textures: Tensor | None = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # (N, C, H, W)
    texture_errors: list[float]  # (N,) relative error of the channels' correlations
    texture_predictions: list[str]
    no_texture_reason: str


# -- find --------------------------------------------------------------------------------------------------------------


def find(context: ReportContext) -> DreamFinding:
    indices = _dreamed_example_indices(context)
    x = context.inputs(indices)
    targets = _dream_targets(context, x)
    if not targets:
        raise NotApplicable("No layer of this model has positions, and its outputs are no classes to dream of.")
    budget = _dream_settings_within_max_flops(context, x, targets)
    dreams = [_run_deepdream(context, context.box, x, target, budget).images for target in budget.targets]
    cosine, no_control_reason = _untrained_cosine_or_reason(context, x, budget, dreams[-1])
    textures, no_texture_reason = _textures_or_reason(context, x, budget.texture_steps)
    names = [target.name for target in budget.targets]
    listed = join_names_with_limit([layer_display_name(name) for name in names])
    return DreamFinding(
        answer=f"Examples changed so that each of {listed} responds more (DeepDream)"
        + (", and the texture of each." if textures else "."),
        examples=context.examples(indices),
        targets={t.name: t.description for t in budget.targets},
        predictions=[[_generated_image_prediction_text(context, image) for image in images] for images in dreams],
        dreams=dreams,
        control=names[-1],
        control_cosine=cosine,
        no_control_reason=no_control_reason,
        steps=budget.steps,
        is_reduced=budget.scale != min(TOTAL_OCTAVE_AREA_IN_IMAGES_BY_SCALE),
        textures=None if textures is None else textures.images,
        texture_errors=[] if textures is None else (-textures.scores).tolist(),
        texture_predictions=[]
        if textures is None
        else [_generated_image_prediction_text(context, image) for image in textures.images],
        no_texture_reason=no_texture_reason,
    )


def _run_deepdream(
    context: ReportContext, box: Box, x: Tensor, target: _DreamTarget, budget: _DreamSettings
) -> GeneratedImages:
    step = (
        None if budget.steps == MAX_STEPS_PER_OCTAVE else DEFAULT_DREAM_STEP_SIZE * MAX_STEPS_PER_OCTAVE / budget.steps
    )
    scale, seed = budget.scale, context.seed
    images = deepdream(box, x, target.objective, octave_scale=scale, steps=budget.steps, step=step, seed=seed)
    return require_uninterrupted(images)


def _untrained_cosine_or_reason(
    context: ReportContext, x: Tensor, budget: _DreamSettings, dream: Tensor
) -> tuple[float | None, str]:
    """The cosine between the changes of the image by this model and by its untrained copy, or why there is none."""
    try:
        untrained_dream = _run_deepdream(context, context.untrained, x, budget.targets[-1], budget).images
    except UnboxedError as error:  # a model that can't be copied is no reason to show nothing
        return None, error_sentence(error)
    changes, untrained_changes = ((images.to(x) - x).flatten(1) for images in (dream, untrained_dream))
    return float(torch.cosine_similarity(changes, untrained_changes, dim=1).mean()), ""


def _dreamed_example_indices(context: ReportContext) -> list[int]:
    s = context.survey
    max_examples = MAX_DREAMED_EXAMPLES if max(context.box.inputs.shape[1:]) <= colors.MAX_PIXELATED_SIDE_PIXELS else 1
    return list(dict.fromkeys([*s.typical_indices[:max_examples], *s.indices_by_margin[:1]]))[:max_examples]


def _dream_targets(context: ReportContext, x: Tensor) -> list[_DreamTarget]:
    """An early, a middle and a late layer that has positions, and the predicted class."""
    rows = [r for r in context.box.layers.leaves if len(r.shape) == 3 and min(r.shape[1:]) > 1 and r.has_batch_axis]
    chosen = dict.fromkeys(rows[round(d * (len(rows) - 1))] for d in DREAMED_LAYER_DEPTH_FRACTIONS) if rows else {}
    channel_layers, targets = channels_first_layers(context.box), []
    for row in chosen:
        path = row.addresses[0]
        size = f"{count_noun(row.shape[0], 'channel')} of {shaped(row.shape[1:])}"
        what = size if row in channel_layers else f"{shaped(row.shape)} values"
        targets.append(_DreamTarget(path, f"{row.type}: {what}", energy(path)))
    if context.survey.exclusive_classes and len(context.box.classes) > 1:
        predicted = context.box.predict(x)  # of the image as it is: a dream may change the answer
        targets.append(_DreamTarget("the predicted class", "its logit", context.box.objective(predicted, len(x))))
    return targets


def _dream_settings_within_max_flops(context: ReportContext, x: Tensor, targets: list[_DreamTarget]) -> _DreamSettings:
    """As many layers, sizes and steps as MAX_DREAM_FLOPS allow."""
    max_steps_total = MAX_DREAM_FLOPS / (DREAM_STEP_COST_IN_FORWARDS * context.forward_flops(len(x)))
    fine, coarse = TOTAL_OCTAVE_AREA_IN_IMAGES_BY_SCALE
    options = [(targets, fine), (targets[-3:-1] or targets, coarse), (targets[-3:-2] or targets[:1], coarse)]
    budgets = [
        (d, scale, int(max_steps_total / (len(d) * TOTAL_OCTAVE_AREA_IN_IMAGES_BY_SCALE[scale])))
        for d, scale in options
    ]
    chosen_targets, scale, steps = next((f for f in budgets if f[2] >= MIN_STEPS_PER_OCTAVE), budgets[-1])
    return _DreamSettings(
        chosen_targets,
        scale,
        max(MIN_STEPS_PER_OCTAVE, min(MAX_STEPS_PER_OCTAVE, steps)),
        int(min(MAX_TEXTURE_STEPS, max_steps_total / 3)),
    )


def _generated_image_prediction_text(context: ReportContext, image: Tensor) -> str:
    """What the model predicts of a generated image."""
    if not context.survey.exclusive_classes:
        return ""
    p = context.box.probs(image[None])[0]
    k = int(p.argmax())
    return f"model: {context.class_name(k)}, {format_named_prob(float(p[k]))}" if len(p) > 1 else ""


def _textures_or_reason(context: ReportContext, x: Tensor, steps: int) -> tuple[GeneratedImages | None, str]:
    """Images with the same texture, or why there are none."""
    if steps < MIN_TEXTURE_STEPS:
        return None, "The texture is left out: this model is too large."
    try:
        return require_uninterrupted(texture(context.box, x, steps=steps, seed=context.seed)), ""
    except LookupError as error:  # no layer has positions
        return None, f"No texture: {error}."


# -- show --------------------------------------------------------------------------------------------------------------


def show(finding: DreamFinding) -> list[Block]:
    lead = "The image is changed step by step to increase the activations that a layer already has for it."
    blocks: list[Block] = [
        MethodInterpretation.of(deepdream, *_check_against_untrained(finding)),
        Paragraph(lead, "soft"),
    ]
    if finding.steps < MAX_STEPS_PER_OCTAVE or finding.is_reduced:
        reduced = ", and fewer sizes and layers" if finding.is_reduced else ""
        blocks.append(
            Caution(f"To save time: {finding.steps} longer steps per size instead of {MAX_STEPS_PER_OCTAVE}{reduced}.")
        )
    blocks += [FigureGrid(_dream_figures(finding, i)) for i in range(len(finding.examples))]
    return [*blocks, *_texture_blocks(finding), _dream_sheet_links(finding)]


def _check_against_untrained(finding: DreamFinding) -> CheckNote:
    """Whether the deepest dream depends on what the model has learned."""
    if finding.control_cosine is None:
        return CheckNote(f"No untrained copy of this model to compare with ({finding.no_control_reason}).")
    cosine = f"cosine {finding.control_cosine:.2f}"
    if finding.control_cosine < MIN_COSINE_OF_EQUAL_IMAGE_CHANGES:
        name = layer_display_name(finding.control)
        return CheckNote(f"The untrained model's DeepDream of {name} changes the image differently ({cosine}).", "good")
    return CheckNote(f"The untrained model changes the image in the same way ({cosine}): trust little of it.", "bad")


def _dream_figures(finding: DreamFinding, example_index: int) -> list[Figure]:
    example = finding.examples[example_index]
    figures = [example.figure(FIGURE_SIDE_PIXELS)]
    for (name, description), images, predictions in zip(
        finding.targets.items(), finding.dreams, finding.predictions, strict=True
    ):
        lines = tuple(filter(None, (description, predictions[example_index])))
        head = f"DeepDream of {layer_display_name(name)}"
        alt = "; ".join(filter(None, (f"{head}, {example.name}", predictions[example_index])))
        figures.append(
            Figure(PageImage(colors.image_to_rgb(images[example_index]), alt, FIGURE_SIDE_PIXELS), head, lines)
        )
    return figures


def _texture_blocks(finding: DreamFinding) -> list[Block]:
    if finding.textures is None:
        return [Caution(finding.no_texture_reason)]
    figures = []
    for example, image, error, prediction in zip(
        finding.examples, finding.textures, finding.texture_errors, finding.texture_predictions, strict=True
    ):
        lines = tuple(filter(None, (f"correlations off by {error:.1%}", prediction)))
        picture = PageImage(colors.image_to_rgb(image), f"texture of {example.name}", FIGURE_SIDE_PIXELS)
        figures.append(Figure(picture, f"texture of {example.name}", lines))
    verdict = f"The channels' correlations match those of the image within {max(finding.texture_errors):.1%}."
    return [
        Heading("Texture: the same without positions"),
        MethodInterpretation.of(texture, verdict),
        FigureGrid(figures),
    ]


def _dream_sheet_links(finding: DreamFinding) -> FileLinks:
    rows = {e.name: [e.x, *(d[i] for d in finding.dreams)] for i, e in enumerate(finding.examples)}
    columns = ["input", *map(layer_display_name, finding.targets)]
    page = class_sheet(rows, columns, title="DeepDreams", side=SHEET_TILE_SIDE_PIXELS)
    return FileLinks([PageFile("dreams.png", page, "the dreams as a sheet")])


SECTION = Section(
    "What does it see in an example?", "deepdream", find, show, needs=("pixels",), chapter=chapters.PICTURES
)
