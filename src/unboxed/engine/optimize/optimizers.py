"""Step rules beside torch's own: optimizers that treat each row of a parameter (N, ...) by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from .constraints import TINY, length, per_row


class Stepper(Protocol):
    """What a climb asks of a torch optimizer."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...
    @property
    def state(self) -> Any: ...
    def step(self) -> Any: ...


class Steps:
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


class Normalized(Optimizer):
    """Steps of one length: x <- x - lr * g / |g|, |g| a row's Euclidean norm. Where g is zero, nothing moves."""

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad / per_row(length(p.grad).clamp_min(TINY), p))


class Momentum(Optimizer):
    """Steps along the sum of all gradients, each divided by its row's L1 norm, older ones fading by `decay` a step.

    g <- decay * g + grad / |grad|_1; x <- x - lr * uphill(g, x). Dong et al. 2018, "Boosting Adversarial Attacks with
    Momentum", arXiv:1710.06081, eq. 6 and 7. `uphill` says which way a step goes along g from x.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, decay: float, uphill: Callable[[Tensor, Tensor], Tensor]):
        super().__init__(params, {"lr": lr, "decay": decay, "uphill": uphill})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                g = p.grad / per_row(p.grad.abs().flatten(1).sum(1).clamp_min(TINY), p)
                if "g" in self.state[p]:
                    g = g + group["decay"] * self.state[p]["g"]
                self.state[p]["g"] = g
                p.sub_(group["lr"] * group["uphill"](g, p))


class LBFGS(Optimizer):
    """L-BFGS, a memory a row (Nocedal & Wright 2006, algorithm 7.4), without line search.

    Rows never mix, as they would in torch's own. The first step has length `lr * first`; later ones are the two-loop
    recursion's, no longer than `first * 10`; pairs without positive curvature are left out.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 1.0, history: int = 10, first: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "history": history, "first": first})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                self._step(p, group)

    def _step(self, p: Tensor, group: dict[str, Any]) -> None:
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
        pairs = [_Pair(state[f"s{i}"], state[f"y{i}"]) for i in newest]
        q, alphas = g.clone(), []
        for pair in pairs:
            a = pair.rho * _inner(pair.s, q)
            alphas.append(a)
            q = q - per_row(a, q) * pair.y
        q = q * per_row(self._scale(pairs, g, group["first"]), q)
        for pair, a in zip(reversed(pairs), reversed(alphas), strict=True):
            q = q + per_row(a - pair.rho * _inner(pair.y, q), q) * pair.s
        most = (10 * group["first"] / length(q).clamp_min(TINY)).clamp_max(1)
        return -q * per_row(most, q)

    def _scale(self, pairs: list[_Pair], g: Tensor, first: float) -> Tensor:
        """gamma (N,), the newest good pair's s.y / y.y, or what makes the first step `first` long."""
        gamma = first / length(g).clamp_min(TINY)
        for pair in reversed(pairs):
            gamma = torch.where(pair.good, pair.gamma, gamma)
        return gamma


class _Pair:
    """A step s and the change y of the gradient along it; rho (N,) is zero where the curvature is not positive."""

    def __init__(self, s: Tensor, y: Tensor) -> None:
        self.s, self.y = s, y
        sy, yy = _inner(s, y), _inner(y, y)
        self.good = sy > 1e-10 * yy
        self.rho = torch.where(self.good, 1 / sy.clamp_min(TINY), 0)
        self.gamma = sy / yy.clamp_min(TINY)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


RULES: dict[str, Callable[..., Optimizer]] = {"adam": Adam, "sgd": SGD, "normalized": Normalized, "lbfgs": LBFGS}
"""Step rules by name."""
