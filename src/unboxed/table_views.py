"""How an answer in words shows itself: as tables in a notebook, on the terminal and in a file.

The tables of each type are registered in `plots.results.tables`, above this module, and loaded when they are shown.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any


class NotebookTablesMixin:
    """Shows itself as tables where it is the last line of a notebook's cell."""

    def _repr_html_(self) -> str:
        """The tables as HTML, for notebooks."""
        return _import_text_tables().tables_html(self)  # type: ignore[no-any-return]


class TableViewsMixin(NotebookTablesMixin):
    """What an answer in words can do to be seen: `show`, `save`, and its tables as the last line of a cell."""

    def show(self) -> None:
        """Show the tables: in the cell of a notebook, else as printed text."""
        _import_text_tables().show_tables(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the answer to a file, by the ending of its name.

        Args:
            path: File to write: ".html" is a page of the tables, ".json" the same facts for programs, ".txt" the tables
                as text.

        Returns:
            The path.

        Raises:
            InputError: for another ending.
            WriteError: when the file cannot be written.

        Example:
            >>> import tempfile, unboxed as ub
            >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
            >>> ub.doctor(box, max_flops=1e6).save(f"{tempfile.mkdtemp()}/doctor.html").name
            'doctor.html'
        """
        return _import_text_tables().save_tables(self, Path(path))  # type: ignore[no-any-return]


def _import_text_tables() -> Any:
    return import_module("unboxed.plots.text_tables")
