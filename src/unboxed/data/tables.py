"""Tables, CSV and Parquet: of image files and their labels, or of numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..atomic_write import to_printable
from ..box import Box
from ..errors import DataError, warn
from ..inputs.base import Inputs
from ..inputs.examples import TABLE_SUFFIXES as TABLE_SUFFIXES
from ..inputs.features import Features
from ..inputs.images import require_pixels
from ..inputs.labels import classes_from_label_names, label_to_text, label_to_value
from ..inputs.pixels import Pixels
from ..inputs.signed_labels import refuse_signed_labels
from .labeled_files import (
    LabeledFiles,
    SkippedFileReasons,
    readable_image_paths,
    require_files,
    resolve_classes_and_inputs,
    skipped_file_text,
)
from .output_columns import open_table_of_output_columns, output_columns
from .rows import FeatureRows, finite_number, read_rows, select_feature_columns
from .table_files import FileAndLabel, check_table_path, files_and_labels, read_columns, values_by_column


def table(
    path: Any, like: Inputs | Box, classes: Sequence[str] | None = None, *, label: str | None = None
) -> LabeledFiles | FeatureRows:
    """The examples of a table with their labels: the images that it lists, or for a model of tables its rows.

    Images are decoded on access, as `folder` does.

    Args:
        path: A CSV, TSV or Parquet file. For a model of tables (`Features`) it has its columns, in any order, and one
            of labels (label, class, target, or the only other one); for a model of images a column of file names,
            relative to the table's folder, and one of labels; a CSV without a header has them in this order. Where a
            model has several labels or numbers, columns that are called as its outputs have them. Parquet
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
        rows, first = "a row is" if n == 1 else f"{n} rows are", skipped_file_text(dataset.skipped[0])
        warn(f"{rows} left out of {dataset.name}: {first}{', ...' * (n > 1)}; see .skipped")
    return dataset


def open_table(
    path: Any, like: Inputs | Box, classes: Sequence[str] | None = None, label: str | None = None, *,
    keep_unlabeled: bool = False,
) -> LabeledFiles | FeatureRows:  # fmt: skip
    """As `table`, for callers that say themselves what is left out; those without a label may be kept."""
    is_regression = isinstance(like, Box) and like.outputs == "regression"
    if isinstance(like, Box) and label is None and (outputs := output_columns(path, like)):
        if len(outputs) > 1 or not is_regression:
            return open_table_of_output_columns(path, like, outputs, keep_unlabeled)
        label = outputs[0]
    classes, like = resolve_classes_and_inputs(like, classes)
    if isinstance(like, Features):
        source, columns = values_by_column(path)
        return read_rows(
            source, columns, like, classes, is_regression=is_regression, label=label, keep_unlabeled=keep_unlabeled
        )
    if getattr(like, "is_text", False):
        raise DataError(
            "a table of texts is opened by ub.data.texts(path, box); ub.data.table is for numbers and images"
        )
    pixels, skipped = require_pixels(like), SkippedFileReasons()
    source, rows = files_and_labels(path, label, "also the only other" if is_regression else "called so")
    if not is_regression:
        refuse_signed_labels([label for _, label in rows], None if classes is None else len(classes))
    listed = (
        _with_texts_of_numbers(rows, source)
        if is_regression
        else [(file, label_to_text(label) or None) for file, label in rows]
    )
    label_by_file = _labels_by_file(source, listed, skipped, keep_unlabeled)
    if is_regression:
        dataset = _files_with_values(source, label_by_file, pixels, skipped)
        dataset.label_name = label or ""
        return dataset
    names = {file: str(label) for file, label in label_by_file.items() if label is not None}
    numbered = classes_from_label_names(list(names.values()))
    number_of = {name: _class_number(name, numbered) for name in names.values()}
    files = [
        (file, number_of[names[file]] if file in names else -1) for file in readable_image_paths(label_by_file, skipped)
    ]
    require_files(files, source, skipped)
    label_names = {number_of[name]: name for name in dict.fromkeys(names.values())}
    dataset = LabeledFiles(source, files, tuple(numbered), pixels, skipped, dict(sorted(label_names.items())))
    return dataset if classes is None else dataset.relabeled_by_classes(classes)


def inputs_of_table(path: str | os.PathLike[str], inputs: Features | Pixels) -> Tensor | list[Path]:
    """The inputs in a table, whatever its other columns: rows (N, F), or the paths of images. Raises DataError."""
    source = check_table_path(path)
    if isinstance(inputs, Features):
        return select_feature_columns(read_columns(source), inputs.names, source)
    return list(unlabeled_images(source, inputs).paths)


def unlabeled_images(path: Any, inputs: Pixels) -> LabeledFiles:
    """The images that a table lists, whatever its other columns: as often as they are listed. Raises DataError."""
    source, rows = files_and_labels(path, None, "none")
    skipped, paths = SkippedFileReasons(), [source.parent / str(file).strip() for file, _ in rows]
    sound = set(readable_image_paths(dict.fromkeys(paths), skipped))
    files = [(file, -1) for file in paths if file in sound]
    require_files(files, source, skipped)
    return LabeledFiles(source, files, (), inputs, skipped, {})


def _files_with_values(
    source: Path, label_by_file: dict[Path, Any], pixels: Pixels, skipped: SkippedFileReasons
) -> LabeledFiles:
    """Images with a number each, NaN where the table has no labels. Raises DataError."""
    files = [
        (file, math.nan if label_by_file[file] is None else float(label_by_file[file]))
        for file in readable_image_paths(label_by_file, skipped)
    ]
    require_files(files, source, skipped)
    dataset = LabeledFiles(source, files, (), pixels, skipped, {})  # type: ignore[arg-type]  # numbers, as of `FeatureRows`
    dataset.labels_are_values = True
    return dataset


def _with_texts_of_numbers(rows: Sequence[FileAndLabel], source: Path) -> list[FileAndLabel]:
    """The rows, with labels that are numbers as text; None for NaN and nothing. Raises DataError for other labels."""
    texts = [(file, label_to_text(label, is_value=True)) for file, label in rows]
    return [(file, str(finite_number(text, "label", source)) if text else None) for file, text in texts]


def _class_number(name: str, numbered: Sequence[str]) -> int:
    return numbered.index(name) if name in numbered else int(name)


def _labels_by_file(
    source: Path, rows: Sequence[FileAndLabel], skipped: SkippedFileReasons, keep_unlabeled: bool
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
    if keep_unlabeled or all(v is None for v in labels.values()):
        return labels
    skipped += [(path, "without a label") for path, v in labels.items() if v is None]
    return {path: v for path, v in labels.items() if v is not None}
