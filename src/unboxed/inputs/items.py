"""Going through examples one by one; those that cannot be read are left out, and listed."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from ..errors import BrokenImageError, DataError, UnboxedError, warn
from ..validation import listed_names
from .base import warn_of_small_white

MAX_SKIP_REASONS_IN_WARNING, MAX_SKIPPED_ROWS_IN_WARNING = 3, 8
ACCEPTED_DATA_TEXT = (
    "wanted a tensor (N, ...), a pair of tensors (x, y), or a Dataset or iterable of inputs or (input, label)"
)


class SkippedExamples:
    """The examples of one pass that could not be read, with the reasons.

    `renumbers`: results number the others from 0, which is said.
    """

    def __init__(self, renumbers: bool = False) -> None:
        self.renumbers = renumbers
        self.rows: list[int] = []
        self.reasons: list[str] = []
        self.n_unnumbered = 0  # that a DataLoader left out: which rows they were is not known
        self.largest_8_bit_value = 0  # of the images that came one by one as 8-bit values

    def add(self, row: int, reason: str) -> None:
        self.rows.append(row)
        self.reasons.append(reason)

    def add_without_indices(self, n: int, reasons: list[str]) -> None:
        self.n_unnumbered += n
        self.reasons += reasons

    def note_8_bit_values(self, item: Any) -> None:
        """Remember the largest value of an item, an image or (image, label), whose values are of 8 bits."""
        value = item[0] if isinstance(item, (tuple, list)) and item else item
        if str(getattr(value, "dtype", "")).removeprefix("torch.") == "uint8" and getattr(value, "ndim", 0) > 1:
            self.largest_8_bit_value = max(self.largest_8_bit_value, int(value.max()))

    def dataset_rows(self, index: Tensor) -> Tensor:
        """Indices in the data of examples that were counted without the skipped ones."""
        index = index.clone()
        for row in self.rows:  # ascending
            index += index >= row
        return index

    def warn(self) -> None:
        """Say how many were left out, and why, and where no image is bright."""
        warn_of_small_white(self.largest_8_bit_value)
        if n := self.count:
            summary = f"{n} example{'s' if n > 1 else ''} can't be read and {'are' if n > 1 else 'is'} left out"
            rows = listed_names(self.rows, MAX_SKIPPED_ROWS_IN_WARNING)
            named = f" (row{'s' * (len(self.rows) > 1)} {rows})" * bool(self.rows)
            numbers = "; results number the others from 0" * self.renumbers
            warn(f"{summary}: {self._skipped_reasons_text()}{named}{numbers}")

    def raise_if_none_read(self, n_read: int) -> None:
        """Raise DataError where nothing is left."""
        if n_read:
            return
        if self.count:
            subject = "the only example" if self.count == 1 else f"any of the {self.count} examples"
            raise DataError(f"can't read {subject}: {self._skipped_reasons_text()}")
        raise DataError("the data are empty: at least one example is needed")

    @property
    def count(self) -> int:
        return len(self.rows) + self.n_unnumbered

    def _skipped_reasons_text(self) -> str:
        rest = len(self.reasons) - MAX_SKIP_REASONS_IN_WARNING
        text = (
            "; ".join(self.reasons[:MAX_SKIP_REASONS_IN_WARNING])
            or "image files in the worker processes of a DataLoader"
        )
        return text + (f"; and {rest} more" if rest > 0 else "")


def drop_label(item: Any) -> Any:
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
        raise DataError(
            f"example {i} of {data_name_for_errors(data)} can't be read: {type(error).__name__}: {error}"
        ) from error


def data_name_for_errors(data: Any) -> str:
    """What errors call the data."""
    return str(getattr(data, "name", "") or type(data).__name__)


def is_batching_loader(data: Any) -> bool:
    """Whether this is a DataLoader that returns batches: of a batch size, or by a batch sampler."""
    return isinstance(data, DataLoader) and data.batch_sampler is not None


def is_shuffling_loader(data: Any) -> bool:
    """Whether this is a DataLoader whose passes may differ."""
    sampler = getattr(getattr(data, "batch_sampler", None), "sampler", None)  # its own `sampler` may be another one
    return is_batching_loader(data) and not isinstance(sampler, SequentialSampler)


def iter_loader_batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """The batches of a loader, without broken image files and without batches of nothing else. Raises DataError."""
    iterator = iter(loader)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except BrokenImageError:
            continue
        except UnboxedError:
            raise
        except Exception as error:
            advice = "pass its dataset instead, which is converted item by item"
            raise DataError(f"a DataLoader gives no batch: {type(error).__name__}: {error}; {advice}") from error
        yield batch


def add_loader_skips(loader: DataLoader[Any], n_read: int, skipped: SkippedExamples) -> None:
    """Record the examples that a loader should have given and did not: its data set left them out."""
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if getattr(loader.batch_sampler, "drop_last", False) or not isinstance(sampler, Sized):
        return
    if (n_missing := len(sampler) - n_read) > 0 and (reasons := _broken_file_texts(loader.dataset)) is not None:
        skipped.add_without_indices(n_missing, reasons)


def _broken_file_texts(dataset: Any) -> list[str] | None:
    """The image files that a data set, or one inside it, has found broken; None where it leaves none out."""
    if (broken := getattr(dataset, "broken_files", None)) is not None:
        return [f"{path}: {reason}" for path, reason in broken.items()]
    inner = getattr(dataset, "dataset", None)
    return None if inner is None else _broken_file_texts(inner)
