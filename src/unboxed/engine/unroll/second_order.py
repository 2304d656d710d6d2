"""Ops whose second derivatives are taken for many queries in a few passes.

A pass back through a step differentiates its gradient, for all queries. torch's rules for activations expand what is
the same for all queries, and those for linear layers copy what they multiply. Here both have their second derivatives
written out: what does not depend on the query is computed once, and products are made without copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...model.op_mode import OpReplacementMode

POINTWISE_OPS = frozenset({
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign", "tanh",
    "sigmoid", "logsigmoid", "hardtanh", "hardswish",
})  # fmt: skip
MIN_QUERIES_FOR_SECOND_ORDER_MODE = 4  # with fewer, what the mode does for each op takes longer than it saves

Derivatives = tuple[Tensor, Tensor, Tensor | None]  # values, first and second derivatives; None: the second is zero


class SecondOrderMode(OpReplacementMode):
    """While open, activations and linear layers have second derivatives that are fast for a batch of queries."""

    def __init__(self) -> None:
        super().__init__(_replace)


def _replace(name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if name in POINTWISE_OPS and _is_rule_applicable(args[:1]) and not _all_tensors((*args[1:], *kwargs.values())):
        return _Pointwise.apply(args[0], _derivatives(func, *args, **kwargs))  # type: ignore[no-untyped-call]
    if name == "linear" and not kwargs and _is_rule_applicable(args):
        return _Linear.apply(*args, *[None] * (3 - len(args)))  # type: ignore[no-untyped-call]
    return NotImplemented


def _is_rule_applicable(args: tuple[Any, ...]) -> bool:
    """Whether these are tensors of one floating-point dtype, outside of transforms and autocast."""
    tensors = _all_tensors(args)
    return (
        any(h.requires_grad for h in tensors)
        and len({h.dtype for h in tensors}) == 1
        and tensors[0].is_floating_point()
        and not torch.is_autocast_enabled(tensors[0].device.type)
        and not any(torch._C._functorch.is_functorch_wrapped_tensor(h) for h in tensors)
    )


def _all_tensors(values: Iterable[Any]) -> list[Tensor]:
    return [v for v in values if isinstance(v, Tensor)]


def _derivatives(func: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Derivatives:
    """The values of a function of each number of x, and its derivatives there."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        value = func(leaf, *args, **kwargs)
        (first,) = torch.autograd.grad(value, leaf, torch.ones_like(value), create_graph=True)
        second = torch.autograd.grad(first, leaf, torch.ones_like(first))[0] if first.requires_grad else None
    return value.detach(), first.detach(), second


class _Pointwise(torch.autograd.Function):
    """(x, what `_derivatives` gives there) -> the values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, derivatives: Derivatives) -> Tensor:
        ctx.save_for_backward(x)
        ctx.derivatives = derivatives
        return derivatives[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():
            by_x: Tensor = _PointwiseBackward.apply(grad, *ctx.saved_tensors, ctx.derivatives)  # type: ignore[no-untyped-call]
            return by_x, None
        return grad * ctx.derivatives[1], None


class _PointwiseBackward(torch.autograd.Function):
    """(gradient, x, its derivatives) -> the gradient times the first derivatives."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, derivatives: Derivatives) -> Tensor:
        _, first, second = derivatives
        ctx.save_for_backward(first, None if second is None else grad * second)
        return grad * first

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor | None, None]:
        first, by_x = ctx.saved_tensors
        return v * first, None if by_x is None else v * by_x, None


class _Linear(torch.autograd.Function):
    """`F.linear`: x (..., I), weight (O, I), bias (O,) or None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _LinearBackward.apply(grad, x, weight, ctx.needs_input_grad)  # type: ignore[no-untyped-call]
        return _linear_gradients(grad, x.detach(), weight.detach(), ctx.needs_input_grad)


def _linear_gradients(grad: Tensor, x: Tensor, weight: Tensor, needed: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    rows = grad.flatten(0, -2)
    return (
        grad @ weight if needed[0] else None,
        rows.T @ x.flatten(0, -2) if needed[1] else None,
        rows.sum(0) if needed[2] else None,
    )


class _LinearBackward(torch.autograd.Function):
    """(gradient, x, weight) -> the gradients of x, weight and bias; None where one is not needed."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, needed: tuple[bool, ...]) -> Any:
        ctx.save_for_backward(grad, x, weight)
        ctx.set_materialize_grads(False)
        return _linear_gradients(grad, x, weight, needed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, vx: Tensor | None, vw: Tensor | None, vb: Tensor | None) -> Any:
        # detached, as torch copies what it multiplies with a matrix that requires a gradient
        grad, x, weight = (h.detach() for h in ctx.saved_tensors)
        by_grad = by_x = by_weight = None
        if vw is not None:
            by_grad, by_x = x @ vw.T, grad @ vw
        if vb is not None:
            by_grad = vb.expand_as(grad) if by_grad is None else by_grad + vb
        if vx is not None:
            by_grad = vx @ weight.T if by_grad is None else by_grad + vx @ weight.T
            by_weight = grad.flatten(0, -2).T @ vx.flatten(0, -2)
        return by_grad, by_x, by_weight, None
