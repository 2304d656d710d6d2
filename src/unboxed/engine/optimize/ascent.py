"""The loop: climb an objective by changing the input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...box import Box
from ...model.batching import BatchSize, in_batches
from ...model.hooks import Acts
from ...model.state import slow_to_ask
from ...objectives import Objective
from ...rng import shared
from ..gradients.score import pull_stuck
from .config import FIELDS, joined
from .config import Ascent as Ascent
from .config import Climb as Climb
from .config import StepRule as StepRule
from .config import finished as finished
from .constraints import Constraint, per_row
from .optimizers import Stepper, Steps
from .parameterizations import Canvas

Drawn = tuple[Tensor, Tensor | None, Callable[[], Tensor]]
CACHE = 2**26  # bytes of activations that a CPU keeps near: larger batches run slower
FEW, MANY = 16, 128
"""Rows: of fewer, the weights are read too often; of more, blocks of memory are so large that each is mapped anew."""
MEET = 8  # on an accelerator, look at values every so many steps: each look waits for the device


def ascend(box: Box, objective: Objective, canvas: Canvas, plan: Ascent, *, batch_size: BatchSize = "auto") -> Climb:
    """Climb `objective` on the canvas's images. On Ctrl-C, what was reached is returned with `interrupted=True`."""
    n, stopped = len(next(canvas.parameters())), list[bool]()
    coupled = [box.checked(o, n).coupled for o in (objective, *plan.objectives)]

    def part(rows: slice) -> Climb:
        climber = _Climber(box, objective.rows(rows), canvas.rows(rows), plan, plan.constraint.rows(rows), rows)
        climb = climber.start_only() if stopped else climber.run()
        stopped.extend([True] * climb.interrupted)
        return climb

    with torch.inference_mode(False), torch.enable_grad():  # the caller may be in no_grad or inference_mode
        return joined(in_batches(part, n, *near_sizes(box, n, batch_size, any(coupled))))


def near_sizes(box: Box, n: int, batch_size: BatchSize, coupled: bool = False) -> tuple[BatchSize, int]:
    """As `Box.splits`, and on a CPU no more rows than its cache holds the activations of."""
    size, most = box.splits(n, batch_size, coupled)
    if box.device.type == "cpu" and not (coupled or box.coupled):
        most = min(most, MANY, max(FEW, CACHE // max(1, box._found.bytes_each)))
    return size, most


@dataclass
class _State:
    """All rows of one batch, those that are done too."""

    input: Tensor
    score: Tensor
    done: Tensor
    already: Tensor
    steps: Tensor
    looks: Tensor
    before_clamp: Tensor
    first: Tensor
    pulled: Tensor | None

    @classmethod
    def at(cls, x: Tensor, sum_pulls: bool, settled: Tensor | None) -> _State:
        """Before the first look at images x."""
        none = torch.zeros(len(x), dtype=torch.long, device=x.device)
        no, zero = torch.zeros_like(none, dtype=torch.bool), torch.zeros_like(x)
        done, pulled = no.clone() if settled is None else settled.clone(), zero.clone() if sum_pulls else None
        return cls(x, x.new_zeros(len(x)), done, no.clone(), none, none.clone(), no.clone(), zero, pulled)


class _Climber:
    """One batch's climb. `alive` are the rows still climbing; objective, canvas and constraint hold just those."""

    def __init__(
        self, box: Box, objective: Objective, canvas: Canvas, plan: Ascent, constraint: Constraint, rows: slice
    ) -> None:
        self.box, self.objective, self.canvas, self.plan, self.constraint = box, objective, canvas, plan, constraint
        self.until, self.prior = (None if o is None else o.rows(rows) for o in (plan.until, plan.prior))
        self.params: list[Tensor] = list(canvas.parameters())
        self.optimizer = plan.optimizer(self.params)
        settled = None if plan.settled is None else plan.settled[rows]
        self.state = _State.at(canvas().detach().clone(), plan.sum_pulls, settled)
        self.looked = self.stepped = 0  # times, by the rows alive
        self.alive = torch.arange(len(self.state.input), device=self.state.input.device)
        self.slow = slow_to_ask(self.alive.device)
        self.coupled = box.coupled or any(o.coupled for o in (objective, *plan.objectives))
        self.leaves = plan.until is not None and not plan.keep_going  # a row that is done stays where it is
        self.lingers = self.leaves and (self.slow or self.coupled)  # and among those alive
        self.stay: Tensor | None = None  # the rows not done, where some are and may leave
        self.unwritten: Tensor | None = None  # where the rows alive are, if not in `state.input` yet
        self.stuck: Tensor | None = None  # on an accelerator: the rows taken before a clamp at the last meeting

    def run(self) -> Climb:
        frames, history, interrupted = list[Tensor](), list[Tensor](), False
        try:
            for step in self._steps():
                if self.plan.every and step % self.plan.every == 0:
                    self._write_input()
                    frames.append(self.state.input.clone())
                history.append(self.state.score.clone())
        except KeyboardInterrupt:
            interrupted = True
        return self._climb(frames, history, interrupted)

    def start_only(self) -> Climb:
        """After Ctrl-C in an earlier batch: the start as it is."""
        return self._climb([], [], interrupted=True)

    def _climb(self, frames: list[Tensor], history: list[Tensor], interrupted: bool) -> Climb:
        s = self.state
        self._tally()
        if not frames or not torch.equal(frames[-1], s.input):
            frames = [*frames, s.input]
        kept = torch.stack(frames) if self.plan.every else None
        scores = torch.stack(history or [s.score])
        ends = {name: getattr(s, name) for name in FIELDS}
        return Climb(**ends, frames=kept, history=scores, pulled=s.pulled, interrupted=interrupted)

    # -- a look ------------------------------------------------------------------------------------------------------

    def _steps(self) -> Iterator[int]:
        """Look, then step, until the last look. Nothing of the model is held open at a yield."""
        for step in range(self.plan.steps + 1):
            grads = self._look(step, last=step == self.plan.steps)
            yield step
            if not grads:
                return
            self._anneal(step)
            self._step(self._without_done(grads), step)

    def _look(self, step: int, last: bool) -> list[Tensor]:
        """Score the rows alive and, unless this look is the last, find the gradient of each parameter."""
        with self.box.quiet(grad=not last):
            x = self.canvas()
            score, until, pull = self._drawn(x, step, last) if self.plan.draws == 1 else self._mean(x, step, last)
            self._note(x, score, None if until is None else until > 0, step)
            if last or self._all_done(step):
                return []
            uphill = self._noted(pull(), step)
            if self.prior is not None:  # apart from the score's, so that this is seen to be zero where it is
                faded = self.plan.fade ** (step / max(1, self.plan.steps - 1))
                uphill = uphill + faded * torch.autograd.grad(self.prior({"input": x}).sum(), x)[0]
            own = len(self.params) == 1 and self.params[0] is x
            return [uphill] if own else list(torch.autograd.grad(x, self.params, uphill))

    def _drawn(self, x: Tensor, step: int, last: bool) -> Drawn:
        """One forward: the score, how far `until` is met, and what gives the gradient of the score in the image."""
        self.looked += 1
        layers = frozenset[str]() if self.until is None else self.until.layers
        acts = self.box.forward(self._transformed(x, step, last), self.objective.layers | layers)
        score = self.objective(acts)
        with torch.no_grad():
            until = None if self.until is None else self.until(acts).detach()
        return score, until, lambda: self._pull(score, acts, x, step)

    def _mean(self, x: Tensor, step: int, last: bool) -> Drawn:
        """The means over draws of the model's own noise, one at a time: expectation over transformation.

        Athalye et al. 2018, "Synthesizing Robust Adversarial Examples", arXiv:1707.07397.
        """
        scores, untils, grad = list[Tensor](), list[Tensor](), torch.zeros_like(x)
        for draw in range(self.plan.draws):
            with self.box.quiet(grad=not last, seed=draw):
                score, until, pull = self._drawn(x, step, last)
                grad = grad if last else grad + pull()
            scores.append(score.detach())
            untils += [] if until is None else [until]
        mean = torch.stack(untils).mean(0) if untils else None
        return torch.stack(scores).mean(0), mean, lambda: grad / self.plan.draws

    def _meets(self, step: int) -> bool:
        """Whether this is a step at which the host may wait for values."""
        return not self.slow or step % MEET == 0

    def _transformed(self, x: Tensor, step: int, last: bool) -> Tensor:
        if self.plan.transform is None or last:
            return x
        return self.plan.transform(x, shared(self.plan.seed, step, x.device))

    def _note(self, x: Tensor, score: Tensor, done: Tensor | None, step: int) -> None:
        """Where an example is, unless it was done before: then it is where it last was so."""
        s, alive = self.state, self.alive
        x, score = x.detach().to(s.input.dtype), score.detach().to(s.score.dtype)
        if done is None:
            s.input, s.score = x, score.clone()  # of an activation, it may be a view that keeps the whole
            return
        every = len(alive) == len(s.input)
        was = s.done if every else s.done[alive]
        held = was if self.leaves else was & ~done
        if self.slow or held.any():
            self._write_input()
            x, score = torch.where(per_row(held, x), s.input[alive], x), torch.where(held, s.score[alive], score)
        if every:
            s.input, s.score, s.done = x, score.clone(), was | done
        else:
            s.score[alive], s.done[alive] = score, was | done
            self.unwritten = x  # a copy at each look would cost as much as a step
        if step == 0:
            s.already = s.done.clone()

    def _write_input(self) -> None:
        """Into the state, which holds the rows that have left, too."""
        if self.unwritten is not None:
            self.state.input[self.alive] = self.unwritten
            self.unwritten = None

    def _all_done(self, step: int) -> bool:
        """Whether no row has a step to take; at a meeting, this also finds which stay."""
        if not self.leaves or not self._meets(step):
            return False
        stay = (~self.state.done[self.alive]).nonzero()[:, 0]
        self.stay = stay if len(stay) < len(self.alive) and not self.coupled else None
        return len(stay) == 0

    def _pull(self, score: Tensor, acts: Acts, x: Tensor, step: int) -> Tensor:
        """The gradient of the score in the image; between meetings, the rows that were stuck are held to be so."""
        meets = self._meets(step)
        unclamp = self.plan.unclamp if meets or self.stuck is not None else "no"
        among = None if meets else self.stuck
        (grad,), clamped = pull_stuck(score, acts, self.objective, [x], unclamp=unclamp, among=among)
        if clamped is not None:
            self.state.before_clamp[self.alive] |= clamped
        if meets and self.slow:
            self.stuck = clamped
        return grad

    def _noted(self, grad: Tensor, step: int) -> Tensor:
        if step == 0:
            self.state.first = grad.to(self.state.first.dtype, copy=True)
        if self.state.pulled is not None:
            self.state.pulled[self.alive] += grad.abs().to(self.state.pulled.dtype)
        return grad

    # -- a step ------------------------------------------------------------------------------------------------------

    def _without_done(self, grads: list[Tensor]) -> list[Tensor]:
        """Let rows that are done leave, with their gradients; where rows are coupled they stay: they change others."""
        stay, self.stay = self.stay, None
        if stay is None:
            return grads
        self._tally()
        self.alive = self.alive[stay]
        self.stuck = None if self.stuck is None else self.stuck[stay]
        self.objective, self.constraint = self.objective.rows(stay), self.constraint.rows(stay)
        self.until, self.prior = (None if o is None else o.rows(stay) for o in (self.until, self.prior))
        canvas = self.canvas.rows(stay)
        self.optimizer = _kept(self.plan.optimizer, self.optimizer, self.canvas, canvas, stay)
        self.canvas, self.params = canvas, list(canvas.parameters())
        return [g[stay] for g in grads]

    def _anneal(self, step: int) -> None:
        """Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, without restarts."""
        if self.plan.anneal:
            for group in self.optimizer.param_groups:
                group["initial_lr"] = group.get("initial_lr", group["lr"])
                group["lr"] = group["initial_lr"] * (1 + math.cos(math.pi * step / self.plan.steps)) / 2

    def _step(self, grads: Sequence[Tensor], step: int) -> None:
        """Parameters get new memory: the old one may be what was noted of them."""
        params, before = self.params, [p.detach() for p in self.params]
        grads = [g if self._is_finite(g) else g.nan_to_num(0, 0, 0) for g in grads]  # without a slope, nothing moves
        for p, old, grad in zip(params, before, grads, strict=True):
            uphill = self.constraint.uphill(grad, old)
            own = isinstance(self.optimizer, Steps)
            p.grad, p.data = (uphill, old) if own else (-uphill, old.clone())
        self.optimizer.step()
        with torch.no_grad():
            for p, grad in zip(params, grads, strict=True):
                new = p if self.plan.after is None else self.plan.after(p, grad, step)
                p.data = self.constraint.inside(new).to(p.dtype)
            self._count(params, before)

    def _is_finite(self, grad: Tensor) -> bool:
        """Whether that is seen at a glance; an accelerator would wait."""
        return not self.slow and math.isfinite(grad.sum())

    def _count(self, params: Sequence[Tensor], before: Sequence[Tensor]) -> None:
        """The step is taken, but for rows that are done: they stay where they were."""
        self.stepped += 1
        if self.lingers:
            done = self.state.done[self.alive]
            for p, old in zip(params, before, strict=True):
                p.data = torch.where(per_row(done, p), old, p)
            self.state.steps[self.alive] += (~done).long()

    def _tally(self) -> None:
        """Before rows leave: where all that are alive are, and what they have taken."""
        self._write_input()
        self.state.looks.index_fill_(0, self.alive, self.looked)  # a number, not a tensor made of one
        if not self.lingers:
            self.state.steps.index_fill_(0, self.alive, self.stepped)


def _kept(rule: StepRule, old: Stepper, before: Canvas, after: Canvas, stay: Tensor) -> Stepper:
    """The step rule with its state for the rows that stay: what is shaped like a parameter has a row an example."""
    new = rule(list(after.parameters()))
    for p, q in zip(before.parameters(), after.parameters(), strict=True):
        new.state[q] = {
            k: v[stay] if isinstance(v, Tensor) and v.shape == p.shape else v for k, v in old.state.get(p, {}).items()
        }
    return new
