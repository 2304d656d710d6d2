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
Kwargs = dict[str, Any]


def run_on_clone(func: Func, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return func(x.clone(), *args, **kwargs)


def map_tensors(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """A structure of arguments with each of its tensors changed, in order."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, dict):
        return {k: map_tensors(v, fn) for k, v in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map_tensors(v, fn) for v in value)
    return value


def detached(value: Any) -> Any:
    return map_tensors(value, Tensor.detach)


def call_with_tensors(func: Func, args: Args, kwargs: Kwargs, old: Sequence[Tensor], *new: Tensor) -> Any:
    """func with these tensors of its arguments exchanged."""

    def substitute(t: Tensor) -> Tensor:
        return next((n for o, n in zip(old, new, strict=True) if o is t), t)

    return func(*map_tensors(args, substitute), **map_tensors(kwargs, substitute))


def call_with_variables(
    func: Func, args: Args, kwargs: Kwargs, variables: list[Tensor], receivers: list[int], *new: Tensor
) -> Any:
    """func of new tensors in some of its variables' places, the k-th for the k-th of `bear`; the others stand still."""
    indices = iter(range(len(variables)))

    def substitute(t: Tensor) -> Tensor:
        if not t.requires_grad:
            return t
        i = next(indices)
        return new[receivers.index(i)] if i in receivers else t.detach().clone()

    return func(*map_tensors(args, substitute), **map_tensors(kwargs, substitute))


def has_negative_exponent(args: Args, kwargs: Kwargs) -> bool:
    power = kwargs.get("exponent", args[1] if len(args) > 1 else 1)
    return bool(torch.as_tensor(power).min() < 0)


def is_one_sided_clamp(op_name: str, args: Args, kwargs: Kwargs) -> bool:
    """Whether a clamp has one end only, as a ReLU has."""
    bounds = [*args[1:3], kwargs.get("min"), kwargs.get("max")]
    return op_name in ("clamp", "clip") and sum(e is not None for e in bounds) < 2


def is_active_dropout(op_name: str, args: Args, kwargs: Kwargs) -> bool:
    training = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
    return op_name in DROPOUT_OPS | {"alpha_dropout", "feature_alpha_dropout"} and bool(training)


@lru_cache(maxsize=64)
def without_override_checks(func: FunctionType) -> FunctionType:
    """The function without its first question, whether a mode wants it whole."""
    replaced_checks = dict.fromkeys(
        ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), _return_false
    )
    patched = FunctionType(
        func.__code__, {**func.__globals__, **replaced_checks}, func.__name__, func.__defaults__, func.__closure__
    )
    patched.__kwdefaults__ = func.__kwdefaults__
    return patched


def _return_false(*args: Any) -> bool:
    return False
