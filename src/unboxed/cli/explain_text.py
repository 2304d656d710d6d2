"""Why this answer to a text: its words, colored by several attribution methods, and which of the maps to trust."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic_write import encode_utf8, to_printable, write_bytes
from ..box import Box
from ..checks.verdict_cache import VerdictCache
from ..data.texts import texts as read_texts
from ..engine.results import nonfinite_to_none
from ..explaining import MethodChoice, resolve_methods
from ..plots.files import save
from ..plots.text_map import TextWithValues, background_and_text_color, text_sheet, tokens_to_display_words
from ..report.text_explanations import TextExplanations, explain_texts
from ..report.text_page import text_trust_sentence, write_text_explanation_page
from ..report.word_effects import require_text_inputs
from ..report.words import count_noun
from .explain import FIGURE_FILE, PAGE_FILE, RESULTS_FILE, VERDICTS_FILE, require_row, selected_rows, verdict_table
from .parsing import current_command_line, parse_class

if TYPE_CHECKING:
    from rich.text import Text

MAX_METHODS_IN_FIGURE, MAX_TEXTS_IN_FIGURE = 6, 4
TEXT_LEGEND = (
    "red words raise the score, blue words lower it, from minus to plus each map's largest value, its scale; gray: "
    "added by the tokenizer. randomization: rank correlation of the map with the map after the weights of the model's "
    "upper half are randomized; near 0 is good. relevance gain: how much sooner the score falls when what the map "
    "marks is replaced first than when it is replaced last; 0 is a random order."
)


# -- as a command ----------------------------------------------------------------------------------------------------


def run_explain_text(
    box: Box,
    texts: Sequence[str],
    source: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    methods: MethodChoice = None,
    target: str | None = None,
    versus: str | None = None,
    max_examples: int = 4,
    row: int | None = None,
    label: str | None = None,
    seed: int = 0,
    quiet: bool = False,
    as_json: bool = False,
) -> TextExplanations:
    """Explain texts, given or in a file: print the ranking and the words, write page, figure and numbers to `out`.

    Raises DataError, InputError and WriteError.
    """
    out, chosen = Path(out), selected_rows(max_examples, row)
    require_text_inputs(box)
    read = [] if source is None else read_texts(source, label=label).texts
    require_row(row, len(read[chosen]), len(read))
    given = [*texts, *read[chosen]]
    selected = resolve_methods(box, methods)
    path = out / VERDICTS_FILE
    cache = VerdictCache.read(path)
    k, other = (None if name is None else parse_class(name, box) for name in (target, versus))
    made = explain_texts(box, given, selected, k, versus=other, seed=seed, verdict_cache=cache, quiet=quiet)
    write_bytes(path, cache.to_json())
    numbers = json.dumps(nonfinite_to_none(made.to_dict()), indent=1, ensure_ascii=False)
    write_bytes(out / RESULTS_FILE, encode_utf8(numbers))
    subject = f"{type(box.model).__name__} on {Path(source).name if source else count_noun(len(given), 'text')}"
    page = write_text_explanation_page(made, out / PAGE_FILE, subject=subject, command=current_command_line())
    figure = save(_words_figure(made), out / FIGURE_FILE)
    if as_json:
        print(numbers)
    else:
        _print_text_explanations(made, page, figure)
    return made


def _words_figure(made: TextExplanations) -> Any:
    """The words of the first texts by the most trustworthy methods."""
    names = made.drawn[:MAX_METHODS_IN_FIGURE]
    rows = [made.values(name, i) for i in range(min(len(made.tokens), MAX_TEXTS_IN_FIGURE)) for name in names]
    title = f"{made.question(0)} The model predicts {made.predictions[0]}" if len(made.tokens) == 1 else "Why?"
    return text_sheet(rows, title=title, unit="of each map's own scale")


def _not_in_figure_text(made: TextExplanations) -> str:
    """What the figure does not show."""
    names = ", ".join(made.verdicts[name].method for name in made.drawn[MAX_METHODS_IN_FIGURE:])
    n_texts = len(made.tokens) - MAX_TEXTS_IN_FIGURE
    parts = [f"the maps by {names}"] * bool(names) + [f"{count_noun(n_texts, 'more text')}"] * (n_texts > 0)
    return f" (without {' and '.join(parts)}: see the page)" if parts else ""


def _print_text_explanations(made: TextExplanations, page: Path, figure: Path) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    best = next(iter(made.drawn), None)
    for i, prediction in enumerate(made.predictions):
        console.print(escape(f"The model predicts {prediction}. {made.question(i)}"), highlight=False)
        effect = escape(made.effects.sentence(i))
        if made.effects.is_negligible(i):  # first: what follows is noise
            console.print(effect, highlight=False)
        if best is not None:
            console.print(_colored_words(made.values(best, i), with_values=console.color_system is None))
            console.print(f"{made.verdicts[best].method}, scale {made.scale(best, i)}", style="dim", highlight=False)
        if not made.effects.is_negligible(i):
            console.print(effect, highlight=False)
    console.print(escape(text_trust_sentence(made)), highlight=False)
    console.print(verdict_table(made.verdicts))
    console.print(TEXT_LEGEND, style="dim", highlight=False)
    console.print(escape(f"page: {page}\nmaps: {figure}{_not_in_figure_text(made)}"), highlight=False)


def _colored_words(text: TextWithValues, with_values: bool) -> Text:
    """The words of a text on their colors; or, without colors, with their values in parts of the scale."""
    from rich.text import Text

    line = Text()
    words = tokens_to_display_words(text.tokens)
    for (word, is_glued), value, special in zip(words, text.values, text.special, strict=True):
        line.append("" if is_glued or not line else " ")
        back, ink = (",".join(map(str, color)) for color in background_and_text_color(value))
        style = "dim" if special else "" if value == 0 else f"rgb({ink}) on rgb({back})"
        line.append(to_printable(word), style=style)
        if with_values and value and not special:
            line.append(f"({value:+.2f})")
    return line
