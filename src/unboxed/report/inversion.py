"""How much of the image survives? An example reconstructed from the activations of each layer, and from the outputs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..plots import class_sheet, colors
from ..synthesis import Inversions, inversions
from ..synthesis.inversions import layers_across_depth
from . import chapters
from .blocks import Block, Caution, Figure, FigureGrid, FileLinks, Heading, MethodInterpretation, Paragraph
from .context import ReportContext, Section, require_uninterrupted
from .finding import METADATA_OF_FIELD_NOT_IN_JSON, Example, Finding, NotApplicable
from .judge_model import judge_or_missing_reason
from .pictures import PageFile, PageImage
from .words import count_noun, layer_display_name

MAX_INVERTED_EXAMPLES = 2  # of small images; of photos one
MAX_SMALL_IMAGE_SIDE_PIXELS = 64  # a side
MAX_INVERSION_FLOPS = 5e11  # FLOPs for the inversions; a step takes three forward passes
MAX_STEPS_PER_LAYER, N_SUFFICIENT_STEPS_PER_LAYER, MIN_STEPS_PER_LAYER = (
    200,
    50,
    20,
)  # per layer: wanted, good, and too few for an image to show anything
N_LAYERS_CANDIDATES = (6, 4, 3, 2)  # as many as MAX_INVERSION_FLOPS allow, the outputs alone among them
SMALL_FIGURE_SIDE_PIXELS, LARGE_FIGURE_SIDE_PIXELS = 112, 196  # of small images and of photos
SHEET_TILE_SIDE_PIXELS = 140
MAX_CONVERGED_FEATURE_ERROR = 0.1  # feature error above which an image shows less than the layer holds
INVERSION_LEAD_TEXT = (
    "Each image was optimized from noise until a layer's activations are nearly those of the input. r: correlation of "
    "its pixels with the input's; error: the remaining difference of the layer's activations, relative to them."
)
SAME_PREDICTION_CAVEAT_TEXT = "The model's own prediction is the same by construction, so it proves nothing."


@dataclass(frozen=True, eq=False, kw_only=True)
class InversionFinding(Finding):
    """Inversions from L layers, the outputs last, of N examples."""

    layers: dict[str, dict[str, float]]  # {layer: mean correlation and error}
    steps: int
    judge_agrees: list[float] | None  # per layer: share of the inversions that the judge classifies as the input
    judge_agreements: Tensor | None = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # (L, N) bool
    judge_predictions: list[list[str]] | None = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # (L, N) classes
    judge_input_predictions: list[str] | None = field(
        metadata=METADATA_OF_FIELD_NOT_IN_JSON
    )  # (N,) classes, of the inputs themselves
    no_judge_reason: str
    inverted: Inversions = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)
    correlations: Tensor = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # (L, N)
    examples: list[Example]


# -- find --------------------------------------------------------------------------------------------------------------


def find(context: ReportContext) -> InversionFinding:
    is_small = max(context.box.inputs.shape[1:]) <= MAX_SMALL_IMAGE_SIDE_PIXELS
    indices = context.typical_and_ambiguous_indices(MAX_INVERTED_EXAMPLES if is_small else 1)
    x = context.inputs(indices)
    layers, steps = _layers_and_steps_within_budget(context, x)
    if steps == 0:
        raise NotApplicable("Left out to save time: an inversion of few steps shows nothing of a layer.")
    inverted = require_uninterrupted(inversions(context.box, x, layers, steps=steps, seed=context.seed))
    correlations = _pixel_correlation(inverted.images, x.to(inverted.images))  # (L, N)
    predicted = _judge_predictions(context, x, inverted)  # (L + 1, N)
    same = None if predicted is None else _is_same_class_as_input(predicted)
    names = None if predicted is None else [[context.class_name(k) for k in row] for row in predicted.tolist()]
    r, first = correlations.mean(1).tolist(), layer_display_name(inverted.layers[0])
    text = f"An image rebuilt from {first} correlates with the original by {r[0]:.2f}, one from the outputs alone by "
    return InversionFinding(
        answer=f"{text}{r[-1]:.2f} (1 is the same).",
        layers={
            a: {"correlation": r[k], "error": float(inverted.errors[k].mean())} for k, a in enumerate(inverted.layers)
        },
        steps=steps,
        judge_agrees=None if same is None else same.double().mean(1).tolist(),
        judge_agreements=same,
        judge_predictions=None if names is None else names[:-1],
        judge_input_predictions=None if names is None else names[-1],
        no_judge_reason=judge_or_missing_reason(context)[1],
        inverted=inverted,
        correlations=correlations,
        examples=context.examples(indices),
    )


def _layers_and_steps_within_budget(context: ReportContext, x: Tensor) -> tuple[list[str], int]:
    """The layers to invert and the steps of each, within MAX_INVERSION_FLOPS; 0 steps where they would show nothing."""
    step_flops = 3 * context.forward_flops(len(x))
    for max_layers in N_LAYERS_CANDIDATES:
        layers = layers_across_depth(context.box, x, max_layers)
        steps = min(MAX_STEPS_PER_LAYER, int(MAX_INVERSION_FLOPS / (step_flops * len(layers))))
        if steps >= N_SUFFICIENT_STEPS_PER_LAYER:
            break
    return layers, steps if steps >= MIN_STEPS_PER_LAYER else 0


def _pixel_correlation(images: Tensor, x: Tensor) -> Tensor:
    """The correlation (L, N) of the pixels of images (L, N, ...) with those of x (N, ...)."""
    a, b = images.flatten(2).double(), x.flatten(1).double()[None]
    a, b = a - a.mean(2, keepdim=True), b - b.mean(2, keepdim=True)
    return torch.cosine_similarity(a, b.expand_as(a), dim=2).cpu()


def _judge_predictions(context: ReportContext, x: Tensor, inverted: Inversions) -> Tensor | None:
    """The classes that the judge predicts of the inversions and, last, of the inputs (L + 1, N); None without one."""
    judge, _ = judge_or_missing_reason(context)
    if judge is None:
        return None
    all_images = torch.cat([inverted.images, x[None].to(inverted.images)]).flatten(0, 1)
    return judge.predict(all_images.to(judge.device, judge.dtype)).cpu().view(-1, len(x))


def _is_same_class_as_input(predicted: Tensor) -> Tensor:
    """Where the classes (L + 1, N) are those of the last row: (L, N) bool."""
    return predicted[:-1] == predicted[-1]


# -- show --------------------------------------------------------------------------------------------------------------


def show(finding: InversionFinding) -> list[Block]:
    blocks: list[Block] = [
        MethodInterpretation.of(inversions, _judge_agreement_text(finding.judge_agreements, finding.no_judge_reason)),
        Paragraph(INVERSION_LEAD_TEXT, "soft"),
    ]
    if finding.steps < MAX_STEPS_PER_LAYER:
        blocks.append(
            Caution(f"To save time: {count_noun(finding.steps, 'step')} per layer instead of {MAX_STEPS_PER_LAYER}.")
        )
    return [
        *blocks,
        *_not_converged_cautions(finding.inverted),
        *_example_inversion_blocks(finding),
        _inversion_sheet_links(finding),
    ]


def _judge_agreement_text(judge_agreements: Tensor | None, no_judge_reason: str) -> str:
    """Whether the judge classifies the inversions (L, N) as it classifies the inputs."""
    if judge_agreements is None:
        return f"{no_judge_reason} {SAME_PREDICTION_CAVEAT_TEXT}"
    inner, outputs = judge_agreements[:-1], judge_agreements[-1]  # (L - 1, N), (N,)
    return (
        f"The judge classifies {int(inner.sum())} of {inner.numel()} inversions of inner layers as it classifies the "
        f"input, and {int(outputs.sum())} of {len(outputs)} inversions of the outputs alone. "
        f"{SAME_PREDICTION_CAVEAT_TEXT}"
    )


def _not_converged_cautions(inverted: Inversions) -> list[Block]:
    errors = zip(inverted.layers, inverted.errors.mean(1).tolist(), strict=True)
    if not (names := [layer_display_name(name) for name, error in errors if error > MAX_CONVERGED_FEATURE_ERROR]):
        return []
    more = "it may hold more than its image shows" if len(names) == 1 else "they may hold more than their images show"
    return [Caution(f"The optimization did not converge for {', '.join(names)}: {more}.")]


def _example_inversion_blocks(finding: InversionFinding) -> list[Block]:
    blocks: list[Block] = []
    for i, example in enumerate(finding.examples):
        figures = [_input_figure(finding, i)]
        figures += [_inversion_figure(finding, k, i) for k in range(len(finding.inverted.layers))]
        blocks += [Heading(example.heading)] if len(finding.examples) > 1 else []
        blocks.append(FigureGrid(figures))
    return blocks


def _input_figure(finding: InversionFinding, example_index: int) -> Figure:
    example = finding.examples[example_index]
    figure = example.figure(_figure_side_of_image(example.x))
    if finding.judge_input_predictions is None:
        return figure
    return replace(figure, lines=(*figure.lines, f"judge: {finding.judge_input_predictions[example_index]}"))


def _inversion_figure(finding: InversionFinding, layer_index: int, example_index: int) -> Figure:
    name, image = (
        _layer_name_or_outputs_alone(finding, layer_index),
        finding.inverted.images[layer_index, example_index],
    )
    r = f"{float(finding.correlations[layer_index, example_index]):.2f}"
    lines = [f"pixels\u00a0r\u00a0{r}", f"error\u00a0{float(finding.inverted.errors[layer_index, example_index]):.1g}"]
    if finding.judge_predictions is not None:
        lines.append(f"judge: {finding.judge_predictions[layer_index][example_index]}")
    alt = f"inversion of {name}; {', '.join(lines)}"
    return Figure(PageImage(colors.image_to_rgb(image), alt, _figure_side_of_image(image)), name, tuple(lines))


def _figure_side_of_image(x: Tensor) -> int:
    return SMALL_FIGURE_SIDE_PIXELS if max(x.shape[-2:]) <= MAX_SMALL_IMAGE_SIDE_PIXELS else LARGE_FIGURE_SIDE_PIXELS


def _layer_name_or_outputs_alone(finding: InversionFinding, layer_index: int) -> str:
    names = finding.inverted.layers
    return "outputs alone" if layer_index == len(names) - 1 else layer_display_name(names[layer_index])


def _inversion_sheet_links(finding: InversionFinding) -> FileLinks:
    titles = [e.name for e in finding.examples]
    images = [[e.x, *finding.inverted.images[:, i]] for i, e in enumerate(finding.examples)]
    captions = [["", *(f"r {r:.2f}" for r in row)] for row in finding.correlations.T.tolist()]
    columns = ["input", *(_layer_name_or_outputs_alone(finding, k) for k in range(len(finding.inverted.layers)))]
    rows, captions_by_row = dict(zip(titles, images, strict=True)), dict(zip(titles, captions, strict=True))
    page = class_sheet(
        rows, columns, captions_by_row, title="How much of the image survives?", side=SHEET_TILE_SIDE_PIXELS
    )
    return FileLinks([PageFile("inversions.png", page, "these images as a sheet")])


SECTION = Section(
    "How much of the image survives?", "inversion", find, show, needs=("pixels",), chapter=chapters.KNOWLEDGE
)
