"""Norm balls: sampling, steepest ascent directions, projection. And constraints, which apply them to rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor

from ...errors import InputError
from ...objectives import RowIndex
from ...rng import normal, uniform
from ...validation import check_float, norm_name
from ..rows import broadcast_rows

MIN_DENOMINATOR = 1e-12
L1_TOP_GRADIENT_FRACTION = 0.01  # fraction of the values that a steepest step in L1 changes
RELATIVE_BOUND_TEST_STEP = 1e-3
RELATIVE_DISTANCE_TOLERANCE = 1e-6  # relative, of distances that are rounded
GRAY_LEVEL_TOLERANCE = 1e-4  # from a whole gray level: many eps are given in float32


class NormBall(Protocol):
    @property
    def eps(self) -> float: ...
    def sample(self, x: Tensor, seed: int) -> Tensor: ...
    def steepest_direction(self, grad: Tensor) -> Tensor: ...
    def project(self, x: Tensor, center: Tensor) -> Tensor: ...
    def distance(self, x: Tensor, center: Tensor) -> Tensor: ...


def eps_with_rounding_tolerance(eps: float) -> float:
    """The largest distance that counts as within eps, as distances are rounded."""
    return eps * (1 + RELATIVE_DISTANCE_TOLERANCE)


Ball = Annotated[NormBall | None, "Norm ball to stay in, in place of eps and norm."]


@dataclass(frozen=True)
class Linf:
    """Every value within eps."""

    eps: float

    def sample(self, x: Tensor, seed: int) -> Tensor:
        """A uniform point of the ball around each row of x."""
        return self.project(x + (2 * uniform(x, seed) - 1) * self.eps, x)

    def steepest_direction(self, grad: Tensor) -> Tensor:
        return grad.sign()

    def project(self, x: Tensor, center: Tensor) -> Tensor:
        return x.clamp(center - self.eps, center + self.eps)

    def distance(self, x: Tensor, center: Tensor) -> Tensor:  # (N,)
        return (x - center).flatten(1).abs().amax(1)


@dataclass(frozen=True)
class L2:
    """Euclidean distance within eps."""

    eps: float

    def sample(self, x: Tensor, seed: int) -> Tensor:
        """A uniform point of the ball around each row of x."""
        radius = uniform(x[:, :1].flatten(1)[:, :1], seed, "radius")[:, 0] ** (1 / x[0].numel())
        return x + self.eps * broadcast_rows(radius, x) * self.steepest_direction(normal(x, seed))

    def steepest_direction(self, grad: Tensor) -> Tensor:
        """Each row divided by its norm, however small that is; a zero row stays zero."""
        peak = grad.flatten(1).abs().amax(1)
        grad = grad / broadcast_rows(torch.where(peak > 0, peak, 1.0), grad)  # so that no square underflows
        return grad / broadcast_rows(l2_norm(grad).clamp_min(MIN_DENOMINATOR), grad)

    def project(self, x: Tensor, center: Tensor) -> Tensor:
        d = x - center
        return center + d * broadcast_rows((self.eps / l2_norm(d).clamp_min(MIN_DENOMINATOR)).clamp_max(1), d)

    def distance(self, x: Tensor, center: Tensor) -> Tensor:  # (N,)
        return l2_norm(x - center)


@dataclass(frozen=True)
class L1:
    """The sum of absolute differences within eps."""

    eps: float

    def sample(self, x: Tensor, seed: int) -> Tensor:
        """A uniform point of the ball around each row of x: a Laplace direction, a radius."""
        v = (2 * uniform(x, seed) - 1).flatten(1)
        laplace = v.sign() * -torch.log1p(
            -v.abs().clamp_max(1 - MIN_DENOMINATOR**0.5)
        )  # by the inverse of its distribution
        radius = uniform(x[:, :1].flatten(1)[:, :1], seed, "radius") ** (1 / v.shape[1])  # (N, 1)
        return self.project(x + (self.eps * radius * _l1_normalize(laplace)).view_as(x), x)

    def steepest_direction(self, grad: Tensor) -> Tensor:
        """The signs of the hundredth of the values with the largest gradients, over their number; zero stays zero.

        The one largest would be steepest, and a step of it long: Tramer & Boneh 2019, "Adversarial Training and
        Robustness for Multiple Perturbations", arXiv:1904.13000 (sparse L1 descent).
        """
        g = grad.flatten(1)
        largest = g.abs().topk(math.ceil(L1_TOP_GRADIENT_FRACTION * g.shape[1]), dim=1).indices
        return _l1_normalize(torch.zeros_like(g).scatter(1, largest, g.gather(1, largest).sign())).view_as(grad)

    def project(self, x: Tensor, center: Tensor) -> Tensor:
        """The nearest point of the ball: Duchi et al. 2008, "Efficient Projections onto the l1-Ball", figure 1."""
        d = (x - center).flatten(1)  # (N, D)
        is_outside = d.abs().sum(1, keepdim=True) > self.eps
        shrunk = d.sign() * (d.abs() - _l1_projection_threshold(d.abs(), self.eps)).clamp_min(0)
        shrunk = shrunk * (self.eps / shrunk.abs().sum(1, keepdim=True).clamp_min(MIN_DENOMINATOR)).clamp_max(
            1
        )  # rounded sums
        return torch.where(broadcast_rows(is_outside, x), _add_offset_rounding_inward(center, shrunk.view_as(x)), x)

    def distance(self, x: Tensor, center: Tensor) -> Tensor:  # (N,)
        return (x - center).flatten(1).abs().sum(1)


def _l1_normalize(v: Tensor) -> Tensor:
    """Rows (N, D) whose absolute values sum to one; a zero row stays zero."""
    return v / v.abs().sum(1, keepdim=True).clamp_min(MIN_DENOMINATOR)


def _l1_projection_threshold(v: Tensor, eps: float) -> Tensor:
    """theta (N, 1), by which all values v (N, D) >= 0 are lowered, down to zero, for the sum to be eps."""
    sum_dtype = v.dtype if v.device.type == "mps" else torch.float64
    mu, count = v.to(sum_dtype).sort(1, descending=True).values, torch.arange(1, v.shape[1] + 1, device=v.device)
    thresholds = (mu.cumsum(1) - eps) / count
    rho = (mu > thresholds).sum(1, keepdim=True).clamp_min(1)  # the number that stays above zero
    return thresholds.gather(1, rho - 1).clamp_min(0).to(v.dtype)


def _add_offset_rounding_inward(center: Tensor, d: Tensor) -> Tensor:
    """center + d, rounded toward the center: many values, all rounded outward, would leave the ball."""
    x = center + d
    return torch.where((x - center).abs() > d.abs(), torch.nextafter(x, center), x)


BALL_BY_NORM: dict[str, Callable[[float], NormBall]] = {"linf": Linf, "l2": L2, "l1": L1}


def unbounded_ball(norm: str, allowed: tuple[str, ...] = tuple(BALL_BY_NORM)) -> NormBall:
    """The norm as a ball without bounds, for minimal attacks. Raises InputError."""
    return _ball_class(norm, allowed)(math.inf)


def _ball_class(norm: str, allowed: tuple[str, ...]) -> Callable[[float], NormBall]:
    if (name := norm_name(norm)) not in allowed:
        raise InputError(f"norm is one of {', '.join(allowed)}; got {norm!r}")
    return BALL_BY_NORM[name]


def resolve_ball(eps: float | None, norm: str, ball: NormBall | None) -> NormBall:
    """The constraint that an attack was given: eps and norm, or a ball instead of both. Raises InputError."""
    if (ball is None) == (eps is None):
        raise InputError("give eps (and norm), or ball= instead of both")
    if ball is None:
        ball = _ball_class(norm, tuple(BALL_BY_NORM))(check_float("eps", eps, above=0))
    check_float("eps", ball.eps, above=0)
    return ball


def changes_few_values(ball: NormBall) -> bool:
    """Whether a steepest step changes few values, as in L1."""
    return norm_of(ball).startswith("l1")


def norm_of(ball: NormBall) -> str:
    """The norm in which a ball measures: "linf", "l2", "l1", or what a ball of one's own is called."""
    return str(getattr(ball, "norm", type(ball).__name__.lower()))


def format_eps(eps: float) -> str:
    """An eps as people write it: gray levels of 255 where that is shorter than its digits.

    >>> format_eps(2 / 255), format_eps(0.2), format_eps(1.5)
    ('2/255', '0.2', '1.5')
    """
    digits, levels = f"{eps:g}", f"{eps * 255:.0f}/255"
    is_gray_level = 0 < eps < 1 and abs(eps * 255 - round(eps * 255)) < GRAY_LEVEL_TOLERANCE
    return levels if is_gray_level and len(levels) < len(digits) else digits


def gradient_as_direction(grad: Tensor) -> Tensor:
    return grad


def unconstrained_grad(grad: Tensor, x: Tensor) -> Tensor:
    return grad


@dataclass(frozen=True, eq=False)
class Constraint:
    """The direction of steps (`step_direction`) and the set that x must be in (`project`), with one center per row.

    `feasible_grad(grad, x)` is the part of the gradient that x can follow. For a box, `bounds` (low and high, one row
    per example) replace `project` and `center`.
    """

    step_direction: Callable[[Tensor], Tensor] = gradient_as_direction
    project: Callable[[Tensor, Tensor | None], Tensor] = lambda x, center: x
    center: Tensor | None = None
    feasible_grad: Callable[[Tensor, Tensor], Tensor] = unconstrained_grad
    bounds: tuple[Tensor, Tensor] | None = None

    def ascent_direction(self, grad: Tensor, x: Tensor) -> Tensor:
        """The direction of a step from x."""
        return self.step_direction(self.feasible_grad(grad, x))

    def apply(self, x: Tensor) -> Tensor:
        """x projected into the feasible set."""
        return self.project(x, self.center) if self.bounds is None else x.clamp(*self.bounds)

    def step(self, x: Tensor, grad: Tensor, length: float) -> Tensor:
        """x <- project(x + length * direction(grad)): the update of projected gradient ascent (Madry et al. 2018)."""
        return self.apply(torch.add(x, self.ascent_direction(grad, x), alpha=length))

    def rows(self, index: RowIndex) -> Constraint:
        center = None if self.center is None else self.center[index]
        bounds = None if self.bounds is None else (self.bounds[0][index], self.bounds[1][index])
        return self if center is None and bounds is None else replace(self, center=center, bounds=bounds)


def ball_constraint(ball: NormBall, center: Tensor, clip: Callable[[Tensor], Tensor]) -> Constraint:
    """Steepest ascent inside a ball around `center` and inside the valid range.

    In L1, where a step changes few values, those at the edge of the valid range are left out (Tramer & Boneh 2019). In
    L-inf, both are bounds on each value, computed once.
    """
    if type(ball) is Linf:
        return Constraint(ball.steepest_direction, bounds=(clip(center - ball.eps), clip(center + ball.eps)))

    def project(x: Tensor, center: Tensor | None) -> Tensor:
        return clip(x if center is None else ball.project(x, center))

    def feasible_grad(grad: Tensor, x: Tensor) -> Tensor:
        return zero_grad_at_bounds(grad, x, clip)

    return Constraint(
        ball.steepest_direction, project, center, feasible_grad if changes_few_values(ball) else unconstrained_grad
    )


def zero_grad_at_bounds(grad: Tensor, x: Tensor, clip: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient at x, zero where it points out of the valid range at the range's edge."""
    is_at_bound = clip(x + RELATIVE_BOUND_TEST_STEP * (1 + x.abs()) * grad.sign()) == x
    return torch.where(is_at_bound, torch.zeros_like(grad), grad)


def project_to_radii(ball: NormBall, x: Tensor, center: Tensor, radius: Tensor) -> Tensor:
    """Each row of x (N, ...) into a ball of the same norm and of its own radius (N,)."""
    norm = type(ball).__name__.lower()
    radius_by_norm: dict[str, Any] = {"linf": broadcast_rows(radius, x), "l2": radius, "l1": radius[:, None]}
    return BALL_BY_NORM[norm](radius_by_norm[norm]).project(x, center)


def l2_norm(d: Tensor) -> Tensor:
    """The Euclidean norm of each row, (N,)."""
    norm: Tensor = torch.linalg.vector_norm(d.flatten(1), dim=1)
    return norm
