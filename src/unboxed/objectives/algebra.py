"""What an objective is, and how objectives are combined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError

Acts = Mapping[str, Tensor]
Index = slice | Tensor
ENDS = frozenset({"input", "output", "logits"})


@dataclass(frozen=True)
class Objective:
    """An immutable score of activations; combine with + - * (numbers, (N,) tensors or objectives)."""

    score: Callable[[Acts], Tensor]
    layers: frozenset[str]
    name: str
    select: Callable[[Index], Objective] | None = None
    coupled: bool = False  # rows depend on one another: never split
    n: int | None = None  # how many examples it holds a row for; None: it is the same for all

    def __call__(self, acts: Acts) -> Tensor:
        return self.score(acts)

    def rows(self, index: Index) -> Objective:
        """The same objective for some of the examples."""
        return self if self.select is None else self.select(index)

    def fits(self, n: int) -> Objective:
        """This objective, if it goes with n examples. Raises InputError."""
        if self.n not in (None, n):
            raise InputError(f"{self.name} holds rows for {self.n} examples; there are {n}")
        return self

    def __add__(self, other: Objective | float) -> Objective:
        if not isinstance(other, Objective):
            return _shifted(self, other)
        return _both(self, other, lambda a, b: a + b, "+", lambda a, b: a + b)

    __radd__ = __add__

    def __sub__(self, other: Objective | float) -> Objective:
        return self + -other

    def __mul__(self, k: float | Tensor | Objective) -> Objective:
        if isinstance(k, Objective):
            return _both(self, k, lambda a, b: a * b, "*", lambda a, b: a * b)
        if isinstance(k, Tensor) and k.ndim == 1:
            return _weighted(self, k)
        label = f"{float(k):g} * ({self.name})" if float(k) != -1 else f"-({self.name})"
        select = None if self.select is None else (lambda i: self.rows(i) * k)
        return Objective(lambda acts: k * self(acts), self.layers, label, select, self.coupled, self.n)

    __rmul__ = __mul__

    def __neg__(self) -> Objective:
        return self * -1.0

    def __repr__(self) -> str:
        return f"Objective({self.name})"


def _both(
    a: Objective, b: Objective, join: Callable[[Tensor, Tensor], Tensor], sign: str,
    again: Callable[[Objective, Objective], Objective],
) -> Objective:  # fmt: skip
    def select(i: Index) -> Objective:
        return again(a.rows(i), b.rows(i))

    per_row = None if a.select is None and b.select is None else select
    name = f"{a.name} {sign} {b.name}"
    n = a.n if b.n is None else b.fits(b.n if a.n is None else a.n).n
    return Objective(lambda acts: join(a(acts), b(acts)), a.layers | b.layers, name, per_row, a.coupled or b.coupled, n)


def _shifted(a: Objective, k: float) -> Objective:
    select = None if a.select is None else (lambda i: a.rows(i) + k)
    return Objective(lambda acts: a(acts) + k, a.layers, f"{a.name} {k:+g}", select, a.coupled, a.n)


def _weighted(a: Objective, k: Tensor) -> Objective:
    def score(acts: Acts) -> Tensor:
        h = a(acts)
        return held(k, h).to(h) * h

    n = a.fits(len(k)).n or len(k)
    return Objective(score, a.layers, f"k * ({a.name})", lambda i: _weighted(a.rows(i), k[i]), a.coupled, n)


def held(value: Tensor, like: Tensor) -> Tensor:
    """What an objective holds, beside an activation: on its device, and fit for a graph wherever it was made."""
    value = value.to(like.device)
    return value.clone() if value.is_inference() else value


def of(
    layer: str,
    score: Callable[[Tensor], Tensor],
    name: str,
    select: Callable[[Index], Objective] | None = None,
    n: int | None = None,
) -> Objective:
    """The objective that applies `score: (N, ...) -> (N,)` to one layer, in at least single precision."""

    def widened(acts: Acts) -> Tensor:
        h = acts[layer]
        return score(h.float() if h.dtype in (torch.bfloat16, torch.float16) else h)

    return Objective(widened, frozenset({layer}), name, select, n=n)
