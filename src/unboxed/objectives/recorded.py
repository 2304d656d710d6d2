"""Objectives as values: each remembers the call that made it, by which it is pickled, copied and compared.

The call is remembered with copies of its tensors, arrays and lists, so that writing over one changes no objective.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")  # an objective
Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def recorded(make: Callable[P, T]) -> Callable[P, T]:
    """A function that makes a new objective at each call, which then remembers that call as its `made`."""

    @wraps(make)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        copies, named = each(copied, args), each(copied, kwargs)
        objective = make(*copies, **named)
        object.__setattr__(objective, "made", (call, copies, named))
        return objective

    return call


def each(work: Callable[[Any], Any], value: Any) -> Any:
    """`work` on every value in tuples, lists and dicts."""
    if type(value) in (tuple, list):
        return type(value)(each(work, v) for v in value)
    return {k: each(work, v) for k, v in value.items()} if type(value) is dict else work(value)


def copied(value: Any) -> Any:
    """A copy of a tensor or an array; gradients reach a tensor through its copy."""
    if isinstance(value, Tensor):
        return value.clone()
    return value.copy() if isinstance(value, np.ndarray) else value


def detached(value: Any) -> Any:
    """A tensor without its graph, which can be neither pickled nor deep-copied."""
    return value.detach() if isinstance(value, Tensor) else value


def again(make: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    """The objective of a remembered call: what a pickle of one does when it is read."""
    return make(*args, **kwargs)


def same_call(a: Call, b: Call) -> bool:
    """Whether two calls name the same function and, defaults filled in, the same arguments."""
    return a[0] is b[0] and same(_arguments(a), _arguments(b))


def _arguments(call: Call) -> dict[str, Any]:
    bound = inspect.signature(call[0]).bind(*call[1], **call[2])
    bound.apply_defaults()
    return bound.arguments


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal, tensors and arrays by shape and content; it never raises."""
    if a is b:
        return True
    if isinstance(a, (Tensor, np.ndarray)) or isinstance(b, (Tensor, np.ndarray)):
        return _same_tensors(a, b)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    try:
        return bool(a == b)
    except (RuntimeError, TypeError, ValueError):  # of a type whose `==` is no yes or no
        return False


def _same_tensors(a: Any, b: Any) -> bool:
    try:
        a, b = torch.as_tensor(a).cpu(), torch.as_tensor(b).cpu()
        return a.shape == b.shape and bool((a == b).all())
    except (TypeError, ValueError, RuntimeError):  # no numbers, or tensors without values (meta)
        return False
