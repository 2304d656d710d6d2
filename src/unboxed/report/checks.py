"""Which map to trust? Every attribution method, ranked by its verdict, on the same examples."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..checks.fill_agreement import fill_dependence_sentence
from ..checks.methods import compute_attribution, compute_map, resolve_target
from ..checks.ranking import attribution_cards
from ..checks.undecided import undecided_legend
from ..checks.verdict import GRADES, NOT_APPLICABLE, PASS, Verdict
from ..checks.verdict_tests import VERDICT_TESTS
from ..engine.attribution_result import Attribution
from ..errors import UnboxedError
from ..plots.explanation_sheet import render_map
from . import chapters
from .blocks import (
    Block,
    Caution,
    Collapsible,
    Figure,
    FigureGrid,
    Heading,
    Paragraph,
    PerExample,
    RankedMethod,
    RankedMethods,
)
from .context import ReportContext, Section
from .explained import explained_classes, explained_text, worst_output_or_none
from .finding import METADATA_OF_FIELD_NOT_IN_JSON, Example, Finding
from .pictures import PageImage
from .verdict_notes import TONE_BY_GRADE, ranked_method
from .words import count_noun, join_names_with_limit

N_EXPLAINED_EXAMPLES_PER_METHOD = 3  # that every method explains
FIGURE_SIDE_PIXELS = 112
N_PREVIEW_MAPS = 6  # of one example, before the section is opened
MAX_TOTAL_VERDICT_FLOPS = 3.2e12  # of all verdicts: methods that would take more than remains are not run
MAX_WELL_KNOWN_VERDICT_FLOPS = 1.15e13  # where the next method is one that people look at first
NOTHING_LEARNED_VERDICT_REASON = next(
    test.failed for test in VERDICT_TESTS if test.name == "learned"
)  # a reason that is the model's


@dataclass(frozen=True, eq=False, kw_only=True)
class RankingFinding(Finding):
    """The verdict on every attribution method, and their maps of the same examples."""

    examples: int  # that the verdicts are about
    methods: dict[str, Verdict]  # in the order in which they were judged
    not_run: list[str]  # methods that are too expensive for this model
    ranked: list[str]  # methods that apply, the most trustworthy first
    shown: list[Example]
    has_images: bool
    maps: dict[str, Tensor] = field(metadata=METADATA_OF_FIELD_NOT_IN_JSON)  # {method: (n, C, H, W)}, of those ranked
    explained: str = "that prediction"

    @property
    def best(self) -> list[str]:
        """The methods whose maps are seen before the section is opened: the most trustworthy and the least."""
        n = N_PREVIEW_MAPS - 1 if len(self.ranked) > N_PREVIEW_MAPS else N_PREVIEW_MAPS
        return [*self.ranked[:n], *self.ranked[n:][-1:]]

    def to_dict(self) -> dict[str, Any]:
        verdicts = {name: {**v.to_dict(), **v.figures} for name, v in self.methods.items()}
        return {**super().to_dict(), "methods": verdicts}


# -- find --------------------------------------------------------------------------------------------------------------


def find(context: ReportContext) -> RankingFinding:
    verdicts, not_run = verdicts_and_unaffordable_methods(context)
    ranked = [n for n in sorted(verdicts, key=lambda name: verdicts[name].rank) if verdicts[n].grade != NOT_APPLICABLE]
    indices = context.followed_indices if context.has_images else []
    finding = RankingFinding(
        answer=_grade_counts_text(ranked, verdicts),
        headline=(_grade_counts_text(ranked, verdicts),),
        examples=len(context.verdict_inputs),
        methods=verdicts,
        not_run=not_run,
        ranked=ranked,
        shown=context.examples(indices),
        has_images=context.has_images,
        explained=explained_text(context),
        maps={},
    )
    return replace(finding, maps=_maps_by_method(context, indices, ranked, finding.best)) if indices else finding


def _grade_counts_text(ranked: Sequence[str], verdicts: dict[str, Verdict]) -> str:
    """How many methods have each grade, and the best ones."""
    names = {grade: [attribution_cards()[n].name for n in ranked if verdicts[n].grade == grade] for grade in GRADES}
    passed, others = names[PASS], [f"{len(names[grade])} {grade}" for grade in GRADES[1:-1] if names[grade]]
    verb = "passes its" if len(passed) == 1 else "pass their"
    counts = f"{len(passed) or 'None'} of {count_noun(len(ranked), 'explanation method')} {verb} checks on this model"
    rest = f" ({', '.join(others)})" if others else ""
    return f"{counts}{rest}.{f' Trust first: {join_names_with_limit(passed, 3)}.' if passed else ''}"


def verdicts_and_unaffordable_methods(context: ReportContext) -> tuple[dict[str, Verdict], list[str]]:
    """The verdicts on candidates, the well-known ones first, and those that would take too long; a cached verdict takes
    nothing."""
    verdicts, not_run, cards = dict[str, Verdict](), list[str](), attribution_cards()
    for name in sorted(context.candidates, key=lambda name: not cards[name].first_choice):
        flops = context.verdict_flops(name)
        budget = MAX_WELL_KNOWN_VERDICT_FLOPS if cards[name].first_choice else MAX_TOTAL_VERDICT_FLOPS
        if flops and verdicts and context.verdict_flops_spent + flops > budget:
            not_run.append(name)
        else:
            verdicts[name] = context.verdict(name)
    return verdicts, not_run


def maps_by_most_trusted_methods(
    context: ReportContext, x: Tensor, target: Any, n_methods: int
) -> dict[str, Attribution]:
    """The maps of x by the methods with the best verdicts, of the first that give one."""
    verdicts, _ = verdicts_and_unaffordable_methods(context)
    maps, x = dict[str, Attribution](), context.box.validate_inputs(x)
    for name in sorted(verdicts, key=lambda name: verdicts[name].rank):
        if len(maps) < n_methods:
            with suppress(UnboxedError):  # its verdict says why
                explain = context.candidates[name]
                attribution = compute_attribution(context.box, explain, x, target, show_warnings=True)
                maps[name] = attribution.per_column_scale()
    return maps


def _maps_by_method(
    context: ReportContext, indices: Sequence[int], names: Sequence[str], best: Sequence[str]
) -> dict[str, Tensor]:
    """The maps of these examples by the best methods, of the first ones by all."""
    x = context.box.validate_inputs(context.inputs(indices))
    is_worst = worst_output_or_none(context) is not None
    score = resolve_target(context.box, x, explained_classes(context)[list(indices)] if is_worst else None)
    n = {name: len(x) if name in best else N_EXPLAINED_EXAMPLES_PER_METHOD for name in names}
    return {name: compute_map(context.box, context.candidates[name], x[: n[name]], score[: n[name]]) for name in names}


# -- show --------------------------------------------------------------------------------------------------------------


def show(finding: RankingFinding) -> list[Block]:
    nothing_learned = [n for n in finding.ranked if finding.methods[n].reason == NOTHING_LEARNED_VERDICT_REASON]
    others = [n for n in finding.ranked if n not in nothing_learned]
    blocks: list[Block] = [Paragraph(_ranking_lead_text(finding)), *_nothing_learned_caution(finding, nothing_learned)]
    if others:
        blocks.append(RankedMethods([_make_ranked_method(n, finding.methods[n]) for n in others]))
    sentences = (fill_dependence_sentence(finding.methods), undecided_legend(finding.methods.values()))
    blocks += [Paragraph(sentence, "soft") for sentence in sentences if sentence]
    if not_applicable := [_make_ranked_method(n, v) for n, v in finding.methods.items() if n not in finding.ranked]:
        names = join_names_with_limit([r.name for r in not_applicable])
        blocks.append(Collapsible(f"Not for this model: {names}", [RankedMethods(not_applicable)]))
    if finding.not_run:
        names = join_names_with_limit([attribution_cards()[n].name for n in finding.not_run])
        command = f"unboxed explain --methods {','.join(finding.not_run)} checks them on one image"
        how = command if finding.has_images else "ub.checks.verdict checks them"
        blocks.append(Caution(f"Not run, to keep the report short: {names}. {how}."))
    return [*blocks, *_side_by_side_map_blocks(finding)]


def best(finding: RankingFinding) -> list[Block]:
    """Every method with its verdict, and the followed example by the best and by the worst of them."""
    blocks: list[Block] = [RankedMethods([_make_ranked_method(n, finding.methods[n]) for n in finding.ranked], True)]
    if not finding.shown:
        return blocks
    maps = [[_map_figure(finding, n, i) for n in finding.best] for i in range(len(finding.shown))]
    grids = [FigureGrid([e.figure(FIGURE_SIDE_PIXELS), *m]) for e, m in zip(finding.shown, maps, strict=True)]
    return [PerExample([[grid] for grid in grids]), *blocks]


def _nothing_learned_caution(finding: RankingFinding, names: Sequence[str]) -> list[Block]:
    """What fails these methods alike: said once, since it is about the model."""
    if not names:
        return []
    listed = join_names_with_limit([attribution_cards()[n].name for n in names], len(names))
    return [Caution(f"{finding.methods[names[0]].sentence} So these methods fail: {listed}.", "alarm")]


def _ranking_lead_text(finding: RankingFinding) -> str:
    edges = "is it more than edges, " if finding.has_images else ""
    return (
        "Every method returns a map for any model. Each was checked on this one, with "
        f"{count_noun(finding.examples, 'example')}: does its map change when the weights of the model's upper half "
        f"are randomized and for another class, is it empty for a model that ignores its input, {edges}"
        "and does removing what it marks lower the score? A test decides only where its whole 90% interval does."
    )


def _make_ranked_method(name: str, verdict: Verdict) -> RankedMethod:
    return ranked_method(verdict, attribution_cards()[name])


def _side_by_side_map_blocks(finding: RankingFinding) -> list[Block]:
    if not finding.shown:
        return []
    lead = (
        "The same examples by every method, the most trustworthy first. "
        f"Red: for {finding.explained}, blue: against it; "
    )
    blocks: list[Block] = [
        Heading("Side by side"),
        Paragraph(lead + "each map has its own scale, printed below it.", "soft"),
    ]
    for i, example in enumerate(finding.shown[:N_EXPLAINED_EXAMPLES_PER_METHOD]):
        maps = [_map_figure(finding, n, i) for n in finding.ranked]
        blocks.append(example.with_figures([example.input_figure(FIGURE_SIDE_PIXELS), *maps]))
    return blocks


def _map_figure(finding: RankingFinding, name: str, i: int) -> Figure:
    """The map of the i-th example shown, laid over it where it is a photo."""
    picture, verdict = render_map(finding.shown[i].x, finding.maps[name][i]), finding.methods[name]
    title = attribution_cards()[name].name
    image = PageImage(picture.shown, f"{title} ({verdict.badge}, {picture.scale})", FIGURE_SIDE_PIXELS)
    return Figure(image, title, (verdict.badge, picture.scale), TONE_BY_GRADE[verdict.grade])


SECTION = Section("Which map to trust?", "ranking", find, show, chapter=chapters.BELIEF, best=best, texts=True)
