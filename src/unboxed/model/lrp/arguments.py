"""Reading and replacing the arguments of an op; and running torch functions op by op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..op_tables import DROPOUT_OPS

Func = Callable[..., Any]
Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def run_on_clone(func: Func, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return func(x.clone(), *args, **kwargs)


def detach_tensors(value: Any) -> Any:
    return tree_map_only(Tensor, Tensor.detach, value)


def call_with_replaced_tensors(func: Func, args: Args, kwargs: Kwargs, old: Sequence[Tensor], *new: Tensor) -> Any:
    """func with tensors among its arguments replaced."""

    def replacement_if_any(t: Tensor) -> Tensor:
        return next((n for o, n in zip(old, new, strict=True) if o is t), t)

    return func(*tree_map_only(Tensor, replacement_if_any, args), **tree_map_only(Tensor, replacement_if_any, kwargs))


def call_with_replaced_variables(
    func: Func, args: Args, kwargs: Kwargs, variables: list[Tensor], receiver_indices: list[int], *new: Tensor
) -> Any:
    """func with the variables of `receivers` replaced by `new`, in order; the other variables are constant."""
    indices = iter(range(len(variables)))

    def replacement_if_any(t: Tensor) -> Tensor:
        if not t.requires_grad:
            return t
        i = next(indices)
        return new[receiver_indices.index(i)] if i in receiver_indices else t.detach().clone()

    return func(*tree_map_only(Tensor, replacement_if_any, args), **tree_map_only(Tensor, replacement_if_any, kwargs))


def has_negative_exponent(args: Args, kwargs: Kwargs) -> bool:
    power = kwargs.get("exponent", args[1] if len(args) > 1 else 1)
    return bool(torch.as_tensor(power).min() < 0)


def is_one_sided_clamp(op_name: str, args: Args, kwargs: Kwargs) -> bool:
    """Whether a clamp has one bound only, like a ReLU."""
    bounds = [*args[1:3], kwargs.get("min"), kwargs.get("max")]
    return op_name in ("clamp", "clip") and sum(e is not None for e in bounds) < 2


def is_active_dropout(op_name: str, args: Args, kwargs: Kwargs) -> bool:
    training = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
    return op_name in DROPOUT_OPS | {"alpha_dropout", "feature_alpha_dropout"} and bool(training)


@lru_cache(maxsize=64)
def without_torch_function_checks(func: FunctionType) -> FunctionType:
    """The function without its check for overrides, so that a mode sees the ops inside it."""
    replaced_checks = dict.fromkeys(
        ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), _has_no_torch_function
    )
    patched = FunctionType(
        func.__code__, {**func.__globals__, **replaced_checks}, func.__name__, func.__defaults__, func.__closure__
    )
    patched.__kwdefaults__ = func.__kwdefaults__
    return patched


def _has_no_torch_function(*args: Any) -> bool:
    return False
