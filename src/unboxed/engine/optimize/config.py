"""The configuration and the result of an optimization."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ...errors import InputError
from ...objectives import Objective
from ...validation import check_int, valid_seed
from ..gradients.score import ReluBypass
from .constraints import Constraint
from .optimizers import OptimizerLike
from .transforms import Transform

T = TypeVar("T")
OptimizerFactory = Callable[[list[Tensor]], OptimizerLike]
PostStepFn = Callable[[Tensor, Tensor, int], Tensor]
NO_CONSTRAINT = Constraint()
PER_ROW_RESULT_FIELDS = (
    "input",
    "score",
    "finished",
    "initially_finished",
    "steps",
    "n_forwards",
    "before_clamp",
    "initial_grad",
)


@dataclass(frozen=True, eq=False)
class OptimizationResult:
    """The optimized inputs and what led to them. `frames` and `history` begin with the start.

    With `continue_finished`, the `input` of a finished example is the last one for which `stop_when` was above zero.
    """

    input: Tensor  # (N, ...)
    score: Tensor  # (N,) of the untransformed input; NaN where Ctrl-C came before the first evaluation
    finished: Tensor  # (N,) bool: `stop_when` was above zero
    initially_finished: Tensor  # (N,) bool: at the start
    steps: Tensor  # (N,) taken
    n_forwards: Tensor  # (N,) forward passes
    before_clamp: Tensor  # (N,) bool: some gradient was taken before a clamp
    initial_grad: Tensor  # (N, ...) the gradient in the image, at the start
    frames: Tensor | None  # (T, N, ...)
    history: Tensor  # (T, N) scores
    abs_grad_sum: Tensor | None  # (N, ...) the sum over the steps of |d score / d image|
    interrupted: bool


@dataclass(frozen=True, eq=False)
class OptimizationConfig:
    """What a method chooses: steps, optimizer, constraint, transforms and when to stop."""

    steps: int
    optimizer: OptimizerFactory
    constraint: Constraint = NO_CONSTRAINT
    transform: Transform | None = None
    stop_when: Objective | None = None  # an example is finished when this is above zero
    continue_finished: bool = False  # finished examples are optimized further
    keep_best: bool = False  # without stop_when: the result is the evaluation of the highest score, not the last
    anneal_lr: bool = False  # the learning rate falls to zero along a cosine
    relu_bypass: ReluBypass = "last"
    frame_every: int | None = None  # steps between frames; None keeps none
    seed: int = 0
    prior: Objective | None = None  # of the image alone: added to the objective, not to the score
    final_prior_scale: float = 1.0  # factor of the prior at the last step, reached geometrically
    post_step: PostStepFn | None = None  # (parameter, gradient, step) -> new parameter, after each step
    sum_abs_grads: bool = False  # compute `abs_grad_sum`
    n_samples: int = 1  # samples of the model's own noise that each evaluation averages over
    frozen_rows: Tensor | None = None  # (N,) bool: not changed, but part of a batch whose rows depend on one another
    allow_nan: bool = False  # the caller judges scores that are NaN; else they are refused, at the start and at the end

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", check_int("steps", self.steps))  # a plain int, of NumPy's too
        object.__setattr__(self, "n_samples", check_int("n_samples", self.n_samples, minimum=1))
        object.__setattr__(self, "seed", valid_seed(self.seed))
        if self.frame_every is not None:
            object.__setattr__(self, "frame_every", check_int("frame_every", self.frame_every, minimum=1))
        if self.prior is not None and not self.prior.layers <= {"input"}:
            raise InputError(f"a prior is of the image alone; {self.prior.name} reads {', '.join(self.prior.layers)}")

    @property
    def extra_objectives(self) -> tuple[Objective, ...]:
        """The objectives besides the one that is maximized."""
        return tuple(o for o in (self.stop_when, self.prior) if o is not None)


def combine_batch_results(results: list[OptimizationResult]) -> OptimizationResult:
    """The results of parts of a batch as one."""

    def cat_field(name: str) -> Tensor:
        return torch.cat([getattr(p, name) for p in results])

    def cat_frames(name: str) -> Tensor:  # a part that finished earlier repeats its last frame
        histories = [getattr(p, name) for p in results]
        length = max(map(len, histories))
        return torch.cat([torch.cat([r, r[-1:].expand(length - len(r), *r.shape[1:])]) for r in histories], 1)

    frames = None if results[0].frames is None else cat_frames("frames")
    row_fields = {name: cat_field(name) for name in PER_ROW_RESULT_FIELDS}
    abs_grad_sum = None if results[0].abs_grad_sum is None else cat_field("abs_grad_sum")
    interrupted = any(p.interrupted for p in results)
    return OptimizationResult(
        **row_fields, frames=frames, history=cat_frames("history"), abs_grad_sum=abs_grad_sum, interrupted=interrupted
    )


def retry_on_interrupt(compute: Callable[[], T]) -> tuple[T, bool]:
    """The result of a short computation, and whether Ctrl-C interrupted it: then it is repeated."""
    try:
        return compute(), False
    except KeyboardInterrupt:
        return compute(), True
