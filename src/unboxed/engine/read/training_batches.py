"""Batches to train on, of labeled examples in any form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ...box import Box
from ...errors import BrokenImageError, DataError
from ...inputs.examples import OpenedDataset, OpenedStream, open_data
from ...inputs.items import SkippedExamples, is_batching_loader, is_indexable
from .class_labels import label_matcher, labels_to_classes
from .examples import classes_of_records, labeled_examples, open_labeled_path


class TrainingBatches:
    """Inputs (n, ...) and classes (n,) of labeled examples in any form, in another order at each pass, by `seed`.

    A DataLoader keeps its own batches and their order. What has no length is read into memory; images that cannot be
    read are left out. Raises DataError for data that are empty.
    """

    def __init__(self, box: Box, data: Any, batch_size: int, seed: int) -> None:
        self._box, self._data = box, open_labeled_path(box, data)
        self._to_classes = label_matcher(box, self._data)
        self.examples = open_examples(box, self._data)
        self.generator, self._loader = torch.Generator().manual_seed(seed), None
        rows = range(len(self.examples))
        self._order: DataLoader[Tensor] = DataLoader(rows, batch_size, shuffle=True, generator=self.generator)  # type: ignore[arg-type]
        if _n_batches(self._data) is not None:
            self._loader, self.generator = OpenedStream(self._data, box.inputs), self._data.generator or self.generator

    def __len__(self) -> int:
        return _n_batches(self._data) or len(self._order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        skipped, n_read = SkippedExamples(), 0
        for records in self._shuffled(skipped) if self._loader is None else self._loader.iter_batches(skipped):
            if records:
                yield classes_of_records(self._box, self._to_classes, records)
            n_read += len(records)
        skipped.raise_if_none_read(n_read)
        skipped.warn()

    def _shuffled(self, skipped: SkippedExamples) -> Iterator[list[Any]]:
        for rows in self._order:
            yield [record for i in rows.tolist() if (record := _readable(self.examples, i, skipped)) is not None]


def open_examples(box: Box, data: Any) -> OpenedDataset | list[tuple[Tensor, Tensor]]:
    """The examples by index: those of a DataLoader's data set; in memory where they come as a stream or as (x, y).

    Raises DataError where there are none.
    """
    data = open_labeled_path(box, data)
    data = data.dataset if _n_batches(data) is not None and is_indexable(data.dataset) else data
    opened = open_data(data, box.inputs)
    if not isinstance(opened, OpenedDataset):
        return list(zip(*labeled_examples(box, data), strict=True))
    if len(opened) == 0:
        raise DataError("the data set is empty: there is nothing to learn from")
    return opened if opened.labels is None else replace(opened, labels=labels_to_classes(box, data, opened.labels))


def _n_batches(data: Any) -> int | None:
    """The number of batches of a DataLoader; None of other data, and where it is not known."""
    try:
        return len(data) if is_batching_loader(data) else None
    except (TypeError, NotImplementedError):  # of an iterable data set, or a sampler without a length
        return None


def _readable(examples: OpenedDataset | list[Any], i: int, skipped: SkippedExamples) -> Any:
    try:
        return examples[i]
    except BrokenImageError as error:
        skipped.add(i, str(error))
        return None
