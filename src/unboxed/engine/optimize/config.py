"""What a climb is: what a method chooses, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ...errors import InputError
from ...objectives import Objective
from ...validation import check_int, check_seed
from ..gradients.score import ReluBypass
from .constraints import Constraint
from .optimizers import OptimizerLike
from .transforms import Transform

T = TypeVar("T")
OptimizerFactory = Callable[[list[Tensor]], OptimizerLike]
PostStep = Callable[[Tensor, Tensor, int], Tensor]
NO_CONSTRAINT = Constraint()
ROW_FIELDS = ("input", "score", "finished", "initially_finished", "steps", "n_forwards", "before_clamp", "initial_grad")


@dataclass(frozen=True, eq=False)
class OptimizationResult:
    """Where a climb came to. `frames` and `history` begin with the start and, with `every=k`, skip between.

    Where an example is done and climbs on (`keep_going`), its `input` is the last that met `until`.
    """

    input: Tensor  # (N, ...)
    score: Tensor  # (N,) of the untransformed input
    finished: Tensor  # (N,) bool: `until` was met
    initially_finished: Tensor  # (N,) bool: at the start
    steps: Tensor  # (N,) taken
    n_forwards: Tensor  # (N,) forward passes
    before_clamp: Tensor  # (N,) bool: some step followed the gradient before a clamp
    initial_grad: Tensor  # (N, ...) the gradient in the image, at the start
    frames: Tensor | None  # (T, N, ...)
    history: Tensor  # (T, N) scores
    abs_grad_sum: Tensor | None  # (N, ...) the sum over the steps of |d score / d image|
    interrupted: bool


@dataclass(frozen=True, eq=False)
class OptimizationConfig:
    """What a climbing method chooses: how far, by which step rule, in which bounds, through which transforms."""

    steps: int
    optimizer: OptimizerFactory
    constraint: Constraint = NO_CONSTRAINT
    transform: Transform | None = None
    stop_when: Objective | None = None  # an example is done when this is above zero
    continue_finished: bool = False  # examples that are done climb on
    anneal_lr: bool = False  # the step rule's learning rate falls to zero along a cosine
    relu_bypass: ReluBypass = "last"
    frame_every: int | None = None  # keep each such frame
    seed: int = 0
    prior: Objective | None = None  # of the image alone: climbed beside the objective, no part of the score
    final_prior_scale: float = 1.0  # the share of itself that the prior falls to, evenly, by the last step
    post_step: PostStep | None = None  # (parameter, gradient uphill, step) -> what the step's result is made into
    sum_abs_grads: bool = False  # keep `pulled`
    n_samples: int = 1  # of the model's own noise, over which each look takes the mean
    frozen_rows: Tensor | None = None  # (N,) bool: examples that stay at the start, there for others coupled to them

    def __post_init__(self) -> None:
        check_int("steps", self.steps)
        check_int("n_samples", self.n_samples, minimum=1)
        object.__setattr__(self, "seed", check_seed(self.seed))
        if self.frame_every is not None:
            check_int("frame_every", self.frame_every, minimum=1)
        if self.prior is not None and not self.prior.layers <= {"input"}:
            raise InputError(f"a prior is of the image alone; {self.prior.name} reads {', '.join(self.prior.layers)}")

    @property
    def extra_objectives(self) -> tuple[Objective, ...]:
        """Those beside the one that is climbed."""
        return tuple(o for o in (self.stop_when, self.prior) if o is not None)


def combine_results(results: list[OptimizationResult]) -> OptimizationResult:
    """The climbs of a batch's parts, as one."""

    def cat_field(name: str) -> Tensor:
        return torch.cat([getattr(p, name) for p in results])

    def cat_frames(name: str) -> Tensor:  # a batch that was done earlier stays at its last frame
        histories = [getattr(p, name) for p in results]
        length = max(map(len, histories))
        return torch.cat([torch.cat([r, r[-1:].expand(length - len(r), *r.shape[1:])]) for r in histories], 1)

    frames = None if results[0].frames is None else cat_frames("frames")
    row_fields = {name: cat_field(name) for name in ROW_FIELDS}
    abs_grad_sum = None if results[0].abs_grad_sum is None else cat_field("abs_grad_sum")
    interrupted = any(p.interrupted for p in results)
    return OptimizationResult(
        **row_fields, frames=frames, history=cat_frames("history"), abs_grad_sum=abs_grad_sum, interrupted=interrupted
    )


def retry_on_interrupt(compute: Callable[[], T]) -> tuple[T, bool]:
    """What a short work beside the climb gives, and whether Ctrl-C fell into it: then it is done again."""
    try:
        return compute(), False
    except KeyboardInterrupt:
        return compute(), True
