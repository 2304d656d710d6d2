"""Explained texts as a page that one sends to a colleague: the words on their colors, and which maps to trust."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..atomic_write import encode_utf8, write_bytes
from ..cards import cards
from ..checks.undecided import undecided_legend
from ..checks.verdict import FAIL, NOT_APPLICABLE, PASS
from ..plots.text_map import tokens_to_display_words
from .blocks import (
    Block,
    Caution,
    Code,
    Collapsible,
    ColoredWord,
    ColoredWords,
    Heading,
    Paragraph,
    RankedMethod,
    RankedMethods,
)
from .explanation_page import verdict_test_values_table
from .pictures import PageImageStore
from .render import RenderedSection, render_blocks, render_page
from .text_explanations import TextExplanations
from .verdict_notes import TONE_BY_GRADE, ranked_method
from .words import count_noun

SCORE_RAISING_COLOR, SCORE_LOWERING_COLOR = (
    (178, 24, 43),
    (33, 102, 172),
)  # the strongest; others are transparent
MIN_LUMINANCE_OF_DARK_INK = 120  # of 255, of the color on white
MAX_TEXTS_ON_PAGE, MAX_EXPANDED_MAPS_PER_TEXT = 100, 2  # maps of a text that are seen without opening anything
READING = (
    "Red words raise the score, blue words lower it; gray: added by the tokenizer. Each map has its own scale, printed "
    "below it. A map is a method's answer, not the model's: the badge says whether the method can be believed here."
)
NOT_COLORED_TEXT = "not colored: the answer does not need these words"
TEXT_TABLE_LEGEND = (
    "Randomization: rank correlation of the map with the map after the weights of the model's upper half are "
    "randomized; near 0 is good. Relevance gain: how much sooner the score falls when what the map marks is replaced "
    "first than when it is replaced last; 0 is a random order. Few texts decide only what is clear: more decide more."
)


def write_text_explanation_page(made: TextExplanations, path: Path, *, subject: str = "", command: str = "") -> Path:
    """Write the page: one file. `command` is what makes it again. Raises WriteError."""
    is_one = len(made.tokens) == 1
    title = made.question(0) if is_one else f"Why these answers to {count_noun(len(made.tokens), 'text')}?"
    headline = [f"The model predicts {made.predictions[0]}."] if is_one else []
    if n_flat := sum(made.effects.is_negligible(i) for i in range(len(made.tokens))):
        headline.append(
            "The answer does not need its words." if is_one else f"{n_flat} of these answers do not need the words."
        )
    blocks = render_blocks([*_blocks(made, command)], PageImageStore())
    section = RenderedSection("Which words does it go by?", "maps", blocks)
    page = render_page(subject or title, title, [*headline, text_trust_sentence(made)], "", [section])
    return write_bytes(path, encode_utf8(page))


def text_trust_sentence(made: TextExplanations) -> str:
    """The verdict on all maps in a sentence."""
    grades = [v.grade for v in made.verdicts.values() if v.grade != NOT_APPLICABLE]
    if grades and all(g == FAIL for g in grades):
        return "No map is believable: " + next(v.sentence for v in made.verdicts.values() if v.grade == FAIL)
    n_texts = len(made.tokens)
    more = "; more texts decide more" if n_texts < 8 else ""
    return (
        f"{grades.count(PASS)} of {len(grades)} methods pass their checks, made on {count_noun(n_texts, 'text')}{more}."
    )


def _blocks(made: TextExplanations, command: str) -> Iterator[Block]:
    n = min(len(made.tokens), MAX_TEXTS_ON_PAGE)
    for i in range(n):
        yield from _text_blocks(made, i)
    yield Paragraph(READING, "soft")
    if n < len(made.tokens):
        yield Caution(f"{count_noun(len(made.tokens) - n, 'text')} more are in the numbers beside this page.")
    if made.interrupted:
        yield Caution("This was stopped before all methods were checked.")
    undecided = filter(None, [undecided_legend(made.verdicts.values())])
    why: list[Block] = [RankedMethods(ranked_text_methods(made)), *(Paragraph(text, "soft") for text in undecided)]
    yield Collapsible("Why each method is believed or not", why)
    yield Collapsible("All figures", [verdict_test_values_table(made.verdicts.values()), Paragraph(TEXT_TABLE_LEGEND)])
    if command:
        yield Collapsible("How this page was made", [Code(command)])


def _text_blocks(made: TextExplanations, i: int) -> Iterator[Block]:
    """One text: what its words change, the most trustworthy maps, and the others when opened."""
    if len(made.tokens) > 1:
        yield Heading(f"{i + 1}. {made.question(i)} The model predicts {made.predictions[i]}.")
    sentence = made.effects.sentence(i)
    yield Caution(sentence) if made.effects.is_negligible(i) else Paragraph(sentence)
    maps = [colored_words(made, name, i) for name in made.drawn]
    yield from maps[:MAX_EXPANDED_MAPS_PER_TEXT]
    if rest := maps[MAX_EXPANDED_MAPS_PER_TEXT:]:
        yield Collapsible(f"By {count_noun(len(rest), 'other method')}", rest)


def colored_words(made: TextExplanations, name: str, i: int) -> ColoredWords:
    """The words of text i by a method."""
    text, verdict = made.values(name, i), made.verdicts[name]
    words = [
        _colored_word(word, value, is_glued=is_glued, is_added=bool(special))
        for (word, is_glued), value, special in zip(
            tokens_to_display_words(text.tokens), text.values, text.special, strict=True
        )
    ]
    scale = f"scale {made.scale(name, i)}"
    if made.effects.is_negligible(i):  # whatever holds for the method on other texts
        return ColoredWords(words, verdict.method, (NOT_COLORED_TEXT, scale))
    lines = (scale,) if verdict.grade == NOT_APPLICABLE else (f"{verdict.badge} ({verdict.reason})", scale)
    return ColoredWords(words, verdict.method, lines, TONE_BY_GRADE[verdict.grade])


def _colored_word(word: str, value: float, *, is_glued: bool, is_added: bool) -> ColoredWord:
    if is_added or not abs(value) > 0:  # also NaN
        return ColoredWord(word, is_glued=is_glued, is_added=is_added)
    color, alpha = SCORE_RAISING_COLOR if value > 0 else SCORE_LOWERING_COLOR, min(abs(value), 1.0)
    luminance = sum(w * (255 + alpha * (c - 255)) for w, c in zip((0.299, 0.587, 0.114), color, strict=True))
    ink = "#fff" if luminance < MIN_LUMINANCE_OF_DARK_INK else ""  # else the page's, in light and in dark
    return ColoredWord(word, f"rgba({', '.join(map(str, color))}, {alpha:.2f})", ink, is_glued=is_glued)


def ranked_text_methods(made: TextExplanations) -> list[RankedMethod]:
    """The methods with their verdicts and what their maps show."""
    by_key = {card.key: card for card in cards("attribution")}
    return [ranked_method(v, by_key.get(name)) for name, v in made.verdicts.items()]
