"""Batches of examples from tensors, datasets, loaders or iterables: one pass in bounded memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...box import Box
from ...errors import DataError, InputError, UnclearLabelsError, warn
from ...inputs.base import Inputs
from ...inputs.examples import (
    OpenedData,
    OpenedDataset,
    OpenedStream,
    input_batches,
    is_single_pass_data,
    is_table_file,
    iter_examples,
    open_data,
    stack_inputs,
)
from ...inputs.features import Features
from ...inputs.frames import frame_with_labels, is_data_frame
from ...inputs.items import SkippedExamples, drop_label
from ...inputs.labels import is_missing_label, label_to_text, missing_labels_text
from ...inputs.multi import MultiInput
from ...inputs.pixel_arrays import is_image_folder
from ...inputs.pixels import Pixels
from ...inputs.signed_labels import refuse_signed_labels
from ...model.batching import BatchSize, check_batch_size, map_in_batches
from ...validation import check_int, expand_home, missing_path_text
from ..cpu_cache import data_examples_per_batch
from .class_labels import LabelMatcher, columns_of_outputs, has_class_labels, label_matcher

MAX_NAMED_ROWS = 8  # in a warning
FRAME_ADVICE = 'Of a DataFrame or a file, name the column: ub.data.table(data, box, label="COLUMN")'


class LabeledExamples(NamedTuple):
    """Labeled examples, without those that could not be read."""

    x: Tensor  # (N, ...)
    y: Tensor  # (N,) classes of the box
    dataset_rows: Tensor  # (N,) indices in the data


class OptionallyLabeledExamples(NamedTuple):
    """Examples with or without labels, without those that could not be read."""

    x: Tensor  # (N, ...)
    y: Tensor | None  # (N,) classes of the box
    dataset_rows: Tensor  # (N,) indices in the data


class ExamplesWithUnreadLabels(NamedTuple):
    """Examples with labels of any form, without those that could not be read."""

    x: Tensor  # (N, ...)
    labels: Tensor | list[Any] | None  # one per example; None where all have none
    dataset_rows: Tensor  # (N,) indices in the data


def has_value_labels(data: Any) -> bool:
    """Whether a label of -1 is that number: a folder of images without labels has -1 of each, a class that is none."""
    return bool(getattr(data, "labels_are_values", True))


def for_each_batch(
    box: Box,
    data: Any,
    callback: Callable[[Tensor], object],
    *,
    batch_size: BatchSize = "auto",
    max_rows: int | None = None,
    skipped: SkippedExamples | None = None,
) -> None:
    """Call `func` on batches of the validated inputs of `data`, in their order, as large as fit in memory.

    All at once for a batch-dependent model. Raises DataError, and InputError for inputs that do not fit the box.
    """
    batch_size = check_batch_size(batch_size)
    max_rows = max_rows or data_examples_per_batch(box)
    rows_per_batch = min(max_rows, box.batch_limit) if batch_size == "auto" else batch_size
    for x in input_batches(
        open_data(data, box.inputs), sys.maxsize if box.batch_dependent else rows_per_batch, skipped
    ):
        _call_in_batches(box, box.validate_inputs(x), callback, batch_size)


def _call_in_batches(box: Box, x: Tensor, callback: Callable[[Tensor], object], batch_size: BatchSize) -> None:
    map_in_batches(lambda rows: callback(x[rows]), len(x), *box.batch_size_and_max_rows(len(x), batch_size))


def labeled_examples(box: Box, data: Any, max_examples: int | None = None) -> tuple[Tensor, Tensor]:
    """The first inputs (N, ...) and classes (N,) of (x, y) tensors or a Dataset or iterable of (input, class).

    Labels are matched to the box's classes by name where the data has names (see `class_labels`). Image files that
    cannot be read are left out, and so are examples without a label (None, NaN, -1) beside others with one. Raises
    DataError where there are no examples or no labels, InputError for what does not fit the box.
    """
    return indexed_labeled_examples(box, data, max_examples)[:2]


def indexed_labeled_examples(box: Box, data: Any, max_examples: int | None = None) -> LabeledExamples:
    """As `labeled_examples`, with the indices of the examples in the data."""
    first = _read_first_examples(box, data, max_examples).require_labels(box).without_unlabeled(box)
    return LabeledExamples(first.x, first.classes(box, label_matcher(box, data)), first.dataset_rows)


def first_inputs(box: Box, data: Any, max_examples: int | None = None) -> Tensor:
    """The first inputs (N, ...) of data with or without labels. Raises DataError and InputError."""
    return _read_first_examples(box, data, max_examples).x


def indexed_inputs(box: Box, data: Any, max_examples: int | None = None) -> tuple[Tensor, Tensor]:
    """As `first_inputs`, with the indices (N,) of the examples in the data: files that cannot be read are left out."""
    first = _read_first_examples(box, data, max_examples)
    return first.x, first.dataset_rows


def examples_with_optional_labels(box: Box, data: Any, max_examples: int | None = None) -> tuple[Tensor, Tensor | None]:
    """As `labeled_examples`; the classes are None where no example has a label."""
    return indexed_examples(box, data, max_examples)[:2]


def indexed_examples(box: Box, data: Any, max_examples: int | None = None) -> OptionallyLabeledExamples:
    """As `examples_with_optional_labels`, with the indices of the examples in the data."""
    first = _read_first_examples(box, data, max_examples).without_unlabeled(box)
    y = first.classes(box, label_matcher(box, data)) if first.has_labels() else None
    return OptionallyLabeledExamples(first.x, y, first.dataset_rows)


def inputs_and_labels(box: Box, x: Any, y: Any = None) -> tuple[Tensor, Any]:
    """Checked inputs (N, ...) and their labels: y itself, or where that is None, those that come with x, if any.

    Raises InputError.
    """
    if y is not None or isinstance(x, Tensor):
        return box.validate_inputs(x), y
    try:
        return examples_with_optional_labels(box, x)
    except DataError as error:
        raise InputError(str(error)) from error


def examples_with_unread_labels(box: Box, data: Any, max_examples: int | None = None) -> ExamplesWithUnreadLabels:
    """The first inputs (N, ...) of data, with their labels as they came, which may be numbers or maps.

    Examples without a label (None, NaN) beside others with one are left out. Raises DataError and InputError.
    """
    data = open_image_folder(box, data)
    first = _read_first_examples(box, data, max_examples, has_label_maps=bool(box.output_map_shape))
    are_values = has_value_labels(data)
    first = first.without_unlabeled(box, are_values=are_values)
    labels = first.labels if first.has_labels(are_values=are_values) else None
    return ExamplesWithUnreadLabels(first.x, labels, first.dataset_rows)


@dataclass(frozen=True, eq=False)
class _ExamplesWithOptionalLabels:
    x: Tensor  # (N, ...)
    labels: Tensor | list[Any]  # (N,) numbers or names, None where there is none
    skipped: SkippedExamples

    kept: Tensor | None = None  # (N,) indices among those that could be read; None is all

    @property
    def dataset_rows(self) -> Tensor:
        """The indices (N,) in the data."""
        return self.skipped.dataset_rows(torch.arange(len(self.x)) if self.kept is None else self.kept)

    def has_labels(self, *, are_values: bool = False) -> bool:
        """Whether an example has a label."""
        return not all(is_missing_label(label, is_value=are_values) for label in self.labels)

    def without_unlabeled(self, box: Box, *, are_values: bool = False) -> _ExamplesWithOptionalLabels:
        """Those with a label, where there are some: the others are left out, and warned of.

        Raises DataError for two classes that are labeled -1 and 1.
        """
        if not are_values and has_class_labels(box):
            refuse_signed_labels(self.labels, box.n_outputs)
        kept = [i for i, label in enumerate(self.labels) if not is_missing_label(label, is_value=are_values)]
        if len(kept) in (0, len(self.labels)):
            return self
        missing = sorted({*range(len(self.labels))} - {*kept})
        rows = ", ".join(map(str, missing[:MAX_NAMED_ROWS])) + ", ..." * (len(missing) > MAX_NAMED_ROWS)
        text = missing_labels_text(len(missing), len(self.labels))
        warn(f"{text} (row{'s' * (len(missing) > 1)} {rows}): results number the others from 0")
        labels = self.labels[kept] if isinstance(self.labels, Tensor) else [self.labels[i] for i in kept]
        return replace(self, x=self.x[kept], labels=labels, kept=torch.tensor(kept))

    def require_labels(self, box: Box) -> _ExamplesWithOptionalLabels:
        """The examples themselves. Raises DataError where they have no labels."""
        if self.has_labels():
            return self
        if getattr(box.inputs, "is_text", False):
            raise DataError("these texts have no labels; wanted (texts, labels), or a file of both: "
                            "ub.data.texts(path, box)")  # fmt: skip
        expected = (
            f"a folder with a subfolder for each class, a Dataset of (input, class), or tensors (x, y). {FRAME_ADVICE}"
        )
        raise DataError(f"these examples have no labels; wanted {expected}")

    def classes(self, box: Box, to_classes: LabelMatcher) -> Tensor:
        """Classes (N,) of the box. Raises DataError where some have no label, InputError for classes out of range."""
        refuse_signed_labels(self.labels, box.n_outputs if has_class_labels(box) else 0)
        classes = to_classes(self.labels)
        if not isinstance(self.labels, Tensor) and (n_missing := int((classes == -1).sum())):
            problem = f"{n_missing} of {len(classes)} examples have no label"
            raise DataError(f"{problem}; give all of them one, or none")
        return box.class_labels(classes, len(self.x))


def open_image_folder(box: Box, data: Any) -> Any:
    """The path of a folder as its images, labeled by the box's classes, opened by `ub.data.folder`; other data as they
    are. Raises DataError, also for a path of nothing."""
    is_path = isinstance(box.inputs, Pixels) and isinstance(data, (str, os.PathLike))
    if is_path and not os.path.exists(expand_home(data)):
        raise DataError(missing_path_text(data, "file or folder"))
    opens = is_image_folder(data, box.inputs)
    return import_module("unboxed.data.folders").folder_with_warning(data, box) if opens else data


def open_labeled_path(box: Box, data: Any) -> Any:
    """A folder of images, or a table in a DataFrame or a file, as examples with labels, opened by `ub.data.folder`,
    `ub.data.table` or `ub.data.texts`; other data as they are.

    A column that could be one of several is left for what needs labels. Raises DataError for labels that don't fit.
    """
    data = open_image_folder(box, data)
    if not (is_data_frame(data) or is_table_file(data)) or isinstance(box.inputs, MultiInput):
        return data
    try:
        if is_data_frame(data) and isinstance(box.inputs, Features) and not columns_of_outputs(box, data.columns):
            return _frame_with_labels(box, data)
        readers = import_module("unboxed.data")  # which are above this module
        return (readers.texts if getattr(box.inputs, "is_text", False) else readers.table)(data, box)
    except UnclearLabelsError:
        return data


def _frame_with_labels(box: Box, frame: Any) -> Any:
    found = frame_with_labels(frame, box.inputs)  # type: ignore[arg-type]
    if found is None:
        return frame
    frame, labels = found
    return frame, [label_to_text(label) or None for label in labels] if has_class_labels(box) else labels


def labeled_batches(
    box: Box, data: Any, size: int, to_classes: LabelMatcher | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs (n, ...) and classes (n,) of all labeled examples, `size` at a time, in bounded memory.

    `to_classes` matches their labels, where that is made already. Raises as `labeled_examples`.
    """
    to_classes = label_matcher(box, data) if to_classes is None else to_classes
    for batch in _iter_batches(box, data, size):
        yield batch.x, batch.require_labels(box).classes(box, to_classes)


def classes_of_records(box: Box, to_classes: LabelMatcher, records: list[Any]) -> tuple[Tensor, Tensor]:
    """Inputs (n, ...) and classes (n,) of examples (input, label). Raises as `labeled_examples`."""
    examples = _examples_from_records(box, records, SkippedExamples()).require_labels(box)
    return examples.x, examples.classes(box, to_classes)


def batches_with_unread_labels(box: Box, data: Any, size: int) -> Iterator[ExamplesWithUnreadLabels]:
    """All examples, `size` at a time, in bounded memory: also those without a label, with labels as they came.

    Raises DataError and InputError.
    """
    for batch in _iter_batches(box, data, size, has_label_maps=bool(box.output_map_shape)):
        yield ExamplesWithUnreadLabels(batch.x, batch.labels, batch.dataset_rows)


def _iter_batches(
    box: Box, data: Any, size: int, has_label_maps: bool = False
) -> Iterator[_ExamplesWithOptionalLabels]:
    skipped, n_read = SkippedExamples(), 0
    opened = open_data(open_labeled_path(box, data), box.inputs, has_label_maps)
    for part in _iter_record_batches(opened, size, skipped):
        batch = (
            _read_first_examples(box, part, None, has_label_maps)
            if isinstance(part, tuple)
            else _examples_from_records(box, part, skipped)
        )
        yield replace(batch, skipped=skipped, kept=torch.arange(n_read, n_read + len(batch.x)))
        n_read += len(batch.x)
    skipped.raise_if_none_read(n_read)
    skipped.warn()


def _iter_record_batches(
    opened: OpenedData, size: int, skipped: SkippedExamples
) -> Iterator[tuple[Any, Any] | list[Any]]:
    """(x, y) of slices of tensors, or lists of examples."""
    if isinstance(opened, tuple) and opened[1] is not None:
        yield from ((opened[0][i : i + size], opened[1][i : i + size]) for i in range(0, len(opened[0]), size))
        return
    records = iter_examples(opened, skipped)
    while part := list(islice(records, size)):
        yield part


def _examples_from_records(box: Box, records: list[Any], skipped: SkippedExamples) -> _ExamplesWithOptionalLabels:
    labels = [record[1] if isinstance(record, (tuple, list)) else None for record in records]
    return _ExamplesWithOptionalLabels(box.validate_inputs(stack_inputs(records)), labels, skipped)


def _read_first_examples(
    box: Box, data: Any, max_examples: int | None, has_label_maps: bool = False
) -> _ExamplesWithOptionalLabels:
    """The first examples. Raises DataError where there are none, InputError for inputs that do not fit the box."""
    if max_examples is not None:
        check_int("max_examples", max_examples, minimum=1)
    skipped, opened = SkippedExamples(), open_data(open_labeled_path(box, data), box.inputs, has_label_maps)
    if isinstance(opened, tuple) and opened[1] is not None:
        x, y = opened
        labels = y[:max_examples] if isinstance(y, Tensor) else list(y[:max_examples])
        return _ExamplesWithOptionalLabels(box.validate_inputs(x[:max_examples]), labels, skipped)
    records = list(islice(iter_examples(opened, skipped), max_examples))
    skipped.raise_if_none_read(len(records))
    skipped.warn()
    return _examples_from_records(box, records, skipped)


def fetch_inputs(data: Any, dataset_rows: Tensor | Sequence[int], inputs: Inputs | None = None) -> Tensor:
    """The inputs (M, ...) at these indices of `data`, counted as by `input_batches`.

    `inputs` says what images become, as in `open_data`. Raises DataError for indices out of range, or `data` that can
    be read only once.
    """
    row_numbers = torch.as_tensor(dataset_rows).flatten().tolist()
    if is_single_pass_data(data):
        raise DataError("these data can be read only once, or come in another order each time: pass them as a Dataset")
    opened = drop_label(open_data(data, inputs))
    has_length = not isinstance(opened, OpenedStream)
    if row_numbers and (min(row_numbers) < 0 or (has_length and max(row_numbers) >= len(opened))):
        raise DataError(
            f"the data have no example number {min(row_numbers) if min(row_numbers) < 0 else max(row_numbers)}"
        )
    if isinstance(opened, Tensor):
        return opened[torch.tensor(row_numbers, dtype=torch.long, device=opened.device)]
    is_dataset = isinstance(opened, OpenedDataset)
    return stack_inputs([opened[i] for i in row_numbers] if is_dataset else _fetch_in_one_pass(opened, row_numbers))


def _fetch_in_one_pass(data: Any, row_numbers: Sequence[int]) -> list[Any]:
    """The items at these indices, in one pass."""
    unique_rows = set(row_numbers)
    records = islice(iter_examples(data, SkippedExamples()), max(unique_rows, default=-1) + 1)
    record_by_row = {i: record for i, record in enumerate(records) if i in unique_rows}
    if missing_rows := unique_rows - record_by_row.keys():
        raise DataError(f"the data have no example number {min(missing_rows)}")
    return [record_by_row[i] for i in row_numbers]
