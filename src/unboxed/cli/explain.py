"""`unboxed explain`: the maps of inputs by several methods, which of them to trust, and a page of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..atomic_write import encode_utf8, write_bytes
from ..box import Box
from ..checks.fill_agreement import fill_dependence_sentence
from ..checks.undecided import undecided_legend
from ..checks.verdict import GRADES, NOT_APPLICABLE, Verdict
from ..checks.verdict_cache import VerdictCache
from ..engine.read.class_labels import box_with_names_of_data
from ..engine.results import nonfinite_to_none
from ..errors import InputError
from ..explaining import Explanation, MethodChoice, explain, resolve_methods
from ..loading.input_files import read_inputs
from ..plots.explanation_sheet import render_explanation_maps
from ..plots.figures import figures
from ..plots.files import save
from ..report.explanation_page import TABLE_LEGEND, prediction_sentence, write_explanation_page
from ..validation import check_int
from .parsing import current_command_line, parse_baseline, parse_class

if TYPE_CHECKING:
    from rich.table import Table

DEFAULT_MAX_EXAMPLES = 4  # of a file or folder of several
FIGURE_FILE, RESULTS_FILE, VERDICTS_FILE = "explained.png", "explained.json", "verdicts.json"
PAGE_FILE, MAPS_DIR = "explained.html", "maps"


def run_explain(
    box: Box,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    methods: MethodChoice = None,
    target: str | None = None,
    versus: str | None = None,
    max_examples: int = DEFAULT_MAX_EXAMPLES,
    row: int | None = None,
    baseline: str | None = None,
    label: str | None = None,
    seed: int = 0,
    quiet: bool = False,
    as_json: bool = False,
) -> list[Explanation]:
    """Explain the inputs in a file or folder: print each ranking, write its page, its figures and its numbers.

    They are written to `out`; of several inputs, to a folder of each there. Each map is written as soon as it is made.
    Verdicts are cached in `out`. Ctrl-C keeps the explanations so far. Raises DataError, InputError and WriteError.
    """
    chosen, out = selected_rows(max_examples, row), Path(out)
    read = read_inputs(source, box, chosen.stop, label=label)
    x, names, box = read.x[chosen], read.names[chosen], box_with_names_of_data(box, read)
    require_row(row, len(x), len(read.x))
    selected = resolve_methods(box, methods)
    compared_with = None if baseline is None else parse_baseline(baseline, box)
    classes = [None if text is None else parse_class(text, box) for text in (target, versus)]
    verdicts_path = out / VERDICTS_FILE
    verdict_cache = VerdictCache.read(verdicts_path)
    explanations = list[Explanation]()
    for i, name in enumerate(names):
        is_only = len(names) == 1
        subject = str(Path(source).name) if is_only and row is None else name
        writer = _ExplanationWriter(out if is_only else out / name, subject)
        explanation = explain(
            box, x[i : i + 1], classes[0], versus=classes[1], methods=selected, baseline=compared_with, seed=seed,
            verdict_cache=verdict_cache, on_progress=writer.write_new_maps, quiet=quiet,
        )  # fmt: skip
        write_bytes(verdicts_path, verdict_cache.to_json())
        writer.write(explanation)
        if not as_json:
            is_last, shown = i == len(names) - 1, name if len(names) > 1 else ""
            _print_explanation(explanation, writer.folder, shown, has_legend=is_last)
        explanations.append(explanation)
        if explanation.interrupted:
            break
    if as_json:
        print(json.dumps([nonfinite_to_none(e.to_dict()) for e in explanations], indent=1, ensure_ascii=False))
    return explanations


def selected_rows(max_examples: int, row: int | None) -> slice:
    """Of the inputs in a file or folder those to explain: the first ones, or one by its number. Raises InputError."""
    if row is None:
        return slice(0, check_int("--n", max_examples, minimum=1))
    return slice(check_int("--row", row), row + 1)


def require_row(row: int | None, n_selected: int, n_read: int) -> None:
    """Raise InputError where there is no input of this number."""
    if row is not None and not n_selected:
        raise InputError(f"--row is from 0 to {n_read - 1} here; got {row}")


class _ExplanationWriter:
    """Writes what there is of one input's explanation."""

    def __init__(self, folder: Path, subject: str) -> None:
        self.folder, self.subject = folder, subject
        self._written: set[str] = set()

    def write_new_maps(self, explanation: Explanation) -> None:
        """A picture of each map that is new; the page once all maps are there, before they are judged."""
        for name in explanation.maps.keys() - self._written:
            one = {name: explanation.maps[name]}
            for picture in render_explanation_maps(explanation, one).values():
                save(picture.shown, self.folder / MAPS_DIR / f"{name}.png")
            self._written.add(name)
        if not explanation.verdicts and len(explanation.maps) == len(explanation.names):
            self._write_page(explanation)

    def write(self, explanation: Explanation) -> None:
        """All of it: the numbers, the figure and the page."""
        text = json.dumps(nonfinite_to_none(explanation.to_dict()), indent=1, ensure_ascii=False)
        write_bytes(self.folder / RESULTS_FILE, encode_utf8(text))
        for image in figures(explanation).values():
            save(image, self.folder / FIGURE_FILE)
        self._write_page(explanation)

    def _write_page(self, explanation: Explanation) -> None:
        path = self.folder / PAGE_FILE
        write_explanation_page(explanation, path, subject=self.subject, command=current_command_line())


COLOR_BY_GRADE = dict(zip(GRADES, ("green", "yellow", "red", "dim"), strict=True))


def verdict_table(verdicts: Mapping[str, Verdict], settings: Mapping[str, str] = {}) -> Table:
    """The verdicts on methods by their names, with why and the figures of both tests."""
    from rich.markup import escape
    from rich.table import Column, Table

    method, badge = Column("method", no_wrap=True), Column("", no_wrap=True)
    columns = ("why", "random-\nization", "relevance\ngain")
    table = Table(method, badge, *columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, v in verdicts.items():
        values = [v.figures.get(test, math.nan) for test in ("randomization", "removal")]
        texts = ["" if math.isnan(value) else f"{value:.2f}" for value in values]
        why = (v.reason if v.grade != NOT_APPLICABLE else v.sentence) + settings.get(name, "")
        table.add_row(escape(v.method), f"[{COLOR_BY_GRADE[v.grade]}]{v.badge}[/]", escape(why), *texts)
    return table


def _print_explanation(explanation: Explanation, folder: Path, name: str, *, has_legend: bool) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    prediction = prediction_sentence(explanation)
    lead = f"{f'{name}: ' * bool(name)}{prediction} {explanation.question} The most trustworthy map first:"
    console.print(escape(lead), highlight=False)
    console.print(verdict_table(explanation.verdicts, explanation.settings))
    if sentence := fill_dependence_sentence(explanation.verdicts):
        console.print(sentence, highlight=False)
    if sentence := undecided_legend(explanation.verdicts.values()):
        console.print(escape(sentence), style="dim", highlight=False)
    if has_legend:
        console.print(TABLE_LEGEND, style="dim", highlight=False)
    console.print(f"page: {folder / PAGE_FILE}\nmaps: {folder / FIGURE_FILE}", highlight=False)
