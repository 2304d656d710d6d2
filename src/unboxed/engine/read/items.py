"""Iterating over the examples of datasets, loaders and iterables; tensors are sliced instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from ...errors import BrokenImageError, DataError, UnboxedError, warn

ACCEPTED_DATA = (
    "wanted a tensor (N, ...), a pair of tensors (x, y), or a Dataset or iterable of inputs or (input, label)"
)


class SkippedExamples:
    """The examples of one pass that could not be read, with the reasons."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.reasons: list[str] = []

    def add(self, row: int, reason: str) -> None:
        self.rows.append(row)
        self.reasons.append(reason)

    def dataset_rows(self, index: Tensor) -> Tensor:
        """Indices in the data of examples that were counted without the skipped ones."""
        index = index.clone()
        for row in self.rows:  # ascending
            index += index >= row
        return index

    def warn(self) -> None:
        if n := len(self.rows):
            summary = f"{n} example{'s' if n > 1 else ''} can't be read and {'are' if n > 1 else 'is'} left out"
            warn(f"{summary}: {'; '.join(self.reasons[:3])}")


def is_tensor_pair(data: Any) -> bool:
    """Whether these are tensors (x, y)."""
    return isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)


def without_label(item: Any) -> Any:
    """An example, or a batch of them, without its label."""
    return item[0] if isinstance(item, (tuple, list)) else item


def is_indexable(data: Any) -> bool:
    """Whether examples can be accessed by index."""
    has_length = hasattr(data, "__getitem__") and isinstance(data, Sized)
    return has_length and not isinstance(data, (str, bytes, dict))


def item_or_data_error(data: Any, i: int) -> Any:
    """The i-th example. Raises BrokenImageError for an image file to be left out, DataError where `data` raises."""
    try:
        return data[i]
    except UnboxedError:
        raise
    except Exception as error:
        name = getattr(data, "name", "") or type(data).__name__
        raise DataError(f"example {i} of {name} can't be read: {type(error).__name__}: {error}") from error


def iter_examples(data: Any, skipped: SkippedExamples) -> Iterator[Any]:
    """The examples one by one; files that cannot be read are left out, and recorded. Raises DataError."""
    if is_batching_loader(data):
        return (row for batch in iter_loader_batches(data) for row in without_label(batch))
    if is_indexable(data):
        return _iter_readable(data, skipped)
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes, dict)):
        return iter(data)
    raise DataError(f"{ACCEPTED_DATA}; got {type(data).__name__}")


def _iter_readable(data: Any, skipped: SkippedExamples) -> Iterator[Any]:
    for i in range(len(data)):  # some data sets never raise IndexError
        try:
            example = item_or_data_error(data, i)
        except BrokenImageError as error:
            skipped.add(i, str(error))
            continue
        yield example


def is_batching_loader(data: Any) -> bool:
    """Whether this is a DataLoader that returns batches: of a batch size, or by a batch sampler."""
    return isinstance(data, DataLoader) and data.batch_sampler is not None


def iter_loader_batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """The batches of a loader, without broken image files and without batches of nothing else."""
    iterator = iter(loader)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except BrokenImageError:
            continue
        yield batch
