"""How much of the picture survives? An example drawn back from what each layer gives for it, and from the outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..plots import colors
from ..plots.sheet import Tile, sheet
from ..synthesis import Inversions, inversions
from ..synthesis.inversions import depths
from .blocks import Block, Figure, Figures, Files, Head, Method, Note, Text
from .context import Context, Section
from .judge import fitting
from .words import many

EXAMPLES = 2  # of small images; of photos one
SMALL = 64  # pixels
WORK = 5e11  # FLOPs for the inversions; a step takes three forward passes
STEPS, ENOUGH, FEWEST = 200, 50, 20  # a layer: wanted, good, and those below which a picture shows nothing
LAYERS = (6, 4, 3, 2)  # as many as the work allows, the outputs alone among them
SIDE, LARGE = 112, 196  # pixels shown, of small images and of photos
ARRIVED = 0.1  # feature error above which a picture shows less than the layer knows
LEAD = (
    "Each picture was drawn from noise until a layer gave nearly the same for it as for the input. r: how its pixels "
    "correlate with the input's; error: what still differs of the layer's activation, as a share."
)
NONE = "The model's own answer is the same by construction, so it proves nothing."


def build(context: Context) -> Sequence[Block]:
    places = _places(context)
    x = context.inputs(places)
    layers, steps = _pace(context, x)
    if steps == 0:
        return [Note("Left out: this model is large, and an inversion of a few steps shows nothing of the layer.")]
    made = inversions(context.box, x, layers, steps=steps, seed=context.seed)
    if made.interrupted:  # half-drawn images beside whole ones would mislead
        raise KeyboardInterrupt
    kept = _alike(made.images, x.to(made.images))  # (L, N)
    answers = _answers(context, x, made)
    _tell(context, made, kept, answers)
    blocks: list[Block] = [Method.of(inversions, *_verdict(context, made, answers)), Text(LEAD, "soft")]
    if steps < STEPS:
        blocks.append(Note(f"This model is large: {many(steps, 'step')} a layer instead of {STEPS}."))
    return [*blocks, *_late(made), *_rows(context, places, x, made, kept, answers), _sheet(context, x, made, kept)]


def _places(context: Context) -> list[int]:
    """A typical example, and one that the model is least sure of."""
    s = context.survey
    most = EXAMPLES if max(context.box.inputs.shape[1:]) <= SMALL else 1
    return list(dict.fromkeys([*s.typical[:1], *s.undecided[:1]]))[:most]


def _pace(context: Context, x: Tensor) -> tuple[list[str], int]:
    """From which layers, and by how many steps each, the work allows to draw; 0 steps where they would show nothing."""
    step = 3 * context.work(len(x))
    for most in LAYERS:
        layers = depths(context.box, x, most)
        steps = min(STEPS, int(WORK / (step * len(layers))))
        if steps >= ENOUGH:
            break
    return layers, steps if steps >= FEWEST else 0


def _alike(images: Tensor, x: Tensor) -> Tensor:
    """The correlation (L, N) of the pixels of images (L, N, ...) with those of x (N, ...)."""
    a, b = images.flatten(2).double(), x.flatten(1).double()[None]
    a, b = a - a.mean(2, keepdim=True), b - b.mean(2, keepdim=True)
    return torch.cosine_similarity(a, b.expand_as(a), dim=2).cpu()


def _answers(context: Context, x: Tensor, made: Inversions) -> Tensor | None:
    """What the judge says of the inversions (L, N) and, last, of the inputs; None without a fitting judge."""
    judge, _ = fitting(context)
    if judge is None:
        return None
    every = torch.cat([made.images, x[None].to(made.images)]).flatten(0, 1)
    return judge.predict(every.to(judge.device, judge.dtype)).cpu().view(-1, len(x))


def _verdict(context: Context, made: Inversions, answers: Tensor | None) -> tuple[str, str]:
    if answers is None:
        return f"{fitting(context)[1]} {NONE}", ""
    same = answers[:-1] == answers[-1]  # (L, N)
    n = same.shape[1]
    deep = int(same[-1].sum())
    text = (f"The judge gives {int(same[:-1].sum())} of {n * (len(same) - 1)} pictures drawn from inner layers the "
            f"answer that it gives the input, and {deep} of {n} drawn from the outputs alone.")  # fmt: skip
    return f"{text} {NONE}", ""


def _late(made: Inversions) -> list[Block]:
    far = [a for a, e in zip(made.layers, made.errors.mean(1).tolist(), strict=True) if e > ARRIVED]
    if not far:
        return []
    more = "it may know more than its picture shows" if len(far) == 1 else "they may know more than their pictures show"
    return [Note(f"The descent did not arrive at what is given by {', '.join(far)}: {more}.")]


def _rows(
    context: Context, places: Sequence[int], x: Tensor, made: Inversions, kept: Tensor, answers: Tensor | None
) -> list[Block]:
    blocks: list[Block] = []
    for i, place in enumerate(places):
        figures = [context.example(place, x[i], _side(x))]
        figures += [_figure(context, made, kept, answers, k, i) for k in range(len(made.layers))]
        blocks += [Head(f"Example {context.survey.rows[place]}")] if len(places) > 1 else []
        blocks.append(Figures(figures))
    return blocks


def _figure(context: Context, made: Inversions, kept: Tensor, answers: Tensor | None, k: int, i: int) -> Figure:
    name = _name(made, k)
    lines = [f"pixels\u00a0r\u00a0{_two(float(kept[k, i]))}", f"error\u00a0{float(made.errors[k, i]):.1g}"]
    if answers is not None:
        lines.append(f"judge: {context.name(int(answers[k, i]))}")
    alt = f"image drawn from {name}; {', '.join(lines)}"
    return Figure(context.pictures.inline(colors.image(made.images[k, i]), alt, _side(made.images)), name, tuple(lines))


def _side(x: Tensor) -> int:
    return SIDE if max(x.shape[-2:]) <= SMALL else LARGE


def _name(made: Inversions, k: int) -> str:
    return "outputs alone" if k == len(made.layers) - 1 else made.layers[k]


def _two(r: float) -> str:
    return f"{r:.2f}".replace("-", "\u2212")


def _sheet(context: Context, x: Tensor, made: Inversions, kept: Tensor) -> Files:
    rows = [
        [Tile(colors.image(x[i]), "input"),
         *(Tile(colors.image(made.images[k, i]), f"r {float(kept[k, i]):.2f}") for k in range(len(made.layers)))]
        for i in range(len(x))
    ]  # fmt: skip
    names = ["", *(_name(made, k) for k in range(len(made.layers)))]
    page = sheet(rows, title="How much of the picture survives?", columns=names)
    return Files([(context.pictures.keep("inversions.png", page), "these pictures as a sheet")])


def _tell(context: Context, made: Inversions, kept: Tensor, answers: Tensor | None) -> None:
    facts: dict[str, object] = {
        a: {"correlation": float(kept[k].mean()), "error": float(made.errors[k].mean())}
        for k, a in enumerate(made.layers)
    }
    if answers is not None:
        facts["judge_agrees"] = (answers[:-1] == answers[-1]).double().mean(1).tolist()
    context.facts["survives"] = facts


SECTION = Section("How much of the picture survives?", "survives", build, needs=("pixels",))
