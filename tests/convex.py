"""Convex models at their optimum, in double precision, and the same trained again with other weights or images."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import import_module

import torch
from torch import Tensor, nn

import unboxed as ub

with warnings.catch_warnings():  # at their first use, Hessians of torch call what torch has deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    import_module("torch._decomp.decompositions_for_jvp")


@dataclass(frozen=True, eq=False)
class Convex:
    """A linear model whose loss, sum(weights * losses) / n + l2 / 2 |theta|^2, is minimized by Newton steps."""

    x: Tensor  # (N, ...)
    y: Tensor  # (N,)
    l2: float
    inputs: ub.Pixels
    n_outputs: int
    outputs: str = "logits"

    def design(self, x: Tensor) -> Tensor:
        """(N, D + 1), with a 1 for the bias."""
        return torch.cat([x.flatten(1), x.new_ones(len(x), 1)], 1)

    def losses(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        z = self.design(x) @ theta.reshape(self.n_outputs, -1).T
        if self.outputs == "regression":
            return 0.5 * (z[:, 0] - y) ** 2
        return nn.functional.cross_entropy(z, y, reduction="none")

    def objective(self, theta: Tensor, weights: Tensor) -> Tensor:
        return weights @ self.losses(theta, self.x, self.y) / len(self.x) + self.l2 / 2 * theta.square().sum()

    def hessian(self, theta: Tensor, weights: Tensor | None = None) -> Tensor:
        """(P, P)."""
        weights = self.ones if weights is None else weights
        return torch.func.hessian(self.objective)(theta, weights)

    @property
    def ones(self) -> Tensor:
        return torch.ones(len(self.x), dtype=torch.float64)

    def optimum(self, weights: Tensor | None = None, start: Tensor | None = None) -> Tensor:
        """Parameters (P,): rows of (weight, bias), one per output."""
        return self._optimum.clone() if weights is None and start is None else self._minimize(weights, start)

    @cached_property
    def _optimum(self) -> Tensor:
        return self._minimize(None, None)

    def _minimize(self, weights: Tensor | None, start: Tensor | None) -> Tensor:
        weights = self.ones if weights is None else weights
        theta = torch.zeros(self.n_outputs * self.design(self.x[:1]).shape[1]).double() if start is None else start
        for _ in range(50):
            gradient = torch.func.grad(self.objective)(theta, weights)
            if gradient.norm() < 1e-14:
                break
            theta = theta - torch.linalg.solve(self.hessian(theta, weights), gradient)
        return theta

    def box(self, theta: Tensor) -> ub.Box:
        layer = nn.Linear(self.x[0].numel(), self.n_outputs).double()
        rows = theta.reshape(self.n_outputs, -1)
        layer.weight.data, layer.bias.data = rows[:, :-1].clone(), rows[:, -1].clone()
        return ub.Box(nn.Sequential(nn.Flatten(), layer), self.inputs, outputs=self.outputs)  # type: ignore[arg-type]

    def flat(self, parameters: dict[str, Tensor]) -> Tensor:
        """Parameters {name: (K, ...)} of the box in the order of `optimum`, (K, P)."""
        return torch.cat([parameters["1.weight"], parameters["1.bias"][..., None]], -1).flatten(1)

    def with_image(self, index: int, image: Tensor) -> Convex:
        x = self.x.clone()
        x[index] = image
        return replace(self, x=x)


@cache
def logistic(n: int = 40, side: int = 3, n_classes: int = 3, l2: float = 0.05) -> Convex:
    """Softmax regression on small images whose classes are noisy."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 1, side, side, generator=generator, dtype=torch.float64)
    w = torch.randn(n_classes, side * side, generator=generator, dtype=torch.float64)
    noise = 0.3 * torch.randn(n, n_classes, generator=generator, dtype=torch.float64)
    return Convex(x, ((x.flatten(1) - 0.5) @ w.T + noise).argmax(1), l2, ub.Pixels((1, side, side)), n_classes)


@cache
def ridge(n: int = 30, side: int = 2, l2: float = 0.1) -> Convex:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 1, side, side, generator=generator, dtype=torch.float64)
    y = 3 * x.flatten(1)[:, 0] - x.flatten(1)[:, 1] + torch.randn(n, generator=generator, dtype=torch.float64)
    return Convex(x, y, l2, ub.Pixels((1, side, side)), 1, "regression")
