"""Ops with a custom backward pass, and annotations of activations while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .ledger import Report, relevance_of

BackwardRule = Callable[[Tensor], Sequence[Tensor | None]]
"""c of the output -> c of each variable."""


class BackwardRuleFunction(torch.autograd.Function):
    """A value whose backward pass is `back`. It saves no tensor through torch: checkpoints recompute nothing."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[[], Tensor], backward_rule: BackwardRule, *variables: Tensor) -> Tensor:
        ctx.back = backward_rule
        return compute()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, c: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.back(c)


def with_backward_rule(out: Tensor, backward_rule: BackwardRule, *variables: Tensor) -> Tensor:
    """`out` as a function of the variables, with the backward rule `back`."""
    value = out.detach()
    result: Tensor = BackwardRuleFunction.apply(
        lambda: value.clone() if value._is_view() else value, backward_rule, *variables
    )  # type: ignore[no-untyped-call]
    return result


def run_op_with_scaled_gradient(
    op: Callable[..., Tensor], variables: Sequence[Tensor], scale: float = 1.0, report: Report | None = None
) -> Tensor:
    """An op of the variables that propagates its gradient times `scale`; copies, for the model may write over either.

    `report` gets what the first-order expansion at the point itself leaves.
    """
    with torch.enable_grad():
        leaves = [v.detach().clone().requires_grad_() for v in variables]
        out = op(*leaves)

    def backward_rule(c: Tensor) -> list[Tensor]:
        grads = [scale * g for g in torch.autograd.grad(out, leaves, c.to(out.dtype), materialize_grads=True)]
        if report is not None:
            report("softmax", relevance_of(out.detach(), c))
            for h, g in zip(leaves, grads, strict=True):
                report("softmax", -relevance_of(h.detach(), g))
        return grads

    return with_backward_rule(out.detach().clone(), backward_rule, *variables)


MIN_SECANT_INPUT_MAGNITUDE = 1e-4  # where (f(x) - f(0)) / x would lose precision: the slope at x / 2


def run_op_with_secant_gradient(f: Callable[[Tensor], Tensor], x: Tensor, report: Report | None = None) -> Tensor:
    """An elementwise op: f(0) is a bias, which absorbs its share, and the rest of the relevance passes through.

    c is multiplied by (f(x) - f(0)) / x, which is f(x) / x for ReLU, GELU, SiLU, tanh: R below is R above.
    """
    out, is_near_zero = f(x.detach()), x.detach().abs() < MIN_SECANT_INPUT_MAGNITUDE
    with torch.enable_grad():
        midpoint = torch.where(is_near_zero, x.detach() / 2, torch.ones_like(x)).requires_grad_()
        (slope,) = torch.autograd.grad(f(midpoint).sum(), midpoint)
    slope = slope.nan_to_num(posinf=0, neginf=0)  # a root at zero: no relevance
    at_zero = f(torch.zeros_like(x.detach()))
    delta = out - at_zero
    secant = torch.where(is_near_zero, slope, delta / torch.where(is_near_zero, torch.ones_like(x), x.detach()))

    def backward_rule(c: Tensor) -> tuple[Tensor]:
        if report is not None:
            report("biases", relevance_of(at_zero, c))
        return (c * secant,)

    return with_backward_rule(out, backward_rule, x)


# -- annotations -----------------------------------------------------------------------------------------------------

GATE_FACTOR_RANK, BOUNDED_FACTOR_RANK, SIGNAL_FACTOR_RANK = 2, 1, 0
"""Which factor of a product is the gate: a sigmoid or softmax before a tanh or a clamp, these before all else."""


@dataclass(frozen=True, eq=False)
class ActivationAnnotation:
    """What is known about an activation until it is overwritten."""

    tensor_version: int
    gate_rank: int = SIGNAL_FACTOR_RANK
    bounds: tuple[Tensor, Tensor] | None = None  # its lower and upper bounds over all pixel values, shaped like it
    linear_source: Any = None  # the linear op that computed it


def annotate_activation(h: Tensor, **fields: Any) -> Tensor:
    h._lrp_note = ActivationAnnotation(h._version, **fields)  # type: ignore[attr-defined]
    return h


def activation_annotation_of(h: Tensor) -> ActivationAnnotation:
    annotation = getattr(h, "_lrp_note", None)
    return (
        annotation
        if isinstance(annotation, ActivationAnnotation) and annotation.tensor_version == h._version
        else ActivationAnnotation(h._version)
    )
