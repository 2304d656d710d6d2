"""Texts with a class number each, or -1 without a label: from a file of them, or short reviews that are made up."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..atomic_write import to_printable
from ..box import Box
from ..engine.read.class_labels import class_names_for_matching
from ..errors import DataError, UnclearLabelsError, warn
from ..inputs.frames import is_data_frame
from ..inputs.labels import (
    classes_from_label_names,
    classes_named_by_labels,
    label_to_text,
    match_labels_to_classes,
    missing_labels_text,
)
from ..inputs.signed_labels import refuse_signed_labels
from ..validation import expand_home, listed_names, missing_path_text, normalized_name
from .sets import check_n_examples

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl")
TEXT_COLUMN_NAMES = ("text", "texts", "sentence", "review", "content", "document", "comment", "tweet", "title", "body")
TEXT_LABEL_COLUMN_NAMES = ("label", "labels", "class", "classname", "target", "category", "y", "labelname", "sentiment")
WANTED_TEXT_COLUMNS_TEXT = (
    "wanted a column of texts (text, sentence, review, ...) and one of labels (label, class, target, ...), or without "
    "a header texts first, then labels"
)
TEXT_LABEL_ADVICE = 'Name that of labels: ub.data.texts(data, box, label="COLUMN"), --label COLUMN on the command line'


class TextBatch(NamedTuple):
    """Texts and their classes; `y` is None where there are no labels."""

    x: list[str]
    y: Tensor | None  # (N,), int64


class Texts(Dataset[tuple[str, int]]):
    """Texts in memory, each with its class number, -1 without a label.

    Args:
        texts: The texts.
        labels: A class number for each, or None.
        classes: Names of the classes.
        name: What the data are called.
        n_unlabeled: Texts without a label that were left out of them.

    Example:
        >>> import unboxed as ub
        >>> texts = ub.data.Texts(["good film", "bad film"], [1, 0], ("negative", "positive"))
        >>> texts, texts[0]
        (Texts('texts', 2 texts, 2 classes), ('good film', 1))
    """

    label_assumption = ""  # what was guessed when labels were matched to the classes of a model

    def __init__(
        self,
        texts: Sequence[str],
        labels: Sequence[int] | None = None,
        classes: Sequence[str] = (),
        name: str = "texts",
        n_unlabeled: int = 0,
    ) -> None:
        self.texts, self.classes, self.name = list(texts), tuple(classes), name
        self.n_unlabeled = n_unlabeled
        self.labels = [-1] * len(self.texts) if labels is None else [int(k) for k in labels]
        if len(self.labels) != len(self.texts):
            raise DataError(f"{len(self.texts)} texts and {len(self.labels)} labels: wanted one for each")

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[str, int]:
        return self.texts[index], self.labels[index]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(zip(self.texts, self.labels, strict=True))

    def first(self, n: int) -> TextBatch:
        """The first n texts, or all where there are fewer. Raises InputError for n < 1."""
        labels = self.labels[: check_n_examples(n)]
        return TextBatch(self.texts[:n], None if -1 in labels else torch.tensor(labels))

    def tensors(self) -> TextBatch:
        """All texts."""
        return self.first(max(1, len(self)))

    def __repr__(self) -> str:
        return f"Texts({self.name!r}, {len(self)} texts, {len(self.classes)} classes)"


def texts(
    path: Any, like: Box | None = None, classes: Sequence[str] | None = None, *, label: str | None = None
) -> Texts:
    """The texts in a file, with their labels where it has them.

    Args:
        path: A CSV or TSV file with a column of texts and one of labels (without a header: in this order), a JSONL file
            of objects with such fields, or a .txt file of one text per line, without labels. A DataFrame of pandas with
            such columns is taken, too.
        like: The box of a model: labels are then its classes.
        classes: Class names that labels are numbered by. None takes the box's, else those of the file in their order.
        label: The column of labels. None takes one that is called so; without one, other columns are not read, with a
            warning.

    Returns:
        `Texts`, each with its class number, -1 where the file has no labels. Texts without a label (an empty cell, NaN,
        -1) beside others are left out with a warning.

    Raises:
        DataError: for a file that is not there or of another kind, an empty text, a broken line (its number is named),
            no column of texts, and labels that are not the model's classes.

    Example:
        >>> import pathlib, tempfile, unboxed as ub
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "reviews.csv")
        ...     _ = path.write_text("text,label\\na good film,pos\\na bad film,neg\\n")
        ...     ub.data.texts(path).first(2)
        TextBatch(x=['a good film', 'a bad film'], y=tensor([1, 0]))
    """
    return open_texts(path, like, classes, label=label)


def open_texts(
    path: Any, like: Box | None = None, classes: Sequence[str] | None = None, *, label: str | None = None,
    keep_unlabeled: bool = False,
) -> Texts:  # fmt: skip
    """As `texts`; those without a label beside others may be kept."""
    source, read_rows = (_rows_of_frame if is_data_frame(path) else _rows_of_file)(path, label)
    read = list(read_rows)
    names = class_names_for_matching(like) if like is not None and classes is None else classes
    refuse_signed_labels([label for *_, label in read], None if names is None else len(names))
    rows = [(line, text.strip(), label_to_text(label)) for line, text, label in read]
    if not rows:
        raise DataError(f"{source} is empty: it has no texts")
    if blank := [line for line, text, _ in rows if not text]:
        raise DataError(f"line {blank[0]} of {source} has an empty text; give each line a text, or leave it out")
    n_rows, rows = len(rows), rows if keep_unlabeled else _labeled_rows(source, rows)
    labels, found, assumption = _numbered(source, rows, names)
    opened = Texts([text for _, text, _ in rows], labels, found, to_printable(source.stem), n_rows - len(rows))
    opened.label_assumption = assumption
    return opened


Row = tuple[int, str, Any]
"""The number of a line, its text and its label."""


def _rows_of_file(path: str | os.PathLike[str], label: str | None) -> tuple[Path, Iterator[Row]]:
    """Its path and its rows. Raises DataError."""
    source = expand_home(path)
    if not os.path.isfile(source):
        raise DataError(missing_path_text(source))
    read = READER_BY_SUFFIX.get(source.suffix.lower())
    if read is None:
        raise DataError(f"{source} holds no texts that can be read; wanted a file {', '.join(TEXT_SUFFIXES)}")
    return source, read(source, label)


def _rows_of_frame(frame: Any, label_name: str | None) -> tuple[Path, Iterator[Row]]:
    """What it is called and its rows, counted from 0. Raises DataError."""
    source, names = Path("the DataFrame"), [str(name) for name in frame.columns]
    text, label, has_names = _find_text_and_label_columns(source, names, label_name)
    if not has_names:
        raise DataError(f"{source} has the columns {listed_names(names)}; {WANTED_TEXT_COLUMNS_TEXT}")
    columns = [frame[name].to_numpy().tolist() for name in frame.columns]
    labels = [None] * len(frame) if label is None else columns[label]
    return source, ((i, str(t), k) for i, (t, k) in enumerate(zip(columns[text], labels, strict=True)))


def _labeled_rows(source: Path, rows: list[tuple[int, str, str]]) -> list[tuple[int, str, str]]:
    """The rows with a label, where there are some: the others are left out, and warned of."""
    labeled = [row for row in rows if row[2]]
    if not labeled or len(labeled) == len(rows):
        return rows
    warn(f"{to_printable(source.name)}: {missing_labels_text(len(rows) - len(labeled), len(rows))}")
    return labeled


def _numbered(
    source: Path, rows: Sequence[tuple[int, str, str]], classes: Sequence[str] | None
) -> tuple[list[int] | None, Sequence[str], str]:
    """The class numbers of the labels, None without any, the class names and what is a guess. Raises DataError."""
    named = [label for *_, label in rows if label]
    if not named:
        return None, classes or (), ""
    numbered = classes_from_label_names(named)
    if classes is None:
        return [numbered.index(label) if label else -1 for *_, label in rows], numbered, ""
    known = {k: name for k, name in enumerate(numbered) if name in set(named)}
    number = match_labels_to_classes(known, classes, made_from_names=True, names_source=f"labels of {source}")
    number_of = {name: number[numbered.index(name)] for name in named}
    return (
        [number_of[label] if label else -1 for *_, label in rows],
        classes_named_by_labels(classes, number_of),
        number.assumption,
    )


def _read_table(source: Path, label_name: str | None) -> Iterator[Row]:
    delimiter = "\t" if source.suffix.lower() == ".tsv" else ","
    with source.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(
            file, delimiter=delimiter, quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
        )
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    if not rows:
        return
    text, label, has_header = _find_text_and_label_columns(source, rows[0][1], label_name)
    for line, row in rows[has_header:]:
        if len(row) <= max(text, label or 0):
            raise DataError(
                f"line {line} of {source} has {len(row)} columns, such as {row[:3]}; {WANTED_TEXT_COLUMNS_TEXT}"
            )
        yield line, row[text], None if label is None else row[label].strip()


def _find_text_and_label_columns(source: Path, first: Sequence[str], label: str | None) -> tuple[int, int | None, bool]:
    """The columns of texts and of labels, and whether the first row names them. Raises DataError."""
    names = [normalized_name(cell) for cell in first]
    labels = [names.index(name) for name in TEXT_LABEL_COLUMN_NAMES if name in names]
    if label is not None:
        labels = [_label_position(source, first, label)]
    texts = [names.index(name) for name in TEXT_COLUMN_NAMES if name in names and names.index(name) not in labels]
    if label is not None and not texts and len(first) == 2:
        texts = [1 - labels[0]]
    if texts:
        if not labels:
            _warn_of_unread_columns(source, [name for i, name in enumerate(first) if i != texts[0]])
        return texts[0], labels[0] if labels else None, True
    if labels or len(first) > 2:
        raise DataError(f"{source} has the columns {listed_names(first)}; {WANTED_TEXT_COLUMNS_TEXT}")
    return 0, 1 if len(first) == 2 else None, False


def _label_position(source: Path, names: Sequence[str], label: str) -> int:
    """Where the column of labels is. Raises UnclearLabelsError."""
    if label not in names:
        raise UnclearLabelsError(f"{source} has no column {label!r} for labels; it has {listed_names(names)}")
    return names.index(label)


def _warn_of_unread_columns(source: Path, names: Sequence[str]) -> None:
    if names:
        columns = "the column" if len(names) == 1 else "the columns"
        warn(f"{to_printable(source.name)}: no column is called label, so that {columns} {listed_names(names)} "
             f"{'is' if len(names) == 1 else 'are'} not read. {TEXT_LABEL_ADVICE}")  # fmt: skip


def _read_json_lines(source: Path, label_name: str | None) -> Iterator[Row]:
    columns: dict[tuple[str, ...], tuple[int, int | None, bool]] = {}  # by the fields of a line
    with source.open(encoding="utf-8-sig", errors="replace") as file:
        for line, content in enumerate(file, 1):
            if not content.strip():
                continue
            value = _parse_json_object(source, line, content)
            fields = tuple(value)
            if fields not in columns:
                columns[fields] = _find_text_and_label_columns(source, fields, label_name)
            text, label, has_names = columns[fields]
            values = list(value.values())
            if not has_names or not isinstance(values[text], str):
                raise DataError(
                    f"line {line} of {source} has the fields {listed_names(value)}; {WANTED_TEXT_COLUMNS_TEXT}"
                )
            yield line, values[text], None if label is None or values[label] is None else str(values[label])


def _parse_json_object(source: Path, line: int, content: str) -> Mapping[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"line {line} of {source} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"line {line} of {source} is no JSON object, but a {type(value).__name__}")
    return value


def _read_lines(source: Path, label_name: str | None) -> Iterator[Row]:
    if label_name is not None:
        raise UnclearLabelsError(f"{source} holds texts alone, without columns; got label={label_name!r}")
    with source.open(encoding="utf-8-sig", errors="replace") as file:
        yield from ((line, text, None) for line, text in enumerate(file, 1) if text.strip())


READER_BY_SUFFIX: Mapping[str, Callable[[Path, str | None], Iterator[Row]]] = {
    ".csv": _read_table,
    ".tsv": _read_table,
    ".jsonl": _read_json_lines,
    ".txt": _read_lines,
}
