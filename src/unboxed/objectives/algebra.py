"""What an objective is, and how objectives are combined."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Union

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, LayerError
from .recorded import Call, again, copied, detached, each, recorded, same, same_call

Acts = Mapping[str, Tensor]
Index = slice | Tensor
Operand = Union["Objective", "Held", Tensor, "np.ndarray[Any, Any]", "np.generic", float]
ENDS = frozenset({"input", "output", "logits"})


@dataclass(frozen=True, eq=False)
class Objective:
    """An immutable score of activations, one an example (N,); higher is better.

    Combine it by + - * / with numbers, tensors or arrays (N,) and objectives, on either side; `sum` takes them, too.
    There is no `**`: multiply an objective by itself. What is divided by an objective is infinite where that is 0.
    Objectives of this package pickle, copy and compare by value: they are equal where the same calls made them with
    equal numbers and tensors, of which they hold copies. One of your own, `Objective(score, layers, name)`, pickles if
    `score` does.
    """

    score: Callable[[Acts], Tensor]
    layers: frozenset[str]
    name: str
    select: Callable[[Index], Objective] | None = None
    coupled: bool = False  # rows depend on one another: never split
    n: int | None = None  # how many examples it holds a row for; None: it is the same for all
    made: Call | None = field(default=None, repr=False)  # the call that made it: see `recorded`

    __array_ufunc__ = None  # an array or a number of NumPy on the left leaves the operation to the objective

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

    def __add__(self, other: Operand) -> Objective:
        return _combined(self, "+", _operand(self, "+", other))

    def __radd__(self, other: Operand) -> Objective:
        if type(other) is int and other == 0:  # where `sum` begins
            return self
        return _combined(_operand(self, "+", other), "+", self)

    def __sub__(self, other: Operand) -> Objective:
        return _combined(self, "-", _operand(self, "-", other))

    def __rsub__(self, other: Operand) -> Objective:
        return _combined(_operand(self, "-", other), "-", self)

    def __mul__(self, other: Operand) -> Objective:
        return _combined(self, "*", _operand(self, "*", other))

    def __rmul__(self, other: Operand) -> Objective:
        return _combined(_operand(self, "*", other), "*", self)

    def __truediv__(self, other: Operand) -> Objective:
        return _combined(self, "/", _divisor(self, other))

    def __rtruediv__(self, other: Operand) -> Objective:
        return _combined(_operand(self, "/", other), "/", self)

    def __pow__(self, power: object) -> Objective:
        raise InputError(f"objectives have no **; multiply one by itself: o * o. Got ({self.name}) ** {power!r}")

    def __neg__(self) -> Objective:
        return self * -1.0

    def __repr__(self) -> str:
        return f"Objective({self.name})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Objective) or self.made is None or other.made is None:
            return isinstance(other, Objective) and self._fields() == other._fields()
        return same_call(self.made, other.made)

    def __hash__(self) -> int:
        return hash((self.layers, self.coupled, self.n))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Objective, self._fields()) if self.made is None else (again, each(detached, self.made))

    def _fields(self) -> tuple[Any, ...]:
        return self.score, self.layers, self.name, self.select, self.coupled, self.n


def _operand(objective: Objective, sign: str, value: Operand) -> Objective | Held | float:
    """The other side of an operation: an objective, a number, or a number an example. Raises InputError."""
    if isinstance(value, (Objective, Held)):
        return value
    found = _of_numbers(value)
    if found is None:
        got = f"a tensor {tuple(value.shape)}" if isinstance(value, (Tensor, np.ndarray)) else repr(value)
        wanted = "takes a number, a tensor (N,) of real numbers or an objective"
        raise InputError(f"({objective.name}) {sign} ... {wanted}; got {got}")
    return found


def _of_numbers(value: object) -> Held | float | None:
    """What an objective holds of a number or a tensor (N,); None where it is neither."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 1:
        k = _as_tensor(value)
        return None if k is None or k.is_complex() or not _all(k, lambda v: ~v.isnan()) else Held(copied(k))
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        value = value.item() if value.ndim == 0 else None
    real = isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)
    return float(value) if real else None  # type: ignore[arg-type]


def _as_tensor(value: Tensor | np.ndarray[Any, Any]) -> Tensor | None:
    try:
        return torch.as_tensor(value)
    except TypeError:  # an array of words or objects
        return None


def _all(k: Tensor, check: Callable[[Tensor], Tensor]) -> bool:
    """Whether all of a tensor's values pass; those on an accelerator are not waited for."""
    return k.device.type != "cpu" or bool(check(k).all())


def _divisor(objective: Objective, value: Operand) -> Objective | Held | float:
    """As `_operand`, and not zero. Raises InputError."""
    k = _operand(objective, "/", value)
    if k == 0.0 or (isinstance(k, Held) and not _all(k.value, lambda v: v != 0)):
        raise InputError(f"({objective.name}) can't be divided by {'a tensor that holds zeros' if k else 0}")
    return k


@recorded
def _combined(a: Objective | Held | float, sign: str, b: Objective | Held | float) -> Objective:
    """a + b, a - b, a * b or a / b, example by example."""
    sides: list[Objective | Held] = [side for side in (a, b) if not isinstance(side, float)]
    name = _named(a, sign, b)
    counts = [len(side) if isinstance(side, Held) else side.n for side in sides]
    sizes = {n for n in counts if n is not None}
    if len(sizes) > 1:
        raise InputError(f"{name} holds rows for {' and '.join(map(str, sorted(sizes)))} examples")

    def score(acts: Acts) -> Tensor:
        values = [side(acts) if isinstance(side, Objective) else side for side in (a, b)]
        like = next(v for v in values if isinstance(v, Tensor))
        found: Tensor = SIGNS[sign](*(v.beside(like) if isinstance(v, Held) else v for v in values))
        return found

    def select(i: Index) -> Objective:
        return _combined(_rows(a, i), sign, _rows(b, i))

    objectives = [side for side in sides if isinstance(side, Objective)]
    by_row = any(isinstance(side, Held) or side.select is not None for side in sides)
    layers, coupled = frozenset[str]().union(*(o.layers for o in objectives)), any(o.coupled for o in objectives)
    return Objective(score, layers, name, select if by_row else None, coupled, next(iter(sizes), None))


SIGNS: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
}  # fmt: skip


def _rows(side: Objective | Held | float, i: Index) -> Objective | Held | float:
    if isinstance(side, Objective):
        return side.rows(i)
    return side[i] if isinstance(side, Held) else side


RANKS: Mapping[str, int] = {"+": 1, "-": 1, "*": 2, "/": 2}
SIGN, LEAF = 3, 4


def _named(a: Objective | Held | float, sign: str, b: Objective | Held | float) -> str:
    """The operation with no more parentheses than it needs: "2 * logit 3", "(logit 3 - logit 5) / 2"."""
    if sign == "*" and isinstance(a, Objective) and not isinstance(b, Objective):
        a, b = b, a  # the factor first
    if sign == "*" and a == -1.0:
        return f"-{_side(b, SIGN)}"
    right = _side(b, RANKS[sign] + (sign in "-/"))  # a - (b + c), a / (b * c)
    return f"{_side(a, RANKS[sign])} {sign} {f'({right})' if right.startswith('-') else right}"


def _side(side: Objective | Held | float, rank: int) -> str:
    """One side of an operation, in parentheses if it binds less than `rank`."""
    if not isinstance(side, Objective):
        return f"tensor {tuple(side.value.shape)}" if isinstance(side, Held) else f"{side:g}"
    return side.name if _rank(side) >= rank else f"({side.name})"


def _rank(objective: Objective) -> int:
    """How tightly a name binds: a sum less than a product. A leaf's own name may hold a sign, too."""
    if objective.made is not None and objective.made[0] is _combined:
        return RANKS[objective.made[1][1]]
    return RANKS["+"] if any(f" {sign} " in objective.name for sign in SIGNS) else LEAF


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

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and same(self.value, other.value)

    def __hash__(self) -> int:
        return hash(tuple(self.value.shape))

    def __reduce__(self) -> tuple[Any, ...]:
        return Held, (detached(self.value),)

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

    def moved(self, device: torch.device, dtype: torch.dtype) -> Held:
        """A copy on a device; what was seen of its values stays known."""
        there = self.value.device == device and self.value.dtype == dtype
        copy = Held(self.value.clone() if there else self.value.to(device, dtype, copy=True))
        copy._span = self._span
        return copy

    def span(self) -> tuple[int, int] | None:
        """The least and the most of whole numbers, looked at once; None on an accelerator, which is not waited for."""
        if self._span is None and self.value.device.type == "cpu" and self.value.numel():
            values = self.value.tolist() if self.value.ndim == 1 else self.value.flatten().tolist()
            self._span = min(values), max(values)
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
