"""One change for many images: the climb that patches and universal perturbations share, and how it is judged."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..box import Box
from ..errors import InputError
from ..model.answers import check_no_nan
from ..model.batching import BatchSize
from ..objectives import Objective
from ..rng import hashed_uniform
from ..validation import check_seed, check_float, check_int
from .answers import predicted
from .attempt import Attempt
from .goal import Goal, goal_of

TINY = 1e-6  # a root has no slope at zero
POWER = 0.25  # of the score: see `rooted`
DRAWS = 4  # numbers that one place takes
Apply = Callable[[Tensor, Tensor, Tensor, int], Tensor]  # change (1, ...), images (n, ...), rows (n,), step -> images
Step = Callable[[Tensor, Tensor, float], Tensor]  # change, its gradient uphill, a size falling from 1 to 0 -> change


class Shared(Protocol):
    """What is judged on images that it was not made from."""

    @property
    def target(self) -> int | None: ...
    @property
    def objective(self) -> Objective | None: ...


@dataclass(frozen=True)
class Crowd:
    """The images that one change is to serve, some of them at each step."""

    attempt: Attempt
    apply: Apply
    step: Step
    steps: int
    sample: int
    seed: int

    def climb(self, start: Tensor, leave_out: Tensor) -> tuple[Tensor, Tensor]:
        """The change (1, ...) after all steps, or those before Ctrl-C; the share (T,) of each sample that it fooled."""
        change, history = start, list[Tensor]()
        with self.attempt:
            rows = self.attempt.begin()
            rows = rows[~leave_out[rows]]
            for step in range(self.steps if len(rows) else 0):
                grad, share = self._look(change, self._some(rows, step), step)
                change = self.step(change, grad, (1 + math.cos(math.pi * step / self.steps)) / 2)
                history.append(share)
        return change, torch.stack(history) if history else start.new_zeros(0)

    def _some(self, rows: Tensor, step: int) -> Tensor:
        """`sample` of the rows, each at most once, in their order."""
        if len(rows) <= self.sample:
            return rows
        order = hashed_uniform(self.seed, rows, 2 * step + 2, DRAWS)[:, 0].argsort()
        return rows[order[: self.sample].sort().values]

    def _look(self, change: Tensor, rows: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The mean gradient of the score in the change, and the share of the images that it fools."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf = change.detach().requires_grad_()
            z = self.apply(leaf, self.attempt.x[rows], rows, step)
            slope = self.attempt.slope(z.detach(), rows, rooted(self.attempt.goal.fooled))
            (grad,) = torch.autograd.grad(z, leaf, slope.grad / len(rows))
        return grad.nan_to_num(0, 0, 0), (slope.fooled > 0).to(change.dtype).mean()


def rooted(fooled: Objective) -> Objective:
    """-softplus(-fooled) ** (1/4): few images that cannot be fooled weigh less than many that nearly are.

    The mean of log-probabilities, which the papers climb, is ruled by the images that are farthest from being fooled;
    what counts is how many are. On MNIST a patch by the fourth root fools .02 more of the images than by the square
    root, and that .02 more than by the log-probability.
    """

    def score(m: Tensor) -> Tensor:
        return -(F.softplus(-m) + TINY).pow(POWER)

    select = None if fooled.select is None else (lambda i: rooted(fooled.rows(i)))
    return Objective(
        lambda acts: score(fooled(acts)),
        fooled.layers,
        f"rooted {fooled.name}",
        select,
        fooled.batch_dependent,
        fooled.n,
    )


def crowd(
    box: Box, x: Tensor, y: Tensor | int | None, target: int | None, objective: Objective | None, norm: Any,
    batch_size: BatchSize,
) -> tuple[Attempt, Tensor]:  # fmt: skip
    """The attempt on all images, and which (N,) bear the target's label already. Raises InputError, OutputError."""
    if target is not None:
        target = one_class(box, target)
    if y is None and target is None and objective is None:
        y = answers(box, x, batch_size)
    attempt = Attempt(box, x, y, norm=norm, target=target, objective=objective, batch_size=batch_size)
    goal = attempt.goal
    return attempt, _there(goal, attempt.already)


def _there(goal: Goal, none: Tensor) -> Tensor:
    """Which examples bear the target's label."""
    return none if goal.right is None or goal.become is None else torch.eq(goal.right, goal.become)


def one_class(box: Box, target: object) -> int:
    """The class that all images are to become. Raises InputError."""
    labels = box.class_labels(target, 1)  # type: ignore[arg-type]
    if torch.as_tensor(target).ndim:
        raise InputError("one change for all images has one target: an int")
    return int(labels[0])


def answers(box: Box, x: Tensor, batch_size: BatchSize) -> Tensor:
    """The model's own answers, to be left where nobody gives labels. Raises OutputError."""
    box.require_class_scores("an attack on classes")
    return predicted(box, box.validate_inputs(x), batch_size)


def share_fooled(
    made: Shared, box: Box, x: Tensor, y: Tensor | int | None, change: Callable[[int], Tensor], draws: int,
    batch_size: BatchSize,
) -> float:  # fmt: skip
    """Of the images that count, over `draws` of `change(draw)`: the share that fools the model. Raises InputError.

    Those count that do not bear the target's label (without labels: that the model does not take for it); untargeted,
    those that the model gets right; with an objective, where it is not above zero.
    """
    draws = check_int("draws", draws, minimum=1)
    y = answers(box, x, batch_size) if y is None and made.objective is None else y
    goal = goal_of(box, len(x), y, made.target, made.objective)
    count = partial(_above, box, goal.fooled, batch_size=batch_size)
    counts = ~count(x) if goal.right is None or goal.become is None else torch.ne(goal.right, goal.become)
    if not counts.any():
        raise InputError("none of these images counts: the model takes all of them for what they should become")
    shares = [count(box.validate_inputs(change(draw)))[counts].double().mean() for draw in range(draws)]
    return float(torch.stack(shares).mean())


def _above(box: Box, objective: Objective, z: Tensor, *, batch_size: BatchSize) -> Tensor:
    acts = box.read(z, sorted(objective.layers), batch_size=batch_size)
    return check_no_nan(objective(acts)) > 0


def settings(steps: int, step: float, sample: int, seed: int) -> int:
    """The seed to draw by. Raises InputError for what is no setting."""
    check_int("steps", steps)
    check_float("step", step, above=0)
    check_int("sample", sample, minimum=1)
    return check_seed(seed)
