"""Which picture to believe? Every method of attribution, ranked by its verdict, on the same examples."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..cards import Card
from ..checks.methods import drawn, fixed
from ..checks.ranking import cost, known
from ..checks.verdict import Verdict
from ..plots import colors, draw
from .attribution import TONES
from .blocks import Block, Case, Figure, Fold, Head, Note, Ranked, Ranking, Text
from .context import Context, Section
from .words import listed, many

EACH = 3  # examples that every method explains
SIDE = 112
MOST = 3e11  # FLOPs: what would take more than is left of them is not asked


def build(context: Context) -> Sequence[Block]:
    found, late = _verdicts(context)
    cards = known()
    made = [n for n in sorted(found, key=lambda name: found[name].rank) if found[n].grade != "not made"]
    blocks: list[Block] = [Text(_lead(context, found, made)), Ranking([_ranked(cards[n], found[n]) for n in made])]
    if refused := [_ranked(cards[n], found[n]) for n in found if n not in made]:
        blocks.append(Fold(f"Not for this model: {listed([r.name for r in refused])}", [Ranking(refused)]))
    if late:
        told = f"Not asked here, for this model is large: {listed([cards[n].name for n in late])}. "
        told += "The command unboxed explain asks them of one image."
        blocks.append(Note(told))
    _tell(context, found, late)
    return [*blocks, *(_examples(context, made, found) if context.images else [])]


def _verdicts(context: Context) -> tuple[dict[str, Verdict], list[str]]:
    """Of all candidates, and those that would take too long; what an earlier run found takes nothing."""
    found, late, spent = dict[str, Verdict](), list[str](), 0.0
    for name, method in context.candidates.items():
        takes = 0.0 if context.knows(name) else cost(context.box, method, len(context.evidence))
        if found and spent + takes > MOST:
            late.append(name)
            continue
        found[name] = context.verdict(name)
        spent += takes
    return found, late


def _lead(context: Context, found: dict[str, Verdict], made: Sequence[str]) -> str:
    counts = {grade: sum(found[n].grade == grade for n in made) for grade in ("pass", "doubtful", "fail")}
    asked = many(len(context.evidence), "example")
    return (
        f"Every method draws something, of any model. Each was asked of this one, on {asked}: does its picture change "
        "once the weights of the model's upper half are random, is it empty for one that ignores its input, and does "
        "removing what it marks cost the answer? "
        f"{counts['pass']} pass, {counts['doubtful']} are doubtful, {counts['fail']} fail."
    )


def _ranked(card: Card, verdict: Verdict) -> Ranked:
    return Ranked(card.name, verdict.badge, verdict.sentence, card.tells, card.not_tells, TONES[verdict.grade])


def _tell(context: Context, found: dict[str, Verdict], late: Sequence[str]) -> None:
    context.facts["verdicts"] = {
        "examples": len(context.evidence),
        "methods": {name: {"grade": v.grade, "says": v.sentence, **v.figures} for name, v in found.items()},
        "not asked": list(late),
    }


# -- the same examples by every method -------------------------------------------------------------------------------


def _examples(context: Context, made: Sequence[str], found: dict[str, Verdict]) -> list[Block]:
    places = context.examples[:EACH]
    x = context.inputs(places)
    score = fixed(context.box, context.box.accept(x), None)
    cards = known()
    maps = {name: drawn(context.box, context.candidates[name], context.box.accept(x), score) for name in made}
    lead = "The same examples by every method, the most believable first. Red speaks for the answer, blue against it; "
    blocks: list[Block] = [Head("Side by side"), Text(lead + "each map has its own scale, printed below it.", "soft")]
    for i, place in enumerate(places):
        alt = f"input, example {context.survey.rows[place]}"
        figures = [Figure(context.pictures.inline(colors.image(x[i]), alt, SIDE), "", ("input",))]
        figures += [_figure(context, cards[n].name, maps[n][i], found[n]) for n in made]
        blocks.append(Case(context.title(place), context.facts_of(place), figures, context.tone(place)))
    return blocks


def _figure(context: Context, name: str, m: Tensor, verdict: Verdict) -> Figure:
    picture, span = draw.alone(m)
    alt = f"{name} ({verdict.badge}, {span})"
    return Figure(context.pictures.inline(picture, alt, SIDE), name, (verdict.badge, span), TONES[verdict.grade])


SECTION = Section("Which picture to believe?", "believe", build)
