"""Box-constrained L-BFGS: the first adversarial examples.

Szegedy et al. 2013, "Intriguing properties of neural networks", arXiv:1312.6199, section 4.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import L2, TINY, l2_norm, unbounded_ball
from ..engine.optimize.lbfgs import LBFGSState, initial_state, select_states, concat_states
from ..errors import InputError
from ..model.batching import BatchSize
from ..objectives import Acts, Constant, Objective, layer_objective
from ..validation import check_float, check_int
from . import levels
from .attempt import Attempt, in_range
from .goal import Goal
from .result import Adversarial

WIDER, FINER = 4.0, 1.25  # by so much c changes until one that fools and one that does not are known


@card(
    name="L-BFGS",
    source="Szegedy et al. 2013, arXiv:1312.6199, section 4.1",
    shows="An input near this one that the model takes for something else.",
    does_not_show="That there is none nearer: its distance bounds the least one from above.",
    norms=("l2",),
    example=lambda method, box, x, y: method(box, x, y, steps=4, searches=2),
    exempt={"steps kept": "`steps` bounds each of several searches: with one of them it is not where another ended"},
)
def lbfgs(
    box: Box,
    x: Tensor,
    y: Tensor | int | None = None,
    *,
    eps: float | None = None,
    norm: str = "l2",
    target: Tensor | int | None = None,
    objective: Objective | None = None,
    steps: int = 50,
    searches: int = 10,
    tolerance: float = 1e-4,
    keep_going: bool = False,
    bits: int | None = None,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """The nearest images to x, in L2, that the model takes for `target`, or that it does not take for y.

    For each of `searches` values of c, c |r|^2 + loss(x + r) is made least with x + r in the valid range, by at most
    `steps` looks; c is searched for by halving, in logarithms, an example's own. The square has the same least r as
    the paper's |r|, at another c, and is smooth at r = 0. The loss is the target's cross-entropy; untargeted, that of
    all other classes taken as one, and for the second half of the searches that of the class found, beside y alone.
    With `eps`, an image beyond it is no success, and examples fooled within it stop (`keep_going=True`: they get nearer
    still). Raises InputError.
    """
    ball = unbounded_ball(norm, ("l2",))
    if eps is not None:
        eps = check_float("eps", eps, above=0)
        in_range(box, L2(eps))
    attempt = Attempt(box, x, y, norm=ball, target=target, objective=objective, batch_size=batch_size)
    enough = -1.0 if keep_going or eps is None else eps
    hunt = _Hunt(attempt, check_int("steps", steps), check_float("tolerance", tolerance, above=0), enough)
    searches = check_int("searches", searches, minimum=1)
    with attempt:
        for rows in attempt.blocks(attempt.begin()):
            hunt.run(rows, searches)
    levels.saved(attempt, bits)
    return attempt.result(math.inf if eps is None else eps)


def distortion(images: Tensor, x: Tensor) -> Tensor:
    """sqrt(sum((x' - x)^2) / n) of each image (N, ...) of n values: arXiv:1312.6199, section 4.2. Raises InputError."""
    if images.shape != x.shape:
        raise InputError(f"a distortion is of images and their originals; got {tuple(images.shape)}, {tuple(x.shape)}")
    return l2_norm(images - x.to(images)) / math.sqrt(x[0].numel())


def likeness(goal: Goal, among: Tensor | None = None) -> Objective:
    """What is climbed, at most zero: the log-probability of what is wanted; of classes `among` (N, K) beside y."""
    if not goal.of_classes:
        return _surely(goal.fooled)
    return goal.climb if among is None or goal.right is None else _instead(goal.right, among)


def _instead(right: Tensor, among: Tensor) -> Objective:
    """The log-probability (N,) of some classes (N, K) when only those and the right one can be."""
    own, out = Constant(right[:, None]), Constant(~among)

    def score(z: Tensor) -> Tensor:  # (N, K)
        rest = z.masked_fill(out.to_like(z), -math.inf).logsumexp(1)
        return -F.softplus(z.gather(1, own.to_like(z))[:, 0] - rest)

    return layer_objective(
        "logits", score, "log probability of others", lambda i: _instead(right[i], among[i]), len(right)
    )


def _surely(wanted: Objective) -> Objective:
    """The log-probability that a score is above zero, were it a logit."""

    def score(acts: Acts) -> Tensor:
        return -F.softplus(-wanted(acts))

    select = None if wanted.select is None else (lambda i: _surely(wanted.rows(i)))
    return Objective(score, wanted.layers, f"log sigmoid({wanted.name})", select, wanted.batch_dependent, wanted.n)


@dataclass(frozen=True, eq=False)
class Weights:
    """c of each row, between the largest that was seen to fool and the least that was not."""

    c: Tensor  # (n,)
    fools: Tensor  # (n,) zero: none seen
    fails: Tensor  # (n,) infinite: none seen
    wider: Tensor  # (n,) by how much it changes until both are known

    @classmethod
    def near(cls, c: Tensor, wider: float) -> Weights:
        return cls(c.clamp_min(TINY), 0 * c, torch.full_like(c, math.inf), torch.full_like(c, wider))

    def next(self, fooled: Tensor) -> Weights:
        """The larger c is, the nearer the image, until it no longer fools."""
        fools = torch.where(fooled, self.c, self.fools)
        fails = torch.where(fooled, self.fails, self.c)
        middle = (fools * fails).sqrt()
        c = torch.where(fails.isinf(), self.c * self.wider, torch.where(fools == 0, self.c / self.wider, middle))
        return Weights(c, fools, fails, self.wider)

    def rows(self, index: Tensor) -> Weights:
        return Weights(*(getattr(self, f.name)[index] for f in fields(self)))

    def put(self, at: Tensor, other: Weights) -> Weights:
        """With another's rows in the place of some, `at` (m,)."""
        return Weights(*(getattr(self, f.name).index_copy(0, at, getattr(other, f.name)) for f in fields(self)))


class _Hunt:
    """The minimizations of one call."""

    def __init__(self, attempt: Attempt, steps: int, tolerance: float, enough: float) -> None:
        self.attempt, self.steps, self.tolerance, self.enough = attempt, steps, tolerance, enough
        self.among = self.others()  # (N, K) bool: the classes to go to
        self.likeness = likeness(attempt.goal, self.among)
        one = attempt.x[:1]
        clip = attempt.box.inputs.clip
        self.low, self.high = (clip(torch.full_like(one, v)).flatten(1) for v in (-math.inf, math.inf))

    def run(self, rows: Tensor, searches: int) -> None:
        if not self.steps or not len(rows):
            return
        z = self.attempt.x[rows].flatten(1)
        loss, slope, _ = self.look(z, rows)
        away = loss / l2_norm(slope).clamp_min(TINY)  # (n,) to where the loss would be none, were it linear
        weights = Weights.near(l2_norm(slope) / (4 * away).clamp_min(TINY), WIDER)
        search, its_c = initial_state(z, loss, slope, away, self.low, self.high), 0 * away  # where to start; its c
        for k in range(searches):
            if k and k == searches // 2:
                search, weights, its_c = self.settled(search, rows, weights, its_c)
            begin = self.reweighted(search, rows, weights.c - its_c)
            end, fooled = self.least(rows, weights.c, begin, weights.fools > 0)
            longer = replace(search, first=torch.where(weights.fools > 0, 1, 2) * search.first_step_length)
            search, its_c = select_states(fooled, end, longer), torch.where(fooled, weights.c, its_c)
            weights = weights.next(fooled)
            stay = self.attempt.distance[rows] > self.enough
            rows, weights, search, its_c = rows[stay], weights.rows(stay), search.rows(stay), its_c[stay]

    def others(self) -> Tensor | None:
        """All classes but y, where that is what is wanted."""
        goal = self.attempt.goal
        if goal.right is None or goal.become is not None:
            return None
        return torch.arange(self.attempt.box.n_outputs, device=goal.right.device) != goal.right[:, None]

    def settled(
        self, search: LBFGSState, rows: Tensor, weights: Weights, its_c: Tensor
    ) -> tuple[LBFGSState, Weights, Tensor]:
        """From the nearest image on, to the class that it is taken for alone: y's boundary with it is sharp then."""
        at = self.attempt.success[rows].nonzero()[:, 0]
        if self.among is None or self.among.shape[1] == 2 or not len(at):
            return search, weights, its_c
        mine, image = rows[at], self.attempt.images[rows[at]]
        taken = self.attempt.logits(image, mine).argmax(1)
        self.among[mine] = torch.arange(self.among.shape[1], device=image.device) == taken[:, None]
        self.likeness = likeness(self.attempt.goal, self.among)
        z, far = image.flatten(1), self.attempt.distance[mine]
        loss, slope, _ = self.look(z, mine)
        weight = Weights.near(l2_norm(slope) / (2 * far).clamp_min(TINY), FINER)  # where both pull alike
        value, grad = self.weighted(z, mine, weight.c)
        again = initial_state(z, loss + value, slope + grad, far / 10, self.low, self.high)
        return search.replace_rows(at, again), weights.put(at, weight), its_c.index_copy(0, at, weight.c)

    def look(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss (n,), its gradient (n, D) and whether the model is fooled (n,); what fools is kept."""
        z = z.view(len(rows), *self.attempt.x.shape[1:])
        slope = self.attempt.slope(z, rows, self.likeness)
        fooled = slope.fooled > 0
        self.attempt.keep(z, rows, fooled)
        return -slope.score, -slope.grad.flatten(1), fooled

    def least(self, rows: Tensor, c: Tensor, search: LBFGSState, fooled: Tensor) -> tuple[LBFGSState, Tensor]:
        """The least of c |r|^2 + loss, from where a search stands, and whether the model is fooled there."""
        fooled, ended = fooled.clone(), list[tuple[Tensor, LBFGSState]]()
        at = torch.arange(len(rows), device=rows.device)
        for _ in range(self.steps):
            if bool(search.finished.any()):
                ended.append((at[search.finished], search.rows(search.finished)))
                at, search = at[~search.finished], search.rows(~search.finished)
            if not len(at):
                break
            z = search.trial(self.low, self.high)
            loss, slope, now = self.look(z, rows[at])
            value, grad = self.weighted(z, rows[at], c[at])
            search = search.update(z, loss + value, slope + grad, self.low, self.high, self.tolerance)
            fooled[at] = torch.where(search.was_accepted, now, fooled[at])
        ended.append((at, search))
        order = torch.cat([i for i, _ in ended]).argsort()
        return concat_states([part for _, part in ended]).rows(order), fooled

    def weighted(self, z: Tensor, rows: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """c |r|^2 (n,) and its gradient (n, D)."""
        r = z - self.attempt.x[rows].flatten(1)
        return c * (r * r).sum(1), 2 * c[:, None] * r

    def reweighted(self, search: LBFGSState, rows: Tensor, more: Tensor) -> LBFGSState:
        """The same place, the same memory, as with so much more c: what that changes of the curvature is known."""
        value, grad = self.weighted(search.z, rows, more)
        search = replace(search, y=search.grad_history + 2 * more[:, None, None] * search.step_history)
        return search.restart_with(search.value + value, search.grad + grad, self.low, self.high)
