"""Tables, CSV and Parquet: of image files and their labels, or of numbers."""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..atomic_write import to_printable
from ..box import Box
from ..errors import DataError, MissingPackageError, UnclearLabelsError, warn
from ..inputs import image_files
from ..inputs.base import Inputs
from ..inputs.examples import TABLE_SUFFIXES as TABLE_SUFFIXES
from ..inputs.features import Features
from ..inputs.frames import LABEL_COLUMN_NAMES, is_data_frame
from ..inputs.images import require_pixels
from ..inputs.labels import classes_from_label_names, label_to_text, label_to_value
from ..inputs.pixels import Pixels
from ..inputs.signed_labels import refuse_signed_labels
from ..validation import listed_names, missing_path_text, normalized_name
from .labeled_files import LabeledFiles, SkippedFileReasons, resolve_classes_and_inputs
from .rows import FeatureRows, finite_number, read_rows, select_feature_columns

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


def table(
    path: Any, like: Inputs | Box, classes: Sequence[str] | None = None, *, label: str | None = None
) -> LabeledFiles | FeatureRows:
    """The examples of a table with their labels: the images that it lists, or for a model of tables its rows.

    Images are decoded on access, as `folder` does.

    Args:
        path: A CSV, TSV or Parquet file. For a model of tables (`Features`) it has its columns, in any order, and one
            of labels (label, class, target, or the only other one); for a model of images a column of file names,
            relative to the table's folder, and one of labels; a CSV without a header has them in this order. Parquet
            needs pyarrow. A DataFrame of pandas is taken, too; its file names are relative to the working directory.
        like: What the examples are: a box, or its `inputs`.
        classes: Class names that labels are numbered by. None takes the box's, where `like` is one, else those of the
            table in their order. Labels that are whole numbers, also written 1.0, are the class numbers themselves.
        label: The column of labels. None takes the one that is called so, or else the only one that is no input.

    Returns:
        Images (C, H, W) in [0, 1], or rows (F,), with class numbers, -1 without labels; with numbers where `like` is a
        box of regression. Rows without a label are left out with a warning; of images, those without a sound image,
        too, and they are listed in `.skipped`.

    Raises:
        DataError: for a wrong path, a table without such columns, a file with two labels, labels that are not the
            classes, and where no image is left.
        MissingPackageError: for a Parquet file without pyarrow.

    Example:
        >>> import unboxed as ub
        >>> photos = ub.data.table("labels.csv", ub.Pixels((3, 224, 224)))  # doctest: +SKIP
    """
    dataset = open_table(path, like, classes, label)
    if isinstance(dataset, FeatureRows):
        return dataset
    if n := len(dataset.skipped):
        rows, first = "a row is" if n == 1 else f"{n} rows are", _skipped_file_text(dataset.skipped[0])
        warn(f"{rows} left out of {dataset.name}: {first}{', ...' * (n > 1)}; see .skipped")
    return dataset


def open_table(
    path: Any, like: Inputs | Box, classes: Sequence[str] | None = None, label: str | None = None, *,
    keep_unlabeled: bool = False,
) -> LabeledFiles | FeatureRows:  # fmt: skip
    """As `table`, for callers that say themselves what is left out; rows of numbers without a label may be kept."""
    is_regression = isinstance(like, Box) and like.outputs == "regression"
    classes, like = resolve_classes_and_inputs(like, classes)
    if isinstance(like, Features):
        source, columns = _read_values_by_column(path)
        return read_rows(
            source, columns, like, classes, is_regression=is_regression, label=label, keep_unlabeled=keep_unlabeled
        )
    if getattr(like, "is_text", False):
        raise DataError(
            "a table of texts is opened by ub.data.texts(path, box); ub.data.table is for numbers and images"
        )
    pixels, skipped = require_pixels(like), SkippedFileReasons()
    source, read = (
        (Path("the DataFrame"), _files_and_labels_of_frame(path, label))
        if is_data_frame(path)
        else _open_table_of_files_and_labels(path, label)
    )
    rows = list(read)
    if not is_regression:
        refuse_signed_labels([label for _, label in rows], None if classes is None else len(classes))
    listed = (
        _with_texts_of_numbers(rows, source)
        if is_regression
        else [(file, label_to_text(label) or None) for file, label in rows]
    )
    label_by_file = _labels_by_file(source, listed, skipped)
    if is_regression:
        dataset = _files_with_values(source, label_by_file, pixels, skipped)
        dataset.label_name = label or ""
        return dataset
    names = {file: str(label) for file, label in label_by_file.items() if label is not None}
    numbered = classes_from_label_names(list(names.values()))
    number_of = {name: _class_number(name, numbered) for name in names.values()}
    files = [
        (file, number_of[names[file]] if file in names else -1)
        for file in _readable_image_paths(label_by_file, skipped)
    ]
    _require_files(files, source, skipped)
    label_names = {number_of[name]: name for name in dict.fromkeys(names.values())}
    dataset = LabeledFiles(source, files, tuple(numbered), pixels, skipped, dict(sorted(label_names.items())))
    return dataset if classes is None else dataset.relabeled_by_classes(classes)


def inputs_of_table(path: str | os.PathLike[str], inputs: Features | Pixels) -> Tensor | list[Path]:
    """The inputs in a table, whatever its other columns: rows (N, F), or the paths of images. Raises DataError."""
    source = check_table_path(path)
    if isinstance(inputs, Features):
        return select_feature_columns(read_columns(source), inputs.names, source)
    return list(table(source, inputs).paths)  # type: ignore[union-attr]


def _files_with_values(
    source: Path, label_by_file: dict[Path, Any], pixels: Pixels, skipped: SkippedFileReasons
) -> LabeledFiles:
    """Images with a number each, NaN where the table has no labels. Raises DataError."""
    files = [
        (file, math.nan if label_by_file[file] is None else float(label_by_file[file]))
        for file in _readable_image_paths(label_by_file, skipped)
    ]
    _require_files(files, source, skipped)
    dataset = LabeledFiles(source, files, (), pixels, skipped, {})  # type: ignore[arg-type]  # numbers, as of `FeatureRows`
    dataset.labels_are_values = True
    return dataset


def _require_files(files: Sequence[Any], source: Path, skipped: SkippedFileReasons) -> None:
    if not files:
        reasons = "; ".join(map(_skipped_file_text, skipped[:3]))
        raise DataError(f"no image that {source} lists can be read ({reasons or 'it has no rows'})")


def _with_texts_of_numbers(rows: Sequence[FileAndLabel], source: Path) -> list[FileAndLabel]:
    """The rows, with labels that are numbers as text; None for NaN and nothing. Raises DataError for other labels."""
    texts = [(file, label_to_text(label, is_value=True)) for file, label in rows]
    return [(file, str(finite_number(text, "label", source)) if text else None) for file, text in texts]


def _skipped_file_text(skipped: tuple[Path, str]) -> str:
    path, reason = skipped
    return f"{to_printable(path.name)}: {reason}"


def _class_number(name: str, numbered: Sequence[str]) -> int:
    return numbered.index(name) if name in numbered else int(name)


def _labels_by_file(
    source: Path, rows: Sequence[FileAndLabel], skipped: SkippedFileReasons
) -> dict[Path, int | str | None]:
    """The label of each file, in the table's order. Raises DataError for a file with two labels."""
    labels: dict[Path, int | str | None] = {}
    for number, (file, label) in enumerate(rows):
        path, value = source.parent / str(file).strip(), label_to_value(label, f"row {number} of {source.name}")
        if path in labels and labels[path] != value:
            raise DataError(f"{source}: {to_printable(str(file))} has two labels, {labels[path]} and {value}")
        if path in labels:
            skipped.append((path, "listed twice"))
        labels[path] = value
    if (some_labeled := any(v is not None for v in labels.values())) and None in labels.values():
        skipped += [(path, "without a label") for path, v in labels.items() if v is None]
    return {path: v for path, v in labels.items() if v is not None or not some_labeled}


def _readable_image_paths(paths: Any, skipped: SkippedFileReasons) -> list[Path]:
    """The paths that may be images; the others are added to the skipped ones."""
    faults = {path: image_files.unreadable_file_reason(path) for path in paths}
    skipped += [(path, reason) for path, reason in faults.items() if reason]
    return [path for path, reason in faults.items() if not reason]


def _open_table_of_files_and_labels(
    path: str | os.PathLike[str], label: str | None
) -> tuple[Path, Iterator[FileAndLabel]]:
    source = check_table_path(path)
    is_parquet = source.suffix.lower() == ".parquet"
    return source, (_iter_parquet_files_and_labels if is_parquet else _iter_csv_files_and_labels)(source, label)


def check_table_path(path: str | os.PathLike[str]) -> Path:
    """The path of a table. Raises DataError where there is no such file, or none of a table."""
    source = Path(path).expanduser()
    if not source.is_file():
        raise DataError(missing_path_text(source))
    if source.suffix.lower() not in TABLE_SUFFIXES:
        raise DataError(f"{source} is no table; wanted a file {', '.join(TABLE_SUFFIXES)}")
    return source


def _read_values_by_column(path: Any) -> tuple[Path, dict[str, list[Any]]]:
    """{column: its values} of a file or a DataFrame."""
    if is_data_frame(path):
        return Path("the DataFrame"), {str(name): path[name].to_numpy().tolist() for name in path.columns}
    source = check_table_path(path)
    return source, read_columns(source)


def _files_and_labels_of_frame(frame: Any, label: str | None) -> Iterator[FileAndLabel]:
    """The files and labels of a DataFrame."""
    files, labels = _find_file_and_label_columns(list(map(str, frame.columns)), Path("the DataFrame"), label)
    values = frame[files].to_numpy().tolist()
    return iter(zip(values, [None] * len(values) if labels is None else frame[labels].to_numpy().tolist(), strict=True))


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
        from pyarrow import parquet  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise MissingPackageError("Parquet files need pyarrow: pip install pyarrow, or save the table as CSV") from None
    try:
        return parquet.read_table(source)
    except Exception as error:  # a damaged file can make a reader raise anything
        raise DataError(f"{source} is no sound Parquet file: {error}") from error


def _iter_parquet_files_and_labels(source: Path, label: str | None) -> Iterator[FileAndLabel]:
    contents = _open_parquet(source)
    file_column, label_column = _find_file_and_label_columns(contents.column_names, source, label)
    files = contents.column(file_column).to_pylist()
    labels = [None] * len(files) if label_column is None else contents.column(label_column).to_pylist()
    return iter(zip(files, labels, strict=True))


def _read_csv_cells(source: Path) -> list[list[str]]:
    """The cells of a file. File names may be of any encoding: they are decoded as the file system's."""
    with source.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = [line for line in file if line.strip()]
    if not lines:
        raise DataError(f"{source} is empty")
    delimiter = max("\t;,", key=lambda mark: (lines[0].count(mark), mark == ","))
    return [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]


def _iter_csv_files_and_labels(source: Path, label: str | None) -> Iterator[FileAndLabel]:
    rows = _read_csv_cells(source)
    file_index, label_index, has_header = 0, (1 if len(rows[0]) > 1 else None), False
    if label in rows[0] or _is_header(rows[0], source):
        header, has_header = rows[0], True
        file_column, label_column = _find_file_and_label_columns(header, source, label)
        file_index = header.index(file_column)
        label_index = None if label_column is None else header.index(label_column)
    width = max(file_index, label_index or 0)
    if short := [row for row in rows if len(row) <= width]:
        raise DataError(
            f"{source} has rows of fewer than {width + 1} columns, such as {short[0]}; {WANTED_COLUMNS_TEXT}"
        )
    return ((row[file_index], None if label_index is None else row[label_index]) for row in rows[has_header:])


def _is_header(row: Sequence[str], source: Path) -> bool:
    """Whether the first row names columns: it names no file, and has a name of a column or a cell without a dot."""
    if (source.parent / row[0]).is_file():
        return False
    return any(normalized_name(cell) in (*FILE_COLUMN_NAMES, *LABEL_COLUMN_NAMES) for cell in row) or "." not in row[0]


def _find_file_and_label_columns(
    names: Sequence[str], source: Path, label: str | None = None
) -> tuple[str, str | None]:
    """The names of the columns of files and labels, `label` where it is given. Raises DataError."""
    if label is not None and label not in names:
        raise UnclearLabelsError(f"{source} has no column {label!r} for labels; it has {listed_names(names)}")
    by_plain_name = {normalized_name(name): name for name in reversed(names)}
    files, labels = (
        [by_plain_name[n] for n in known if n in by_plain_name] for known in (FILE_COLUMN_NAMES, LABEL_COLUMN_NAMES)
    )
    labels = labels if label is None else [label]
    if not files or (not labels and len(names) > 1):
        raise DataError(f"{source} has the columns {listed_names(names)}; {WANTED_COLUMNS_TEXT}")
    return files[0], labels[0] if labels else None
