"""Ops with a backward pass of their own, and what is noted on activations while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Back = Callable[[Tensor], Sequence[Tensor | None]]
"""c of the output -> c of each variable."""


class Relevance(torch.autograd.Function):
    """A value whose backward pass is `back`. It saves no tensor through torch, so nothing is recomputed without us."""

    @staticmethod
    def forward(ctx: Any, value: Callable[[], Tensor], back: Back, *variables: Tensor) -> Tensor:
        ctx.back = back
        return value()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, c: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.back(c)


def ruled(out: Tensor, back: Back, *variables: Tensor) -> Tensor:
    """`out` as a function of the variables, by the rule `back`."""
    value = out.detach()
    found: Tensor = Relevance.apply(lambda: value.clone() if value._is_view() else value, back, *variables)  # type: ignore[no-untyped-call]
    return found


def by_gradient(run: Callable[..., Tensor], variables: Sequence[Tensor], share: float = 1.0) -> Tensor:
    """An op of the variables that hands down its gradient times `share`; copies, for the model may write over
    either."""
    with torch.enable_grad():
        leaves = [v.detach().clone().requires_grad_() for v in variables]
        out = run(*leaves)

    def back(c: Tensor) -> list[Tensor]:
        return [share * g for g in torch.autograd.grad(out, leaves, c.to(out.dtype), materialize_grads=True)]

    return ruled(out.detach().clone(), back, *variables)


NEAR = 1e-4  # where (f(x) - f(0)) / x would lose its digits, the slope half way is taken


def by_secant(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """An elementwise op: f(0) is a bias, which keeps its part, and the rest of the relevance passes through.

    c is multiplied by (f(x) - f(0)) / x, which is f(x) / x for ReLU, GELU, SiLU, tanh: R below is R above.
    """
    out, near = f(x.detach()), x.detach().abs() < NEAR
    with torch.enable_grad():
        half = torch.where(near, x.detach() / 2, torch.ones_like(x)).requires_grad_()
        (slope,) = torch.autograd.grad(f(half).sum(), half)
    slope = slope.nan_to_num(posinf=0, neginf=0)  # a root at zero: there is no relevance there
    rest = out - f(torch.zeros_like(x.detach()))
    secant = torch.where(near, slope, rest / torch.where(near, torch.ones_like(x), x.detach()))
    return ruled(out, lambda c: (c * secant,), x)


# -- notes -----------------------------------------------------------------------------------------------------------

GATE, BOUNDED, SIGNAL = 2, 1, 0
"""Which factor of a product is the gate: a sigmoid or softmax before a tanh or a clamp, these before all else."""


@dataclass(frozen=True, eq=False)
class Note:
    """What is known of an activation until it is written over."""

    version: int
    rank: int = SIGNAL
    bounds: tuple[Tensor, Tensor] | None = None  # the least and most that pixels can make of it, shaped like it
    linear: Any = None  # the Linear that gave it


def note(h: Tensor, **known: Any) -> Tensor:
    h._lrp_note = Note(h._version, **known)  # type: ignore[attr-defined]
    return h


def noted(h: Tensor) -> Note:
    found = getattr(h, "_lrp_note", None)
    return found if isinstance(found, Note) and found.version == h._version else Note(h._version)
