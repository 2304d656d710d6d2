"""Examples from whatever holds them, some at a time: a pass over data of any size in bounded memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from ..arguments import whole
from ..box import Box
from ..errors import BrokenImageError, DataError, InputError, UnboxedError, warn
from ..multi_input import MultiInput
from ..net.batching import BatchSize, in_batches
from .class_labels import class_names, label_map, named_classes

WANTED = "wanted a tensor (N, ...), a pair of tensors (x, y), or a Dataset or iterable of inputs or (input, label)"
AT_ONCE = 192  # examples on a CPU: larger batches gain nothing and leave its cache


class Labeled(NamedTuple):
    """Examples that could be read."""

    x: Tensor  # (N, ...)
    y: Tensor  # (N,) classes of the box
    rows: Tensor  # (N,) their numbers in the data


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


def batches(data: Any, size: int, skipped: Skipped | None = None) -> Iterator[Tensor]:
    """The inputs (at most `size`, ...) of `data`, in their order; labels are left out. A DataLoader gives its own rows.

    Image files that can't be read are left out, and noted in `skipped`. Raises DataError for what holds no inputs, and
    where there are none.
    """
    data, skipped = _unlabeled(data), skipped or Skipped()
    empty = True
    for x in _sliced(data, size) if isinstance(data, Tensor) else _collected(data, size, skipped):
        empty = False
        yield x
    skipped.warn()
    if empty:
        raise DataError("the data are empty: a pass over them needs at least one example")


def packed(box: Box, data: Any) -> Any:
    """Data of a model of several inputs as tensors, or as a data set of them; all other data as they are.

    They may be a dict or a tuple of tensors as the model takes them, a pair of these and labels, or a Dataset or
    iterable of such inputs of one example, or of (inputs, label).
    """
    if not isinstance(box.inputs, MultiInput) or isinstance(data, Tensor) or _paired_packed(box.inputs, data):
        return data
    if box.inputs.is_structure(data):
        return box.accept(data)
    if isinstance(data, (tuple, list)) and len(data) == 2 and box.inputs.is_structure(data[0]):
        return box.accept(data[0]), torch.as_tensor(data[1])
    return _Packed(box.inputs, data) if _indexed(data) else (_packed(box.inputs, i) for i in _items(data, Skipped()))


def _paired_packed(inputs: MultiInput, data: Any) -> bool:
    """Whether these are (x, y) of packed tensors already: what `packed` gave."""
    return _paired(data) and data[0].shape[1:] == inputs.shape


class _Packed:
    """A data set of several inputs, each example packed as it is asked for."""

    def __init__(self, inputs: MultiInput, data: Any) -> None:
        self.inputs, self.data = inputs, data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Any:
        return _packed(self.inputs, self.data[i])


def _packed(inputs: MultiInput, item: Any) -> Any:
    """One example's inputs (D,), beside its label if it has one. Raises DataError."""
    pair = isinstance(item, (tuple, list)) and len(item) == 2
    labeled = pair and (not isinstance(item[0], Tensor) or item[0].shape == inputs.shape)
    values = item[0] if labeled else item
    if isinstance(values, Tensor) and values.shape == inputs.shape:  # packed already
        return item
    if not inputs.is_structure(values):
        got = type(item).__name__
        raise DataError(f"an example of a model of several inputs is a dict or tuple of tensors; got {got}")
    batch = {k: v[None] for k, v in values.items()} if isinstance(values, Mapping) else tuple(v[None] for v in values)
    row = inputs.pack(inputs.check(batch))[0]
    return (row, item[1]) if labeled else row


def each_batch(
    box: Box,
    data: Any,
    work: Callable[[Tensor], object],
    *,
    batch_size: BatchSize = "auto",
    most: int | None = None,
    skipped: Skipped | None = None,
) -> None:
    """`work` on the checked inputs of `data`, in their order, no more at a time than fit in memory.

    All at once where the net couples rows. Raises DataError, and InputError for inputs that don't fit the box.
    """
    if batch_size != "auto" and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(f'batch_size must be a positive int or "auto"; got {batch_size!r}')
    most = most or (AT_ONCE if box.device.type == "cpu" else box.batch_limit)
    at_once = min(most, box.batch_limit) if batch_size == "auto" else batch_size
    for x in batches(packed(box, data), sys.maxsize if box.coupled else at_once, skipped):
        _work(box, box.accept(x), work, batch_size)


def _work(box: Box, x: Tensor, work: Callable[[Tensor], object], batch_size: BatchSize) -> None:
    in_batches(lambda rows: work(x[rows]), len(x), *box.splits(len(x), batch_size))


def labeled(box: Box, data: Any, most: int | None = None) -> tuple[Tensor, Tensor]:
    """The first `most` inputs (N, ...) and classes (N,) of (x, y) tensors or a Dataset or iterable of (input, class).

    Labels are matched to the box's classes by name where the data know the names (see `class_labels`). Image files that
    can't be read are left out. Raises DataError where there are none or they bear no labels, InputError for what
    doesn't fit the box.
    """
    return labeled_rows(box, data, most)[:2]


def labeled_rows(box: Box, data: Any, most: int | None = None) -> Labeled:
    """As `labeled`, with the examples' numbers in the data."""
    if most is not None:
        whole("most", most, least=1)
    skipped, named, data = Skipped(), data, packed(box, data)
    if _paired(data):
        x, y = data[0][:most], data[1][:most]
    else:
        items = list(islice(_items_labeled(data, skipped), most))
        skipped.warn()
        if not items:
            raise DataError("the data are empty: there is nothing to ask the net about")
        x, y = _stacked(items), torch.as_tensor([_label(item) for item in items])
    y = _as_the_box(box, named, y)
    return Labeled(box.accept(x), box.labels(y, len(x)), skipped.places(torch.arange(len(x))))


def _as_the_box(box: Box, data: Any, y: Tensor) -> Tensor:
    """Labels of `data` as the box counts its classes."""
    numbers = label_numbers(box, data)
    if all(label == k for label, k in numbers.items()) or y.is_floating_point():
        return y
    return torch.tensor([numbers.get(label, label) for label in y.tolist()])


def label_numbers(box: Box, data: Any) -> dict[int, int]:
    """{label of `data`: class of the box}, by their names; empty where there is nothing to match. Raises DataError."""
    names, made_from_names = class_names(data)
    classes = named_classes(box)
    if not names or classes is None:
        return {}
    kind = "subfolders" if made_from_names else "classes"
    where = f"{kind} of {getattr(data, 'name', '') or type(data).__name__}"
    return label_map(names, classes, made_from_names=made_from_names, where=where)


def _items_labeled(data: Any, skipped: Skipped) -> Iterator[Any]:
    if isinstance(data, DataLoader) and data.batch_size is not None:
        return (pair for batch in _loaded(data) for pair in zip(*batch, strict=True))
    return _items(data, skipped)


def _label(item: Any) -> int:
    if not isinstance(item, (tuple, list)) or len(item) < 2 or int(item[1]) < 0:
        wanted = "a folder with a subfolder for each class, a Dataset of (input, class), or tensors (x, y)"
        raise DataError(f"these examples bear no labels; wanted {wanted}")
    return int(item[1])


def read_once(data: Any) -> bool:
    """Whether a second look at `data` would find nothing, or other examples at the same places."""
    if isinstance(data, DataLoader):
        return data.batch_size is not None and not isinstance(data.sampler, SequentialSampler)
    return isinstance(data, Iterator)


def pick(data: Any, index: Tensor | Sequence[int]) -> Tensor:
    """The inputs (M, ...) at these places of `data`, as `batches` counts them.

    Raises DataError where there are no such places, or `data` can be read once only.
    """
    wanted = torch.as_tensor(index).flatten().tolist()
    if read_once(data):
        raise DataError("these data can be read only once, or come in another order each time: pass them as a Dataset")
    data = _unlabeled(data)
    indexed = _indexed(data)
    if wanted and (min(wanted) < 0 or (indexed and max(wanted) >= len(data))):
        raise DataError(f"the data have no example number {min(wanted) if min(wanted) < 0 else max(wanted)}")
    if isinstance(data, Tensor):
        return data[torch.tensor(wanted, dtype=torch.long, device=data.device)]
    return _stacked([item(data, i) for i in wanted] if indexed else _passed(data, wanted))


def _passed(data: Any, wanted: Sequence[int]) -> list[Any]:
    """The items at these places, found in one pass."""
    places = set(wanted)
    read = islice(_items(data, Skipped()), max(places, default=-1) + 1)
    found = {i: one for i, one in enumerate(read) if i in places}
    if missing := places - found.keys():
        raise DataError(f"the data have no example number {min(missing)}")
    return [found[i] for i in wanted]


def _unlabeled(data: Any) -> Any:
    return data[0] if _paired(data) else data


def _paired(data: Any) -> bool:
    """Whether these are tensors (x, y)."""
    return isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)


def _sliced(x: Tensor, size: int) -> Iterator[Tensor]:
    yield from (x[i : i + size] for i in range(0, len(x) if x.ndim else 0, size))


def _collected(data: Any, size: int, skipped: Skipped) -> Iterator[Tensor]:
    items = _items(data, skipped)
    while part := list(islice(items, size)):
        yield _stacked(part)


def _stacked(items: Sequence[Any]) -> Tensor:
    try:
        return torch.stack([torch.as_tensor(_input(item)) for item in items])
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"these examples are no inputs of one shape: {error}. {WANTED}") from error


def _input(item: Any) -> Any:
    return item[0] if isinstance(item, (tuple, list)) else item


def _indexed(data: Any) -> bool:
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


def _items(data: Any, skipped: Skipped) -> Iterator[Any]:
    if isinstance(data, DataLoader) and data.batch_size is not None:
        return (row for batch in _loaded(data) for row in _input(batch))
    if _indexed(data):
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


def _loaded(loader: DataLoader[Any]) -> Iterator[Any]:
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
