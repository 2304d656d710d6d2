"""How much of the picture survives? An example drawn back from what each layer gives for it, and from the outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..plots import colors
from ..plots.sheet import Tile, contact_sheet
from ..synthesis import Inversions, inversions
from ..synthesis.inversions import layers_by_depth
from .blocks import Block, Figure, FigureGrid, Files, Heading, MethodNote, Note, Text
from .context import ReportContext, Section
from .judge import usable_judge
from .words import count_noun

MAX_EXAMPLES = 2  # of small images; of photos one
SMALL_IMAGE_PIXELS = 64  # pixels
MAX_FLOPS = 5e11  # FLOPs for the inversions; a step takes three forward passes
MAX_STEPS, GOOD_STEPS, MIN_STEPS = 200, 50, 20  # a layer: wanted, good, and those below which a picture shows nothing
LAYER_COUNTS = (6, 4, 3, 2)  # as many as the work allows, the outputs alone among them
SMALL_FIGURE_PIXELS, LARGE_FIGURE_PIXELS = 112, 196  # pixels shown, of small images and of photos
MAX_CONVERGED_ERROR = 0.1  # feature error above which a picture shows less than the layer knows
LEAD_TEXT = (
    "Each picture was drawn from noise until a layer gave nearly the same for it as for the input. r: how its pixels "
    "correlate with the input's; error: what still differs of the layer's activation, as a share."
)
OUTPUT_NOTE = "The model's own answer is the same by construction, so it proves nothing."


def build(context: ReportContext) -> Sequence[Block]:
    indices = _example_indices(context)
    x = context.inputs(indices)
    layers, steps = _fit_budget(context, x)
    if steps == 0:
        return [Note("Left out: this model is large, and an inversion of a few steps shows nothing of the layer.")]
    inverted = inversions(context.box, x, layers, steps=steps, seed=context.seed)
    if inverted.interrupted:  # half-drawn images beside whole ones would mislead
        raise KeyboardInterrupt
    correlations = _pixel_correlation(inverted.images, x.to(inverted.images))  # (L, N)
    answers = _judge_answers(context, x, inverted)
    _record_facts(context, inverted, correlations, answers)
    blocks: list[Block] = [
        MethodNote.of(inversions, *_verdict_text(context, inverted, answers)),
        Text(LEAD_TEXT, "soft"),
    ]
    if steps < MAX_STEPS:
        blocks.append(Note(f"This model is large: {count_noun(steps, 'step')} a layer instead of {MAX_STEPS}."))
    return [
        *blocks,
        *_not_converged_note(inverted),
        *_example_blocks(context, indices, x, inverted, correlations, answers),
        _inversion_sheet(context, x, inverted, correlations),
    ]


def _example_indices(context: ReportContext) -> list[int]:
    """A typical example, and one that the model is least sure of."""
    s = context.survey
    max_examples = MAX_EXAMPLES if max(context.box.inputs.shape[1:]) <= SMALL_IMAGE_PIXELS else 1
    return list(dict.fromkeys([*s.typical[:1], *s.by_margin[:1]]))[:max_examples]


def _fit_budget(context: ReportContext, x: Tensor) -> tuple[list[str], int]:
    """From which layers, and by how many steps each, the work allows to draw; 0 steps where they would show nothing."""
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


def _judge_answers(context: ReportContext, x: Tensor, inverted: Inversions) -> Tensor | None:
    """What the judge says of the inversions (L, N) and, last, of the inputs; None without a fitting judge."""
    judge, _ = usable_judge(context)
    if judge is None:
        return None
    all_images = torch.cat([inverted.images, x[None].to(inverted.images)]).flatten(0, 1)
    return judge.predict(all_images.to(judge.device, judge.dtype)).cpu().view(-1, len(x))


def _verdict_text(context: ReportContext, inverted: Inversions, answers: Tensor | None) -> tuple[str, str]:
    if answers is None:
        return f"{usable_judge(context)[1]} {OUTPUT_NOTE}", ""
    same = answers[:-1] == answers[-1]  # (L, N)
    n = same.shape[1]
    n_same_from_outputs = int(same[-1].sum())
    text = (
        f"The judge gives {int(same[:-1].sum())} of {n * (len(same) - 1)} pictures drawn from inner layers the "
        f"answer that it gives the input, and {n_same_from_outputs} of {n} drawn from the outputs alone."
    )
    return f"{text} {OUTPUT_NOTE}", ""


def _not_converged_note(inverted: Inversions) -> list[Block]:
    not_converged = [
        a for a, e in zip(inverted.layers, inverted.errors.mean(1).tolist(), strict=True) if e > MAX_CONVERGED_ERROR
    ]
    if not not_converged:
        return []
    consequence = (
        "it may know more than its picture shows"
        if len(not_converged) == 1
        else "they may know more than their pictures show"
    )
    return [Note(f"The descent did not arrive at what is given by {', '.join(not_converged)}: {consequence}.")]


def _example_blocks(
    context: ReportContext,
    indices: Sequence[int],
    x: Tensor,
    inverted: Inversions,
    correlations: Tensor,
    answers: Tensor | None,
) -> list[Block]:
    blocks: list[Block] = []
    for i, index in enumerate(indices):
        figures = [context.example_figure(index, x[i], _figure_pixels(x))]
        figures += [
            _inversion_figure(context, inverted, correlations, answers, k, i) for k in range(len(inverted.layers))
        ]
        blocks += [Heading(f"Example {context.survey.rows[index]}")] if len(indices) > 1 else []
        blocks.append(FigureGrid(figures))
    return blocks


def _inversion_figure(
    context: ReportContext, inverted: Inversions, correlations: Tensor, answers: Tensor | None, k: int, i: int
) -> Figure:
    name = _layer_name(inverted, k)
    lines = [
        f"pixels\u00a0r\u00a0{_two_decimals(float(correlations[k, i]))}",
        f"error\u00a0{float(inverted.errors[k, i]):.1g}",
    ]
    if answers is not None:
        lines.append(f"judge: {context.class_name(int(answers[k, i]))}")
    alt = f"image drawn from {name}; {', '.join(lines)}"
    return Figure(
        context.pictures.inline(colors.image_to_rgb(inverted.images[k, i]), alt, _figure_pixels(inverted.images)),
        name,
        tuple(lines),
    )


def _figure_pixels(x: Tensor) -> int:
    return SMALL_FIGURE_PIXELS if max(x.shape[-2:]) <= SMALL_IMAGE_PIXELS else LARGE_FIGURE_PIXELS


def _layer_name(inverted: Inversions, k: int) -> str:
    return "outputs alone" if k == len(inverted.layers) - 1 else inverted.layers[k]


def _two_decimals(value: float) -> str:
    return f"{value:.2f}".replace("-", "\u2212")


def _inversion_sheet(context: ReportContext, x: Tensor, inverted: Inversions, correlations: Tensor) -> Files:
    rows = [
        [
            Tile(colors.image_to_rgb(x[i]), "input"),
            *(
                Tile(colors.image_to_rgb(inverted.images[k, i]), f"r {float(correlations[k, i]):.2f}")
                for k in range(len(inverted.layers))
            ),
        ]
        for i in range(len(x))
    ]
    names = ["", *(_layer_name(inverted, k) for k in range(len(inverted.layers)))]
    page = contact_sheet(rows, title="How much of the picture survives?", columns=names)
    return Files([(context.pictures.save_file("inversions.png", page), "these pictures as a sheet")])


def _record_facts(context: ReportContext, inverted: Inversions, correlations: Tensor, answers: Tensor | None) -> None:
    facts: dict[str, object] = {
        a: {"correlation": float(correlations[k].mean()), "error": float(inverted.errors[k].mean())}
        for k, a in enumerate(inverted.layers)
    }
    if answers is not None:
        facts["judge_agrees"] = (answers[:-1] == answers[-1]).double().mean(1).tolist()
    context.facts["survives"] = facts


SECTION = Section("How much of the picture survives?", "survives", build, needs=("pixels",))
