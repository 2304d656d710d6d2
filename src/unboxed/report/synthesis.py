"""What does it look for? Class images, beside a control that must fail, judged by another model where one is given."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import UnboxedWarning
from ..plots import colors, draw
from ..synthesis import ClassImages, class_image
from .blocks import Block, Figure, Figures, Files, Fold, Head, Method, Note, Table, Text
from .context import Context, Section
from .judge import WHO, Verdict, fitting, verdict
from .words import listed, many, p_of

CLASSES = 10  # drawn; with more, those that are confused most
SEEDS = 3  # starts per class
SIDE = 84
MARGIN = 0.1  # of the judge's mean probability, by which the class images must beat the control
NEARLY = 0.8  # of the class images named: where the judge names that share of the control, its word is weak
SURE = 0.9  # mean probability from which a model is called sure
APART = 0.01  # root mean square of the pixel range: drawings closer than this are the same
FLAT = 1 / 255  # standard deviation of the pixels below which a picture holds nothing
ROWS = {
    "robust": ("Class images", "From smooth noise, turned and shifted a little at each step."),
    "faithful": ("The published recipe", "Fifty rounds from black, each pixel moved by the sign of its gradient."),
    "noise": ("Control: raw ascent from noise", "Plain ascent: what it draws should not be recognized."),
}


WEAK = "That it names so many of the control makes its approval weak evidence."


def build(context: Context) -> Sequence[Block]:
    classes = _classes(context)
    drawn = {recipe: _draw(context, recipe, classes) for recipe in ROWS}
    judge, why = fitting(context)
    verdicts = {r: verdict(judge, c.images[: len(classes)], classes) for r, c in drawn.items()} if judge else {}
    _tell(context, classes, drawn["robust"], verdicts)
    blocks: list[Block] = [Method.of(class_image, *_verdict(verdicts, why))]
    if left := len(context.box.classes) - len(classes):
        shown = many(len(classes), "class", "classes")
        blocks.append(Note(f"The {shown} that are confused most; {left:,} more are left out."))
    for recipe, (title, lead) in ROWS.items():
        if recipe == "noise" and verdicts and _sure(drawn[recipe]):
            lead = "The model is sure of these, too; a judge should not be."
        blocks += [Head(title), Text(lead, "soft"), *_notes(context, recipe, classes, drawn[recipe])]
        found = verdicts.get(recipe)
        blocks.append(Figures([_figure(context, k, drawn[recipe], i, found, recipe) for i, k in enumerate(classes)]))
    return [*blocks, *_spread(context, classes, drawn["robust"]), _sheet(context, classes, drawn, verdicts)]


def _classes(context: Context) -> list[int]:
    """All classes, or of many those that are confused (or, without labels, said) most often."""
    s = context.survey
    k = len(s.classes)
    if k <= CLASSES:
        return list(range(k))
    said = torch.bincount(s.answers, minlength=k)
    off = s.confusion.clone().fill_diagonal_(0)
    weight = (off.sum(0) + off.sum(1)) * len(s.rows) + said
    return sorted(weight.topk(CLASSES).indices.tolist())


def _draw(context: Context, recipe: str, classes: list[int]) -> ClassImages:
    times = SEEDS if recipe == "robust" else 1
    with warnings.catch_warnings():  # told beside the row it is about
        warnings.filterwarnings("ignore", "the gradient is exactly zero", UnboxedWarning)
        made = class_image(context.box, classes * times, recipe=recipe, seed=context.seed)
    if made.interrupted:  # half-drawn images beside whole ones would mislead
        raise KeyboardInterrupt
    return made


def _sure(drawn: ClassImages) -> bool:
    own = drawn.probs.gather(1, drawn.targets.to(drawn.probs.device)[:, None])
    return float(own.mean()) >= SURE


def _flat(drawn: ClassImages) -> list[bool]:
    """Which images (N) are of one even color."""
    return (drawn.images.flatten(2).std(2, correction=0).amax(1) < FLAT).tolist()


def _notes(context: Context, recipe: str, classes: Sequence[int], drawn: ClassImages) -> list[Block]:
    """What one must know before looking at a row: where the ascent came to nothing, and where it needed help."""
    notes: list[Block] = []
    empty = [context.name(k) for k, flat in zip(classes, _flat(drawn), strict=False) if flat]
    if empty:
        these = "this picture tells" if len(empty) == 1 else "these pictures tell"
        why = "The ascent hardly moved, or ended in one even color"
        notes.append(Note(f"{why}, for {listed(empty)}; {these} nothing."))
    stuck = int(drawn.before_clamp[: len(classes)].sum())
    if stuck:
        start = "On black" if recipe == "faithful" else "At some steps"
        how = f"{start}, no unit of a hidden layer answers, so the gradient is exactly zero"
        notes.append(Note(f"{how}; there it is taken before the ReLUs ({stuck} of {len(classes)} images)."))
    return notes


# -- the judge --------------------------------------------------------------------------------


def _verdict(verdicts: dict[str, Verdict], why: str) -> tuple[str, str]:
    if not verdicts:
        return why, ""
    told = {r: f"{v.names} of {len(v.answers)} (mean\u00a0p\u00a0{v.mean:.2f})" for r, v in verdicts.items()}
    text = (f"The judge names {told['robust']} of these as their class; {told['faithful']} by the published recipe, "
            f"{told['noise']} of the control.")  # fmt: skip
    if believed(verdicts):
        return (f"{text} {WEAK}", "") if weak(verdicts) else (text, "good")
    ours = verdicts["robust"]
    why = (
        "do no better than the control" if 2 * ours.names > len(ours.answers) else "are mostly not what they should be"
    )
    return f"{text} The pictures {why}: believe nothing of them.", "bad"


def believed(verdicts: dict[str, Verdict]) -> bool:
    """Whether the judge names most of the class images, and the control clearly less surely."""
    ours, control = verdicts["robust"], verdicts["noise"]
    return 2 * ours.names > len(ours.answers) and ours.names >= control.names and ours.mean > control.mean + MARGIN


def weak(verdicts: dict[str, Verdict]) -> bool:
    """Whether the judge names most of the control too, or nearly as much of it as of the class images."""
    ours, control = verdicts["robust"], verdicts["noise"]
    return 2 * control.names > len(control.answers) or control.names >= NEARLY * ours.names


# -- the pictures --------------------------------------------------------------------------------


def _figure(
    context: Context, k: int, drawn: ClassImages, i: int, found: Verdict | None, recipe: str = "robust",
    side: int = SIDE,
) -> Figure:  # fmt: skip
    name, own = context.name(k), float(drawn.probs[i, k])
    lines, tone = [f"model: {p_of(own)}"], ""
    if found is not None:
        answer = int(found.answers[i])
        tone = ("good" if answer == k else "bad") if recipe == "robust" else ""
        lines += [f"judge: {context.name(answer)}", *_meant(name, float(found.meant[i]), answer == k, recipe)]
    if _flat(drawn)[i]:
        lines, tone = [*lines, "tells\u00a0nothing"], ""
    alt = f"image drawn for class {name}; {', '.join(lines)}"
    return Figure(context.pictures.inline(colors.image(drawn.images[i]), alt, side), name, tuple(lines), tone)


def _meant(name: str, p: float, named: bool, recipe: str) -> list[str]:
    """How the judge sees the class that was meant; of the control, being seen is no praise."""
    if recipe == "noise":
        return ["taken\u00a0for its\u00a0class" if named else "not its\u00a0class"]
    return [p_of(p) if named else f"{name}: {p_of(p)}"]


def _spread(context: Context, classes: Sequence[int], drawn: ClassImages) -> list[Block]:
    """The other starts, and how far the images of one class lie apart."""
    n = len(classes)
    images = drawn.images.view(SEEDS, n, *drawn.images.shape[1:])  # (S, K, C, H, W)
    apart = _apart(images)
    context.facts["spread"] = {context.name(k): float(a) for k, a in zip(classes, apart, strict=True)}
    widest = int(apart.argmax())
    lead = f"Each class drawn from {SEEDS} starts."
    if float(apart[widest]) >= APART:
        lead += (f" The drawings of {context.name(classes[widest])} differ most "
                 f"(root mean square {float(apart[widest]):.2f} of the pixel range).")  # fmt: skip
    rows = [Figures([_figure(context, k, drawn, s * n + i, None) for i, k in enumerate(classes)], f"start {s + 1}")
            for s in range(1, SEEDS)]  # fmt: skip
    order = apart.argsort(descending=True).tolist()
    rms = [(context.name(classes[i]), f"{float(apart[i]):.3f}") for i in order]
    table = Table(("class", "root mean square difference"), rms, frozenset({1}))
    return [Head("How many forms does a class have?"), Text(lead), Fold("The other starts", [*rows, table])]


def _apart(images: Tensor) -> Tensor:
    """(S, K, ...) -> (K,): root mean square difference of the pixels, mean over the pairs of starts."""
    flat = images.flatten(2).double()
    pairs = [(a, b) for a in range(len(flat)) for b in range(a)]
    return torch.stack([(flat[a] - flat[b]).pow(2).mean(1).sqrt() for a, b in pairs]).mean(0).cpu()


def _sheet(
    context: Context, classes: Sequence[int], drawn: dict[str, ClassImages], verdicts: dict[str, Verdict]
) -> Files:
    def words(v: Verdict) -> list[str]:
        return [f"judge: {context.name(int(a))}\n{p_of(float(p))}" for a, p in zip(v.answers, v.meant, strict=True)]

    names = [context.name(k) for k in classes]
    said = {ROWS[r][0]: words(v) for r, v in verdicts.items()}
    rows = {ROWS[r][0]: c.images[: len(classes)] for r, c in drawn.items()}
    page = draw.class_sheet(rows, names, said, title="What the model looks for, class by class")
    return Files([(context.pictures.keep("class-images.png", page), "these images as a sheet")])


def _tell(context: Context, classes: Sequence[int], drawn: ClassImages, verdicts: dict[str, Verdict]) -> None:
    """Facts for the page's opening and for report.json."""
    facts: dict[str, object] = {"classes": [context.name(k) for k in classes]}
    for recipe, v in verdicts.items():
        answers = [context.name(int(a)) for a in v.answers]
        told = {"named": v.names, "of": len(answers), "mean_p": v.mean, "answers": answers, "p": v.meant.tolist()}
        facts[recipe] = told
    context.facts["looks_for"] = facts
    if verdicts:
        ours, control = verdicts["robust"], verdicts["noise"]
        said = f"A judge ({WHO}) recognizes {ours.names} of the {len(classes)} images drawn of its classes"
        but = ": its approval is weak evidence" if weak(verdicts) and ours.names else ""
        context.headline.append(f"{said} and {control.names} of the noise control{but}.")
    k = _most_confused(context, classes)
    picture = _figure(context, classes[k], drawn, k, verdicts.get("robust"), side=112)
    tone = "" if verdicts and weak(verdicts) else picture.tone
    context.cover.append(replace(picture, head=f"image of {picture.head}", tone=tone))


def _most_confused(context: Context, classes: Sequence[int]) -> int:
    """The place of the class that the page's first example is taken for."""
    s = context.survey
    answer = int(s.answers[(s.mistakes or s.undecided)[0]])
    return classes.index(answer) if answer in classes else 0


SECTION = Section("What does it look for?", "looks-for", build, needs=("pixels", "classes"))
