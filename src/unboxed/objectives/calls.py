"""Objectives as values: each records the call that made it, by which it is pickled, copied and compared.

The record has copies of the tensors, arrays and lists, so that overwriting one changes no objective.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

P = ParamSpec("P")
T = TypeVar("T")  # an objective
FactoryCall = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def remember_call(factory: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that makes an objective, so that the objective records the call in its field `call`."""

    @wraps(factory)
    def factory_that_remembers_its_call(*args: P.args, **kwargs: P.kwargs) -> T:
        copied_args, copied_kwargs = tree_map(copy_tensor_or_array, (args, kwargs))
        objective = factory(*copied_args, **copied_kwargs)
        object.__setattr__(objective, "call", (factory_that_remembers_its_call, copied_args, copied_kwargs))
        return objective

    return factory_that_remembers_its_call


def copy_tensor_or_array(value: Any) -> Any:
    """A copy of a tensor or an array; gradients reach a tensor through its copy."""
    if isinstance(value, Tensor):
        return value.clone()
    return value.copy() if isinstance(value, np.ndarray) else value


def detach_if_tensor(value: Any) -> Any:
    """A tensor without its graph, which can be neither pickled nor deep-copied."""
    return value.detach() if isinstance(value, Tensor) else value


def rebuild_from_call(factory: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    """The objective of a recorded call: how a pickle is read."""
    return factory(*args, **kwargs)


def is_same_call(a: FactoryCall, b: FactoryCall) -> bool:
    """Whether two calls name the same function and, defaults filled in, the same arguments."""
    return a[0] is b[0] and is_equal_value(_bound_arguments(a), _bound_arguments(b))


def _bound_arguments(call: FactoryCall) -> dict[str, Any]:
    bound = inspect.signature(call[0]).bind(*call[1], **call[2])
    bound.apply_defaults()
    return bound.arguments


def is_equal_value(a: Any, b: Any) -> bool:
    """Whether two values are equal, tensors and arrays by shape and content; it never raises."""
    if a is b:
        return True
    if isinstance(a, (Tensor, np.ndarray)) or isinstance(b, (Tensor, np.ndarray)):
        return _equal_tensors(a, b)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(is_equal_value, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(is_equal_value(a[k], b[k]) for k in a)
    try:
        return bool(a == b)
    except (RuntimeError, TypeError, ValueError):  # of a type whose `==` gives no bool
        return False


def _equal_tensors(a: Any, b: Any) -> bool:
    try:
        a, b = torch.as_tensor(a).cpu(), torch.as_tensor(b).cpu()
        return a.shape == b.shape and bool((a == b).all())
    except (TypeError, ValueError, RuntimeError):  # not numbers, or tensors without values (meta)
        return False
