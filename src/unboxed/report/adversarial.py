"""What fools it? The least change that does, how many answers stay right within eps, and a robust model beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from .. import zoo
from ..adversarial.changes import Change, changes
from ..adversarial.deepfool import deepfool
from ..adversarial.fgsm import fgsm
from ..adversarial.pgd import pgd
from ..box import Box
from ..engine.optimize.constraints import eps_text
from ..plots import attacked, colors
from ..plots.sheet import Bar
from ..robustness.evaluate import Attack, Robustness, evaluate
from ..robustness.shares import Share
from .blocks import Block, Case, Figure, Files, Fold, Head, Method, Note, Scales, Table, Text
from .context import Context, Section
from .judge import fitting
from .kinds import categories, standardized
from .survey import spread
from .words import listed, p_of, percent, prob

SHOWN = 4  # examples with pictures
SIDE = 112
STEPS = 20  # of PGD
MOST, LEAST = 100, 8  # examples attacked
WORK = 1.5e11  # FLOPs of all attacks on one model
LOOKS = 200  # that one example may take, back and forth through the model
GRAY, COLOR = (0.1, 0.2, 0.3), (1 / 255, 2 / 255, 4 / 255, 8 / 255)
"""How far attacks go, for line drawings of one channel (and tables), and for photos (Madry et al. 2018)."""
ATTACKS: Mapping[str, Attack] = {"FGSM": fgsm, f"PGD-{STEPS}": partial(pgd, steps=STEPS)}
LEAD = (
    "Each picture was changed just enough for another answer, by the shortest way that the gradients show (DeepFool). "
    "A model that sees what people see should need a change that people see."
)
BOUND = (
    "Right within eps: still right after an attack moved every {value} by at most eps {unit}. Stronger attacks may "
    "leave less; unboxed attack asks them."
)


@dataclass(frozen=True)
class Net:
    """One of the models compared, with what was found on it."""

    name: str
    box: Box
    found: Robustness
    shown: list[Change]  # of the examples with pictures


def build(context: Context) -> Sequence[Block]:
    if fixed := categories(context.box.inputs):
        return [Note(f"Not asked: attacks move every column a little, and {listed(fixed)} can't be (categories).")]
    places, pictured = _places(context), _pictured(context)
    own = _model(context, "this model", context.box, places, pictured)
    models, why = [own], ""
    second, name, why = _second(context)
    if second is not None:
        models.append(_model(context, name, second, places, pictured))
    blocks: list[Block] = [Method.of(deepfool, *_verdict(context, models)), Text(_lead(context, models))]
    kind = context.kind
    blocks += [Head("Right within eps"), _table(models), Text(BOUND.format(value=kind.value, unit=kind.unit), "soft")]
    if why:
        blocks.append(Note(why))
    if context.images:
        blocks += [Head("The least change that fools it"), Text(LEAD, "soft"), *_pictures(context, models, pictured)]
    if len(classes := own.found.by_class()) > 1:
        blocks.append(Fold("By class", [_classes(classes, own.found.eps[-1])]))
    _tell(context, models, places)
    return blocks


def _places(context: Context) -> list[int]:
    """Places of the examples attacked, evenly spread over the examples in the order of their classes."""
    n = max(LEAST, min(MOST, int(WORK / (3 * LOOKS * max(context.box.flops, 1)))))
    order = _labels(context).argsort(stable=True)
    return sorted(int(order[i]) for i in spread(len(order), n))


def _pictured(context: Context) -> list[int]:
    """Places of the examples with pictures: right answers; where no answer is right, any."""
    s = context.survey
    return list(dict.fromkeys((s.typical or s.undecided)[:SHOWN]))


def _labels(context: Context) -> Tensor:
    """What the examples are, (n,); without labels, what the model says of them."""
    s = context.survey
    return s.answers if s.labels is None or not s.named else s.labels


def _model(context: Context, name: str, box: Box, places: Sequence[int], pictured: Sequence[int]) -> Net:
    eps = GRAY if _line(box) else COLOR
    asked, x = standardized(box, context.inputs(places))
    found = evaluate(asked, (x, _labels(context)[list(places)]), ATTACKS, eps=eps, alarms=False, seed=context.seed)
    asked, x = standardized(box, context.inputs(pictured))
    made = deepfool(asked, x, asked.predict(x), norm="linf")
    if found.interrupted or made.interrupted:
        raise KeyboardInterrupt
    return Net(name, box, found, changes(asked, x, made))


def _line(box: Box) -> bool:
    """Whether the inputs are drawings of one channel, which bear larger changes."""
    return box.inputs.shape[0] == 1 or len(box.inputs.shape) == 1


def _second(context: Context) -> tuple[Box | None, str, str]:
    """A model trained against attacks: the judge, or for MNIST the zoo's own; its name; why there is none."""
    judge, _ = fitting(context)
    if judge is not None:
        return judge, "the second model", ""
    if "mnist" in context.source.name.lower() and "fashion" not in context.source.name.lower():
        model, inputs = zoo.load("mnist-robust")
        if inputs.shape == context.box.inputs.shape and len(context.box.classes) == 10:
            return Box(model, inputs, classes=context.box.classes, outputs="logits"), "the zoo's robust model", ""
    return (
        None,
        "",
        "No robust model to compare with: give one as judge (--judge), such as one of unboxed train --defend.",
    )


def _lead(context: Context, models: Sequence[Net]) -> str:
    said = f"{_attacked(context, models[0].found)} {_left(context, models[0].found)}"
    r = models[0].found
    if len(models) > 1 and 0 < r.median < math.inf and 0 < models[1].found.median < math.inf:
        times = models[1].found.median / r.median
        said += (
            f" Half of the right answers fall to changes of {r.median:.2g} at most; {models[1].name} takes "
            f"{models[1].found.median:.2g}, {times:.1f} times as much."
        )
    return said


def _attacked(context: Context, found: Robustness) -> str:
    """Which of the examples were attacked."""
    n, total = len(found.right), len(context.survey.rows)
    if n == total:
        return "All examples were attacked." if n > 1 else "The one example was attacked."
    over = "the classes" if context.survey.labels is not None and context.survey.named else "the answers"
    return f"{n:,} of the {total:,} examples were attacked, evenly spread over {over}."


def _left(context: Context, found: Robustness) -> str:
    """How many of the examples attacked are right, and how many of those stay so; beside the accuracy on all."""
    n, clean, top = len(found.right), found.clean, eps_text(found.eps[-1])
    accuracy = context.survey.accuracy
    share = percent(clean.value)
    if accuracy is not None and n < len(context.survey.rows):
        share += f"; {percent(accuracy)} of all examples"
    return (
        f"Without an attack {clean.count} of these {n} answers {'is' if clean.count == 1 else 'are'} right ({share}); "
        f"within {top} {context.kind.unit} an attack leaves {found.robust().count}."
    )


def _verdict(context: Context, models: Sequence[Net]) -> tuple[str, str]:
    """Whether the examples shown do what is said of them: each was given to its model once more."""
    shown = [c for n in models for c in n.shown]
    fooled = sum(c.fooled and c.after != c.before for c in shown)
    if not shown:
        return "", ""
    said = f"Asked once more, {fooled} of the {len(shown)} changed {context.kind.example}s get another answer."
    return said, "good" if fooled == len(shown) else "fair"


def _table(models: Sequence[Net]) -> Table:
    columns = ["", "attack", *(f"eps {eps_text(e)}" for e in models[0].found.eps), "median change that fools"]
    rows = []
    for n in models:
        r = n.found
        length = f"{r.median:.2g}" if r.median < math.inf else "none found" if r.clean.count else "no answer is right"
        rows.append([n.name, "none", *[percent(r.clean.value)] * len(r.eps), length])
        rows += [["", a, *(percent(r.robust(e, a).value) for e in r.eps), ""] for a in r.attacks]
    return Table(columns, rows, frozenset(range(2, len(columns))))


def _classes(found: Mapping[str, tuple[Share, Share]], eps: float) -> Table:
    rows = [
        [name, percent(clean.value), percent(robust.value), f"{clean.n:,}"] for name, (clean, robust) in found.items()
    ]
    return Table(["class", "right", f"right within {eps_text(eps)}", "examples"], rows, frozenset({1, 2, 3}))


# -- pictures --------------------------------------------------------------------------------------------------------


def _pictures(context: Context, models: Sequence[Net], places: Sequence[int]) -> list[Block]:
    shown = [c for n in models for c in n.shown]
    factor = attacked.enlarged(colors.reach(*(c.delta for c in shown)))
    blocks: list[Block] = []
    for i, place in enumerate(places):
        c = models[0].shown[i]
        figures = [_figure(context, colors.image(c.original), "input", (_said(c.before, c.p_before[0], context),))]
        for n in models:
            figures += _both(context, n, n.shown[i], factor)
        blocks.append(Case(context.title(place), context.facts_of(place), figures, context.tone(place)))
    if _line(context.box):
        blocks.append(Scales([context.pictures.scale(Bar("signed", 1 / factor, f"change, times {factor:g}"))]))
    else:
        blocks.append(Text(f"Changes are shown times {factor:g} around gray.", "soft"))
    sheet = attacked.attacked(
        models[0].shown, context.survey.classes, norm="linf", title="The least change that fools it"
    )
    return [*blocks, Files([(context.pictures.keep("fooled.png", sheet), "the same as one picture")])]


def _both(context: Context, model: Net, c: Change, factor: float) -> list[Figure]:
    if not c.fooled:
        return [_figure(context, colors.image(c.image), model.name, ("was not fooled",))]
    told = (_said(c.after, c.p_after[1], context), f"before: {prob(c.p_before[1])}")
    return [
        _figure(context, colors.image(c.image), f"fools {model.name}", told, "bad"),
        _figure(context, attacked.change(c, factor), "change", (f"{c.distance:.2g} at most", f"shown × {factor:g}")),
    ]


def _figure(context: Context, picture: object, head: str, lines: tuple[str, ...], tone: str = "") -> Figure:
    return Figure(context.pictures.inline(picture, f"{head}: {', '.join(lines)}", SIDE), head, lines, tone)  # type: ignore[arg-type]


def _said(k: int, p: float, context: Context) -> str:
    return f"says {context.name(k)}, {p_of(p)}"


def _tell(context: Context, models: Sequence[Net], places: Sequence[int]) -> None:
    r = models[0].found
    context.facts["attacked"] = [context.survey.rows[p] for p in places]
    context.facts["robustness"] = {n.name: n.found.plain() for n in models}
    within = f"{eps_text(r.eps[-1])} {context.kind.unit}"
    context.headline.append(f"Within {within} attacks leave {percent(r.robust().value)} of the answers right.")


SECTION = Section("What fools it?", "fooled", build, ("classes",))
