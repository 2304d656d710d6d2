"""An op's arguments: taken apart, exchanged, read; and functions of torch looked into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from ..op_tables import DROPOUT_OPS

Func = Callable[..., Any]
Args = tuple[Any, ...]
Named = dict[str, Any]


def out_of_place(func: Func, x: Tensor, *args: Any, **named: Any) -> Any:
    return func(x.clone(), *args, **named)


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A structure of arguments with each of its tensors changed, in order."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {k: mapped(v, change) for k, v in value.items()}
    if type(value) in (tuple, list):
        return type(value)(mapped(v, change) for v in value)
    return value


def detached(value: Any) -> Any:
    return mapped(value, Tensor.detach)


def called(func: Func, args: Args, named: Named, old: Sequence[Tensor], *new: Tensor) -> Any:
    """func with these tensors of its arguments exchanged."""

    def change(t: Tensor) -> Tensor:
        return next((n for o, n in zip(old, new, strict=True) if o is t), t)

    return func(*mapped(args, change), **mapped(named, change))


def among(func: Func, args: Args, named: Named, variables: list[Tensor], bear: list[int], *new: Tensor) -> Any:
    """func of new tensors in some of its variables' places, the k-th for the k-th of `bear`; the others stand still."""
    places = iter(range(len(variables)))

    def change(t: Tensor) -> Tensor:
        if not t.requires_grad:
            return t
        i = next(places)
        return new[bear.index(i)] if i in bear else t.detach().clone()

    return func(*mapped(args, change), **mapped(named, change))


def negative(args: Args, named: Named) -> bool:
    power = named.get("exponent", args[1] if len(args) > 1 else 1)
    return bool(torch.as_tensor(power).min() < 0)


def one_sided(key: str, args: Args, named: Named) -> bool:
    """Whether a clamp has one end only, as a ReLU has."""
    ends = [*args[1:3], named.get("min"), named.get("max")]
    return key in ("clamp", "clip") and sum(e is not None for e in ends) < 2


def noisy(key: str, args: Args, named: Named) -> bool:
    training = named.get("training", named.get("train", args[2] if len(args) > 2 else True))
    return key in DROPOUT_OPS | {"alpha_dropout", "feature_alpha_dropout"} and bool(training)


@lru_cache(maxsize=64)
def opened(func: FunctionType) -> FunctionType:
    """The function without its first question, whether a mode wants it whole."""
    never = dict.fromkeys(("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), _never)
    made = FunctionType(
        func.__code__, {**func.__globals__, **never}, func.__name__, func.__defaults__, func.__closure__
    )
    made.__kwdefaults__ = func.__kwdefaults__
    return made


def _never(*args: Any) -> bool:
    return False
