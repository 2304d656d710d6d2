"""How much of the image survives? An example reconstructed from the activations of each layer, and from the outputs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..plots import colors
from ..plots.sheet import Tile, contact_sheet
from ..synthesis import Inversions, inversions
from ..synthesis.inversions import layers_by_depth
from .blocks import Block, Figure, FigureGrid, Files, Heading, MethodNote, Note, Text
from .context import ReportContext, Section, require_complete
from .finding import SHOWN_ONLY, Example, Finding, NotApplicable
from .judge_model import usable_judge
from .pictures import File, Picture
from .words import count_noun

MAX_EXAMPLES = 2  # of small images; of photos one
SMALL_IMAGE_PIXELS = 64  # a side
MAX_FLOPS = 5e11  # FLOPs for the inversions; a step takes three forward passes
MAX_STEPS, GOOD_STEPS, MIN_STEPS = 200, 50, 20  # per layer: wanted, good, and too few for an image to show anything
LAYER_COUNTS = (6, 4, 3, 2)  # as many as MAX_FLOPS allow, the outputs alone among them
SMALL_FIGURE_PIXELS, LARGE_FIGURE_PIXELS = 112, 196  # of small images and of photos
MAX_CONVERGED_ERROR = 0.1  # feature error above which an image shows less than the layer holds
LEAD_TEXT = (
    "Each image was optimized from noise until a layer's activations are nearly those of the input. r: correlation of "
    "its pixels with the input's; error: the remaining difference of the layer's activations, relative to them."
)
OUTPUT_NOTE = "The model's own prediction is the same by construction, so it proves nothing."


@dataclass(frozen=True, eq=False, kw_only=True)
class InversionFinding(Finding):
    """Inversions from L layers, the outputs last, of N examples."""

    layers: dict[str, dict[str, float]]  # {layer: mean correlation and error}
    steps: int
    judge_agrees: list[float] | None  # per layer: share of the inversions that the judge classifies as the input
    judge_agreements: Tensor | None = field(metadata=SHOWN_ONLY)  # (L, N) bool
    judge_predictions: list[list[str]] | None = field(metadata=SHOWN_ONLY)  # (L, N) classes
    no_judge_reason: str
    inverted: Inversions = field(metadata=SHOWN_ONLY)
    correlations: Tensor = field(metadata=SHOWN_ONLY)  # (L, N)
    examples: list[Example]


# -- find --------------------------------------------------------------------------------------------------------------


def find(context: ReportContext) -> InversionFinding:
    is_small = max(context.box.inputs.shape[1:]) <= SMALL_IMAGE_PIXELS
    indices = context.typical_and_ambiguous(MAX_EXAMPLES if is_small else 1)
    x = context.inputs(indices)
    layers, steps = _fit_budget(context, x)
    if steps == 0:
        raise NotApplicable("Left out: this model is large, and an inversion of a few steps shows nothing of a layer.")
    inverted = require_complete(inversions(context.box, x, layers, steps=steps, seed=context.seed))
    correlations = _pixel_correlation(inverted.images, x.to(inverted.images))  # (L, N)
    predicted = _judge_predictions(context, x, inverted)  # (L + 1, N)
    same = None if predicted is None else _agreements(predicted)
    r = correlations.mean(1).tolist()
    text = f"Correlation of the reconstructed pixels with the input's: {r[0]:.2f} from {inverted.layers[0]}, "
    return InversionFinding(
        answer=f"{text}{r[-1]:.2f} from the outputs alone.",
        layers={
            a: {"correlation": r[k], "error": float(inverted.errors[k].mean())} for k, a in enumerate(inverted.layers)
        },
        steps=steps,
        judge_agrees=None if same is None else same.double().mean(1).tolist(),
        judge_agreements=same,
        judge_predictions=None
        if predicted is None
        else [[context.class_name(k) for k in row] for row in predicted.tolist()],
        no_judge_reason=usable_judge(context)[1],
        inverted=inverted,
        correlations=correlations,
        examples=context.examples(indices),
    )


def _fit_budget(context: ReportContext, x: Tensor) -> tuple[list[str], int]:
    """The layers to invert and the steps of each, within MAX_FLOPS; 0 steps where they would show nothing."""
    step_flops = 3 * context.forward_flops(len(x))
    for max_layers in LAYER_COUNTS:
        layers = layers_by_depth(context.box, x, max_layers)
        steps = min(MAX_STEPS, int(MAX_FLOPS / (step_flops * len(layers))))
        if steps >= GOOD_STEPS:
            break
    return layers, steps if steps >= MIN_STEPS else 0


def _pixel_correlation(images: Tensor, x: Tensor) -> Tensor:
    """The correlation (L, N) of the pixels of images (L, N, ...) with those of x (N, ...)."""
    a, b = images.flatten(2).double(), x.flatten(1).double()[None]
    a, b = a - a.mean(2, keepdim=True), b - b.mean(2, keepdim=True)
    return torch.cosine_similarity(a, b.expand_as(a), dim=2).cpu()


def _judge_predictions(context: ReportContext, x: Tensor, inverted: Inversions) -> Tensor | None:
    """The classes that the judge predicts of the inversions and, last, of the inputs (L + 1, N); None without one."""
    judge, _ = usable_judge(context)
    if judge is None:
        return None
    all_images = torch.cat([inverted.images, x[None].to(inverted.images)]).flatten(0, 1)
    return judge.predict(all_images.to(judge.device, judge.dtype)).cpu().view(-1, len(x))


def _agreements(predicted: Tensor) -> Tensor:
    """Where the classes (L + 1, N) are those of the last row: (L, N) bool."""
    return predicted[:-1] == predicted[-1]


# -- show --------------------------------------------------------------------------------------------------------------


def show(f: InversionFinding) -> list[Block]:
    blocks: list[Block] = [
        MethodNote.of(inversions, _verdict_text(f.judge_agreements, f.no_judge_reason)),
        Text(LEAD_TEXT, "soft"),
    ]
    if f.steps < MAX_STEPS:
        blocks.append(Note(f"This model is large: {count_noun(f.steps, 'step')} per layer instead of {MAX_STEPS}."))
    return [*blocks, *_not_converged_note(f.inverted), *_example_blocks(f), _sheet(f)]


def _verdict_text(same: Tensor | None, no_judge_reason: str) -> str:
    """Whether the judge classifies the inversions (L, N) as it classifies the inputs."""
    if same is None:
        return f"{no_judge_reason} {OUTPUT_NOTE}"
    n = same.shape[1]
    return (
        f"The judge classifies {int(same[:-1].sum())} of {n * (len(same) - 1)} inversions of inner layers as it "
        f"classifies the input, and {int(same[-1].sum())} of {n} inversions of the outputs alone. {OUTPUT_NOTE}"
    )


def _not_converged_note(inverted: Inversions) -> list[Block]:
    errors = zip(inverted.layers, inverted.errors.mean(1).tolist(), strict=True)
    if not (names := [name for name, error in errors if error > MAX_CONVERGED_ERROR]):
        return []
    more = "it may hold more than its image shows" if len(names) == 1 else "they may hold more than their images show"
    return [Note(f"The optimization did not converge for {', '.join(names)}: {more}.")]


def _example_blocks(f: InversionFinding) -> list[Block]:
    blocks: list[Block] = []
    for i, example in enumerate(f.examples):
        figures = [example.figure(_figure_pixels(example.x))]
        figures += [_inversion_figure(f, k, i) for k in range(len(f.inverted.layers))]
        blocks += [Heading(f"Example {example.row}")] if len(f.examples) > 1 else []
        blocks.append(FigureGrid(figures))
    return blocks


def _inversion_figure(f: InversionFinding, k: int, i: int) -> Figure:
    name, image = _layer_name(f, k), f.inverted.images[k, i]
    r = f"{float(f.correlations[k, i]):.2f}".replace("-", "\u2212")
    lines = [f"pixels\u00a0r\u00a0{r}", f"error\u00a0{float(f.inverted.errors[k, i]):.1g}"]
    if f.judge_predictions is not None:
        lines.append(f"judge: {f.judge_predictions[k][i]}")
    alt = f"inversion of {name}; {', '.join(lines)}"
    return Figure(Picture(colors.image_to_rgb(image), alt, _figure_pixels(image)), name, tuple(lines))


def _figure_pixels(x: Tensor) -> int:
    return SMALL_FIGURE_PIXELS if max(x.shape[-2:]) <= SMALL_IMAGE_PIXELS else LARGE_FIGURE_PIXELS


def _layer_name(f: InversionFinding, k: int) -> str:
    return "outputs alone" if k == len(f.inverted.layers) - 1 else f.inverted.layers[k]


def _sheet(f: InversionFinding) -> Files:
    n_layers = len(f.inverted.layers)
    rows = [
        [
            Tile(colors.image_to_rgb(example.x), "input"),
            *(
                Tile(colors.image_to_rgb(f.inverted.images[k, i]), f"r {float(f.correlations[k, i]):.2f}")
                for k in range(n_layers)
            ),
        ]
        for i, example in enumerate(f.examples)
    ]
    columns = ["", *(_layer_name(f, k) for k in range(n_layers))]
    page = contact_sheet(rows, title="How much of the image survives?", columns=columns)
    return Files([File("inversions.png", page, "these images as a sheet")])


SECTION = Section("How much of the image survives?", "inversion", find, show, needs=("pixels",))
