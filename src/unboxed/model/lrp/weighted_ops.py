"""Calls of ops that have weights, without their bias."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..hooks import tensors_in
from .arguments import Args, Func, Kwargs
from .linear_rules import InputGradientFn, conv_input_gradient_fn


def first_tensor_in(out: Any) -> Tensor:
    return next(tensors_in(out))


def call_without_bias(func: Func, trailing_args: Args, kwargs: Kwargs, a: Tensor, w: Tensor) -> Any:
    return func(a, w, None, *trailing_args, **kwargs)


def conv_op_input_gradient_fn(
    op_name: str, x: Tensor, w: Tensor, trailing_args: Args, kwargs: Kwargs
) -> InputGradientFn | None:
    if op_name not in ("conv1d", "conv2d", "conv3d") or x.ndim != w.ndim:
        return None
    settings = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    return conv_input_gradient_fn(
        w.ndim - 2, {**settings, **dict(zip(settings, trailing_args, strict=False)), **kwargs}
    )


def broadcast_bias(b: Tensor, w: Tensor, op_name: str) -> Tensor:
    """A bias (K,), broadcast to the op's output."""
    return b if op_name == "linear" else b.view(-1, *[1] * (w.ndim - 2))
