"""A first look at the data: what the net says of every example, and which examples are worth showing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..errors import DataError

MOST = 10_000  # examples looked at
VALUES = 40_000_000  # of input looked at: photos are many values each
ROWS = 256  # read at a time


class Source:
    """Any data set of (input, label), of inputs alone, or a pair of tensors; read by index, never whole."""

    def __init__(self, data: Any) -> None:
        self._data, self._tensors = data, _tensors(data)
        self.name = str(getattr(data, "name", "") or ("tensors" if self._tensors else type(data).__name__))
        self.skipped: Sequence[tuple[Any, str]] = tuple(getattr(data, "skipped", ()) or ())
        if not self._tensors and not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            wanted = "wanted a Dataset of (image, label) with a length, or tensors (x, y)"
            raise DataError(f"a report can't read a {type(data).__name__}; {wanted}")
        if len(self) == 0:
            raise DataError("the data are empty: a report needs at least one example")

    def __len__(self) -> int:
        return len(self._tensors[0] if self._tensors else self._data)

    def take(self, rows: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Inputs (n, ...) and labels (n,), None where there are none."""
        if self._tensors:
            x, *y = self._tensors
            index = torch.as_tensor(rows, device=x.device)
            return x[index], _labels(list(y[0][index.to(y[0].device)])) if y else None
        items = [_item(self._data[i]) for i in rows]
        return torch.stack([torch.as_tensor(x) for x, _ in items]), _labels([y for _, y in items])


def _tensors(data: Any) -> tuple[Tensor, ...]:
    if isinstance(data, Tensor):
        return (data,)
    pair = isinstance(data, (tuple, list)) and 1 <= len(data) <= 2 and isinstance(data[0], Tensor)
    return tuple(torch.as_tensor(d) for d in data if d is not None) if pair else ()


def _item(item: Any) -> tuple[Any, Any]:
    if isinstance(item, (tuple, list)):
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _labels(found: Sequence[Any]) -> Tensor | None:
    """Labels (n,) as ints, or None where any is missing, or is no class."""
    values = [torch.as_tensor(-1 if y is None else y) for y in found]
    if any(v.numel() != 1 or v.is_floating_point() for v in values):
        return None
    labels = torch.stack([v.reshape(()).long().cpu() for v in values])
    return None if bool((labels < 0).any()) else labels


@dataclass(frozen=True)
class Survey:
    """What the net says of the examples `rows` of the data: n of them, in their order."""

    rows: tuple[int, ...]  # their numbers in the data
    total: int  # that the data have
    outputs: Tensor  # (n, K) probabilities; what the net gives, where it gives none
    labels: Tensor | None  # (n,)
    classes: tuple[str, ...]
    named: bool  # the outputs are classes that exclude one another

    @cached_property
    def answers(self) -> Tensor:  # (n,)
        return self.outputs.argmax(1)

    @cached_property
    def sureness(self) -> Tensor:  # (n,)
        return self.outputs.amax(1)

    @cached_property
    def seconds(self) -> Tensor:
        """The class with the second largest output of each example, (n,)."""
        return self.outputs.topk(2, 1).indices[:, 1] if len(self.classes) > 1 else self.answers

    @cached_property
    def gap(self) -> Tensor:
        """The largest output minus the second, (n,)."""
        top = self.outputs.topk(min(2, len(self.classes)), 1).values
        return top[:, 0] - top[:, -1] if top.shape[1] > 1 else top[:, 0]

    @cached_property
    def right(self) -> Tensor | None:  # (n,) bool
        return None if self.labels is None or not self.named else self.answers == self.labels

    @property
    def accuracy(self) -> float | None:
        return None if self.right is None else float(self.right.double().mean())

    @cached_property
    def confusion(self) -> Tensor:  # (K, K) labels x answers
        k = len(self.classes)
        labels = self.answers if self.labels is None else self.labels
        return torch.bincount(labels * k + self.answers, minlength=k * k).view(k, k)

    @cached_property
    def mistakes(self) -> list[int]:
        """Places of the wrong answers, the surest first."""
        return [] if self.right is None else _ordered((~self.right).nonzero().flatten(), -self.sureness)

    @cached_property
    def undecided(self) -> list[int]:
        """All places, those first whose two largest outputs lie closest."""
        return _ordered(torch.arange(len(self.rows)), self.gap)

    @cached_property
    def typical(self) -> list[int]:
        """Right answers (all, without labels) of one class after another, in each the one of median sureness."""
        good = torch.arange(len(self.rows)) if self.right is None else self.right.nonzero().flatten()
        found = []
        for k in self.answers[good].unique().tolist():
            own = _ordered(good[self.answers[good] == k], self.sureness)
            found.append(own[len(own) // 2])
        return found

    def pairs(self, most: int) -> list[tuple[int, int, int]]:
        """(label, answer, times) of the commonest confusions."""
        off = self.confusion.clone().fill_diagonal_(0).flatten()
        counts, at = off.topk(min(most, len(off)))
        k = len(self.classes)
        return [(i // k, i % k, c) for c, i in zip(counts.tolist(), at.tolist(), strict=True) if c]


def _ordered(places: Tensor, by: Tensor) -> list[int]:
    order = by[places].argsort(stable=True)
    return [int(i) for i in places[order]]


def limit(shape: Sequence[int]) -> int:
    """How many examples of this shape a report looks at."""
    return max(64, min(MOST, VALUES // max(1, math.prod(shape))))


def spread(total: int, most: int) -> tuple[int, ...]:
    """At most `most` of the numbers below `total`, evenly spread: data are often sorted by class."""
    n = min(total, most)
    return tuple(i * total // n for i in range(n))


def survey(box: Box, source: Source, most: int | None, tick: Callable[[int], object]) -> Survey:
    """Ask the net about the examples, some at a time. Raises DataError, InputError where they don't fit the net."""
    rows = spread(len(source), most or limit(box.inputs.shape))
    outputs: list[Tensor] = []
    labels: list[Tensor | None] = []
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        x, y = source.take(part)
        outputs.append(_outputs(box, x))
        labels.append(y)
        tick(len(part))
    known = [y for y in labels if y is not None]
    return Survey(
        rows,
        len(source),
        torch.cat(outputs),
        _checked(torch.cat(known), box) if len(known) == len(labels) else None,
        box.classes,
        box.outputs not in ("regression", "multilabel") and len(box.classes) > 1,
    )


def _outputs(box: Box, x: Tensor) -> Tensor:
    """Probabilities (n, K), or what the net gives where it gives none; a map of outputs counts by its mean."""
    logits = box(x)
    given = logits if box.outputs == "regression" else box.probs_of(logits)
    return given.double().cpu().flatten(2).mean(2) if given.ndim > 2 else given.double().cpu()


def _checked(labels: Tensor, box: Box) -> Tensor:
    k = len(box.classes)
    if box.outputs not in ("regression", "multilabel") and int(labels.max()) >= k:
        raise DataError(f"the data have the label {int(labels.max())}; the net has classes 0 to {k - 1}")
    return labels
