"""Silence: the smallest change of an input that a hidden unit no longer answers to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.optim import SGD

from ..box import Box
from ..cards import card
from ..engine.gradients.score import gradients
from ..engine.optimize.ascent import Ascent, ascend, finished
from ..engine.optimize.constraints import NORMS, TINY, Ball, Constraint, length, per_row
from ..engine.optimize.parameterizations import Raw
from ..engine.results import each
from ..errors import InputError
from ..model.batching import BatchSize, in_batches
from ..objectives import Index, Objective, logit
from ..validation import check_float, check_int

ROUNDS = 12  # of the search for the radius
HALVINGS = 16  # of the line back to the input
FAR = 1e6  # stands for a bound where the range has none
CLOSE = 1e-5  # of what the score has to fall: so near to the threshold counts as there while the radius is sought


@dataclass(frozen=True, eq=False)
class Silence:
    input: Tensor  # (N, ...)
    images: Tensor  # (N, ...); where not silenced, the last attempt
    distance: Tensor  # (N,) in the norm asked for
    before: Tensor  # (N,) the objective's score of the input
    after: Tensor  # (N,) and of the image
    silenced: Tensor  # (N,) bool: down to the threshold, or nearer than a hundred-thousandth of the way to it
    interrupted: bool

    @property
    def change(self) -> Tensor:  # (N, ...)
        change: Tensor = each(torch.sub, self.images, self.input)
        return change


@card(
    name="Silence",
    source="Simonyan et al. 2014, arXiv:1312.6034, eq. 1, descended from an image for any unit; by the projected steps "
    "of Madry et al. 2018, arXiv:1706.06083, section 2.1, in balls whose radius is bisected",
    shows="What this unit answers to here: the least that must change for it to fall silent.",
    does_not_show="That no smaller change would do: the search is local, so its distance is an upper bound.",
    example=lambda method, box, x, y: method(box, x, logit(0), below=0.1, steps=2),
    exempt={"steps kept": "the radius is searched in rounds: one that was cut short is no point of a path"},
)
def silence(
    box: Box,
    x: Tensor,
    objective: Objective,
    *,
    below: float = 0.0,
    eps: float | None = None,
    norm: str = "l2",
    steps: int = 20,
    batch_size: BatchSize = "auto",
) -> Silence:
    """The smallest change of x, in norm "l2" or "linf" and within the valid range, that lowers `objective` to `below`.

    `steps` of projected descent in each of a dozen balls, whose radius is brought between one that does not do and one
    that does (at most `eps`); then back along the straight line to x. For a linear unit w x + b above zero that is
    -(w x + b) w / |w|^2. Ctrl-C keeps the smallest change found. Raises InputError, LayerError.
    """
    x, steps = box.validate_inputs(x), check_int("steps", steps)
    if not isinstance(objective, Objective):
        raise InputError(f"give the objective to lower, like channel('conv1', 0); got {type(objective).__name__}")
    if not isinstance(norm, str) or norm.lower() not in NORMS:
        raise InputError(f"norm is one of {', '.join(NORMS)}; got {norm!r}")
    most = math.inf if eps is None else check_float("eps", eps, above=0)
    with torch.inference_mode(False):
        fit = box.check_objective(objective, len(x))
        return _Search(box, x, fit, check_float("below", below), most, norm.lower(), steps, batch_size).run()


@dataclass(frozen=True)
class _Shells(Constraint):
    """A ball of its own radius for each row; `again` makes those of some rows."""

    again: Callable[[Index], Constraint] | None = None

    def rows(self, index: Index) -> Constraint:
        return self if self.again is None else self.again(index)


def _shells(ball: Ball, centre: Tensor, radius: Tensor, pace: float, clip: Callable[[Tensor], Tensor]) -> _Shells:
    """Steepest steps of `pace` radii (N,), in a unit ball blown up to each row's radius and inside the valid range."""
    size = per_row(radius, centre)

    def project(z: Tensor, centre: Tensor | None) -> Tensor:
        return z if centre is None else clip(centre + size * ball.project((z - centre) / size, torch.zeros_like(z)))

    def again(i: Index) -> _Shells:
        return _shells(ball, centre[i], radius[i], pace, clip)

    return _Shells(lambda grad: pace * size * ball.steepest(grad), project, centre, again=again)


class _Search:
    """For each row: between the largest radius that did not do (`low`) and the distance of the nearest that did."""

    def __init__(
        self, box: Box, x: Tensor, objective: Objective, below: float, most: float, norm: str, steps: int,
        batch_size: BatchSize,
    ) -> None:  # fmt: skip
        self.box, self.x, self.objective, self.steps, self.batch_size = box, x, objective, steps, batch_size
        self.ball, self.linf = NORMS[norm](1.0), norm == "linf"
        self.before, self.interrupted = finished(lambda: self._scores(x))
        self.below = below
        self.goal = below + CLOSE * (self.before - below).clamp_min(0)
        self.images, self.low = x.clone(), torch.zeros_like(self.before)
        self.high = torch.full_like(self.before, math.inf).masked_fill(self.before <= self.goal, 0)
        self.cap = self._widest().clamp_max(most)

    def run(self) -> Silence:
        try:
            self._search()
            self._back()
            self._over()
        except KeyboardInterrupt:
            self.interrupted = True
        after, stopped = finished(lambda: self._scores(self.images))
        distance = self.ball.distance(self.images, self.x)
        stopped |= self.interrupted
        ends = self.box.restore_structure(self.x), self.box.restore_structure(self.images)
        return Silence(*ends, distance, self.before, after, after <= self.goal, stopped)

    def _scores(self, z: Tensor) -> Tensor:
        """The objective (N,) of inputs z."""

        def part(rows: slice) -> Tensor:
            with self.box.isolated(grad=False):
                acts = self.box.forward(z[rows], self.objective.layers)
                return self.objective.rows(rows)(acts).to(self.box.dtype)

        sizes = self.box.batch_plan(len(z), self.batch_size, self.objective.batch_dependent)
        return torch.cat(in_batches(part, len(z), *sizes))

    def _widest(self) -> Tensor:
        """How far (N,) the valid range reaches from x."""
        clip, x = self.box.inputs.clip, self.x
        reach = torch.maximum(clip(x + FAR) - x, x - clip(x - FAR))
        return self.ball.distance(reach, torch.zeros_like(x)).clamp_min(TINY)

    def _search(self) -> None:
        radius = self._estimate()
        for _ in range(ROUNDS):
            at = self._open(radius)
            if self.interrupted or len(at) == 0:
                return
            self._attempt(at, radius)
            grown = torch.minimum(3 * radius, self.cap)
            radius = torch.where(self.high.isinf(), grown, (self.low + self.high) / 2).clamp_min(TINY)

    def _estimate(self) -> Tensor:
        """The distance at which a linear objective would be silent, and a little more."""
        g = gradients(self.box, self.objective, self.x, batch_size=self.batch_size).map
        slope = g.flatten(1).abs().sum(1) if self.linf else length(g)  # of the dual norm
        far = (self.before - self.goal) / slope.clamp_min(TINY)
        return torch.minimum(1.1 * far.nan_to_num(0).clamp_min(TINY), self.cap)

    def _open(self, radius: Tensor) -> Tensor:
        """The rows whose distance is not known to a hundredth; all, where rows are coupled."""
        sought = torch.where(self.high.isinf(), self.low < self.cap, self.high - self.low > 0.01 * self.high)
        if (self.box.batch_dependent or self.objective.batch_dependent) and sought.any():
            sought = torch.ones_like(sought)
        return sought.nonzero()[:, 0]

    def _attempt(self, at: Tensor, radius: Tensor) -> None:
        objective, x = self.objective.rows(at), self.x[at]
        plan = Ascent(
            steps=self.steps,
            optimizer=partial(SGD, lr=1.0),
            constraint=_shells(self.ball, x, radius[at], 2.5 / max(1, self.steps), self.box.inputs.clip),
            until=-objective + self.goal[at],
        )
        climb = ascend(self.box, -objective, Raw(x), plan, batch_size=self.batch_size)
        self.interrupted |= climb.interrupted
        far = self.ball.distance(climb.input, x)
        better = torch.where(climb.done, far < self.high[at], self.high[at].isinf())
        self.images[at] = torch.where(per_row(better, x), climb.input, self.images[at])
        self.high[at] = torch.where(climb.done & better, far, self.high[at])
        self.low[at] = torch.where(climb.done, self.low[at], torch.maximum(self.low[at], radius[at]))

    def _back(self) -> None:
        """Along the straight line from x, as near to it as the image is still silent."""
        d, low, high = self.images - self.x, torch.zeros_like(self.before), torch.ones_like(self.before)
        for _ in range(HALVINGS if bool(torch.isfinite(self.high).any()) and not self.interrupted else 0):
            middle = (low + high) / 2
            z = self.box.inputs.clip(self.x + per_row(middle, d) * d)
            silent = (self._scores(z) <= self.goal) & self.high.isfinite()
            self.images = torch.where(per_row(silent, z), z, self.images)
            low, high = torch.where(silent, low, middle), torch.where(silent, middle, high)

    def _over(self) -> None:
        """The rest of the way to the threshold, along the same line, where that is possible."""
        for k in (2, 8, 32):
            z = self.box.inputs.clip(self.x + (1 + k * CLOSE) * (self.images - self.x))
            there = (self._scores(self.images) > self.below) & (self._scores(z) <= self.below)
            there &= self.high.isfinite() & (self.ball.distance(z, self.x) <= self.cap)
            self.images = torch.where(per_row(there, z), z, self.images)
