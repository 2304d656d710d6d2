"""Norm balls: where to start, which way is steepest, how to get back in. And constraints, which hold rows of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..arguments import number
from ..errors import InputError
from ..objectives import Index
from .draws import normal, uniform

TINY = 1e-12


class Ball(Protocol):
    @property
    def eps(self) -> float: ...
    def sample(self, x: Tensor, seed: int) -> Tensor: ...
    def steepest(self, grad: Tensor) -> Tensor: ...
    def project(self, x: Tensor, centre: Tensor) -> Tensor: ...
    def distance(self, x: Tensor, centre: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Linf:
    """Every value within eps."""

    eps: float

    def sample(self, x: Tensor, seed: int) -> Tensor:
        """A uniform point of the ball around each row of x."""
        return self.project(x + (2 * uniform(x, seed) - 1) * self.eps, x)

    def steepest(self, grad: Tensor) -> Tensor:
        return grad.sign()

    def project(self, x: Tensor, centre: Tensor) -> Tensor:
        return x.clamp(centre - self.eps, centre + self.eps)

    def distance(self, x: Tensor, centre: Tensor) -> Tensor:  # (N,)
        return (x - centre).flatten(1).abs().amax(1)


@dataclass(frozen=True)
class L2:
    """Euclidean distance within eps."""

    eps: float

    def sample(self, x: Tensor, seed: int) -> Tensor:
        """A uniform point of the ball around each row of x."""
        radius = uniform(x[:, :1].flatten(1)[:, :1], seed + 1)[:, 0] ** (1 / x[0].numel())
        return x + self.eps * per_row(radius, x) * self.steepest(normal(x, seed))

    def steepest(self, grad: Tensor) -> Tensor:
        """Each row divided by its norm; a zero row stays zero."""
        return grad / per_row(length(grad).clamp_min(TINY), grad)

    def project(self, x: Tensor, centre: Tensor) -> Tensor:
        d = x - centre
        return centre + d * per_row((self.eps / length(d).clamp_min(TINY)).clamp_max(1), d)

    def distance(self, x: Tensor, centre: Tensor) -> Tensor:  # (N,)
        return length(x - centre)


@dataclass(frozen=True)
class L1:
    """The sum of absolute differences within eps."""

    eps: float

    def sample(self, x: Tensor, seed: int) -> Tensor:
        """A uniform point of the ball around each row of x: a Laplace direction, a radius."""
        return x

    def steepest(self, grad: Tensor) -> Tensor:
        return grad

    def project(self, x: Tensor, centre: Tensor) -> Tensor:
        return x

    def distance(self, x: Tensor, centre: Tensor) -> Tensor:  # (N,)
        return (x - centre).flatten(1).abs().sum(1)


NORMS: dict[str, Callable[[float], Ball]] = {"linf": Linf, "l2": L2, "l1": L1}


def norm_of(norm: str, among: tuple[str, ...] = tuple(NORMS)) -> Ball:
    """The norm as a ball without bounds, for what looks for the least distance. Raises InputError."""
    return _kind(norm, among)(math.inf)


def _kind(norm: str, among: tuple[str, ...]) -> Callable[[float], Ball]:
    if not isinstance(norm, str) or norm.lower() not in among:
        raise InputError(f"norm is one of {', '.join(among)}; got {norm!r}")
    return NORMS[norm.lower()]


def ball_of(eps: float | None, norm: str, ball: Ball | None) -> Ball:
    """The constraint that an attack was given: eps and norm, or a ball instead of both. Raises InputError."""
    if (ball is None) == (eps is None):
        raise InputError("give eps (and norm), or ball= instead of both")
    if ball is None:
        ball = _kind(norm, tuple(NORMS))(number("eps", eps, above=0))
    number("eps", ball.eps, above=0)
    return ball


def same(grad: Tensor) -> Tensor:
    return grad


@dataclass(frozen=True)
class Constraint:
    """Where a climb goes (`steer` the gradient) and must stay (`project`); `centre` has a row an example."""

    steer: Callable[[Tensor], Tensor] = same
    project: Callable[[Tensor, Tensor | None], Tensor] = lambda x, centre: x
    centre: Tensor | None = None

    def rows(self, index: Index) -> Constraint:
        return self if self.centre is None else replace(self, centre=self.centre[index])


def within(ball: Ball, centre: Tensor, clip: Callable[[Tensor], Tensor]) -> Constraint:
    """Steepest steps inside a ball around `centre` and inside the valid range."""

    def project(x: Tensor, centre: Tensor | None) -> Tensor:
        return clip(x if centre is None else ball.project(x, centre))

    return Constraint(ball.steepest, project, centre)


def length(d: Tensor) -> Tensor:
    """The Euclidean norm of each row, (N,)."""
    norm: Tensor = torch.linalg.vector_norm(d.flatten(1), dim=1)
    return norm


def per_row(v: Tensor, like: Tensor) -> Tensor:
    """(N,) -> (N, 1, ...), to go with a tensor (N, ...)."""
    return v.view(-1, *[1] * (like.ndim - 1))
