"""DeepFool: step after step onto the nearest of the planes that the model's boundaries look like from here.

Moosavi-Dezfooli et al. 2016, "DeepFool: a simple and accurate method to fool deep neural networks", arXiv:1511.04599,
algorithm 2. Images have bounds, which the paper leaves out: here a step is the shortest that stays inside them, so that
pixels at 0 or 1 cost nothing and stop nothing. What fools is then drawn back along the line to the original.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import TINY, NormBall, Linf, unbounded_ball, broadcast_rows
from ..model.batching import BatchSize
from ..objectives import Objective
from ..validation import check_float, check_int
from .answers import likeliest_others
from .attempt import Attempt
from .levels import saved
from .result import Adversarial

BEYOND = 1e-4  # how far beyond a plane a step goes at least: exactly on it, nothing is decided
LOOKS = 6  # of the search between an image that fools and the original
AGAIN, WORTH = 4, 0.01  # steps of a walk that starts from the boundary; the least gain for which there is another
NEAR = 1e-3  # it ends where so small a part of the distance is left to be won


@card(
    name="DeepFool",
    source="Moosavi-Dezfooli et al. 2016, arXiv:1511.04599, algorithm 2",
    shows="A small change that makes the model answer otherwise, and so about how near its boundary is.",
    does_not_show="The smallest change: it goes by straight planes where the boundary is curved.",
    norms=("l2", "linf"),
    example=lambda method, box, x, y: method(box, x, y, steps=3),
    exempt={"steps kept": "a run that comes to its end is followed by a search back, one that is cut short is not"},
)
def deepfool(
    box: Box,
    x: Tensor,
    y: Tensor | int | None = None,
    *,
    eps: float | None = None,
    norm: str = "l2",
    target: Tensor | int | None = None,
    objective: Objective | None = None,
    steps: int = 50,
    rounds: int = 2,
    candidates: int | None = 10,
    overshoot: float = 0.02,
    bits: int | None = None,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """Images near x, in the norm "l2" or "linf", that the model does not take for y.

    Each step goes to the nearest of the `candidates` likeliest classes (None: of all), one way back through the model
    each, and `overshoot` of its length beyond. Then, up to `rounds` times (0: the paper's algorithm), it walks on from
    where the original lies nearest on the boundary's plane as it is seen where it was met, as FAB does (Croce & Hein
    2020, arXiv:1907.02044). `target` is the class to become instead; `objective=` is to rise above zero. An image
    farther than `eps` is no success. Raises InputError.
    """
    eps = math.inf if eps is None else check_float("eps", eps, above=0)
    attempt = Attempt(
        box, x, y, norm=unbounded_ball(norm, ("l2", "linf")), target=target, objective=objective, loss="margin",
        batch_size=batch_size,
    )  # fmt: skip
    candidates = None if candidates is None else check_int("candidates", candidates, minimum=2)
    overshoot = check_float("overshoot", overshoot, minimum=0)
    steps, rounds = check_int("steps", steps), check_int("rounds", rounds)
    with attempt:
        unknown, reach = torch.full_like(attempt.distance, math.nan), 1 + overshoot
        walker, rows = _Walker(attempt, candidates, reach, reach, unknown), attempt.begin()
        walker.walk(rows, attempt.x[rows], steps)
        walker.return_nearer(rows, min(steps, AGAIN), rounds)
    saved(attempt, bits)
    return attempt.result(eps)


@dataclass(frozen=True)
class _Walker:
    attempt: Attempt
    candidates: int | None
    reach: float  # of a step, in its own length
    first: float  # of the first
    low: Tensor  # (N,) what the originals score, below zero

    def walk(self, rows: Tensor, z: Tensor, steps: int) -> None:
        """From the original onto the nearest plane seen from z (n, ...); from there on, until fooled.

        A row that no step moves any more leaves too. What fools is drawn back.
        """
        start, found = self.attempt.x[rows], [(rows[:0], z[:0], self.low[:0])]
        for step in range(steps):
            if not len(rows):
                break
            moved = self._moved(rows, z, start, self.first if step == 0 else self.reach)
            score = self.attempt.fooled(moved, rows)
            won, stuck = score > 0, (moved == z).flatten(1).all(1)
            self.attempt.keep(moved, rows, won)
            found.append((rows[won], moved[won], score[won]))
            rows, z = rows[~won & ~stuck], moved[~won & ~stuck]
            start = z
        done, images, high = (torch.cat(h) for h in zip(*found, strict=True))
        draw_back(self.attempt, done, images, high, self.low[done])

    def _moved(self, rows: Tensor, z: Tensor, start: Tensor, reach: float) -> Tensor:
        """In bounded batches also of what a step holds: a gradient for each candidate."""
        size, most = self.attempt.box.batch_plan(len(rows), self.attempt.batch_size)
        size, parts = most if size == "auto" else size, []
        for i in range(0, len(rows), size):
            mine, at = rows[i : i + size], z[i : i + size]
            planes = _planes(self.attempt, at, mine, self.candidates)
            unseen = self.low[mine].isnan()  # the first look is at the original
            self.low[mine] = torch.where(unseen, planes.f.amax(1), self.low[mine])
            parts.append(_stepped(self.attempt, planes, start[i : i + size], at, reach))
        return torch.cat(parts)

    def return_nearer(self, rows: Tensor, steps: int, rounds: int) -> None:
        """Walk again, by the plane of the boundary where it was met, while that leads to nearer images."""
        again = replace(self, candidates=2, first=1.0)  # the plane is known where it is met: nothing need be overshot
        rows = rows[self.attempt.success[rows]]
        for _ in range(rounds):
            if not len(rows):
                return
            before = self.attempt.distance[rows]
            again.walk(rows, self.attempt.images[rows], steps)
            rows = rows[self.attempt.distance[rows] < before * (1 - WORTH)]


# -- one step ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Planes:
    """What the boundaries to J other classes look like from an image: f + w . r = 0."""

    f: Tensor  # (n, J) below zero: not there yet
    w: Tensor  # (n, J, ...)


def _planes(attempt: Attempt, z: Tensor, rows: Tensor, candidates: int | None) -> Planes:
    if attempt.goal.right is None or attempt.goal.become is not None or candidates == 2:
        slope = attempt.slope(z, rows)
        return Planes(slope.score[:, None], slope.grad[:, None])
    right = attempt.goal.right

    def likeliest(logits: Tensor, i: Tensor) -> Tensor:  # (n, K), (n,) -> (n, J)
        own, many = right[i], min(candidates or logits.shape[1], logits.shape[1]) - 1
        return logits.gather(1, likeliest_others(logits, own, many)) - logits.gather(1, own[:, None])

    return Planes(*attempt.jacobian(z, rows, likeliest)[1:])


def _stepped(attempt: Attempt, planes: Planes, start: Tensor, z: Tensor, reach: float) -> Tensor:
    """The point nearest to `start` on the nearest of the planes seen from z, and `reach` times as far; valid."""
    clip, w = attempt.box.inputs.clip, planes.w.flatten(2)  # (n, J, D)
    up, down = (clip(torch.full_like(start, v)).sub(start).flatten(1)[:, None] for v in (math.inf, -math.inf))
    room = torch.where(w > 0, up, -down).clamp_min(0)  # (n, J, D)
    rise = -planes.f - (w * (start - z).flatten(1)[:, None]).sum(2)  # (n, J) from `start`
    masked = planes.f == -math.inf  # (n, J) classes that nothing can become
    rise = rise.where(~masked, 0)
    way = shortest(w, rise.clamp_min(0) * reach, room, attempt.norm)  # (n, J, D)
    size = way.abs().amax(2) if isinstance(attempt.norm, Linf) else way.norm(dim=2)
    missed = (w * way).sum(2) < rise * (1 - 1e-3)  # all the room there is does not do
    best = (size + missed * size.amax().clamp_min(1)).where(~masked, math.inf).argmin(1)
    chosen = way[torch.arange(len(way), device=way.device), best]
    return clip(start + chosen.view_as(start))


def shortest(w: Tensor, rise: Tensor, room: Tensor, norm: NormBall) -> Tensor:
    """The shortest r (n, J, D) with w . r = rise (n, J) and no |r_i| above its room (n, J, D), in the way w points.

    r is t w (or t sign(w), in the norm "linf") with each value cut at its room. What that gives, as a function of t, is
    concave and of straight pieces, so Newton's method from below ends exactly, as soon as no more values are cut.
    """
    flat = isinstance(norm, Linf)
    unit = torch.where(w != 0, 1.0, 0.0).to(w.dtype) if flat else w.abs()
    most, gain = room / unit.clamp_min(TINY), unit * w.abs()  # a value is cut at t = most; gain a unit of t
    rise = rise + BEYOND * torch.where(most > 0, gain, 0).sum(2).pow(1.0 if flat else 0.5)
    t, free = torch.zeros_like(rise), -1
    while (left := int((open_ := most > t[..., None]).sum())) != free:
        free = left
        slope = torch.where(open_, gain, 0).sum(2)
        short = rise - (gain * torch.minimum(most, t[..., None])).sum(2)
        t = torch.where(slope > 0, t + short / slope.clamp_min(TINY), t)
    return w.sign() * unit * torch.minimum(most, t[..., None])


# -- back to the original ---------------------------------------------------------------------------------------------


def draw_back(attempt: Attempt, rows: Tensor, z: Tensor, high: Tensor, low: Tensor) -> None:
    """Keep the nearest image that still fools on the way from z (n, ...) to the original.

    z fools by `high` (n,) > 0, the original falls short by `low` (n,) < 0: looks go where a straight line between the
    two crosses zero, and every other one to the middle, so that no bend is followed for long.
    """
    x, near, far = attempt.x[rows], torch.zeros_like(high), torch.ones_like(high)
    for look in range(LOOKS):
        share = high / (high - low).clamp_min(TINY)  # of what lies between near and far, that can be given back
        go = share * (far - near) > NEAR * far
        rows, z, x, near, far, high, low, share = (h[go] for h in (rows, z, x, near, far, high, low, share))
        if not len(rows):
            return
        t = far - (far - near) * (share * 0.95 if look % 2 == 0 else 0.5 + 0 * share)
        tried = attempt.box.inputs.clip(x + broadcast_rows(t, x) * (z - x))
        score = attempt.fooled(tried, rows)
        won = score > 0
        attempt.keep(tried, rows, won)
        far, high = torch.where(won, t, far), torch.where(won, score, high)
        near, low = torch.where(won, near, t), torch.where(won, low, score)
