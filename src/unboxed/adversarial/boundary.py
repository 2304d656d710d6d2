"""The boundary attack: a walk along the decision boundary, towards the original.

Brendel, Rauber & Bethge 2018, "Decision-Based Adversarial Attacks: Reliable Attacks Against Black-Box Machine Learning
Models", arXiv:1712.04248.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import TINY, l2_norm, unbounded_ball, broadcast_rows
from ..model.batching import BatchSize
from ..objectives import Objective
from ..validation import check_float
from .attempt import Attempt
from .decisions import Decisions, gaussian
from .levels import saved
from .result import Adversarial

FIRST = 7  # bisections before the walk: the start to within 1 %
ASIDE = 10  # every so many steps the step aside is asked about by itself
FIRST_STEPS = 0.1, 0.03  # aside and nearer, relative to the distance; the walk adapts both
SIDEWAYS, NEARER = 0.5, 0.25  # the shares of steps aside, and of whole steps, that should fool


@card(
    name="Boundary attack",
    source="Brendel et al. 2018, arXiv:1712.04248",
    shows="A near input that the model takes for something else, found by a walk that sees decisions, no gradient.",
    does_not_show="That none is nearer: the walk is slow, and HopSkipJump comes nearer in as many queries.",
    norms=("l2",),
    example=lambda method, box, x, y: method(box, x, y, queries=40),
    exempt={"one look": "it asks the model `queries` times"},
)
def boundary(
    box: Box,
    x: Tensor,
    y: Tensor | int | None = None,
    *,
    eps: float | None = None,
    norm: str = "l2",
    target: Tensor | int | None = None,
    objective: Objective | None = None,
    starts: Tensor | None = None,
    queries: int = 5000,
    keep_going: bool = False,
    bits: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """Images as near as can be (in "l2") that fool the model, in `queries` looks an example.

    It starts from the nearest fooling one of `starts` (S, ...), which a targeted attack must have, or from images of
    chance. With `eps`, an example leaves once it is within eps (`keep_going=True`: it goes on), and what is farther is
    no success. Raises InputError.
    """
    attempt = Attempt(box, x, y, norm=unbounded_ball(norm, ("l2",)), target=target, objective=objective,
                      batch_size=batch_size)  # fmt: skip
    far = math.inf if eps is None else check_float("eps", eps, above=0)
    asked = Decisions(attempt, queries, seed)
    pool = None if starts is None else box.validate_inputs(starts)
    rows = attempt.begin()
    with attempt:
        z, rows = asked.start(rows, pool)
        _Walk(asked, asked.bisect(z, rows, FIRST), rows).run(0.0 if keep_going or eps is None else far)
    saved(attempt, bits, gradients=False)
    return attempt.result(far)


class _Walk:
    """The rows still under way: where they are, and how far a step of each goes, relative to its distance."""

    def __init__(self, asked: Decisions, z: Tensor, rows: Tensor) -> None:
        self.asked, self.z, self.rows = asked, z, rows
        self.aside, self.nearer = (torch.full_like(rows, size, dtype=z.dtype) for size in FIRST_STEPS)
        self.x = asked.x[rows]
        self.far = l2_norm(z - self.x)

    def run(self, enough: float) -> None:
        step = 0
        while self._stay((self.asked.left(self.rows) > 0) & (self.far > max(enough, TINY))):
            self._step(step)
            step += 1

    def _stay(self, on: Tensor) -> bool:
        if not on.all():
            for name in ("z", "rows", "aside", "nearer", "x", "far"):
                setattr(self, name, getattr(self, name)[on])
        return bool(on.any())

    def _step(self, step: int) -> None:
        """Aside on the sphere around the original, then nearer to it: kept where that fools."""
        on_sphere = self._beside(step)
        tried = self.asked.box.inputs.clip(self.x + broadcast_rows(1 - self.nearer, self.x) * (on_sphere - self.x))
        good = self.asked.fooled(tried, self.rows)
        self.nearer = (self.nearer * _pace(good, NEARER, 20)).clamp_max(0.5)
        far = l2_norm(tried - self.x)
        good &= far < self.far  # clipping may have turned it
        self.z, self.far = torch.where(broadcast_rows(good, tried), tried, self.z), torch.where(good, far, self.far)
        self.asked.attempt.keep(self.z, self.rows, good)
        if step % ASIDE == 0:
            self._learn(on_sphere)

    def _learn(self, on_sphere: Tensor) -> None:
        """Adapt the step aside, so that half of them fool: the boundary is then nearly flat as far as they go."""
        able = self.asked.left(self.rows) > 0
        fools = self.asked.fooled(self.asked.box.inputs.clip(on_sphere), self.rows)
        self.aside = torch.where(able, self.aside * _pace(fools, SIDEWAYS, 3), self.aside).clamp_max(1.0)

    def _beside(self, step: int) -> Tensor:
        """A random point as far from the original as z is, a step aside from z."""
        v = self.z - self.x
        noise = gaussian(self.asked.seed, self.rows, step, v[0].numel()).to(v.dtype).view_as(v)
        noise = noise - broadcast_rows((noise * v).flatten(1).sum(1) / self.far.square(), v) * v
        moved = v + broadcast_rows(self.aside * self.far / l2_norm(noise).clamp_min(TINY), v) * noise
        return self.x + broadcast_rows(self.far / l2_norm(moved), moved) * moved


def _pace(good: Tensor, share: float, memory: int) -> Tensor:
    """By how much to lengthen (n,) a step that was good or not: not at all in the mean, where `share` of them are."""
    return torch.exp((good.to(torch.float32) - share) / memory)
