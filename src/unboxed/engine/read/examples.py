"""Batches of examples from tensors, datasets, loaders or iterables: one pass in bounded memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...box import Box
from ...errors import DataError
from ...model.batching import BatchSize, check_batch_size, in_batches
from ...validation import check_int
from ..cpu_cache import data_batch_rows
from .class_labels import dataset_class_names, match_labels, matchable_classes
from .items import (
    ACCEPTED_DATA,
    SkippedExamples,
    is_batching_loader,
    is_indexable,
    is_tensor_pair,
    item_or_data_error,
    iter_examples,
    iter_loader_batches,
    without_label,
)
from .packing import is_single_pass, pack_data


class LabeledExamples(NamedTuple):
    """Labeled examples, without those that could not be read."""

    x: Tensor  # (N, ...)
    y: Tensor  # (N,) classes of the box
    dataset_rows: Tensor  # (N,) indices in the data


def input_batches(data: Any, size: int, skipped: SkippedExamples | None = None) -> Iterator[Tensor]:
    """The inputs (at most `size`, ...) of `data`, in their order; labels are left out. A DataLoader gives its own rows.

    Image files that cannot be read are left out, and recorded in `skipped`. Raises DataError where there are no inputs.
    """
    data, skipped = _without_labels(data), skipped or SkippedExamples()
    is_empty = True
    for x in _slice_batches(data, size) if isinstance(data, Tensor) else _collect_batches(data, size, skipped):
        is_empty = False
        yield x
    skipped.warn()
    if is_empty:
        raise DataError("the data are empty: a pass over them needs at least one example")


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
    max_rows = max_rows or data_batch_rows(box)
    rows_per_batch = min(max_rows, box.batch_limit) if batch_size == "auto" else batch_size
    for x in input_batches(pack_data(box, data), sys.maxsize if box.batch_dependent else rows_per_batch, skipped):
        _call_in_batches(box, box.validate_inputs(x), callback, batch_size)


def _call_in_batches(box: Box, x: Tensor, callback: Callable[[Tensor], object], batch_size: BatchSize) -> None:
    in_batches(lambda rows: callback(x[rows]), len(x), *box.batch_plan(len(x), batch_size))


def labeled_examples(box: Box, data: Any, max_examples: int | None = None) -> tuple[Tensor, Tensor]:
    """The first inputs (N, ...) and classes (N,) of (x, y) tensors or a Dataset or iterable of (input, class).

    Labels are matched to the box's classes by name where the data has names (see `class_labels`). Image files that
    cannot be read are left out. Raises DataError where there are no examples or no labels, InputError for what does not
    fit the box.
    """
    return indexed_labeled_examples(box, data, max_examples)[:2]


def indexed_labeled_examples(box: Box, data: Any, max_examples: int | None = None) -> LabeledExamples:
    """As `labeled_examples`, with the indices of the examples in the data."""
    first = _read_first(box, data, max_examples)
    y = _to_box_classes(box, data, first.labels())
    n = len(first.x)
    return LabeledExamples(first.x, box.class_labels(y, n), first.skipped.dataset_rows(torch.arange(n)))


def first_inputs(box: Box, data: Any, max_examples: int | None = None) -> Tensor:
    """The first inputs (N, ...) of data with or without labels. Raises DataError and InputError."""
    return _read_first(box, data, max_examples).x


def examples_with_optional_labels(box: Box, data: Any, max_examples: int | None = None) -> tuple[Tensor, Tensor | None]:
    """As `labeled_examples`; the classes are None where the examples have no labels."""
    first = _read_first(box, data, max_examples)
    if not first.has_labels:
        return first.x, None
    return first.x, box.class_labels(_to_box_classes(box, data, first.labels()), len(first.x))


@dataclass(frozen=True, eq=False)
class _FirstExamples:
    x: Tensor  # (N, ...)
    items: Tensor | list[Any]  # labels (N,), or the N items that hold them
    skipped: SkippedExamples

    @property
    def has_labels(self) -> bool:
        return isinstance(self.items, Tensor) or any(map(_has_label, self.items))

    def labels(self) -> Tensor:
        """Labels (N,). Raises DataError where there are none."""
        if isinstance(self.items, Tensor):
            return self.items
        return torch.as_tensor([_item_label(item) for item in self.items])


def _read_first(box: Box, data: Any, max_examples: int | None) -> _FirstExamples:
    """The first examples. Raises DataError where there are none, InputError for inputs that do not fit the box."""
    if max_examples is not None:
        check_int("max_examples", max_examples, minimum=1)
    skipped, data = SkippedExamples(), pack_data(box, data)
    if is_tensor_pair(data):
        return _FirstExamples(box.validate_inputs(data[0][:max_examples]), data[1][:max_examples], skipped)
    records = list(islice(_iter_labeled(data, skipped), max_examples))
    skipped.warn()
    if not records:
        raise DataError("the data are empty: there is nothing to ask the model about")
    return _FirstExamples(box.validate_inputs(_stack_inputs(records)), records, skipped)


def _to_box_classes(box: Box, data: Any, y: Tensor) -> Tensor:
    """Labels of `data` as classes of the box."""
    class_of = class_by_label(box, data)
    if all(label == k for label, k in class_of.items()) or y.is_floating_point():
        return y
    return torch.tensor([class_of.get(label, label) for label in y.tolist()])


def class_by_label(box: Box, data: Any) -> dict[int, int]:
    """{label of `data`: class of the box}, by name; empty where there is nothing to match. Raises DataError."""
    names, made_from_names = dataset_class_names(data)
    classes = matchable_classes(box)
    if not names or classes is None:
        return {}
    names_kind = "subfolders" if made_from_names else "classes"
    names_source = f"{names_kind} of {getattr(data, 'name', '') or type(data).__name__}"
    return match_labels(names, classes, made_from_names=made_from_names, names_source=names_source)


def _iter_labeled(data: Any, skipped: SkippedExamples) -> Iterator[Any]:
    if is_batching_loader(data):
        batches = iter_loader_batches(data)
        return (
            item for batch in batches for item in (batch if isinstance(batch, Tensor) else zip(*batch, strict=True))
        )
    return iter_examples(data, skipped)


def _has_label(item: Any) -> bool:
    return isinstance(item, (tuple, list)) and len(item) > 1 and int(item[1]) >= 0


def _item_label(item: Any) -> int:
    if not _has_label(item):
        expected = "a folder with a subfolder for each class, a Dataset of (input, class), or tensors (x, y)"
        raise DataError(f"these examples have no labels; wanted {expected}")
    return int(item[1])


def fetch_inputs(data: Any, dataset_rows: Tensor | Sequence[int]) -> Tensor:
    """The inputs (M, ...) at these indices of `data`, counted as by `input_batches`.

    Raises DataError for indices out of range, or `data` that can be read only once.
    """
    row_numbers = torch.as_tensor(dataset_rows).flatten().tolist()
    if is_single_pass(data):
        raise DataError("these data can be read only once, or come in another order each time: pass them as a Dataset")
    data = _without_labels(data)
    has_length = is_indexable(data)
    if row_numbers and (min(row_numbers) < 0 or (has_length and max(row_numbers) >= len(data))):
        raise DataError(
            f"the data have no example number {min(row_numbers) if min(row_numbers) < 0 else max(row_numbers)}"
        )
    if isinstance(data, Tensor):
        return data[torch.tensor(row_numbers, dtype=torch.long, device=data.device)]
    return _stack_inputs(
        [item_or_data_error(data, i) for i in row_numbers] if has_length else _fetch_in_one_pass(data, row_numbers)
    )


def _fetch_in_one_pass(data: Any, row_numbers: Sequence[int]) -> list[Any]:
    """The items at these indices, in one pass."""
    unique_rows = set(row_numbers)
    records = islice(iter_examples(data, SkippedExamples()), max(unique_rows, default=-1) + 1)
    record_by_row = {i: record for i, record in enumerate(records) if i in unique_rows}
    if missing_rows := unique_rows - record_by_row.keys():
        raise DataError(f"the data have no example number {min(missing_rows)}")
    return [record_by_row[i] for i in row_numbers]


def _without_labels(data: Any) -> Any:
    return data[0] if is_tensor_pair(data) else data


def _slice_batches(x: Tensor, size: int) -> Iterator[Tensor]:
    yield from (x[i : i + size] for i in range(0, len(x) if x.ndim else 0, size))


def _collect_batches(data: Any, size: int, skipped: SkippedExamples) -> Iterator[Tensor]:
    records = iter_examples(data, skipped)
    while chunk := list(islice(records, size)):
        yield _stack_inputs(chunk)


def _stack_inputs(items: Sequence[Any]) -> Tensor:
    try:
        return torch.stack([torch.as_tensor(without_label(item)) for item in items])
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"these examples are no inputs of one shape: {error}. {ACCEPTED_DATA}") from error
