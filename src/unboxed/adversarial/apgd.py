"""Auto-PGD: projected gradient descent that finds its step size by itself, with momentum, from restarts.

Croce & Hein 2020, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks",
arXiv:2003.01690, Algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import L1, NormBall, resolve_ball, broadcast_rows
from ..errors import InputError
from ..model.batching import BatchSize
from ..objectives import Objective, logit, loss, targeted_dlr
from ..validation import check_seed, check_int
from .answers import likeliest_others
from .attempt import Attempt, in_range
from .levels import saved
from .result import Adversarial

ALPHA = 0.75  # the share of the step, the rest is momentum
RHO = 0.75  # the share of steps that must rise, or the step is halved
FURTHER = 1_000  # between the seeds of two restarts


@card(
    name="APGD",
    source="Croce & Hein 2020, arXiv:2003.01690, Algorithm 1",
    shows="An input within eps of this one that the model takes for something else, sought in steps that adapt.",
    does_not_show="That there is none where it fails: gradients may be masked. AutoAttack asks in other ways too.",
    norms=("linf", "l2"),
    example=lambda method, box, x, y: method(box, x, y, eps=0.1, steps=3),
)
def apgd(
    box: Box,
    x: Tensor,
    y: Tensor | int | None = None,
    *,
    eps: float | None = None,
    norm: str = "linf",
    ball: NormBall | None = None,
    target: Tensor | int | None = None,
    objective: Objective | None = None,
    loss: str | None = None,
    targets: int | None = None,
    steps: int = 100,
    restarts: int = 1,
    bits: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """Images within `eps` of x (`norm` "linf" or "l2", or `ball=`) that the model does not take for y.

    `loss` is "ce" (by default), "margin" or "dlr". `targets=9` is APGD-T: towards each of the 9 likeliest wrong classes
    in turn, by the targeted DLR (for models of fewer than four classes, by the difference of the two logits). A row
    that is fooled stops. Raises InputError.
    """
    ball = in_range(box, _ball(eps, norm, ball))
    check_int("steps", steps), check_int("restarts", restarts, minimum=1)
    seed = check_seed(seed)
    way = loss or "ce" if targets is None else "ce"
    attempt = Attempt(box, x, y, norm=ball, target=target, objective=objective, loss=way, batch_size=batch_size)
    if targets is not None:
        _check_targets(attempt, check_int("targets", targets, minimum=1))
    rows = attempt.begin()
    with attempt:
        for i, there in enumerate([None] if targets is None else likeliest(attempt, rows, targets).unbind(1)):
            goal = None if there is None else towards(attempt, there, loss)
            for restart in range(restarts):
                climb(attempt, ball, rows, goal, steps=steps, seed=seed + FURTHER * (i * restarts + restart))
    saved(attempt, bits, ball)
    return attempt.result()


def _ball(eps: float | None, norm: str, ball: NormBall | None) -> NormBall:
    ball = resolve_ball(eps, norm, ball)
    if isinstance(ball, L1):
        raise InputError('apgd takes norm="linf" or "l2"; for l1 use pgd or fab')
    return ball


def _check_targets(attempt: Attempt, targets: int) -> None:
    if attempt.goal.right is None or attempt.goal.become is not None:
        raise InputError("targets= tries the likeliest wrong classes in turn: give y, and no target= or objective=")


# -- towards other classes ---------------------------------------------------------------------------------------------


def likeliest(attempt: Attempt, rows: Tensor, most: int) -> Tensor:
    """The likeliest wrong classes (N, T) of the originals, the likeliest first, filled in for `rows` (M,)."""
    right, logits = attempt.goal.right, attempt.logits(attempt.x[rows], rows)  # (N,), (M, K)
    if right is None:
        raise InputError("the likeliest wrong classes are those beside y: give y")
    order = likeliest_others(logits, right[rows], min(most, logits.shape[1] - 1))
    found = torch.zeros(len(attempt.x), order.shape[1], dtype=torch.long, device=rows.device)
    found[rows] = order
    return found


def towards(attempt: Attempt, k: Tensor, way: str | None = None) -> Objective:
    """What leads from y to classes k (N,): the targeted DLR, where there are the four classes that it takes."""
    right, way = attempt.goal.right, way or ("dlr" if attempt.box.n_outputs >= 4 else "margin")
    if right is None or way not in ("dlr", "margin", "ce"):
        raise InputError(f"loss is one of ce, margin, dlr; got {way!r}")
    if way == "dlr":
        return targeted_dlr(right, k)
    return -loss(k) if way == "ce" else logit(k) - logit(right)


# -- the climb ---------------------------------------------------------------------------------------------------------


def checkpoints(steps: int) -> list[int]:
    """The steps w_0 = 0, w_1, ... at which the step size is judged: arXiv:2003.01690, section 3.1."""
    p = [0.0, 0.22]
    while p[-1] + 1e-9 < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    found = (math.ceil(round(q * steps, 9)) for q in p)
    return sorted({w for w in found if w <= steps})


def climb(
    attempt: Attempt, ball: NormBall, rows: Tensor, objective: Objective | None = None, *, steps: int, seed: int
) -> None:
    """One run of APGD for those of the rows that are not fooled yet, from a random point of the ball."""
    rows = rows[~attempt.success[rows]]
    if not len(rows):
        return
    start = attempt.box.inputs.clip(ball.sample(attempt.x, seed))  # a row's draw is its own, whoever is left
    for block in attempt.blocks(rows):
        _Run(attempt, ball, objective, steps).run(block, start[block])


@dataclass
class _Walk:
    """Where the rows stand that are not fooled yet; every field has a row an example."""

    rows: Tensor  # (n,)
    centre: Tensor  # (n, ...) the originals
    x: Tensor
    before: Tensor  # x of one step ago
    grad: Tensor
    best: Tensor  # x_max
    best_grad: Tensor
    score: Tensor  # (n,) f(x)
    best_score: Tensor  # (n,) f_max
    best_fooled: Tensor  # (n,) how near x_max comes to fooling
    eta: Tensor  # (n,) the step size
    rose: Tensor  # (n,) steps since the last checkpoint that rose
    eta_then: Tensor  # (n,) at the last checkpoint
    best_then: Tensor  # (n,) f_max at the last checkpoint

    def only(self, stay: Tensor) -> _Walk:
        """The walk of some of the rows."""
        return _Walk(*(getattr(self, field.name)[stay] for field in fields(self)))


class _Run:
    """APGD on one block of rows."""

    def __init__(self, attempt: Attempt, ball: NormBall, objective: Objective | None, steps: int) -> None:
        self.attempt, self.ball, self.objective, self.steps = attempt, ball, objective, steps
        self.checks = {w: w - last for last, w in pairwise(checkpoints(steps))}  # the step, and how many it judges

    def run(self, rows: Tensor, start: Tensor) -> None:
        walk = self._begin(rows, start)
        try:
            for k in range(1, self.steps + 1):
                if not len(walk.rows):
                    return
                walk = self._step(walk, k)
        finally:  # Ctrl-C too
            self.attempt.offer(walk.best, walk.rows, walk.best_fooled)

    def _asked(self, x: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Score, fooled and gradient; after the last step nobody asks for the gradient."""
        if k < self.steps:
            slope = self.attempt.slope(x, rows, self.objective)
            return slope.score, slope.fooled, slope.grad
        return *self.attempt.look(x, rows, self.objective), x

    def _begin(self, rows: Tensor, x: Tensor) -> _Walk:
        score, fooled, grad = self._asked(x, rows, 0)
        eta, none = torch.full_like(score, 2 * self.ball.eps), torch.zeros_like(rows)
        centre = self.attempt.x[rows]
        walk = _Walk(rows, centre, x, x, grad, x, grad, score, score, fooled, eta, none, eta, score)
        return self._fooled_leave(walk, fooled)

    def _fooled_leave(self, walk: _Walk, fooled: Tensor) -> _Walk:
        good = fooled > 0
        if not good.any():
            return walk
        self.attempt.keep(walk.x, walk.rows, good)
        return walk.only(~good)

    def _step(self, w: _Walk, k: int) -> _Walk:
        new = self._moved(w, k)
        score, fooled, grad = self._asked(new, w.rows, k)
        w.rose = w.rose + (score > w.score)
        better = score > w.best_score
        w.best, w.best_grad = (
            torch.where(broadcast_rows(better, new), a, b) for a, b in ((new, w.best), (grad, w.best_grad))
        )
        w.best_score = torch.where(better, score, w.best_score)
        w.best_fooled = torch.where(better, fooled, w.best_fooled)
        w.before, w.x, w.grad, w.score = w.x, new, grad, score
        w = self._fooled_leave(w, fooled)
        return self._judged(w, self.checks[k]) if k in self.checks else w

    def _moved(self, w: _Walk, k: int) -> Tensor:
        """The next point: a projected step z, then three quarters of it and a quarter of the last step's way."""
        z = self._projected(w.x + broadcast_rows(w.eta, w.x) * self.ball.steepest_direction(w.grad), w.centre)
        if k == 1:
            return z
        # x + ALPHA (z - x) + (1 - ALPHA) (x - before)
        mixed = z.mul_(ALPHA).add_(w.x, alpha=2 - 2 * ALPHA).sub_(w.before, alpha=1 - ALPHA)
        return self._projected(mixed, w.centre)

    def _projected(self, x: Tensor, centre: Tensor) -> Tensor:
        return self.attempt.box.inputs.clip(self.ball.project(x, centre))

    def _judged(self, w: _Walk, length: int) -> _Walk:
        """At a checkpoint: rows that rose too seldom, or are stuck, halve their step and go back to their best."""
        seldom = w.rose < RHO * length
        stuck = (w.eta == w.eta_then) & (w.best_score == w.best_then)
        halve = seldom | stuck
        w.eta_then, w.best_then, w.rose = w.eta, w.best_score, torch.zeros_like(w.rose)
        w.eta = torch.where(halve, w.eta / 2, w.eta)
        w.score = torch.where(halve, w.best_score, w.score)
        w.x, w.grad = (torch.where(broadcast_rows(halve, w.x), a, b) for a, b in ((w.best, w.x), (w.best_grad, w.grad)))
        return w
