"""Rules for layers with weights: how z_k = sum_j a_j w_jk + b_k shares out its relevance among the a_j.

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

Send = Callable[["Linear", Tensor], Tensor]
"""(op, c of its output) -> c of its input."""
SendPixels = Callable[["Linear", Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(op, lowest input, highest input, c) -> c of the input and of both bounds."""
Transposed = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Linear:
    """out = f(a, w) + b with b beside the output; f is linear in both."""

    f: Callable[[Tensor, Tensor], Tensor]
    a: Tensor  # a copy, for the model may write over its own
    w: Tensor
    b: Tensor | None
    conv: bool
    axis: int | None = None  # of the units in w, where units can be scaled
    transposed: Transposed | None = None  # (a, w, u) -> sum_k w_jk u_k, where torch has an op for it

    def out(self) -> Tensor:
        z = self.f(self.a, self.w)
        return z if self.b is None else z + self.b

    def back(self, w: Tensor, u: Tensor) -> Tensor:
        """sum_k w_jk u_k, (N, ...) shaped like a."""
        if self.transposed is not None:
            return self.transposed(self.a, w, u)
        with torch.enable_grad():
            a = torch.zeros_like(self.a).requires_grad_()
            (found,) = torch.autograd.grad(self.f(a, w), a, u)
        return found

    def positive(self) -> Tensor:
        """sum_j p+_jk."""
        plus = self.f(self.a.clamp(min=0), self.w.clamp(min=0))
        return plus + self.f(self.a.clamp(max=0), self.w.clamp(max=0)) if self.signed else plus

    @cached_property
    def signed(self) -> bool:
        return bool((self.a < 0).any())

    def by_sign(self, u: Tensor, v: Tensor | None = None) -> Tensor:
        """c_j with a_j c_j = sum_k p+_jk u_k + p-_jk v_k."""
        plus, minus = self.w.clamp(min=0), self.w.clamp(max=0)
        up = self.back(plus, u) if v is None else self.back(plus, u) + self.back(minus, v)
        if not self.signed:
            return up
        down = self.back(minus, u) if v is None else self.back(minus, u) + self.back(plus, v)
        return torch.where(self.a < 0, down, up)

    def scaled(self, scale: Tensor, shift: Tensor) -> Linear:
        """The op with each unit of its output multiplied and moved; both (K,)."""
        w = self.w * scale.view(*[-1 if i == self.axis else 1 for i in range(self.w.ndim)])
        beside = (-1, *[1] * (self.w.ndim - 2)) if self.conv else (-1,)
        b = shift.view(beside) if self.b is None else self.b * scale.view(beside) + shift.view(beside)
        return replace(self, w=w, b=b)


def transposed_conv(axes: int, settings: dict[str, Any]) -> Transposed | None:
    """The transposed convolution, without a forward pass before it; None for paddings that torch works out itself."""
    if isinstance(settings["padding"], str):
        return None
    stride, padding, dilation = (_each(settings[k], axes) for k in ("stride", "padding", "dilation"))
    more = (stride, padding, dilation, False, [0] * axes, settings["groups"], [True, False, False])

    def back(a: Tensor, w: Tensor, u: Tensor) -> Tensor:
        found: Tensor = torch.ops.aten.convolution_backward(u, a, w, None, *more)[0]
        return found

    return back


def _each(value: Any, axes: int) -> list[int]:
    found = [value] if isinstance(value, int) else list(value)
    return found * axes if len(found) == 1 else found


def transposed_dense(a: Tensor, w: Tensor, u: Tensor) -> Tensor:
    return u @ w


def stabilized(z: Tensor, epsilon: float) -> Tensor:
    """z moved away from zero by epsilon, upwards where it is zero; never zero."""
    moved = z + epsilon * torch.where(z < 0, -1.0, 1.0).to(z)
    return torch.where(moved == 0, torch.ones_like(z), moved)


def epsilon(eps: float) -> Send:
    """R_j = sum_k a_j w_jk / (z_k + eps sign(z_k)) R_k. Bach et al. 2015."""

    def send(op: Linear, c: Tensor) -> Tensor:
        if eps == 0:
            return op.back(op.w, c)
        z = op.out().abs()
        return op.back(op.w, c * z / (z + eps))

    return send


def gamma(g: float, eps: float) -> Send:
    """R_j = sum_k (p_jk + g p+_jk) / (z_k + g sum_j p+_jk) R_k, the bias among the p; where z_k < 0, p- in p+'s place.

    Montavon et al. 2019; a unit below zero, which a ReLU would shut, as Andeol et al. 2021 do.
    """

    def send(op: Linear, c: Tensor) -> Tensor:
        z = op.out()
        plus = op.positive() if op.b is None else op.positive() + op.b.clamp(min=0)
        above = z >= 0
        s = c * z / stabilized(z + g * torch.where(above, plus, z - plus), eps)
        return op.by_sign(torch.where(above, (1 + g) * s, s), torch.where(above, s, (1 + g) * s))

    return send


def z_plus(eps: float) -> Send:
    """R_j = sum_k p+_jk / sum_j p+_jk R_k. Montavon et al. 2017; for signed a, alpha-beta with alpha = 1."""
    return lambda op, c: op.by_sign(c * op.out() / stabilized(op.positive(), eps))


def alpha_beta(alpha: float, eps: float) -> Send:
    """R_j = sum_k (alpha p+_jk / sum_j p+_jk - beta p-_jk / sum_j p-_jk) R_k, the bias among the p; beta = alpha - 1.

    Bach et al. 2015.
    """

    def send(op: Linear, c: Tensor) -> Tensor:
        z = op.out()
        plus = op.positive() if op.b is None else op.positive() + op.b.clamp(min=0)
        minus = (z - plus).clamp(max=0)
        return op.by_sign(alpha * c * z / stabilized(plus, eps), (1 - alpha) * c * z / stabilized(minus, eps))

    return send


def z_box(eps: float) -> SendPixels:
    """R_j = sum_k (a_j w_jk - l_j w+_jk - h_j w-_jk) / sum_j (...) R_k: the z-B rule. Montavon et al. 2017."""

    def send(op: Linear, low: Tensor, high: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        plus, minus = op.w.clamp(min=0), op.w.clamp(max=0)
        z = op.f(op.a, op.w) - op.f(low, plus) - op.f(high, minus)
        s = c * op.out() / stabilized(z, eps)
        return op.back(op.w, s), -op.back(plus, s), -op.back(minus, s)

    return send


def flat() -> SendPixels:
    """R_j = sum_k R_k / n_k over the n_k inputs that unit k sees. Lapuschkin et al. 2019.

    It does not go by a_j, so it is handed to the bounds: what goes to high - low arrives whole.
    """

    def send(op: Linear, low: Tensor, high: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one, width = torch.ones_like(op.w), high - low
        s = c * op.out() / op.f(torch.ones_like(op.a), one)
        g = torch.where(width > 0, op.back(one, s) / stabilized(width, 0), 0)
        return torch.zeros_like(g), -g, g

    return send
