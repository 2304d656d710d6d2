"""Carlini & Wagner's attack in L2: Adam on distance and margin together, over a search for the price of the margin.

Carlini & Wagner 2017, "Towards Evaluating the Robustness of Neural Networks", arXiv:1608.04644, section VI.A: minimize
|x' - x|^2 + c f(x'), where f = max(kappa - margin, 0) and x' = (tanh(w) + 1) / 2.

Three things are done otherwise, for the same images at less cost. An image at the very edge of the range would need an
infinite w, and near it nothing moves: w is measured on a range that is wider by `SLACK`, and what lies beyond the edge
is cut. The first c is that at which, were the net linear, distance and margin would balance at the boundary. And each
row has its own search: it starts the next c from the nearest image that it has, and leaves when it gets no nearer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ..arguments import number, whole
from ..box import Box
from ..cards import card
from ..engine.balls import TINY, norm_of, per_row
from ..net.batching import BatchSize
from ..objectives import Objective
from .attempt import Attempt
from .levels import saved
from .result import Adversarial

SLACK = 0.01  # of half the range, beyond each of its ends
PATIENCE = 10  # a row stops after this part of the steps without gain
GAIN, WORTH = 1e-3, 0.01  # what counts as gain, of the loss in a step; of the distance in a search step
GROWTH = 10  # of a c that was too small, while none is known that is not
BETAS = 0.9, 0.999


@card(
    name="Carlini & Wagner L2",
    source="Carlini & Wagner 2017, arXiv:1608.04644, section VI.A",
    tells="About the smallest change, in L2, that makes the net answer otherwise.",
    not_tells="A bound: a still smaller change may do.",
    example=lambda method, box, x, y: method(box, x, y, steps=3, binary_search_steps=2),
    exempt={"steps kept": "only an image that fools is kept, and the first steps may lead to none"},
)
def carlini_wagner(
    box: Box,
    x: Tensor,
    y: Tensor | int | None = None,
    *,
    eps: float | None = None,
    norm: str = "l2",
    target: Tensor | int | None = None,
    objective: Objective | None = None,
    kappa: float = 0.0,
    binary_search_steps: int = 5,
    steps: int = 500,
    lr: float = 0.1,
    initial_c: float | None = None,
    keep_going: bool = False,
    bits: int | None = None,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """The images nearest to x, in L2, that the net does not take for y, by a margin of `kappa` logits.

    `steps` of Adam for each of `binary_search_steps` values of c; `initial_c` is that of a linear net when not given.
    A row stops where it gets no nearer (`keep_going=True`: it uses all of its steps). `target` is the class to become
    instead; `objective=` is to rise above kappa. An image farther than `eps` is no success. Raises InputError.
    """
    eps = math.inf if eps is None else number("eps", eps, above=0)
    attempt = Attempt(
        box, x, y, norm=norm_of(norm, ("l2",)), target=target, objective=objective, loss="margin", batch_size=batch_size
    )
    plan = Plan(
        whole("steps", steps),
        number("lr", lr, above=0),
        0.0 if kappa == 0 else number("kappa", kappa, above=0),
        None if initial_c is None else number("initial_c", initial_c, above=0),
        keep_going,
    )
    rounds = whole("binary_search_steps", binary_search_steps, least=1)
    with attempt:
        _search(attempt, attempt.begin(), plan, rounds)
    saved(attempt, bits)
    return attempt.result(eps)


@dataclass(frozen=True)
class Plan:
    steps: int
    lr: float
    kappa: float
    initial_c: float | None
    keep_going: bool

    @property
    def patience(self) -> int:
        """Steps without gain after which a row stops."""
        return self.steps if self.keep_going else -(-self.steps // PATIENCE)


# -- the search for c --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """Where the rows stand that are still in it."""

    rows: Tensor  # (n,)
    w: Tensor  # (n, ...) where the next descent starts
    c: Tensor  # (n,) the next to try
    low: Tensor  # (n,) the largest that was too small
    high: Tensor  # (n,) the smallest that was not

    def at(self, index: Tensor) -> Search:
        return Search(*(getattr(self, f.name)[index] for f in fields(self)))

    def learned(self, w: Tensor, found: Tensor) -> Search:
        """With the bounds that the last c gave, and the next one."""
        low, high = torch.where(found, self.low, self.c), torch.where(found, self.c, self.high)
        c = torch.where(high.isinf(), GROWTH * self.c, (low + high) / 2)
        return replace(self, w=w, c=c, low=low, high=high)


def _search(attempt: Attempt, rows: Tensor, plan: Plan, rounds: int) -> None:
    if not len(rows):
        return
    space, c = Space.of(attempt.box, attempt.x), _first_c(attempt, rows, plan)
    search = Search(rows, space.w_of(attempt.x[rows]), c, torch.zeros_like(c), torch.full_like(c, math.inf))
    for _ in range(rounds):
        before = attempt.distance[search.rows]
        w, found = _descend(attempt, search, space, plan)
        known, after = attempt.success[search.rows], attempt.distance[search.rows]
        best = space.w_of(attempt.images[search.rows])
        search = search.learned(torch.where(per_row(known, w), best, w), found)
        if not plan.keep_going:
            search = search.at(~known | (after < before * (1 - WORTH)))
        if not len(search.rows):
            return


def _first_c(attempt: Attempt, rows: Tensor, plan: Plan) -> Tensor:
    """(n,) such that at a linear net's boundary the pull to the original, 2 |d|, is c times the slope of the margin."""
    if plan.initial_c is not None:
        return torch.full_like(attempt.distance[rows], plan.initial_c)
    x = attempt.x[rows]
    slope = attempt.slope(x, rows)
    movable = attempt.box.inputs.clip(x + 1e-3 * slope.grad.sign()) != x
    steep = (slope.grad * movable).flatten(1).square().sum(1)
    c = 2 * (plan.kappa - slope.score) / steep.clamp_min(TINY)
    return torch.where(steep > 0, c, 1).clamp(1e-6, 1e6)


# -- the variable ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Space:
    """Valid inputs as middle + half * tanh(w), where they have bounds; as w itself where they have none."""

    middle: Tensor  # (1, ...)
    half: Tensor  # (1, ...) of the range, and a little more
    bounded: Tensor  # (1, ...) bool

    @classmethod
    def of(cls, box: Box, x: Tensor) -> Space:
        low, high = (box.inputs.clip(torch.full_like(x[:1], end)) for end in (-math.inf, math.inf))
        bounded, nothing = (high - low).isfinite(), torch.zeros_like(low)
        middle = torch.where(bounded, (low + high) / 2, nothing)
        half = torch.where(bounded, (high - low) / 2 * (1 + SLACK), nothing).clamp_min(TINY)
        return cls(middle, half, bounded)

    def w_of(self, x: Tensor) -> Tensor:
        most = 1 / (1 + SLACK)
        return torch.where(self.bounded, ((x - self.middle) / self.half).clamp(-most, most).atanh(), x)

    def clip(self, w: Tensor) -> Tensor:
        """The nearest w of a valid input."""
        most = math.atanh(1 / (1 + SLACK))
        return torch.where(self.bounded, w.clamp(-most, most), w)

    def x_of(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """x and dx/dw."""
        t = w.tanh()
        dx = torch.where(self.bounded, self.half * (1 - t.square()), 1)
        return torch.where(self.bounded, self.middle + self.half * t, w), dx


# -- one descent -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Descent:
    """The rows that are still moving."""

    at: Tensor  # (n,) their places in the search
    rows: Tensor  # (n,)
    c: Tensor  # (n,)
    w: Tensor  # (n, ...)
    mean: Tensor  # (n, ...) of the gradients, as Adam keeps it
    square: Tensor  # (n, ...)
    lowest: Tensor  # (n,) loss
    idle: Tensor  # (n,) steps since

    def those(self, index: Tensor) -> Descent:
        return Descent(*(getattr(self, f.name)[index] for f in fields(self)))

    def watched(self, loss: Tensor) -> Descent:
        better = loss < self.lowest * (1 - GAIN)
        idle = torch.where(better, 0, self.idle + 1)
        return replace(self, lowest=torch.where(better, loss, self.lowest), idle=idle)

    def stepped(self, grad: Tensor, lr: float, step: int) -> Descent:
        """Adam's step number `step`, from 1 on; not yet made valid."""
        b1, b2 = BETAS
        mean, square = b1 * self.mean + (1 - b1) * grad, b2 * self.square + (1 - b2) * grad.square()
        way = mean / (1 - b1**step) / ((square / (1 - b2**step)).sqrt() + 1e-8)
        return replace(self, w=self.w - lr * way, mean=mean, square=square)


def _descend(attempt: Attempt, search: Search, space: Space, plan: Plan) -> tuple[Tensor, Tensor]:
    """Minimize |x' - x|^2 + c f(x') with this c: where each row came to, and whether it fooled the net on its way."""
    ended, found = search.w.clone(), torch.zeros_like(search.rows, dtype=torch.bool)
    at, zero = torch.arange(len(found), device=found.device), torch.zeros_like(ended)
    lowest = torch.full_like(search.c, math.inf)
    d = Descent(at, search.rows, search.c, search.w, zero, zero, lowest, torch.zeros_like(at))
    for step in range(1, plan.steps + 1):
        loss, grad, good = _look(attempt, d, space, plan.kappa)
        found[d.at[good]] = True
        d = d.watched(loss).stepped(grad, plan.lr, step)
        d = replace(d, w=space.clip(d.w))
        ended[d.at] = d.w
        if (done := d.idle >= plan.patience).any():
            d = d.those(~done)
        if not len(d.rows):
            break
    return ended, found


def _look(attempt: Attempt, d: Descent, space: Space, kappa: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (n,), its gradient in w (n, ...), and where the net is fooled (n,), which is kept."""
    x, (z, dz) = attempt.x[d.rows], space.x_of(d.w)
    z = attempt.box.inputs.clip(z)
    slope = attempt.slope(z, d.rows)
    good = (slope.fooled > 0) & (slope.score >= kappa)
    attempt.keep(z, d.rows, good)
    short = (kappa - slope.score).clamp_min(0)
    grad = 2 * (z - x) - per_row(d.c * (short > 0), z) * slope.grad
    return (z - x).flatten(1).square().sum(1) + d.c * short, grad * dz, good
