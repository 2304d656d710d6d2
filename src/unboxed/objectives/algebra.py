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
from torch.utils._pytree import tree_map

from ..errors import InputError, LayerError
from .calls import (
    FactoryCall,
    copy_tensor_or_array,
    detach_if_tensor,
    is_equal_value,
    is_same_call,
    rebuild_from_call,
    remember_call,
)

Acts = Mapping[str, Tensor]
RowIndex = slice | Tensor
Operand = Union["Objective", "Constant", Tensor, "np.ndarray[Any, Any]", "np.generic", float]
INPUT_OUTPUT_ADDRESSES = frozenset({"input", "output", "logits"})


@dataclass(frozen=True, eq=False)
class Objective:
    """An immutable function of activations with one score per example (N,); higher is better.

    Combine objectives by + - * / with numbers, tensors or arrays (N,) and other objectives, on either side, or by
    `sum`. There is no `**`: multiply an objective by itself. A quotient is infinite where its divisor is 0.
    The objectives of Unboxed pickle, copy and compare by value: two are equal when the same calls with equal numbers
    and tensors made them; they hold copies of these tensors. One of your own pickles if its `score` does.

    Args:
        score: Function of {address: activation (N, ...)} that gives scores (N,).
        layers: Addresses that `score` reads: layers, or "input", "output" or "logits".
        name: How it is written in figures and errors.
        select: Function of row indices that gives the objective for these rows. None: the same for all rows.
        batch_dependent: Whether the scores of rows depend on one another: then no batch is split.
        n: Number of examples that it holds values for. None: the same for all.
        call: The call that made it, by which it pickles and compares. None for one of your own.

    Example:
        >>> import torch, unboxed as ub
        >>> difference = ub.logit(3) - ub.logit(5)
        >>> difference
        Objective(logit 3 - logit 5)
        >>> difference({"logits": torch.arange(20.0).view(2, 10)})
        tensor([-2., -2.])
        >>> from unboxed.objectives import Objective
        >>> Objective(lambda acts: acts["fc1"].amax(1), frozenset({"fc1"}), "fc1 maximum")
        Objective(fc1 maximum)
    """

    score: Callable[[Acts], Tensor]
    layers: frozenset[str]
    name: str
    select: Callable[[RowIndex], Objective] | None = None
    batch_dependent: bool = False
    n: int | None = None
    call: FactoryCall | None = field(default=None, repr=False)  # set by `remember_call`

    __array_ufunc__ = None  # an array or a number of NumPy on the left leaves the operation to the objective

    def __call__(self, acts: Acts) -> Tensor:
        """The scores (N,) of {address: activation (N, ...)}."""
        return self.score(acts)

    def rows(self, index: RowIndex) -> Objective:
        """The same objective for some of the examples.

        Args:
            index: A slice, or row indices.

        Returns:
            An `Objective` with the values of these rows.
        """
        return self if self.select is None else self.select(index)

    def check_batch(self, n: int) -> Objective:
        """This objective, if it fits a batch of n examples.

        Args:
            n: Number of examples.

        Returns:
            The objective itself.

        Raises:
            InputError: when it holds values for another number.
        """
        if self.n not in (None, n):
            raise InputError(f"{self.name} holds values for {self.n} examples; there are {n}")
        return self

    def __add__(self, other: Operand) -> Objective:
        return _combine_objectives(self, "+", _check_operand(self, "+", other))

    def __radd__(self, other: Operand) -> Objective:
        if type(other) is int and other == 0:  # the start value of `sum`
            return self
        return _combine_objectives(_check_operand(self, "+", other), "+", self)

    def __sub__(self, other: Operand) -> Objective:
        return _combine_objectives(self, "-", _check_operand(self, "-", other))

    def __rsub__(self, other: Operand) -> Objective:
        return _combine_objectives(_check_operand(self, "-", other), "-", self)

    def __mul__(self, other: Operand) -> Objective:
        return _combine_objectives(self, "*", _check_operand(self, "*", other))

    def __rmul__(self, other: Operand) -> Objective:
        return _combine_objectives(_check_operand(self, "*", other), "*", self)

    def __truediv__(self, other: Operand) -> Objective:
        return _combine_objectives(self, "/", _check_divisor(self, other))

    def __rtruediv__(self, other: Operand) -> Objective:
        return _combine_objectives(_check_operand(self, "/", other), "/", self)

    def __pow__(self, power: object) -> Objective:
        raise InputError(f"objectives have no **; multiply one by itself: o * o. Got ({self.name}) ** {power!r}")

    def __neg__(self) -> Objective:
        return self * -1.0

    def __repr__(self) -> str:
        return f"Objective({self.name})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Objective) or self.call is None or other.call is None:
            return isinstance(other, Objective) and self._fields_for_equality() == other._fields_for_equality()
        return is_same_call(self.call, other.call)

    def __hash__(self) -> int:
        return hash((self.layers, self.batch_dependent, self.n))

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            (Objective, self._fields_for_equality())
            if self.call is None
            else (rebuild_from_call, tree_map(detach_if_tensor, self.call))
        )

    def _fields_for_equality(self) -> tuple[Any, ...]:
        return self.score, self.layers, self.name, self.select, self.batch_dependent, self.n


def _check_operand(objective: Objective, symbol: str, value: Operand) -> Objective | Constant | float:
    """The other operand: an objective, a number, or a number per example. Raises InputError."""
    if isinstance(value, (Objective, Constant)):
        return value
    operand = _to_number_or_constant(value)
    if operand is None:
        got = f"a tensor {tuple(value.shape)}" if isinstance(value, (Tensor, np.ndarray)) else repr(value)
        wanted = "takes a number, a tensor (N,) of real numbers or an objective"
        raise InputError(f"({objective.name}) {symbol} ... {wanted}; got {got}")
    return operand


def _to_number_or_constant(value: object) -> Constant | float | None:
    """A number, or a copy of a tensor (N,); None where the value is neither."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 1:
        k = _as_tensor(value)
        return (
            None
            if k is None or k.is_complex() or not _all_true_or_unchecked(k, lambda v: ~v.isnan())
            else Constant(copy_tensor_or_array(k))
        )
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        value = value.item() if value.ndim == 0 else None
    is_real = isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)
    return float(value) if is_real else None  # type: ignore[arg-type]


def _as_tensor(value: Tensor | np.ndarray[Any, Any]) -> Tensor | None:
    try:
        return torch.as_tensor(value)
    except TypeError:  # an array of strings or objects
        return None


def _all_true_or_unchecked(k: Tensor, check: Callable[[Tensor], Tensor]) -> bool:
    """Whether all values pass; those on an accelerator are not checked, which would wait for it."""
    return k.device.type != "cpu" or bool(check(k).all())


def _check_divisor(objective: Objective, value: Operand) -> Objective | Constant | float:
    """As `_check_operand`, and not zero. Raises InputError."""
    k = _check_operand(objective, "/", value)
    if k == 0.0 or (isinstance(k, Constant) and not _all_true_or_unchecked(k.value, lambda v: v != 0)):
        raise InputError(f"({objective.name}) can't be divided by {'a tensor that holds zeros' if k else 0}")
    return k


@remember_call
def _combine_objectives(a: Objective | Constant | float, symbol: str, b: Objective | Constant | float) -> Objective:
    """a + b, a - b, a * b or a / b, per example."""
    sides: list[Objective | Constant] = [side for side in (a, b) if not isinstance(side, float)]
    name = _operation_name(a, symbol, b)
    counts = [len(side) if isinstance(side, Constant) else side.n for side in sides]
    sizes = {n for n in counts if n is not None}
    if len(sizes) > 1:
        raise InputError(f"{name} holds values for {' and '.join(map(str, sorted(sizes)))} examples")

    def score(acts: Acts) -> Tensor:
        values = [side(acts) if isinstance(side, Objective) else side for side in (a, b)]
        like = next(v for v in values if isinstance(v, Tensor))
        result: Tensor = OPERATOR_BY_SYMBOL[symbol](
            *(v.to_like(like) if isinstance(v, Constant) else v for v in values)
        )
        return result

    def select(i: RowIndex) -> Objective:
        return _combine_objectives(_select_rows(a, i), symbol, _select_rows(b, i))

    objectives = [side for side in sides if isinstance(side, Objective)]
    is_per_row = any(isinstance(side, Constant) or side.select is not None for side in sides)
    layers, batch_dependent = (
        frozenset[str]().union(*(o.layers for o in objectives)),
        any(o.batch_dependent for o in objectives),
    )
    return Objective(score, layers, name, select if is_per_row else None, batch_dependent, next(iter(sizes), None))


OPERATOR_BY_SYMBOL: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
}  # fmt: skip


def _select_rows(side: Objective | Constant | float, i: RowIndex) -> Objective | Constant | float:
    if isinstance(side, Objective):
        return side.rows(i)
    return side[i] if isinstance(side, Constant) else side


PRECEDENCE_BY_SYMBOL: Mapping[str, int] = {"+": 1, "-": 1, "*": 2, "/": 2}
SIGN_PRECEDENCE, NAME_PRECEDENCE = 3, 4


def _operation_name(a: Objective | Constant | float, symbol: str, b: Objective | Constant | float) -> str:
    """The operation with no more parentheses than it needs: "2 * logit 3", "(logit 3 - logit 5) / 2"."""
    if symbol == "*" and isinstance(a, Objective) and not isinstance(b, Objective):
        a, b = b, a  # the factor first
    if symbol == "*" and a == -1.0:
        return f"-{_operand_text(b, SIGN_PRECEDENCE)}"
    right = _operand_text(b, PRECEDENCE_BY_SYMBOL[symbol] + (symbol in "-/"))  # a - (b + c), a / (b * c)
    return (
        f"{_operand_text(a, PRECEDENCE_BY_SYMBOL[symbol])} {symbol} {f'({right})' if right.startswith('-') else right}"
    )


def _operand_text(side: Objective | Constant | float, precedence: int) -> str:
    """An operand, in parentheses if its precedence is lower."""
    if not isinstance(side, Objective):
        return f"tensor {tuple(side.value.shape)}" if isinstance(side, Constant) else f"{side:g}"
    return side.name if _precedence(side) >= precedence else f"({side.name})"


def _precedence(objective: Objective) -> int:
    """The precedence of a name: a sum's is lower than a product's. A leaf's name may contain an operator, too."""
    if objective.call is not None and objective.call[0] is _combine_objectives:
        return PRECEDENCE_BY_SYMBOL[objective.call[1][1]]
    return (
        PRECEDENCE_BY_SYMBOL["+"]
        if any(f" {symbol} " in objective.name for symbol in OPERATOR_BY_SYMBOL)
        else NAME_PRECEDENCE
    )


class Constant:
    """A tensor that an objective holds. It is copied to the device of the activations once, not at each evaluation."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._value_range: tuple[int, int] | None = None

    @classmethod
    def wrap(cls, value: Tensor | Constant) -> Constant:
        return value if isinstance(value, Constant) else cls(value)

    def __len__(self) -> int:
        return len(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and is_equal_value(self.value, other.value)

    def __hash__(self) -> int:
        return hash(tuple(self.value.shape))

    def __reduce__(self) -> tuple[Any, ...]:
        return Constant, (detach_if_tensor(self.value),)

    def __getitem__(self, i: RowIndex) -> Constant:
        return Constant(self.value[i.to(self.value.device) if isinstance(i, Tensor) else i])

    def to_like(self, like: Tensor) -> Tensor:
        """On an activation's device and, where both are floats, in its dtype; never an inference tensor."""
        floats = self.value.is_floating_point() and like.is_floating_point()
        key = like.device, like.dtype if floats else self.value.dtype
        if key not in self._copies:
            with torch.inference_mode(False):
                self._copies[key] = constant_to_like(self.value, like).to(key[1])
        return self._copies[key]

    def copy_on_device(self, device: torch.device, dtype: torch.dtype) -> Constant:
        """A copy on a device, which keeps the cached range."""
        is_same = self.value.device == device and self.value.dtype == dtype
        copy = Constant(self.value.clone() if is_same else self.value.to(device, dtype, copy=True))
        copy._value_range = self._value_range
        return copy

    def value_range(self) -> tuple[int, int] | None:
        """The minimum and maximum of integers, cached; None on an accelerator, which would have to be waited for."""
        if self._value_range is None and self.value.device.type == "cpu" and self.value.numel():
            values = self.value.tolist() if self.value.ndim == 1 else self.value.flatten().tolist()
            self._value_range = min(values), max(values)
        return self._value_range


def constant_to_like(value: Tensor, like: Tensor) -> Tensor:
    """A stored tensor on the device of an activation; an inference tensor is cloned, so that graphs take it."""
    value = value.to(like.device)
    return value.clone() if value.is_inference() else value


def as_float_activation(h: Tensor, layer: str = "the layer") -> Tensor:
    """An activation in at least single precision. Raises LayerError for integers and complex numbers."""
    if not h.is_floating_point():
        kind = "complex activations" if h.is_complex() else "integer activations, which have no gradient"
        raise LayerError(f"{layer} has {kind}: an objective needs floats")
    return h.float() if h.dtype in (torch.bfloat16, torch.float16) else h


def layer_objective(
    layer: str,
    score: Callable[[Tensor], Tensor],
    name: str,
    select: Callable[[RowIndex], Objective] | None = None,
    n: int | None = None,
) -> Objective:
    """The objective that applies `score: (N, ...) -> (N,)` to one layer, in at least single precision."""
    if not isinstance(layer, str):
        hint = "box.layers.resolve(module) gives a module's"
        raise LayerError(f'an objective wants the address of a layer, such as "conv2"; {hint}. Got {layer!r}')
    return Objective(lambda acts: score(as_float_activation(acts[layer], layer)), frozenset({layer}), name, select, n=n)
