"""Examples from whatever holds them, some at a time: a pass over data of any size in bounded memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...box import Box
from ...errors import DataError, InputError
from ...model.batching import BatchSize, in_batches
from ...validation import check_int
from .class_labels import class_names, label_map, named_classes
from .items import WANTED, Skipped, collates, indexed, input_of, item, items, loaded, paired
from .packing import packed, read_once

AT_ONCE = 192  # examples on a CPU: larger batches gain nothing and leave its cache


class Labeled(NamedTuple):
    """Examples that could be read."""

    x: Tensor  # (N, ...)
    y: Tensor  # (N,) classes of the box
    rows: Tensor  # (N,) their numbers in the data


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

    All at once where the model couples rows. Raises DataError, and InputError for inputs that don't fit the box.
    """
    if batch_size != "auto" and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(f'batch_size must be a positive int or "auto"; got {batch_size!r}')
    most = most or (AT_ONCE if box.device.type == "cpu" else box.batch_limit)
    at_once = min(most, box.batch_limit) if batch_size == "auto" else batch_size
    for x in batches(packed(box, data), sys.maxsize if box.batch_dependent else at_once, skipped):
        _work(box, box.validate_inputs(x), work, batch_size)


def _work(box: Box, x: Tensor, work: Callable[[Tensor], object], batch_size: BatchSize) -> None:
    in_batches(lambda rows: work(x[rows]), len(x), *box.batch_plan(len(x), batch_size))


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
        check_int("most", most, minimum=1)
    skipped, named, data = Skipped(), data, packed(box, data)
    if paired(data):
        x, y = data[0][:most], data[1][:most]
    else:
        read = list(islice(_items_labeled(data, skipped), most))
        skipped.warn()
        if not read:
            raise DataError("the data are empty: there is nothing to ask the model about")
        x, y = _stacked(read), torch.as_tensor([_label(one) for one in read])
    y = _as_the_box(box, named, y)
    return Labeled(box.validate_inputs(x), box.class_labels(y, len(x)), skipped.places(torch.arange(len(x))))


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
    if collates(data):
        return (pair for batch in loaded(data) for pair in zip(*batch, strict=True))
    return items(data, skipped)


def _label(item: Any) -> int:
    if not isinstance(item, (tuple, list)) or len(item) < 2 or int(item[1]) < 0:
        wanted = "a folder with a subfolder for each class, a Dataset of (input, class), or tensors (x, y)"
        raise DataError(f"these examples bear no labels; wanted {wanted}")
    return int(item[1])


def pick(data: Any, index: Tensor | Sequence[int]) -> Tensor:
    """The inputs (M, ...) at these places of `data`, as `batches` counts them.

    Raises DataError where there are no such places, or `data` can be read once only.
    """
    wanted = torch.as_tensor(index).flatten().tolist()
    if read_once(data):
        raise DataError("these data can be read only once, or come in another order each time: pass them as a Dataset")
    data = _unlabeled(data)
    counted = indexed(data)
    if wanted and (min(wanted) < 0 or (counted and max(wanted) >= len(data))):
        raise DataError(f"the data have no example number {min(wanted) if min(wanted) < 0 else max(wanted)}")
    if isinstance(data, Tensor):
        return data[torch.tensor(wanted, dtype=torch.long, device=data.device)]
    return _stacked([item(data, i) for i in wanted] if counted else _passed(data, wanted))


def _passed(data: Any, wanted: Sequence[int]) -> list[Any]:
    """The items at these places, found in one pass."""
    places = set(wanted)
    read = islice(items(data, Skipped()), max(places, default=-1) + 1)
    found = {i: one for i, one in enumerate(read) if i in places}
    if missing := places - found.keys():
        raise DataError(f"the data have no example number {min(missing)}")
    return [found[i] for i in wanted]


def _unlabeled(data: Any) -> Any:
    return data[0] if paired(data) else data


def _sliced(x: Tensor, size: int) -> Iterator[Tensor]:
    yield from (x[i : i + size] for i in range(0, len(x) if x.ndim else 0, size))


def _collected(data: Any, size: int, skipped: Skipped) -> Iterator[Tensor]:
    each = items(data, skipped)
    while part := list(islice(each, size)):
        yield _stacked(part)


def _stacked(items: Sequence[Any]) -> Tensor:
    try:
        return torch.stack([torch.as_tensor(input_of(item)) for item in items])
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"these examples are no inputs of one shape: {error}. {WANTED}") from error
