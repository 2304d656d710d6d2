"""Optimizers besides torch's own, in which the rows of a parameter (N, ...) are independent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..rows import broadcast_rows
from .constraints import MIN_DENOMINATOR, l2_norm


class OptimizerLike(Protocol):
    """What `optimize` uses of a torch optimizer."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...
    @property
    def state(self) -> Any: ...
    def step(self) -> Any: ...


class PlainAscent:
    """Gradient ascent: x <- x + lr * g, with g the parameter's `grad`, into new memory: the old x is not changed.

    Not a torch optimizer: those descend, in place, and report each step to the profiler.
    """

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(params), "lr": lr}]
        self.state: dict[Tensor, dict[str, Any]] = {}

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data = torch.add(p, p.grad, alpha=group["lr"])


class NormalizedGradient(Optimizer):
    """Steps of constant length: x <- x - lr * g / |g|, with the Euclidean norm per row. Where g is zero, x stays."""

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad / broadcast_rows(l2_norm(p.grad).clamp_min(MIN_DENOMINATOR), p))


class NormalizedMomentum(Optimizer):
    """Momentum of gradients that are normalized by their L1 norm per row.

    g <- decay * g + grad / |grad|_1; x <- x - lr * ascent_direction(g, x). Dong et al. 2018, "Boosting Adversarial
    Attacks with Momentum", arXiv:1710.06081, eq. 6 and 7.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, decay: float, ascent_direction: Callable[[Tensor, Tensor], Tensor]
    ):
        super().__init__(params, {"lr": lr, "decay": decay, "ascent_direction": ascent_direction})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                g = p.grad / broadcast_rows(p.grad.abs().flatten(1).sum(1).clamp_min(MIN_DENOMINATOR), p)
                if "g" in self.state[p]:
                    g = g + group["decay"] * self.state[p]["g"]
                self.state[p]["g"] = g
                p.sub_(group["lr"] * group["ascent_direction"](g, p))
