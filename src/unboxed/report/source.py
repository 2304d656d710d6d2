"""The data of a report: any data set, read by index, a batch at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from .. import data as sets
from ..atomic_write import to_printable
from ..box import Box
from ..engine.read.class_labels import data_name_for_messages, dataset_class_names, has_class_labels, label_assumption
from ..engine.read.examples import open_image_folder, open_labeled_path
from ..errors import BrokenImageError, DataError
from ..inputs.examples import OpenedData, OpenedDataset, iter_examples, open_data
from ..inputs.frames import frames_to_arrays, target_column_name
from ..inputs.items import SkippedExamples, item_or_data_error
from ..inputs.labeled_texts import read_texts_and_labels
from ..inputs.labels import ClassByLabel, are_default_class_names, label_to_text, label_to_value, readable_class_names
from ..inputs.pixels import Pixels
from ..inputs.signed_labels import refuse_signed_labels
from ..inputs.tokens import Tokens
from .words import shorten_middle

DEFAULT_DATA_NAME = "tensors"  # of data without a name
MAX_FILE_NAME_CHARACTERS = 20  # that are printed
BINARY_CLASS_NAMES = ("no", "yes")  # of a model with one probability, unless they are named


class ReadExamples(NamedTuple):
    rows: list[int]  # indices in the data of those that could be read
    x: Tensor  # (n, ...)
    y: list[int]  # labels as the box counts classes, -1 where there is none
    targets: list[Any]  # labels of outputs that are no classes, as the data have them; None where there is none


class ReportData:
    """Examples for a box. Broken images of a folder are skipped.

    Raises DataError for what is no data set, for an empty one, and for labels that the model has no class for.
    """

    def __init__(self, data: Any, box: Box) -> None:
        data = open_image_folder(box, data)
        self.binary = box.outputs == "binary"
        self.labeled = has_class_labels(box)
        self._inputs, self._source = box.inputs, data
        self._targets: dict[int, Any] = {}  # of the examples read last
        self._label_texts: set[str] = set()  # of all examples read so far
        self.name = _name_of_data(data)
        target = target_column_name(data, box.inputs) if box.outputs == "regression" else ""
        self.n_unlabeled = int(getattr(data, "n_unlabeled", 0))  # examples that were left out when it was opened
        skipped = SkippedExamples()
        data = open_labeled_path(box, data)
        self._data = _to_dataset(data, box, self.labeled, self.name, skipped, self._targets)
        self._broken_reasons = dict(enumerate(skipped.reasons, -len(skipped.reasons)))  # of a stream, before its rows
        if len(self._data) == 0:
            raise DataError("the data are empty; a report needs one example or more")
        names = dataset_class_names(data)
        if self.labeled and not names.names:  # labels that are names are numbered by then
            names = dataset_class_names(self._data)
        known = (target,) if target else names.names_in_label_order()
        self.classes = _class_names_of_box_or_data(known, box)
        self._class_of_label = (
            names.class_by_label(box, data_name_for_messages(data)) if self.labeled else ClassByLabel()
        )
        self.label_assumption = label_assumption(data) or self._class_of_label.assumption  # about the order of classes
        self._box = box

    def __len__(self) -> int:
        return len(self._data)

    def prefixed_name_or_empty(self, prefix: str) -> str:
        """The name after a prefix; "" for tensors, which have no name."""
        return "" if self.name == DEFAULT_DATA_NAME else f"{prefix}{self.name}"

    @property
    def skipped(self) -> tuple[tuple[Any, str], ...]:
        """Files that could not be read so far, and why."""
        skipped_files = getattr(self._data, "skipped", None)
        return (
            tuple((f"example {i}" if i >= 0 else "an example", why) for i, why in self._broken_reasons.items())
            if skipped_files is None
            else tuple(skipped_files)
        )

    def read(self, rows: Sequence[int]) -> ReadExamples:
        """The examples at these rows that can be read."""
        readable = [(i, read) for i in rows if (read := self._read_item_or_record_broken(i)) is not None]
        if not readable:
            return ReadExamples([], torch.empty(0), [], [])
        indices, values = [i for i, _ in readable], [value for _, (value, _) in readable]
        is_text = isinstance(self._inputs, Tokens)
        x = self._inputs.pack(values if is_text else torch.stack([torch.as_tensor(value) for value in values]))
        labels = [self._label_to_class_index(y) for _, (_, y) in readable]
        if self.labeled:
            self._label_texts |= {label_to_text(y, is_value=True) for _, (_, y) in readable}
        return ReadExamples(indices, x, labels, [self._targets.pop(i, None) for i in indices])

    def refuse_signed_labels(self) -> None:
        """Raise DataError where the labels read so far are -1 and 1 of two classes."""
        refuse_signed_labels(self._label_texts, len(self.classes))

    def file_name(self, row: int) -> str:
        """The name of an example's file, with its folder where names alone are ambiguous; "" where it has none."""
        return self._file_names[row] if self._file_names else ""

    def row_of_file(self, name: str) -> int | None:
        """The example whose file has this name, with or without its folder; None where there is none, or several."""
        parts = Path(name).parts
        rows = [i for i, path in enumerate(self._paths) if path.parts[-len(parts) :] == parts]
        return rows[0] if len(rows) == 1 else None

    @cached_property
    def _paths(self) -> list[Path]:
        """The files of the examples; none where they are not of files."""
        items = getattr(self._source, "paths", self._source)
        is_files = isinstance(items, (list, tuple)) and all(isinstance(p, (str, os.PathLike)) for p in items)
        return [Path(p) for p in items] if is_files and isinstance(self._inputs, Pixels) else []

    @cached_property
    def _file_names(self) -> list[str]:
        names = [path.name for path in self._paths]
        if len(set(names)) < len(names):
            names = ["/".join(path.parts[-2:]) for path in self._paths]
        return [shorten_middle(to_printable(name), MAX_FILE_NAME_CHARACTERS) for name in names]

    def texts(self, rows: Sequence[int]) -> list[str]:
        """The texts at these rows, of a model of texts; both of a pair in one."""
        texts = [_split_item_into_input_and_label(self._data[i], self.labeled)[0] for i in rows]
        return [text if isinstance(text, str) else " | ".join(text) for text in texts]

    def _label_to_class_index(self, label: Any) -> int:
        """A label as the box counts classes, -1 where there is none."""
        value = label_to_value(label)
        if isinstance(value, str):
            return int(self._box.class_numbers(value))
        return -1 if value is None else self._class_of_label.get(value, value)

    def _read_item_or_record_broken(self, row: int) -> tuple[Any, Any] | None:
        try:
            return _split_item_into_input_and_label(item_or_data_error(self._data, row), self.labeled)
        except BrokenImageError as error:
            self._broken_reasons.setdefault(row, str(error))
            return None


class _MappedDataset:
    """A data set whose items are transformed when they are read; `transform` gets their index, too."""

    def __init__(self, data: Any, transform: Callable[[int, Any], Any]) -> None:
        self._data, self._transform = data, transform

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, i: int) -> Any:
        return self._transform(i, self._data[i])


def _store_target_and_return_input(targets: dict[int, Any], i: int, item: Any) -> Any:
    """The input; its label goes into `targets`: labels of models whose outputs are no classes have many forms."""
    if not isinstance(item, (tuple, list)):
        return item
    if len(item) > 1:
        targets[i] = item[1]
    return item[0]


def _name_of_data(data: Any) -> str:
    """Its own name, or that of its type where it is one that somebody wrote for these data."""
    if isinstance(name := getattr(data, "name", None), str) and name:
        return name
    if isinstance(data, (DataLoader, Subset)):
        return _name_of_data(data.dataset)
    is_own_type = isinstance(data, Dataset) and not type(data).__module__.startswith("torch.")
    return type(data).__name__ if is_own_type else DEFAULT_DATA_NAME


def _make_indexable(data: OpenedData, skipped: SkippedExamples) -> Any:
    """The examples by index; those of a stream are read into memory."""
    if isinstance(data, OpenedDataset):
        return data
    if isinstance(data, Tensor) or (isinstance(data, tuple) and isinstance(data[1], Tensor)):
        return torch.utils.data.TensorDataset(*([data] if isinstance(data, Tensor) else data))
    return list(iter_examples(data, skipped))


def _texts_by_index(data: Any) -> list[Any]:
    """Texts, or (text, label)."""
    texts, labels = read_texts_and_labels(data)
    return list(texts) if labels is None else list(zip(texts, labels, strict=True))


def _to_dataset(
    data: Any, box: Box, labeled: bool, name: str, skipped: SkippedExamples, targets: dict[int, Any]
) -> Any:
    """Something with a length whose items are (input, label) or inputs; what a stream leaves out is recorded, and
    labels of outputs that are no classes are set aside in `targets`."""
    if isinstance(box.inputs, Tokens) and (isinstance(data, str) or not isinstance(data, (Iterable, Dataset))):
        raise DataError(f"wanted texts: ub.data.texts(path), a list of str, or (texts, labels); got {name}")
    is_ready = isinstance(data, sets.Images) and not data.labels_are_values
    if isinstance(box.inputs, Tokens):
        data = _texts_by_index(frames_to_arrays(data, box.inputs))
    else:
        data = data if is_ready else _make_indexable(open_data(data, box.inputs), skipped)
    if len(data) == 0:
        skipped.raise_if_none_read(0)
    if is_ready:
        return data
    if not labeled:
        data = _MappedDataset(data, partial(_store_target_and_return_input, targets))
    if not isinstance(box.inputs, Pixels) or box.inputs.n_axes != 2:
        return data
    template = box.inputs if box.inputs.shape[0] in (1, 3) else None  # what image files can become
    return sets.wrap(data, like=template, name=name)


def _split_item_into_input_and_label(item: Any, labeled: bool) -> tuple[Any, Any]:
    if not isinstance(item, (tuple, list)):
        return item, None
    return item[0], item[1] if labeled and len(item) > 1 else None


def _class_names_of_box_or_data(data_classes: tuple[str, ...], box: Box) -> tuple[str, ...]:
    """The box's class names; the data's, where the box only has numbers."""
    if not are_default_class_names(box.classes):
        return readable_class_names(box.classes)
    unnamed = BINARY_CLASS_NAMES if box.outputs == "binary" else box.classes
    return readable_class_names(data_classes) if len(data_classes) == len(box.classes) else unnamed
