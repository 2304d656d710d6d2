"""What an objective is, and how objectives are combined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError, LayerError

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

    def __add__(self, other: Objective | Tensor | float) -> Objective:
        if isinstance(other, Tensor) and other.ndim == 1:
            return _with_rows(self, other, lambda a, k: a + k, f"{self.name} + k")
        if not isinstance(other, Objective):
            return _shifted(self, float(other))
        return _both(self, other, lambda a, b: a + b, "+", lambda a, b: a + b)

    __radd__ = __add__

    def __sub__(self, other: Objective | Tensor | float) -> Objective:
        return self + -other

    def __mul__(self, k: float | Tensor | Objective) -> Objective:
        if isinstance(k, Objective):
            return _both(self, k, lambda a, b: a * b, "*", lambda a, b: a * b)
        if isinstance(k, Tensor) and k.ndim == 1:
            return _with_rows(self, k, lambda a, k: a * k, f"k * ({self.name})")
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


def _with_rows(a: Objective, k: Tensor | Held, join: Callable[[Tensor, Tensor], Tensor], name: str) -> Objective:
    """`join(a, k)` with a number k an example, (N,)."""
    own = Held.of(k)

    def score(acts: Acts) -> Tensor:
        h = a(acts)
        return join(h, own.beside(h))

    def select(i: Index) -> Objective:
        return _with_rows(a.rows(i), own[i], join, name)

    return Objective(score, a.layers, name, select, a.coupled, a.fits(len(own)).n or len(own))


class Held:
    """A tensor that an objective holds. It is copied to where the activations are once, not at every look."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._span: tuple[int, int] | None = None

    @classmethod
    def of(cls, value: Tensor | Held) -> Held:
        return value if isinstance(value, Held) else cls(value)

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, i: Index) -> Held:
        return Held(self.value[i.to(self.value.device) if isinstance(i, Tensor) else i])

    def beside(self, like: Tensor) -> Tensor:
        """On an activation's device and, where both are floats, in its dtype; fit for a graph wherever it was made."""
        floats = self.value.is_floating_point() and like.is_floating_point()
        there = like.device, like.dtype if floats else self.value.dtype
        if there not in self._copies:
            with torch.inference_mode(False):
                self._copies[there] = held(self.value, like).to(there[1])
        return self._copies[there]

    def span(self) -> tuple[int, int] | None:
        """The least and the most of whole numbers, looked at once; None on an accelerator, which is not waited for."""
        if self._span is None and self.value.device.type == "cpu" and self.value.numel():
            self._span = int(self.value.min()), int(self.value.max())
        return self._span


def held(value: Tensor, like: Tensor) -> Tensor:
    """What is held, beside an activation: on its device, and fit for a graph wherever it was made."""
    value = value.to(like.device)
    return value.clone() if value.is_inference() else value


def wide(h: Tensor, layer: str = "the layer") -> Tensor:
    """An activation in at least single precision. Raises LayerError for one of whole or complex numbers."""
    if not h.is_floating_point():
        kind = "complex numbers" if h.is_complex() else "whole numbers, which have no gradient"
        raise LayerError(f"{layer} gives {kind}: an objective wants real ones")
    return h.float() if h.dtype in (torch.bfloat16, torch.float16) else h


def of(
    layer: str,
    score: Callable[[Tensor], Tensor],
    name: str,
    select: Callable[[Index], Objective] | None = None,
    n: int | None = None,
) -> Objective:
    """The objective that applies `score: (N, ...) -> (N,)` to one layer, in at least single precision."""

    return Objective(lambda acts: score(wide(acts[layer], layer)), frozenset({layer}), name, select, n=n)
