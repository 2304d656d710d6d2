"""Fast adaptive boundary attack: to the nearest point of the linearized decision boundary, drawn back to the original.

Croce & Hein 2020, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack", arXiv:1907.02044.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import BALL_BY_NORM, TINY, unbounded_ball, broadcast_rows
from ..engine.optimize.hyperplanes import DUAL_NORM, Hyperplane, random_direction, vector_norms, projection_step
from ..errors import InputError
from ..model.batching import BatchSize
from ..objectives import Objective, logit
from ..validation import check_seed, check_float, check_int
from . import levels
from .answers import likeliest_others
from .attempt import Attempt, in_range
from .result import Adversarial

INF = math.inf
POLISH = 3  # looks of the final search
PAST = 1e-3  # of the score at x: so far above zero it aims, so that the model is fooled and not just undecided


@card(
    name="FAB",
    source="Croce & Hein 2020, arXiv:1907.02044",
    shows="An input near this one, by the norm's measure, that the model takes for something else.",
    does_not_show="That there is none nearer: its distance bounds the least one from above.",
    example=lambda method, box, x, y: method(box, x, y, steps=3, restarts=2),
    exempt={
        "steps kept": "a run that comes to its end is followed by a final search, one that is cut short is not",
        "another seed": "only restarts are random, and they count where they come nearer; see the method's own test",
        "draws of rows": "likewise",
    },
)
def fab(
    box: Box,
    x: Tensor,
    y: Tensor | int | None = None,
    *,
    eps: float | None = None,
    norm: str = "l2",
    target: Tensor | int | None = None,
    objective: Objective | None = None,
    targets: int | None = None,
    steps: int = 100,
    restarts: int = 1,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    keep_going: bool = False,
    bits: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Adversarial:
    """The nearest images to x, by `norm` "linf", "l2" or "l1", that the model does not take for y.

    Each step goes `eta` times the way to the nearest boundary among those of all classes; with `targets=k` it is run
    for each of the k likeliest other classes in turn (FAB-T), which is quicker where classes are many. With `eps`, an
    image beyond it is no success, and examples fooled within it stop (`keep_going=True`: they get nearer still).
    `restarts` counts the runs: the first starts at x, others at random. Raises InputError.
    """
    ball = unbounded_ball(norm)
    if eps is not None:
        eps = check_float("eps", eps, above=0)
        in_range(box, BALL_BY_NORM[norm.lower()](eps))
    attempt = Attempt(box, x, y, norm=ball, target=target, objective=objective, batch_size=batch_size)
    if targets is not None and (attempt.goal.right is None or attempt.goal.become is not None):
        raise InputError("targets=k runs to the k likeliest classes other than y: leave target= and objective= away")
    pace = Pace(
        norm.lower(), check_int("steps", steps), _share("alpha_max", alpha_max), check_float("eta", eta, above=0),
        _share("beta", beta), -1.0 if keep_going or eps is None else eps,
    )  # fmt: skip
    seed = check_seed(seed)
    restarts, targets = (
        check_int("restarts", restarts, minimum=1),
        None if targets is None else check_int("targets", targets, 1),
    )
    search = Search(attempt, pace, INF if eps is None else eps, seed)
    with attempt:
        for rows in attempt.blocks(attempt.begin()):
            search.run(rows, targets, restarts)
    levels.saved(attempt, bits)
    return attempt.result(INF if eps is None else eps)


def _share(name: str, value: float) -> float:
    return check_float(name, value, minimum=0, maximum=1)


@dataclass(frozen=True)
class Pace:
    """How a run goes. An example found within `enough` has no need of a nearer one."""

    norm: str
    steps: int
    alpha_max: float
    eta: float
    beta: float
    enough: float


@dataclass(frozen=True, eq=False)
class Look:
    """The boundary as it seems from some points, and which of them fool the model already."""

    plane: Hyperplane
    fooled: Tensor  # (n,) bool


Way = Callable[[Tensor, Tensor], Look]  # points z (n, ...) of rows (n,) -> the boundary to go to


class Search:
    """The runs of one call, for all rows that are still to be fooled, or to be fooled from nearer."""

    def __init__(self, attempt: Attempt, pace: Pace, eps: float, seed: int) -> None:
        self.attempt, self.pace, self.eps, self.seed = attempt, pace, eps, seed
        one = attempt.x[:1]
        self.low, self.high = (attempt.box.inputs.clip(torch.full_like(one, v)).flatten(1) for v in (-INF, INF))

    def run(self, rows: Tensor, targets: int | None, restarts: int) -> None:
        """Each run goes on from what those before have found, so that with more of them nothing gets worse."""
        ways = self.ways(rows, targets)
        z = self.attempt.x[rows]
        for restart in range(restarts):
            known = self.attempt.distance.clone()
            for k, way in enumerate(ways):
                rows, z = self.left(rows, z)
                begin = self.start(z, rows, restart * len(ways) + k) if restart else self.attempt.x[rows]
                z = self.descend(way, rows, begin)
            rows, z = self.left(rows, z)
            self.polish(rows[self.attempt.distance[rows] < known[rows]])

    def left(self, rows: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Those that were not fooled from near enough."""
        stay = self.attempt.distance[rows] > self.pace.enough
        return (rows, z) if bool(stay.all()) else (rows[stay], z[stay])

    # -- which boundary ----------------------------------------------------------------------------------------------

    def ways(self, rows: Tensor, targets: int | None) -> list[Way]:
        """One for each run from x."""
        goal, classes = self.attempt.goal, self.attempt.box.n_outputs
        if not len(rows):
            return []
        if targets is not None and goal.right is not None:
            return [self.to(between) for between in self.likeliest(rows, goal.right, min(targets, classes - 1))]
        if goal.become is not None or goal.right is None or classes == 2:
            return [self.to(goal.fooled)]
        return [self.nearest(goal.right)]

    def likeliest(self, rows: Tensor, right: Tensor, targets: int) -> list[Objective]:
        """From each row's class to each of the likeliest others."""
        logits = self.attempt.logits(self.attempt.x[rows], rows)
        others = right[:, None].repeat(1, targets)  # (N, targets)
        others[rows] = likeliest_others(logits, right[rows], targets)
        return [logit(others[:, k]) - logit(right) for k in range(targets)]

    def to(self, score: Objective) -> Way:
        """To where a score is zero."""

        def way(z: Tensor, rows: Tensor) -> Look:
            slope = self.attempt.slope(z, rows, score)
            return Look(Hyperplane(slope.score, slope.grad.flatten(1)), slope.fooled > 0)

        return way

    def nearest(self, right: Tensor) -> Way:
        """To the nearest boundary of all, as they seem from a point: arXiv:1907.02044, eq. 7."""
        k = torch.arange(self.attempt.box.n_outputs - 1, device=right.device)
        others = k + (k >= right[:, None])  # (N, K - 1)
        dual, size = DUAL_NORM[self.pace.norm], self.low.shape[1]

        def pick(logits: Tensor, i: Tensor) -> Tensor:
            return logits.gather(1, others[i]) - logits.gather(1, right[i, None])

        def way(z: Tensor, rows: Tensor) -> Look:
            logits, scores, grads = self.attempt.jacobian(z, rows, pick)
            far = scores.abs() / vector_norms(dual, grads.flatten(2)).clamp_min(TINY)  # (n, K - 1)
            one = far.argmin(1, keepdim=True)
            normal = grads.flatten(2).gather(1, one[..., None].expand(-1, 1, size))[:, 0]
            fooled = self.attempt.goal.fooled.rows(rows)({"logits": logits})
            return Look(Hyperplane(scores.gather(1, one)[:, 0], normal), fooled > 0)

        return way

    # -- one run -----------------------------------------------------------------------------------------------------

    def start(self, last: Tensor, rows: Tensor, run: int) -> Tensor:
        """A random point half as far from x as the nearest image found, or as eps, or as the last run came."""
        x = self.attempt.x[rows]
        far = self.attempt.distance[rows].clamp_max(self.eps)
        far = torch.where(far.isfinite(), far, self.attempt.norm.distance(last, x))
        side = random_direction(self.pace.norm, x.flatten(1), rows, self.seed, run).view_as(x)
        return self.attempt.box.inputs.clip(x + broadcast_rows(far / 2, x) * side)

    def descend(self, way: Way, rows: Tensor, z: Tensor) -> Tensor:
        """Steps from z; where they end, for all rows that were given."""
        ends, at = z.clone(), torch.arange(len(rows), device=rows.device)
        for _ in range(self.pace.steps):
            if not len(rows):
                break
            look = way(z, rows)
            self.attempt.keep(z, rows, look.fooled)
            z = self.stepped(z, rows, look.plane)
            fooled = self.attempt.fooled(z, rows) > 0
            self.attempt.keep(z, rows, fooled)
            back = self.attempt.x[rows].lerp(z, self.pace.beta)
            ends[at] = z = torch.where(broadcast_rows(fooled, z), back, z)
            stay = self.attempt.distance[rows] > self.pace.enough
            if not bool(stay.all()):
                rows, z, at = rows[stay], z[stay], at[stay]
        return ends

    def stepped(self, z: Tensor, rows: Tensor, plane: Hyperplane) -> Tensor:
        """Over the boundary from z and from x, and between both: arXiv:1907.02044, algorithm 1."""
        norm, eta, box = self.pace.norm, self.pace.eta, self.attempt.box
        z, x = z.flatten(1), self.attempt.x[rows].flatten(1)
        there = Hyperplane(
            plane.value + torch.linalg.vecdot(plane.normal, x - z), plane.normal
        )  # the same plane from x
        from_z, from_x = (projection_step(norm, a, b, self.low, self.high) for a, b in ((z, plane), (x, there)))
        near, far = vector_norms(norm, from_z), vector_norms(norm, from_x)
        alpha = (near / (near + far).clamp_min(TINY)).clamp_max(self.pace.alpha_max)
        moved = torch.lerp(z + eta * from_z, x + eta * from_x, alpha[:, None])
        return box.inputs.clip(moved.view(len(rows), *self.attempt.x.shape[1:]))

    def polish(self, rows: Tensor) -> None:
        """The final search: on the way from x to what fools, to just beyond where the score's chord crosses zero."""
        if not len(rows):
            return
        near, far = self.attempt.x[rows], self.attempt.images[rows]
        low, high = self.attempt.fooled(near, rows), self.attempt.fooled(far, rows)
        aim = PAST * low.abs()
        for _ in range(POLISH):
            share = ((aim - low) / (high - low).clamp_min(TINY)).clamp(0, 1)
            z = self.attempt.box.inputs.clip(near.lerp(far, broadcast_rows(share, near)))
            score = self.attempt.fooled(z, rows)
            good = score > aim / 2
            self.attempt.keep(z, rows, good)
            near, far = torch.where(broadcast_rows(good, z), near, z), torch.where(broadcast_rows(good, z), z, far)
            low, high = torch.where(good, low, score), torch.where(good, score, high)
