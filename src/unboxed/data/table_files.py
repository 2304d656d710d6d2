"""The files of tables, CSV and Parquet: their columns, and the image files and labels that they list."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ..errors import DataError, MissingPackageError, UnclearLabelsError
from ..inputs.examples import TABLE_SUFFIXES
from ..inputs.frames import LABEL_COLUMN_NAMES, find_label_column, is_data_frame, unclear_labels_text
from ..validation import expand_home, listed_names, missing_path_text, normalized_name

FILE_COLUMN_NAMES = (
    "file",
    "filename",
    "path",
    "filepath",
    "image",
    "imagepath",
    "imagefile",
    "img",
    "imgpath",
    "imageid",
)
WANTED_COLUMNS_TEXT = "wanted a column of files (file, path, image, ...) and one of labels (label, class, target, ...)"

FileAndLabel = tuple[Any, Any]  # file and label


LabelSearch = Literal["called so", "also the only other", "none"]
"""Which column has the labels, where it is not named: one of LABEL_COLUMN_NAMES, or the only other one, or none."""


def files_and_labels(table: Any, label: str | None, search: LabelSearch) -> tuple[Path, list[FileAndLabel]]:
    """What a table, a file or a DataFrame, is called, and its rows. Raises DataError."""
    if not is_data_frame(table) and (source := check_table_path(table)).suffix.lower() != ".parquet":
        return source, _csv_files_and_labels(source, label, search)
    source, columns = values_by_column(table)
    file_column, label_column = _find_file_and_label_columns(list(columns), source, label, search)
    files = columns[file_column]
    return source, list(zip(files, [None] * len(files) if label_column is None else columns[label_column], strict=True))


def values_by_column(table: Any) -> tuple[Path, dict[str, list[Any]]]:
    """What a table, a file or a DataFrame, is called, and {column: its values}. Raises DataError."""
    if is_data_frame(table):
        return Path("the DataFrame"), {str(name): table[name].to_numpy().tolist() for name in table.columns}
    source = check_table_path(table)
    return source, read_columns(source)


def column_names(table: Any) -> list[str]:
    """The columns of a table, a file or a DataFrame; of a CSV its first line. Raises DataError."""
    if is_data_frame(table):
        return [str(name) for name in table.columns]
    source = check_table_path(table)
    return list(read_columns(source, 0)) if source.suffix.lower() == ".parquet" else _read_csv_cells(source)[0]


def check_table_path(path: str | os.PathLike[str]) -> Path:
    """The path of a table. Raises DataError where there is no such file, or none of a table."""
    source = expand_home(path)
    if not os.path.isfile(source):
        raise DataError(missing_path_text(source))
    if source.suffix.lower() not in TABLE_SUFFIXES:
        raise DataError(f"{source} is no table; wanted a file {', '.join(TABLE_SUFFIXES)}")
    return source


def read_columns(source: Path, max_rows: int | None = None) -> dict[str, list[Any]]:
    """{column: the values of its first rows} of a CSV, TSV or Parquet file with a header. Raises DataError."""
    if source.suffix.lower() == ".parquet":
        contents = _open_parquet(source)
        return {str(name): contents.column(name).to_pylist()[:max_rows] for name in contents.column_names}
    header, *rows = _read_csv_cells(source)
    if repeated := [name for name, n in Counter(header).items() if name and n > 1]:
        raise DataError(
            f"{source} has several columns of the name {listed_names(repeated)}; rename or leave out all but one"
        )
    if short := [row for row in rows[:max_rows] if len(row) < len(header)]:
        raise DataError(f"{source} has rows of fewer than its {len(header)} columns, such as {short[0]}")
    return {name: [row[i] for row in rows[:max_rows]] for i, name in enumerate(header)}


def _open_parquet(source: Path) -> Any:
    try:
        from pyarrow import parquet  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise MissingPackageError("Parquet files need pyarrow: pip install pyarrow, or save the table as CSV") from None
    try:
        return parquet.read_table(source)
    except Exception as error:  # a damaged file can make a reader raise anything
        raise DataError(f"{source} is no sound Parquet file: {error}") from error


def _read_csv_cells(source: Path) -> list[list[str]]:
    """The cells of a file. File names may be of any encoding: they are decoded as the file system's."""
    with source.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = [line for line in file if line.strip()]
    if not lines:
        raise DataError(f"{source} is empty")
    delimiter = max("\t;,", key=lambda mark: (lines[0].count(mark), mark == ","))
    return [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]


def _csv_files_and_labels(source: Path, label: str | None, search: LabelSearch) -> list[FileAndLabel]:
    rows = _read_csv_cells(source)
    file_index, label_index, has_header = 0, (1 if len(rows[0]) > 1 and search != "none" else None), False
    if label in rows[0] or _is_header(rows[0], source):
        header, has_header = rows[0], True
        file_column, label_column = _find_file_and_label_columns(header, source, label, search)
        file_index = header.index(file_column)
        label_index = None if label_column is None else header.index(label_column)
    width = max(file_index, label_index or 0)
    if short := [row for row in rows if len(row) <= width]:
        raise DataError(
            f"{source} has rows of fewer than {width + 1} columns, such as {short[0]}; {WANTED_COLUMNS_TEXT}"
        )
    return [(row[file_index], None if label_index is None else row[label_index]) for row in rows[has_header:]]


def _is_header(row: Sequence[str], source: Path) -> bool:
    """Whether the first row names columns: it names no file, and has a name of a column or a cell without a dot."""
    if (source.parent / row[0]).is_file():
        return False
    return any(normalized_name(cell) in (*FILE_COLUMN_NAMES, *LABEL_COLUMN_NAMES) for cell in row) or "." not in row[0]


def _find_file_and_label_columns(
    names: Sequence[str], source: Path, label: str | None, search: LabelSearch
) -> tuple[str, str | None]:
    """The names of the columns of files and labels, `label` where it is given. Raises DataError."""
    file_column = file_column_name(names, source)
    others = [name for name in names if name != file_column]
    if search == "none" or not others:
        return file_column, None
    if label is not None or search == "also the only other":
        return file_column, find_label_column(source, others, label)
    called = _columns_called(LABEL_COLUMN_NAMES, names)
    if not called:
        raise UnclearLabelsError(unclear_labels_text(source, others))
    return file_column, called[0]


def file_column_name(names: Sequence[str], source: Path) -> str:
    """The column of image files. Raises DataError."""
    if found := _columns_called(FILE_COLUMN_NAMES, names):
        return found[0]
    raise DataError(f"{source} has the columns {listed_names(names)}; {WANTED_COLUMNS_TEXT}")


def _columns_called(wanted: Sequence[str], names: Sequence[str]) -> list[str]:
    by_plain_name = {normalized_name(name): name for name in reversed(names)}
    return [by_plain_name[name] for name in wanted if name in by_plain_name]
