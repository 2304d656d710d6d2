"""Carlini & Wagner's attack in L2: Adam on distance and margin together, over a search for the price of the margin.

Carlini & Wagner 2017, "Towards Evaluating the Robustness of Neural Networks", arXiv:1608.04644, section VI.A: minimize
|x' - x|^2 + c f(x'), where f = max(kappa - margin, 0) and x' = (tanh(w) + 1) / 2.

Three things are done otherwise, for the same images at less cost. An image at the very edge of the range would need an
infinite w, and near it nothing moves: w is measured on a range that is wider by `SLACK`, and what lies beyond the edge
is cut. The first c is that at which, were the model linear, distance and margin would balance at the boundary. And each
row has its own search: it starts the next c from the nearest image that it has, and leaves when it gets no nearer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import TINY, unbounded_ball, broadcast_rows
from ..model.batching import BatchSize
from ..objectives import Objective
from ..validation import check_float, check_int
from .attempt import Attempt
from .levels import saved
from .result import Adversarial

SLACK = 0.01  # of half the range, beyond each of its ends
PATIENCE = 25  # after this part of the steps without gain, a row goes on in smaller ones, or stops
FIRST, LARGEST, FINER, FINEST = 0.3, 0.1, 3.0, 10.0  # of lr: the first; by how much finer then, and at last
GAIN, WORTH = 1e-3, 0.01  # what counts as gain, of the loss in a step; of the distance in a search step
GROWTH = 10  # of a c that was too small, while none is known that is not
BETAS = 0.9, 0.999


@card(
    name="Carlini & Wagner L2",
    source="Carlini & Wagner 2017, arXiv:1608.04644, section VI.A",
    shows="About the smallest change, in L2, that makes the model answer otherwise.",
    does_not_show="A bound: a still smaller change may do.",
    norms=("l2",),
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
    lr: float | None = None,
    initial_c: float | None = None,
    keep_going: bool = False,
    bits: int | None = None,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """The images nearest to x, in L2, that the model does not take for y, by a margin of `kappa` logits.

    `steps` of Adam for each of `binary_search_steps` values of c; `initial_c` is that of a linear model when not given.
    A row stops where it gets no nearer (`keep_going=True`: it uses all of its steps). `target` is the class to become
    instead; `objective=` is to rise above kappa. An image farther than `eps` is no success. Raises InputError.
    """
    eps = math.inf if eps is None else check_float("eps", eps, above=0)
    attempt = Attempt(
        box,
        x,
        y,
        norm=unbounded_ball(norm, ("l2",)),
        target=target,
        objective=objective,
        loss="margin",
        batch_size=batch_size,
    )
    plan = Plan(
        check_int("steps", steps),
        None if lr is None else check_float("lr", lr, above=0),
        check_float("kappa", kappa, minimum=0),
        None if initial_c is None else check_float("initial_c", initial_c, above=0),
        keep_going,
    )
    rounds = check_int("binary_search_steps", binary_search_steps, minimum=1)
    with attempt:
        _search(attempt, attempt.begin(), plan, rounds)
    saved(attempt, bits)
    return attempt.result(eps)


@dataclass(frozen=True)
class Plan:
    steps: int
    lr: float | None
    kappa: float
    initial_c: float | None
    keep_going: bool

    @property
    def patience(self) -> int:
        """Steps without gain that tire a row."""
        return max(10, self.steps // PATIENCE)  # as many as Adam remembers, at least


# -- the search for c --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Search:
    """Where the rows stand that are still in it."""

    rows: Tensor  # (n,)
    w: Tensor  # (n, ...) where the next descent starts
    c: Tensor  # (n,) the next to try
    low: Tensor  # (n,) the largest that was too small
    high: Tensor  # (n,) the smallest that was not
    lr: Tensor  # (n,) that a descent starts with
    least: Tensor  # (n,) and the one that it ends with

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
    space = Space.of(attempt.box, attempt.x)
    search = _begun(attempt, rows, space, plan)
    for _ in range(rounds):
        before = attempt.distance[search.rows]
        w, found = _descend(attempt, search, space, plan)
        known, after = attempt.success[search.rows], attempt.distance[search.rows]
        best = space.w_of(attempt.images[search.rows])
        search = search.learned(torch.where(broadcast_rows(known, w), best, w), found)
        if not plan.keep_going:
            search = search.at(~known | (after < before * (1 - WORTH)))
        if not len(search.rows):
            return


def _begun(attempt: Attempt, rows: Tensor, space: Space, plan: Plan) -> Search:
    """c and lr of each row as they would do for a linear model.

    At the boundary the pull to the original, 2 |d|, is c times the slope of the margin. And a step of Adam's changes
    each value by about lr: that is a part of how far the value that moves most has to go.
    """
    x = attempt.x[rows]
    slope = attempt.slope(x, rows)
    able = (slope.grad * (attempt.box.inputs.clip(x + 1e-3 * slope.grad.sign()) != x)).flatten(1)  # (n, D)
    short, steep = plan.kappa - slope.score, able.square().sum(1)
    c = torch.where(steep > 0, 2 * short / steep.clamp_min(TINY), 1).clamp(1e-6, 1e6)
    far = (able.abs() * (short / steep.clamp_min(TINY))[:, None] / space.scale.flatten(1)).amax(1)
    most = LARGEST * (
        1 + torch.where(space.bounded, 0, x.abs()).flatten(1).amax(1)
    )  # the range is one wide, or unknown
    lr = torch.where(steep > 0, FIRST * far, most).minimum(most)
    least = lr / FINEST
    if plan.lr is not None:
        lr = least = torch.full_like(lr, plan.lr)
    c = c if plan.initial_c is None else torch.full_like(c, plan.initial_c)
    return Search(rows, space.w_of(x), c, torch.zeros_like(c), torch.full_like(c, math.inf), lr, least)


# -- the variable ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
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

    @property
    def scale(self) -> Tensor:
        """dx/dw in the middle of the range."""
        return torch.where(self.bounded, self.half, 1)

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


@dataclass(frozen=True, eq=False)
class Descent:
    """The rows that are still moving."""

    at: Tensor  # (n,) their places in the search
    rows: Tensor  # (n,)
    c: Tensor  # (n,)
    least: Tensor  # (n,) step at which a row stops
    lr: Tensor  # (n,)
    count: Tensor  # (n,) steps at this lr
    idle: Tensor  # (n,) of them, since the loss fell below `mark`
    mark: Tensor  # (n,)
    lowest: Tensor  # (n,) loss, that of `best`
    best: Tensor  # (n, ...)
    w: Tensor  # (n, ...)
    mean: Tensor  # (n, ...) of the gradients, as Adam keeps it
    square: Tensor  # (n, ...)

    @classmethod
    def of(cls, search: Search) -> Descent:
        at, none, zero = torch.arange(len(search.rows), device=search.rows.device), search.c * 0, search.w * 0
        high, lr = none + math.inf, search.lr
        return cls(at, search.rows, search.c, search.least, lr, none, none, high, high, search.w, search.w, zero, zero)

    def those(self, index: Tensor) -> Descent:
        return Descent(*(getattr(self, f.name)[index] for f in fields(self)))

    def watched(self, loss: Tensor) -> Descent:
        lower, gain = loss < self.lowest, loss < self.mark * (1 - GAIN)
        return replace(
            self,
            lowest=torch.where(lower, loss, self.lowest),
            best=torch.where(broadcast_rows(lower, self.w), self.w, self.best),
            mark=torch.where(gain, loss, self.mark),
            idle=torch.where(gain, 0, self.idle + 1),
        )

    def stepped(self, grad: Tensor) -> Descent:
        """By Adam; not yet made valid."""
        b1, b2 = BETAS
        mean, square = b1 * self.mean + (1 - b1) * grad, b2 * self.square + (1 - b2) * grad.square()
        count = self.count + 1
        size = (square / broadcast_rows(1 - b2**count, grad)).sqrt() + 1e-8
        w = self.w - mean * broadcast_rows(self.lr / (1 - b1**count), grad) / size
        return replace(self, w=w, mean=mean, square=square, count=count)

    def finer(self, tired: Tensor) -> Descent:
        """Those that gain no more go back to their best, and on from there in smaller steps."""
        wide = broadcast_rows(tired, self.w)
        none = {k: torch.where(tired, 0, getattr(self, k)) for k in ("count", "idle")}
        zero = {k: torch.where(wide, 0, getattr(self, k)) for k in ("mean", "square")}
        w = torch.where(wide, self.best, self.w)
        return replace(self, w=w, lr=torch.where(tired, self.lr / FINER, self.lr), **none, **zero)


def _descend(attempt: Attempt, search: Search, space: Space, plan: Plan) -> tuple[Tensor, Tensor]:
    """Minimize |x' - x|^2 + c f(x') with this c: the best w of each row, and whether it led to a nearer image."""
    ended, found = search.w.clone(), torch.zeros_like(search.rows, dtype=torch.bool)
    d = Descent.of(search)
    for _ in range(plan.steps):
        loss, grad, nearer = _look(attempt, d, space, plan.kappa)
        found[d.at[nearer]] = True
        d = d.watched(loss).stepped(grad)
        d = replace(d, w=space.clip(d.w))
        ended[d.at] = d.best
        if (tired := d.idle >= plan.patience).any():
            d = d.finer(tired) if plan.lr is None else d
            done = d.lr < d.least if plan.lr is None else tired
            d = d if plan.keep_going else d.those(~done)
        if not len(d.rows):
            break
    return ended, found


def _look(attempt: Attempt, d: Descent, space: Space, kappa: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (n,), its gradient in w (n, ...), and where a nearer image fools (n,), which is kept."""
    x, (z, dz) = attempt.x[d.rows], space.x_of(d.w)
    z = attempt.box.inputs.clip(z)
    slope = attempt.slope(z, d.rows)
    good = (slope.fooled > 0) & (slope.score >= kappa)
    nearer = attempt.keep(z, d.rows, good)
    short = (kappa - slope.score).clamp_min(0)
    grad = 2 * (z - x) - broadcast_rows(d.c * (short > 0), z) * slope.grad
    return (z - x).flatten(1).square().sum(1) + d.c * short, grad * dz, nearer
