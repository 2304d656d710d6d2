"""Step rules beside torch's own: optimizers that treat each row of a parameter (N, ...) by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from ..rows import broadcast_rows
from .constraints import TINY, l2_norm


class OptimizerLike(Protocol):
    """What a climb asks of a torch optimizer."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...
    @property
    def state(self) -> Any: ...
    def step(self) -> Any: ...


class PlainAscent:
    """Plain steps uphill: x <- x + lr * g, g being the parameter's `grad`, into new memory: the old x stays as it was.

    No torch optimizer: those go downhill, in place, and each of their steps is reported to the profiler.
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
    """Steps of one length: x <- x - lr * g / |g|, |g| a row's Euclidean norm. Where g is zero, nothing moves."""

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad / broadcast_rows(l2_norm(p.grad).clamp_min(TINY), p))


class Momentum(Optimizer):
    """Steps along the sum of all gradients, each divided by its row's L1 norm, older ones fading by `decay` a step.

    g <- decay * g + grad / |grad|_1; x <- x - lr * uphill(g, x). Dong et al. 2018, "Boosting Adversarial Attacks with
    Momentum", arXiv:1710.06081, eq. 6 and 7. `uphill` says which way a step goes along g from x.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, decay: float, ascent_direction: Callable[[Tensor, Tensor], Tensor]
    ):
        super().__init__(params, {"lr": lr, "decay": decay, "ascent_direction": ascent_direction})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                g = p.grad / broadcast_rows(p.grad.abs().flatten(1).sum(1).clamp_min(TINY), p)
                if "g" in self.state[p]:
                    g = g + group["decay"] * self.state[p]["g"]
                self.state[p]["g"] = g
                p.sub_(group["lr"] * group["ascent_direction"](g, p))


class RowLBFGS(Optimizer):
    """L-BFGS, a memory a row (Nocedal & Wright 2006, algorithm 7.4), without line search.

    Rows never mix, as they would in torch's own. The first step has length `lr * first`; later ones are the two-loop
    recursion's, no longer than `first * 10`; pairs without positive curvature are left out.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 1.0, history: int = 10, first_step_length: float = 0.1
    ) -> None:
        super().__init__(params, {"lr": lr, "history": history, "first_step_length": first_step_length})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                self._update_param(p, group)

    def _update_param(self, p: Tensor, group: dict[str, Any]) -> None:
        state, g = self.state[p], p.grad
        if g is None:
            return
        if "x" in state:  # the pair of the last step takes the place of the oldest
            i = state["count"] % group["history"]
            state[f"s{i}"], state[f"y{i}"] = p - state["x"], g - state["g"]
            state["count"] += 1
        state.setdefault("count", 0)
        state["x"], state["g"] = p.clone(), g.clone()
        d = self._direction(state, g, group)
        p.add_(d, alpha=group["lr"])

    def _direction(self, state: dict[str, Any], g: Tensor, group: dict[str, Any]) -> Tensor:
        """-H g by the two loops; a row without a good pair goes along -g."""
        count, m = state["count"], group["history"]
        newest = [i % m for i in range(count - 1, max(0, count - m) - 1, -1)]
        pairs = [_CurvaturePair(state[f"s{i}"], state[f"y{i}"]) for i in newest]
        q, alphas = g.clone(), []
        for pair in pairs:
            a = pair.rho * _row_dot(pair.s, q)
            alphas.append(a)
            q = q - broadcast_rows(a, q) * pair.y
        q = q * broadcast_rows(self._initial_scale(pairs, g, group["first_step_length"]), q)
        for pair, a in zip(reversed(pairs), reversed(alphas), strict=True):
            q = q + broadcast_rows(a - pair.rho * _row_dot(pair.y, q), q) * pair.s
        length_limit = (10 * group["first_step_length"] / l2_norm(q).clamp_min(TINY)).clamp_max(1)
        return -q * broadcast_rows(length_limit, q)

    def _initial_scale(self, pairs: list[_CurvaturePair], g: Tensor, first_step_length: float) -> Tensor:
        """gamma (N,), the newest good pair's s.y / y.y, or what makes the first step `first` long."""
        gamma = first_step_length / l2_norm(g).clamp_min(TINY)
        for pair in reversed(pairs):
            gamma = torch.where(pair.has_curvature, pair.gamma, gamma)
        return gamma


class _CurvaturePair:
    """A step s and the change y of the gradient along it; rho (N,) is zero where the curvature is not positive."""

    def __init__(self, s: Tensor, y: Tensor) -> None:
        self.s, self.y = s, y
        sy, yy = _row_dot(s, y), _row_dot(y, y)
        self.has_curvature = sy > 1e-10 * yy
        self.rho = torch.where(self.has_curvature, 1 / sy.clamp_min(TINY), 0)
        self.gamma = sy / yy.clamp_min(TINY)


def _row_dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


OPTIMIZER_BY_NAME: dict[str, Callable[..., Optimizer]] = {
    "adam": Adam,
    "sgd": SGD,
    "normalized": NormalizedGradient,
    "lbfgs": RowLBFGS,
}
"""Step rules by name."""
