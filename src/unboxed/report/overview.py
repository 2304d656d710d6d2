"""The answer first: how good the model is, what it confuses, and what it is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .blocks import Beside, Block, Confusion, Figure, Figures, Fold, Head, Note, Table, Text
from .context import Context, Section
from .kinds import shapes
from .skipped import skipped
from .words import many, percent, size

SHOWN = 8  # examples in a row
CLASSES = 16  # in the confusion matrix
PAIRS = 8  # in the table beside it
LAYERS = 14  # rows of the table that are not folded
FOLDED = 40  # mistakes kept in the fold


def build(context: Context) -> Sequence[Block]:
    _open(context)
    blocks: list[Block] = [*_accuracy(context)]
    if context.images:
        blocks += _examples(context)
    return [*blocks, Head("What it is made of"), *_layers(context)]


def _open(context: Context) -> None:
    """The page's first words."""
    s = context.survey
    seen = f"{many(len(s.rows), 'example')}{context.source.named(' of ')}"
    if s.accuracy is not None:
        context.answer = f"{percent(s.accuracy)} right"
        context.headline += [f"That is on {seen}.", *_mistakes(context)]
    elif s.named:
        counts = torch.bincount(s.answers, minlength=len(s.classes))
        k = int(counts.argmax())
        context.answer = f"Says {context.name(k)} most often"
        share = percent(float(counts[k]) / len(s.rows))
        context.headline += [f"For {share} of {seen}. Without labels there is no accuracy."]
    else:
        context.answer = many(len(s.classes), "output")
        if context.number:
            low, high = (f"{float(end):.3g}" for end in s.outputs.aminmax())
            context.answer = f"Gives {low} to {high}" if low != high else f"Gives {low}"
        context.headline += [f"Read on {seen}. {_no_rivals(context)}, so there is no accuracy."]
    context.facts["overview"] = _facts(context)


def _no_rivals(context: Context) -> str:
    if len(context.survey.classes) == 1:
        return f"It is one number, no choice between classes ({context.box.outputs})"
    return f"The outputs don't exclude one another ({context.box.outputs})"


def _mistakes(context: Context) -> list[str]:
    s = context.survey
    if not s.mistakes:
        place = s.undecided[0]
        return [f"No mistake; the least sure answer is {context.says(place)}."]
    surest = s.mistakes[0]
    return [_commonest(context), f"Its surest mistake: {context.label(surest)} taken for {context.says(surest)}."]


def _commonest(context: Context) -> str:
    """Which label it takes for which answer most often; a tie is told."""
    pairs, wrong = context.survey.pairs(50), many(len(context.survey.mistakes), "mistake")
    times = pairs[0][2]
    if times == 1:
        kinds = ", each of another kind" if len(pairs) > 1 else ""
        which = f": {context.name(pairs[0][0])} for {context.name(pairs[0][1])}" if len(pairs) == 1 else ""
        return f"It makes {wrong}{kinds}{which}."
    top = [f"{context.name(a)} for {context.name(b)}" for a, b, n in pairs if n == times]
    if len(top) > 2:
        return f"It most often takes {top[0]} ({times} of {wrong}), and {len(top) - 1} other pairs as often."
    each = " each" if len(top) > 1 else ""
    return f"It most often takes {' and '.join(top)} ({times} of {wrong}{each})."


def _facts(context: Context) -> dict[str, object]:
    s = context.survey
    rows = [{"example": s.rows[p], "label": context.label(p), "answer": context.name(int(s.answers[p])),
             "output": float(s.sureness[p])} for p in s.mistakes[:100]]  # fmt: skip
    return {
        "accuracy": s.accuracy,
        "examples": len(s.rows),
        "mistakes": None if s.right is None else len(s.mistakes),
        "surest_mistakes": rows,
        "undecided": [s.rows[p] for p in s.undecided[:SHOWN]],
        "confusions": None if s.right is None else
                      [{"label": context.name(a), "answer": context.name(b), "times": n} for a, b, n in s.pairs(50)],
        "layers": [{"path": r.path, "type": r.type, "shape": list(r.shape), "parameters": r.parameters,
                    "flops": None if math.isnan(r.flops) else r.flops} for r in context.box.layers],
    }  # fmt: skip


# -- how good it is ---------------------------------------------------------------------------------------


def _accuracy(context: Context) -> list[Block]:
    s = context.survey
    blocks: list[Block] = []
    if len(s.rows) < s.total:
        spread = ", evenly spread over the data" if s.asked < s.total else ""
        blocks.append(Note(f"Looked at {len(s.rows):,} of {s.total:,} examples{spread}."))
    blocks += _skipped(context)
    if s.right is None:
        rivals = _no_rivals(context)
        reason = "not every example has a label" if s.named else rivals[0].lower() + rivals[1:]
        return [*blocks, Note(f"No accuracy and no confusion matrix: {reason}.")]
    if not s.mistakes:
        return [*blocks, Text("Every answer is right, so the confusion matrix would be a diagonal and is left out.")]
    return [*blocks, Beside([_confusion(context)], _pairs(context))]


def _skipped(context: Context) -> list[Block]:
    """What could not be read, told before anything is said of the rest."""
    if not (told := skipped(context.source, context.survey)):
        return []
    rows = [(str(path), str(reason)) for path, reason in context.source.skipped[:200]]
    return [Note(f"{told}."), Fold("Which files, and why", [Table(("file", "why"), rows)])]


def _confusion(context: Context) -> Confusion:
    s = context.survey
    shown = _worst_classes(context)
    counts = s.confusion[shown][:, shown]
    off = counts.clone().fill_diagonal_(0)
    strength = (off / max(1, int(off.max()))).sqrt()
    left = len(s.classes) - len(shown)
    caption = "Each row is a label, each column an answer; the diagonal is right."
    if left:
        caption += f" The {len(shown)} classes with the most mistakes; {left} more are left out."
    names = [context.name(k) for k in shown]
    return Confusion(names, counts.tolist(), strength.tolist(), caption)


def _worst_classes(context: Context) -> list[int]:
    confusion = context.survey.confusion
    if len(confusion) <= CLASSES:
        return list(range(len(confusion)))
    off = confusion.clone().fill_diagonal_(0)
    return sorted((off.sum(0) + off.sum(1)).topk(CLASSES).indices.tolist())


def _pairs(context: Context) -> list[Block]:
    """The mistakes pair by pair, the commonest first."""
    s = context.survey
    heads, numbers = ("label", "taken for", "times"), frozenset({2})
    rows = [(context.name(a), context.name(b), str(n)) for a, b, n in s.pairs(200)]
    blocks: list[Block] = [Text(f"{many(len(s.mistakes), 'mistake')} in {many(len(s.rows), 'example')}.")]
    blocks.append(Table(heads, rows[:PAIRS], numbers))
    if rest := rows[PAIRS:]:
        blocks.append(Fold(f"{many(len(rest), 'more pair')}", [Table(heads, rest, numbers)]))
    return blocks


def _examples(context: Context) -> list[Block]:
    s = context.survey
    blocks: list[Block] = []
    if s.mistakes:
        shown, rest = s.mistakes[:SHOWN], s.mistakes[SHOWN : SHOWN + FOLDED]
        figures = _figures(context, shown)
        context.cover.append(figures[0])
        blocks += [Head("Surest mistakes"), Figures(figures)]
        if rest:
            blocks.append(Fold(f"{many(len(rest), 'more mistake')}", [Figures(_figures(context, rest))]))
    undecided = _figures(context, s.undecided[:SHOWN], second=True)
    if not s.mistakes:
        context.cover.append(undecided[0])
    if not s.named:
        return [*blocks, Head("Examples"), Figures(undecided)]
    lead = "The two largest outputs of these lie closest."
    if context.source.binary:
        lead = "The p of yes of these lies closest to one half."
    return [*blocks, Head("Most confused examples"), Text(lead, "soft"), Figures(undecided)]


def _figures(context: Context, places: Sequence[int], second: bool = False) -> list[Figure]:
    x = context.inputs(places)
    return [context.example(p, x[i], second=second) for i, p in enumerate(places)]


# -- what it is made of ------------------------------------------------------------------------------------------------


def _layers(context: Context) -> list[Block]:
    box = context.box
    total = sum(p.numel() for p in box.model.parameters())
    ends = f"inputs {shapes(box.inputs)}, {many(len(box.classes), 'output')} ({box.outputs})"
    lead = f"{type(box.model).__name__}: {many(total, 'parameter')}, {ends}."
    heads = ("layer", "type", "output", "parameters", "share of FLOPs")
    rows = [
        (r.path + (f" (runs {r.calls}×)" if r.calls > 1 else ""), r.type, size(r.shape), f"{r.parameters:,}",
         "" if math.isnan(r.flops) else percent(r.flops))
        for r in box.layers
    ]  # fmt: skip
    numbers = frozenset({3, 4})
    blocks: list[Block] = [Text(lead), Table(heads, rows[:LAYERS], numbers)]
    if rest := rows[LAYERS:]:
        blocks.append(Fold(f"{many(len(rest), 'more layer')}", [Table(heads, rest, numbers)]))
    return blocks


SECTION = Section("How good is it?", "overview", build)
