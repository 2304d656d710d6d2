"""A first look at the data: what the model says of every example, and which examples are worth showing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..box import Box
from ..errors import DataError, OutputError
from .source import Source

MOST = 10_000  # examples looked at
VALUES = 40_000_000  # of input looked at: photos are many values each
ROWS = 256  # read at a time


@dataclass(frozen=True, eq=False)
class Survey:
    """What the model says of the examples `rows` of the data: n of them, in their order."""

    rows: tuple[int, ...]  # their numbers in the data
    total: int  # that the data have
    outputs: Tensor  # (n, K) probabilities; what the model gives, where it gives none
    labels: Tensor | None  # (n,)
    classes: tuple[str, ...]
    named: bool  # the outputs are classes that exclude one another
    asked: int = 0  # examples that were to be looked at, broken ones among them

    @property
    def broken(self) -> int:
        return max(0, self.asked - len(self.rows))

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
        """All places, those first whose two largest outputs lie closest (as they come, where outputs are no rivals)."""
        places = torch.arange(len(self.rows))
        return _ordered(places, self.gap) if self.named else places.tolist()

    @cached_property
    def typical(self) -> list[int]:
        """Right answers (all, without labels) of one class after another, in each the one of median sureness."""
        good = torch.arange(len(self.rows)) if self.right is None else self.right.nonzero().flatten()
        found = []
        for k in sorted(set(self.answers[good].tolist())):
            own = _ordered(good[self.answers[good] == k], self.sureness)
            found.append(own[len(own) // 2])
        return found

    def pairs(self, most: int) -> list[tuple[int, int, int]]:
        """(label, answer, times) of the commonest confusions."""
        off = self.confusion.clone().fill_diagonal_(0).flatten()
        at = off.nonzero().flatten()
        at = at[off[at].argsort(descending=True, stable=True)][:most]
        k = len(self.classes)
        return [(i // k, i % k, int(off[i])) for i in at.tolist()]


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


def survey(box: Box, source: Source, most: int | None) -> Survey:
    """Ask the model about the examples, some at a time.

    Raises DataError, InputError where they don't fit the model, OutputError where it answers NaN.
    """
    wanted = spread(len(source), most or limit(box.inputs.shape))
    rows: list[int] = []
    labels: list[int] = []
    outputs: list[Tensor] = []
    for start in range(0, len(wanted), ROWS):
        found, x, y = source.take(wanted[start : start + ROWS])
        if found:
            outputs.append(_outputs(box, x))
        rows += found
        labels += y
    if not rows:
        raise DataError(f"none of the {len(wanted)} examples of {source.name} can be read")
    named = source.labeled and len(source.classes) > 1
    given = _sound(torch.cat(outputs), rows)
    if source.binary:  # one probability p of yes: as two classes
        given = torch.cat([1 - given, given], 1)
    known = _checked(labels, source, box)
    return Survey(tuple(rows), len(source), given, known, source.classes, named, len(wanted))


def _sound(outputs: Tensor, rows: Sequence[int]) -> Tensor:
    bad = outputs.isnan().any(1).nonzero().flatten().tolist()
    if bad:
        where = f"{len(bad)} of {len(rows)} examples (first: number {rows[bad[0]]})"
        raise OutputError(
            f"the model gives NaN for {where}; nothing can be said of it. Are its weights the right ones?"
        )
    return outputs


def _outputs(box: Box, x: Tensor) -> Tensor:
    """Probabilities (n, K), or what the model gives where it gives none; a map of outputs counts by its mean."""
    logits = box(x)
    given = logits if box.outputs == "regression" else box.probs_of(logits)
    return given.double().cpu().flatten(2).mean(2) if given.ndim > 2 else given.double().cpu()


def _checked(labels: Sequence[int], source: Source, box: Box) -> Tensor | None:
    """Labels (n,) that the model has classes for; None where not every example has one."""
    if min(labels) < 0 or (source.binary and max(labels) > 1):
        return None
    if max(labels) >= len(source.classes):
        known = f"the model has classes 0 to {len(box.classes) - 1}"
        raise DataError(f"the data have the label {max(labels)}; {known}")
    return torch.tensor(labels)
