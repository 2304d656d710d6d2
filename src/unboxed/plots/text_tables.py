"""The tables of an answer in words: HTML for a notebook, text, and files by their ending."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from html import escape
from pathlib import Path
from typing import Any

from ..atomic_write import encode_utf8, write_bytes
from ..engine.results import nonfinite_to_none
from ..errors import InputError
from .views import display_in_notebook

CELL_STYLE = "text-align:left;vertical-align:top;padding:2px 12px 2px 0"


@dataclass(frozen=True)
class TextTable:
    """Rows of text under a title; `columns` may be empty."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@singledispatch
def text_tables(answer: Any) -> list[TextTable]:
    """The tables of an answer; a type of answer is registered in `results.tables`."""
    n_types = len(text_tables.registry)
    importlib.import_module(f"{__package__}.results")  # registers the library's own types, on the first call
    return text_tables(answer) if len(text_tables.registry) > n_types else []


def tables_html(answer: Any) -> str:
    """The tables as HTML without scripts, with styles of their own."""
    return "".join(map(_table_html, text_tables(answer)))


def _table_html(table: TextTable) -> str:
    def row_html(tag: str, cells: Sequence[str]) -> str:
        html = "".join(f'<{tag} style="{CELL_STYLE}">{escape(cell)}</{tag}>' for cell in cells)
        return f"<tr>{html}</tr>"

    head = f"<thead>{row_html('th', table.columns)}</thead>" if table.columns else ""
    body = "".join(row_html("td", row) for row in table.rows)
    caption = f'<caption style="text-align:left;font-weight:bold">{escape(table.title)}</caption>' * bool(table.title)
    return f"<table>{caption}{head}<tbody>{body}</tbody></table>"


def tables_text(answer: Any) -> str:
    """The tables as text, the columns but the last aligned."""
    return "\n\n".join(map(_table_text, text_tables(answer)))


def _table_text(table: TextTable) -> str:
    rows = [row for row in (table.columns, *table.rows) if row]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([table.title] * bool(table.title) + lines)


def show_tables(answer: Any) -> None:
    """Show the tables in the notebook that runs, else print them."""
    if not display_in_notebook(answer):
        print(tables_text(answer))


def save_tables(answer: Any, path: Path) -> Path:
    """Write an answer as the ending of the file's name says."""
    ending = path.suffix.lower()
    if ending == ".json":
        text = json.dumps(nonfinite_to_none(answer.to_dict()), indent=1, ensure_ascii=False)
        return write_bytes(path, encode_utf8(text))
    if ending == ".txt":
        return write_bytes(path, encode_utf8(f"{tables_text(answer)}\n"))
    if ending == ".html":
        page = importlib.import_module("unboxed.report.result_page")  # pages are above plots
        return page.write_tables_page(type(answer).__name__, text_tables(answer), path)  # type: ignore[no-any-return]
    raise InputError(
        f"this {type(answer).__name__} is tables of text, without a picture: a file's name must end in .html, .json or "
        f".txt; got {path.name!r}"
    )
