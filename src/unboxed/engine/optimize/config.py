"""What a climb is: what a method chooses, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ...errors import InputError
from ...objectives import Objective
from ...validation import check_seed, check_int
from ..gradients.score import Unclamp
from .constraints import Constraint
from .optimizers import Stepper
from .transforms import Transform

T = TypeVar("T")
StepRule = Callable[[list[Tensor]], Stepper]
After = Callable[[Tensor, Tensor, int], Tensor]
FREE = Constraint()
FIELDS = ("input", "score", "done", "already", "steps", "looks", "before_clamp", "first")


@dataclass(frozen=True, eq=False)
class Climb:
    """Where a climb came to. `frames` and `history` begin with the start and, with `every=k`, skip between.

    Where an example is done and climbs on (`keep_going`), its `input` is the last that met `until`.
    """

    input: Tensor  # (N, ...)
    score: Tensor  # (N,) of the untransformed input
    done: Tensor  # (N,) bool: `until` was met
    already: Tensor  # (N,) bool: at the start
    steps: Tensor  # (N,) taken
    looks: Tensor  # (N,) forward passes
    before_clamp: Tensor  # (N,) bool: some step followed the gradient before a clamp
    first: Tensor  # (N, ...) the gradient in the image, at the start
    frames: Tensor | None  # (T, N, ...)
    history: Tensor  # (T, N) scores
    pulled: Tensor | None  # (N, ...) the sum over the steps of |d score / d image|
    interrupted: bool


@dataclass(frozen=True, eq=False)
class Ascent:
    """What a climbing method chooses: how far, by which step rule, in which bounds, through which transforms."""

    steps: int
    optimizer: StepRule
    constraint: Constraint = FREE
    transform: Transform | None = None
    until: Objective | None = None  # an example is done when this is above zero
    keep_going: bool = False  # examples that are done climb on
    anneal: bool = False  # the step rule's learning rate falls to zero along a cosine
    unclamp: Unclamp = "last"
    every: int | None = None  # keep each such frame
    seed: int = 0
    prior: Objective | None = None  # of the image alone: climbed beside the objective, no part of the score
    fade: float = 1.0  # the share of itself that the prior falls to, evenly, by the last step
    after: After | None = None  # (parameter, gradient uphill, step) -> what the step's result is made into
    sum_pulls: bool = False  # keep `pulled`
    draws: int = 1  # of the model's own noise, over which each look takes the mean
    settled: Tensor | None = None  # (N,) bool: examples that stay at the start, there for others coupled to them

    def __post_init__(self) -> None:
        check_int("steps", self.steps)
        check_int("draws", self.draws, minimum=1)
        object.__setattr__(self, "seed", check_seed(self.seed))
        if self.every is not None:
            check_int("every", self.every, minimum=1)
        if self.prior is not None and not self.prior.layers <= {"input"}:
            raise InputError(f"a prior is of the image alone; {self.prior.name} reads {', '.join(self.prior.layers)}")

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Those beside the one that is climbed."""
        return tuple(o for o in (self.until, self.prior) if o is not None)


def joined(parts: list[Climb]) -> Climb:
    """The climbs of a batch's parts, as one."""

    def cat(name: str) -> Tensor:
        return torch.cat([getattr(p, name) for p in parts])

    def over_time(name: str) -> Tensor:  # a batch that was done earlier stays at its last frame
        rows = [getattr(p, name) for p in parts]
        length = max(map(len, rows))
        return torch.cat([torch.cat([r, r[-1:].expand(length - len(r), *r.shape[1:])]) for r in rows], 1)

    frames = None if parts[0].frames is None else over_time("frames")
    ends = {name: cat(name) for name in FIELDS}
    pulled = None if parts[0].pulled is None else cat("pulled")
    interrupted = any(p.interrupted for p in parts)
    return Climb(**ends, frames=frames, history=over_time("history"), pulled=pulled, interrupted=interrupted)


def finished(work: Callable[[], T]) -> tuple[T, bool]:
    """What a short work beside the climb gives, and whether Ctrl-C fell into it: then it is done again."""
    try:
        return work(), False
    except KeyboardInterrupt:
        return work(), True
