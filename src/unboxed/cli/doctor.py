"""`unboxed doctor`: what works on a model and what does not, as a table or JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from ..box import Box
from ..diagnosis import Diagnosis, MethodCheck, doctor
from .parsing import rewrite_advice_for_command_line

MAX_METHODS_COLUMN_CHARS = 24  # characters of the column of the methods of one verdict


def run_doctor(box: Box, data: Any = None, *, as_json: bool = False, quiet: bool = False) -> Diagnosis:
    """Try all methods on a model, on the first examples of some data or on noise; print what was found."""
    from ..data.texts import Texts
    from ..diagnosis import N_TRIAL_EXAMPLES
    from ..engine.read.examples import first_inputs

    if isinstance(data, Texts):
        x: Any = list(data.texts[:N_TRIAL_EXAMPLES])
    else:
        x = None if data is None else box.restore_structure(first_inputs(box, data, N_TRIAL_EXAMPLES))
    diagnosis = doctor(box, x, quiet=quiet)
    if as_json:
        typer.echo(json.dumps(diagnosis.to_dict(), indent=1, ensure_ascii=False))
    else:
        _print_diagnosis(diagnosis)
    return diagnosis


def _print_diagnosis(diagnosis: Diagnosis) -> None:
    """The facts, the methods that work by family, and those that don't or that warn, with the reason."""
    console = Console()
    for what, text in diagnosis.model.items():
        console.print(f"[bold]{what}[/]: {escape(rewrite_advice_for_command_line(text))}", highlight=False)
    for family, working, n_methods in diagnosis.working_by_family():
        names = f": {', '.join(working)}" * bool(working)
        console.print(f"[bold]{family}[/]: {len(working)} of {n_methods} work{names}", highlight=False)
    methods_column = Column("method", max_width=MAX_METHODS_COLUMN_CHARS)
    table = Table(methods_column, "", "why, and what to do", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for verdict, methods in _method_names_by_status_markup(diagnosis.methods).items():
        table.add_row(", ".join(methods), *verdict)
    if table.row_count:
        console.print(table)


def _method_names_by_status_markup(checks: Sequence[MethodCheck]) -> dict[tuple[str, str], list[str]]:
    """The methods that do not work or have a note, by what is to be said of them."""
    methods = defaultdict[tuple[str, str], list[str]](list)
    for check in checks:
        if not check.works or check.notes or not check.is_complete:
            methods[_status_markup(check)].append(check.method)
    return methods


def _status_markup(check: MethodCheck) -> tuple[str, str]:
    if not check.works:
        return "[red]no[/]", escape(rewrite_advice_for_command_line(f"{check.reason}; {check.remedy}"))
    notes = [*check.notes, *["stopped early, without an error so far, to save time"] * (not check.is_complete)]
    return ("[yellow]note[/]" if check.notes else "[green]works[/]"), escape("; ".join(notes))
