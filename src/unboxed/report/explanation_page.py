"""An explanation as a page that one sends to a colleague: the maps over the input, and which of them to trust."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ..atomic_write import encode_utf8, write_bytes
from ..checks.fill_agreement import fill_dependence_sentence
from ..checks.undecided import undecided_legend
from ..checks.verdict import INCONCLUSIVE, PASS, Verdict
from ..explaining import Explanation, card_of_method
from ..plots.explanation_sheet import RenderedMap, render_explanation_maps, render_input
from ..plots.figures import figures
from .blocks import (
    FIGURE_GAP_PIXELS,
    PAGE_WIDTH_PIXELS,
    Block,
    Caution,
    Code,
    Collapsible,
    Figure,
    FigureGrid,
    Paragraph,
    RankedMethod,
    RankedMethods,
    Table,
)
from .pictures import PageImage, PageImageStore
from .render import RenderedSection, render_blocks, render_figures, render_page
from .verdict_notes import TONE_BY_GRADE, ranked_method
from .words import format_named_prob, format_number

COVER_SIDE_PIXELS, MIN_FIGURE_SIDE_PIXELS = 224, 163  # of a picture beside the headline, and in a row of six
READING = (
    "Red raises the score, blue lowers it; what is pale does not count. Each map has its own scale. "
    "A map is a method's answer, not the model's: the badge below it says whether the method can be believed here."
)
TABLE_LEGEND = (
    "Randomization: rank correlation of the map with the map after the weights of the model's upper half are "
    "randomized; near 0 is good. Relevance gain: how much sooner the score falls when what the map marks is removed "
    "first than when it is removed last; 0 is a random order. One example decides only what is clear: unboxed report "
    "checks methods on more."
)


def write_explanation_page(explanation: Explanation, path: Path, *, subject: str = "", command: str = "") -> Path:
    """Write the page: one file, with its pictures in it. `command` is what makes it again. Raises WriteError."""
    store, title, pictures = PageImageStore(), explanation.question, render_explanation_maps(explanation)
    blocks = render_blocks([*_blocks(explanation, pictures, command)], store)
    section = RenderedSection("What does it go by?", "maps", blocks)
    headline = [prediction_sentence(explanation), _trust_sentence(explanation)]
    cover = render_figures(_cover_figures(explanation, pictures), store)
    page = render_page(subject or title, title, headline, cover, [section])
    return write_bytes(path, encode_utf8(page))


def prediction_sentence(explanation: Explanation) -> str:
    """ "The model predicts cat (p 0.85), dog (p 0.07).", "The likeliest labels are cat (p 0.85), dog (p 0.71)." """
    lead = "The likeliest labels are" if explanation.has_labels else "The model predicts"
    return f"{lead} {top_outputs_text(explanation)}."


def top_outputs_text(explanation: Explanation) -> str:
    """The largest outputs in words."""
    format_value = format_number if explanation.is_regression else format_named_prob
    listed = ", ".join(f"{name} ({format_value(v)})" for name, v in explanation.top_outputs.items())
    return f"{listed}, on average over its positions" if explanation.is_mean_over_positions else listed


def _trust_sentence(explanation: Explanation) -> str:
    """Which of the maps to look at first."""
    if not explanation.verdicts:
        return "No method has been checked yet."
    best = next(iter(explanation.verdicts.values()))
    n_passes = sum(v.grade == PASS for v in explanation.verdicts.values())
    if n_passes:
        return f"{n_passes} of {len(explanation.verdicts)} maps can be believed; look at {best.method} first."
    if best.grade == INCONCLUSIVE:
        return f"Of one example no map is beyond doubt; {best.method} comes nearest ({best.reason})."
    return "None of these maps can be believed for this input."


def _blocks(explanation: Explanation, pictures: Mapping[str, RenderedMap], command: str) -> Iterator[Block]:
    if pictures:
        side = _figure_side_to_fill_row(1 + len(pictures))
        maps = [_map_figure(explanation, *p, side=side) for p in pictures.items()]
        yield FigureGrid([_input_figure(explanation, side), *maps])
        yield Paragraph(READING, "soft")
        yield from _single_class_map_blocks(explanation)
    else:
        yield FigureGrid([Figure(PageImage(image, name, None)) for name, image in figures(explanation).items()])
    if explanation.interrupted:
        yield Caution("This was stopped before all methods were checked.")
    undecided = filter(None, [undecided_legend(explanation.verdicts.values())])
    why: list[Block] = [RankedMethods(_ranked_methods(explanation)), *(Paragraph(text, "soft") for text in undecided)]
    yield Collapsible("Why each method is believed or not", why)
    if pictures:
        named = [(explanation.names[name], p) for name, p in pictures.items()]
        alone = [Figure(PageImage(p.map, n, side), n, (p.scale,)) for n, p in named]
        yield Collapsible("The maps alone, with their scales", [FigureGrid(alone)])
    table = verdict_test_values_table(explanation.verdicts.values())
    yield Collapsible("All figures", [table, *map(Paragraph, _legend(explanation))])
    if command:
        yield Collapsible("How this page was made", [Code(command)])


def _legend(explanation: Explanation) -> list[str]:
    return [TABLE_LEGEND, *filter(None, [fill_dependence_sentence(explanation.verdicts)])]


def _cover_figures(explanation: Explanation, pictures: Mapping[str, RenderedMap]) -> list[Figure]:
    """The input and the most trustworthy map; nothing where it is no image."""
    if not pictures:
        return []
    name, picture = next(iter(pictures.items()))
    best = _map_figure(explanation, name, picture, side=COVER_SIDE_PIXELS)
    return [_input_figure(explanation, COVER_SIDE_PIXELS), best]


def _figure_side_to_fill_row(n: int) -> int:
    """The side of n pictures that fill one row of the page; of many, that of six."""
    width = (PAGE_WIDTH_PIXELS + FIGURE_GAP_PIXELS) // n - FIGURE_GAP_PIXELS
    return max(MIN_FIGURE_SIDE_PIXELS, min(COVER_SIDE_PIXELS, width))


def _input_figure(explanation: Explanation, side: int) -> Figure:
    return Figure(PageImage(render_input(explanation), "the input", side), "The input")


def _map_figure(explanation: Explanation, name: str, picture: RenderedMap, side: int) -> Figure:
    written, verdict = explanation.names[name], explanation.verdicts.get(name)
    alt = f"{written} of {explanation.question.lower().rstrip('?')}, over the input"
    lines = ("not checked",) if verdict is None else (verdict.badge, verdict.reason)
    tone = "" if verdict is None else TONE_BY_GRADE[verdict.grade]
    return Figure(PageImage(picture.shown, alt, side), written, lines, tone)


def _single_class_map_blocks(explanation: Explanation) -> Iterator[Block]:
    """The maps of each of two classes by itself."""
    for name, maps in explanation.side_maps.items():
        pictures = render_explanation_maps(explanation, maps)
        side = _figure_side_to_fill_row(1 + len(pictures))
        listed = [
            Figure(PageImage(p.shown, f"{explanation.names[n]} of {name}", side), explanation.names[n])
            for n, p in pictures.items()
        ]
        yield Collapsible(f"{name} alone", [FigureGrid(listed)], open=True)


def _ranked_methods(explanation: Explanation) -> list[RankedMethod]:
    return [
        ranked_method(v, card_of_method(explanation, name), explanation.settings.get(name, ""))
        for name, v in explanation.verdicts.items()
    ]


def verdict_test_values_table(verdicts: Iterable[Verdict]) -> Table:
    """The figures of both tests of each method."""
    rows = [
        [v.method, v.badge, *(_test_value_text(v, test) for test in ("randomization", "removal"))] for v in verdicts
    ]
    return Table(["method", "verdict", "randomization", "relevance gain"], rows, frozenset({2, 3}))


def _test_value_text(verdict: Verdict, test: str) -> str:
    value = verdict.figures.get(test, math.nan)
    return "" if math.isnan(value) else f"{value:.2f}"
