"""Which picture to believe? Every method of attribution, ranked by its verdict, on the same examples."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..cards import Card
from ..checks.methods import compute_map, resolve_target
from ..checks.ranking import attribution_cards, verdict_flops
from ..checks.verdict import INCONCLUSIVE, NOT_APPLICABLE, Verdict
from ..plots import colors, draw
from .attribution import TONE_BY_GRADE
from .blocks import Block, ExampleRow, Figure, Fold, Heading, Note, RankedMethod, Ranking, Text
from .context import ReportContext, Section
from .words import count_noun, join_names

N_EXAMPLES = 3  # examples that every method explains
FIGURE_PIXELS = 112
MAX_FLOPS = 3e11  # FLOPs: what would take more than is left of them is not asked


def build(context: ReportContext) -> Sequence[Block]:
    verdicts, skipped_methods = _affordable_verdicts(context)
    cards = attribution_cards()
    ranked_names = [
        n for n in sorted(verdicts, key=lambda name: verdicts[name].rank) if verdicts[n].grade != NOT_APPLICABLE
    ]
    blocks: list[Block] = [
        Text(_lead_text(context, verdicts, ranked_names)),
        Ranking([_ranked_method(cards[n], verdicts[n]) for n in ranked_names]),
    ]
    if refused := [_ranked_method(cards[n], verdicts[n]) for n in verdicts if n not in ranked_names]:
        blocks.append(Fold(f"Not for this model: {join_names([r.name for r in refused])}", [Ranking(refused)]))
    if skipped_methods:
        text = f"Not asked here, for this model is large: {join_names([cards[n].name for n in skipped_methods])}. "
        text += "The command unboxed explain asks them of one image."
        blocks.append(Note(text))
    _record_facts(context, verdicts, skipped_methods)
    return [*blocks, *(_example_rows(context, ranked_names, verdicts) if context.has_images else [])]


def _affordable_verdicts(context: ReportContext) -> tuple[dict[str, Verdict], list[str]]:
    """Of all candidates, and those that would take too long; what an earlier run found takes nothing."""
    verdicts, skipped_methods, spent_flops = dict[str, Verdict](), list[str](), 0.0
    for name, method in context.candidates.items():
        flops = 0.0 if context.has_verdict(name) else verdict_flops(context.box, method, len(context.evidence))
        if verdicts and spent_flops + flops > MAX_FLOPS:
            skipped_methods.append(name)
            continue
        verdicts[name] = context.verdict(name)
        spent_flops += flops
    return verdicts, skipped_methods


def _lead_text(context: ReportContext, verdicts: dict[str, Verdict], ranked_names: Sequence[str]) -> str:
    counts = {grade: sum(verdicts[n].grade == grade for n in ranked_names) for grade in ("pass", INCONCLUSIVE, "fail")}
    examples_text = count_noun(len(context.evidence), "example")
    return (
        "Every method draws something, of any model. Each was asked "
        f"of this one, on {examples_text}: does its picture change "
        "once the weights of the model's upper half are random, is it empty for one that ignores its input, and does "
        "removing what it marks cost the answer? "
        f"{counts['pass']} pass, {counts[INCONCLUSIVE]} are inconclusive, {counts['fail']} fail."
    )


def _ranked_method(card: Card, verdict: Verdict) -> RankedMethod:
    return RankedMethod(
        card.name, verdict.badge, verdict.sentence, card.shows, card.does_not_show, TONE_BY_GRADE[verdict.grade]
    )


def _record_facts(context: ReportContext, verdicts: dict[str, Verdict], skipped_methods: Sequence[str]) -> None:
    context.facts["verdicts"] = {
        "examples": len(context.evidence),
        "methods": {name: {"grade": v.grade, "says": v.sentence, **v.figures} for name, v in verdicts.items()},
        "not asked": list(skipped_methods),
    }


# -- the same examples by every method -------------------------------------------------------------------------------


def _example_rows(context: ReportContext, ranked_names: Sequence[str], verdicts: dict[str, Verdict]) -> list[Block]:
    indices = context.example_indices[:N_EXAMPLES]
    x = context.inputs(indices)
    score = resolve_target(context.box, context.box.validate_inputs(x), None)
    cards = attribution_cards()
    maps = {
        name: compute_map(context.box, context.candidates[name], context.box.validate_inputs(x), score)
        for name in ranked_names
    }
    lead = "The same examples by every method, the most believable first. Red speaks for the answer, blue against it; "
    blocks: list[Block] = [
        Heading("Side by side"),
        Text(lead + "each map has its own scale, printed below it.", "soft"),
    ]
    for i, index in enumerate(indices):
        alt = f"input, example {context.survey.rows[index]}"
        figures = [Figure(context.pictures.inline(colors.image_to_rgb(x[i]), alt, FIGURE_PIXELS), "", ("input",))]
        figures += [_map_figure(context, cards[n].name, maps[n][i], verdicts[n]) for n in ranked_names]
        blocks.append(
            ExampleRow(
                context.answer_title(index), context.example_lines(index), figures, context.correctness_tone(index)
            )
        )
    return blocks


def _map_figure(context: ReportContext, name: str, m: Tensor, verdict: Verdict) -> Figure:
    picture, scale_text = draw.map_on_own_scale(m)
    alt = f"{name} ({verdict.badge}, {scale_text})"
    return Figure(
        context.pictures.inline(picture, alt, FIGURE_PIXELS),
        name,
        (verdict.badge, scale_text),
        TONE_BY_GRADE[verdict.grade],
    )


SECTION = Section("Which picture to believe?", "believe", build)
