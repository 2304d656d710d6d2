"""The examples of whatever holds them, one after another: tensors apart, which are sliced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from ...errors import BrokenImageError, DataError, UnboxedError, warn

WANTED = "wanted a tensor (N, ...), a pair of tensors (x, y), or a Dataset or iterable of inputs or (input, label)"


class Skipped:
    """The examples of one pass that could not be read, and why."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.reasons: list[str] = []

    def add(self, row: int, why: str) -> None:
        self.rows.append(row)
        self.reasons.append(why)

    def places(self, index: Tensor) -> Tensor:
        """Numbers in the data of examples that were counted without those left out."""
        index = index.clone()
        for row in self.rows:  # ascending
            index += index >= row
        return index

    def warn(self) -> None:
        if n := len(self.rows):
            said = f"{n} example{'s' if n > 1 else ''} can't be read and {'are' if n > 1 else 'is'} left out"
            warn(f"{said}: {'; '.join(self.reasons[:3])}")


def paired(data: Any) -> bool:
    """Whether these are tensors (x, y)."""
    return isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)


def input_of(item: Any) -> Any:
    """An example, or a batch of them, without its label."""
    return item[0] if isinstance(item, (tuple, list)) else item


def indexed(data: Any) -> bool:
    """Whether examples can be asked for by their number."""
    sized = hasattr(data, "__getitem__") and isinstance(data, Sized)
    return sized and not isinstance(data, (str, bytes, dict))


def item(data: Any, i: int) -> Any:
    """Example number i. Raises BrokenImageError for an image file to be left out, DataError where `data` raise."""
    try:
        return data[i]
    except UnboxedError:
        raise
    except Exception as error:
        name = getattr(data, "name", "") or type(data).__name__
        raise DataError(f"example {i} of {name} can't be read: {type(error).__name__}: {error}") from error


def items(data: Any, skipped: Skipped) -> Iterator[Any]:
    """One example after another; files that can't be read are left out, and noted. Raises DataError."""
    if collates(data):
        return (row for batch in loaded(data) for row in input_of(batch))
    if indexed(data):
        return _readable(data, skipped)
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes, dict)):
        return iter(data)
    raise DataError(f"{WANTED}; got {type(data).__name__}")


def _readable(data: Any, skipped: Skipped) -> Iterator[Any]:
    for i in range(len(data)):  # some data sets never raise IndexError
        try:
            found = item(data, i)
        except BrokenImageError as error:
            skipped.add(i, str(error))
            continue
        yield found


def collates(data: Any) -> bool:
    """Whether these are a DataLoader that gives batches."""
    return isinstance(data, DataLoader) and data.batch_size is not None


def loaded(loader: DataLoader[Any]) -> Iterator[Any]:
    """The batches of a loader; one that holds nothing but broken image files is left out, as such a file of another."""
    found = iter(loader)
    while True:
        try:
            batch = next(found)
        except StopIteration:
            return
        except BrokenImageError:
            continue
        yield batch
