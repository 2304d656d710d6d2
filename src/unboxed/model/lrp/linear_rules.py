"""Rules for layers with weights: how z_k = sum_j a_j w_jk + b_k distributes its relevance to the a_j.

Contributions p_jk = a_j w_jk are split by sign, p = p+ + p-; for activations a >= 0 that is the papers' split of the
weights. The relevance above is R_k = z_k c_k.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .ledger import Report

LinearRuleFn = Callable[["LinearOp", Tensor, "Report | None"], Tensor]
"""(op, c of its output, what is told of the relevance of bias and epsilon) -> c of its input."""
FirstLayerRuleFn = Callable[["LinearOp", Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(op, lowest input, highest input, c) -> c of the input and of both bounds."""
InputGradientFn = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class LinearOp:
    """out = f(a, w) + b with b broadcast to the output; f is linear in a and in w."""

    bilinear: Callable[[Tensor, Tensor], Tensor]
    a: Tensor  # a copy: the model may overwrite its bias
    w: Tensor
    b: Tensor | None
    is_conv: bool
    unit_axis: int | None = None  # of the units in w, where units can be scaled
    input_gradient_fn: InputGradientFn | None = None  # (a, w, u) -> sum_k w_jk u_k, where torch has an op for it

    def output(self) -> Tensor:
        z = self.bilinear(self.a, self.w)
        return z if self.b is None else z + self.b

    def input_gradient(self, w: Tensor, u: Tensor) -> Tensor:
        """sum_k w_jk u_k, (N, ...) shaped like a."""
        if self.input_gradient_fn is not None:
            return self.input_gradient_fn(self.a, w, u)
        with torch.enable_grad():
            a = torch.zeros_like(self.a).requires_grad_()
            (grad,) = torch.autograd.grad(self.bilinear(a, w), a, u)
        return grad

    def positive_contribution_sum(self) -> Tensor:
        """sum_j p+_jk."""
        plus = self.bilinear(self.a.clamp(min=0), self.w.clamp(min=0))
        return plus + self.bilinear(self.a.clamp(max=0), self.w.clamp(max=0)) if self.has_negative_inputs else plus

    @cached_property
    def has_negative_inputs(self) -> bool:
        return bool((self.a < 0).any())

    def input_gradient_by_contribution_sign(self, u: Tensor, v: Tensor | None = None) -> Tensor:
        """c_j with a_j c_j = sum_k p+_jk u_k + p-_jk v_k."""
        plus, minus = self.w.clamp(min=0), self.w.clamp(max=0)
        for_positive = (
            self.input_gradient(plus, u) if v is None else self.input_gradient(plus, u) + self.input_gradient(minus, v)
        )
        if not self.has_negative_inputs:
            return for_positive
        for_negative = (
            self.input_gradient(minus, u) if v is None else self.input_gradient(minus, u) + self.input_gradient(plus, v)
        )
        return torch.where(self.a < 0, for_negative, for_positive)

    def can_scale_outputs(self, out: Tensor) -> bool:
        """Whether a scale per channel of the output is one per unit of the op."""
        return self.unit_axis is not None and (self.is_conv or out.ndim == 2)

    def with_affine_outputs(self, scale: Tensor, shift: Tensor) -> LinearOp:
        """The op with a scale and a shift of each unit of its output, both (K,)."""
        w = self.w * scale.view(*[-1 if i == self.unit_axis else 1 for i in range(self.w.ndim)])
        unit_shape = (-1, *[1] * (self.w.ndim - 2)) if self.is_conv else (-1,)
        b = shift.view(unit_shape) if self.b is None else self.b * scale.view(unit_shape) + shift.view(unit_shape)
        return replace(self, w=w, b=b)


def conv_input_gradient_fn(n_dims: int, settings: dict[str, Any]) -> InputGradientFn | None:
    """The transposed convolution, without a forward pass before it; None for paddings given by name."""
    if isinstance(settings["padding"], str):
        return None
    stride, padding, dilation = (
        _one_value_per_spatial_axis(settings[k], n_dims) for k in ("stride", "padding", "dilation")
    )
    trailing_args = (stride, padding, dilation, False, [0] * n_dims, settings["groups"], [True, False, False])

    def input_gradient(a: Tensor, w: Tensor, u: Tensor) -> Tensor:
        grad: Tensor = torch.ops.aten.convolution_backward(u, a, w, None, *trailing_args)[0]
        return grad

    return input_gradient


def _one_value_per_spatial_axis(value: Any, n_dims: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * n_dims if len(values) == 1 else values


def dense_input_gradient(a: Tensor, w: Tensor, u: Tensor) -> Tensor:
    return u @ w


def epsilon_stabilize(z: Tensor, epsilon: float) -> Tensor:
    """z moved away from zero by epsilon, upwards where it is zero; never zero."""
    shifted = z + epsilon * torch.where(z < 0, -1.0, 1.0).to(z)
    return torch.where(shifted == 0, torch.ones_like(z), shifted)


def epsilon_rule(eps: float) -> LinearRuleFn:
    """R_j = sum_k a_j w_jk / (z_k + eps sign(z_k)) R_k. Bach et al. 2015."""

    def rule(op: LinearOp, c: Tensor, report: Report | None = None) -> Tensor:
        if eps == 0 and report is None:
            return op.input_gradient(op.w, c)
        z = op.output()
        s = c if eps == 0 else c * z.abs() / (z.abs() + eps)
        if report is not None:
            _report_shares(report, z * c * stabilizer_share(z, eps), None if op.b is None else op.b * s)
        return op.input_gradient(op.w, s)

    return rule


def _report_shares(report: Report, of_stabilizer: Tensor, of_bias: Tensor | None) -> None:
    """Report what a rule does not give to the inputs."""
    report("epsilon", of_stabilizer)
    if of_bias is not None:
        report("biases", of_bias)


def stabilizer_share(z: Tensor, epsilon: float) -> Tensor:
    """Which part of a relevance is lost where it is divided by `epsilon_stabilize(z, epsilon)`, and not by z."""
    return torch.where(z == 0, 1, epsilon / epsilon_stabilize(z.abs(), epsilon))


def gamma_rule(gamma: float, eps: float) -> LinearRuleFn:
    """R_j = sum_k (p_jk + g p+_jk) / (z_k + g sum_j p+_jk) R_k, the bias among the p; where z_k < 0, with p- for p+.

    Montavon et al. 2019; a unit below zero, where a ReLU is inactive, as in Andeol et al. 2021.
    """

    def rule(op: LinearOp, c: Tensor, report: Report | None = None) -> Tensor:
        z = op.output()
        plus = op.positive_contribution_sum() if op.b is None else op.positive_contribution_sum() + op.b.clamp(min=0)
        is_positive = z >= 0
        boosted = z + gamma * torch.where(is_positive, plus, z - plus)
        s = c * z / epsilon_stabilize(boosted, eps)
        if report is not None:
            b = torch.zeros_like(z) if op.b is None else op.b.expand_as(z)
            favored = torch.where(is_positive, b.clamp(min=0), b.clamp(max=0))
            _report_shares(report, z * c * stabilizer_share(boosted, eps), (b + gamma * favored) * s)
        return op.input_gradient_by_contribution_sign(
            torch.where(is_positive, (1 + gamma) * s, s), torch.where(is_positive, s, (1 + gamma) * s)
        )

    return rule


def z_plus_rule(eps: float) -> LinearRuleFn:
    """R_j = sum_k p+_jk / sum_j p+_jk R_k. Montavon et al. 2017; for signed a, alpha-beta with alpha = 1."""

    def rule(op: LinearOp, c: Tensor, report: Report | None = None) -> Tensor:
        z, plus = op.output(), op.positive_contribution_sum()
        s = c * z / epsilon_stabilize(plus, eps)
        if report is not None:
            _report_shares(report, z * c * stabilizer_share(plus, eps), None)
        return op.input_gradient_by_contribution_sign(s)

    return rule


def alpha_beta_rule(alpha: float, eps: float) -> LinearRuleFn:
    """R_j = sum_k (alpha p+_jk / sum_j p+_jk - beta p-_jk / sum_j p-_jk) R_k, the bias among the p; beta = alpha - 1.

    Bach et al. 2015.
    """

    def rule(op: LinearOp, c: Tensor, report: Report | None = None) -> Tensor:
        z = op.output()
        plus = op.positive_contribution_sum() if op.b is None else op.positive_contribution_sum() + op.b.clamp(min=0)
        minus = (z - plus).clamp(max=0)
        up, down = alpha * c * z / epsilon_stabilize(plus, eps), (1 - alpha) * c * z / epsilon_stabilize(minus, eps)
        if report is not None:
            of_bias = None if op.b is None else op.b.clamp(min=0) * up + op.b.clamp(max=0) * down
            lost = alpha * stabilizer_share(plus, eps) + (1 - alpha) * stabilizer_share(minus, eps)
            _report_shares(report, z * c * lost, of_bias)
        return op.input_gradient_by_contribution_sign(up, down)

    return rule


def z_box_rule(eps: float) -> FirstLayerRuleFn:
    """R_j = sum_k (a_j w_jk - l_j w+_jk - h_j w-_jk) / sum_j (...) R_k: the z-B rule. Montavon et al. 2017."""

    def rule(op: LinearOp, low: Tensor, high: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        plus, minus = op.w.clamp(min=0), op.w.clamp(max=0)
        z = op.bilinear(op.a, op.w) - op.bilinear(low, plus) - op.bilinear(high, minus)
        s = c * op.output() / epsilon_stabilize(z, eps)
        return op.input_gradient(op.w, s), -op.input_gradient(plus, s), -op.input_gradient(minus, s)

    return rule


def flat_distribution_rule() -> FirstLayerRuleFn:
    """R_j = sum_k R_k / n_k over the n_k inputs of unit k. Lapuschkin et al. 2019.

    It does not depend on a_j, so it is sent to the bounds, high - low, from which all of it arrives.
    """

    def rule(op: LinearOp, low: Tensor, high: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ones, width = torch.ones_like(op.w), high - low
        s = c * op.output() / op.bilinear(torch.ones_like(op.a), ones)
        g = torch.where(width > 0, op.input_gradient(ones, s) / epsilon_stabilize(width, 0), 0)
        return torch.zeros_like(g), -g, g

    return rule
