"""The loop: climb an objective by changing the input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..arguments import whole
from ..box import Box
from ..net.batching import BatchSize, in_batches
from ..net.taps import Acts
from ..objectives import Objective
from .balls import Constraint, per_row
from .canvases import Canvas
from .draws import shared
from .gradients import Unclamp, pull
from .transforms import Transform

T = TypeVar("T")
StepRule = Callable[[list[Tensor]], Optimizer]
After = Callable[[Tensor, Tensor, int], Tensor]
FREE = Constraint()
MEET = 8  # on an accelerator, look at values every so many steps: each look waits for the device


@dataclass(frozen=True)
class Climb:
    """Where a climb came to. `frames` and `history` begin with the start and, with `every=k`, skip between."""

    input: Tensor  # (N, ...)
    score: Tensor  # (N,) of the untransformed input
    done: Tensor  # (N,) bool: `until` was met
    steps: Tensor  # (N,) taken
    before_clamp: Tensor  # (N,) bool: some step followed the gradient before a clamp
    first: Tensor  # (N, ...) the gradient at the start
    frames: Tensor | None  # (T, N, ...)
    history: Tensor  # (T, N) scores
    pulled: Tensor | None  # (N, ...) the sum over the steps of |d score / d image|
    interrupted: bool


@dataclass(frozen=True)
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
    after: After | None = None  # (parameter, gradient uphill, step) -> what the step's result is made into
    sum_pulls: bool = False  # keep `pulled`

    def __post_init__(self) -> None:
        whole("steps", self.steps)
        whole("seed", self.seed, least=-(2**62))
        if self.every is not None:
            whole("every", self.every, least=1)


def ascend(box: Box, objective: Objective, canvas: Canvas, plan: Ascent, *, batch_size: BatchSize = "auto") -> Climb:
    """Climb `objective` on the canvas's images. On Ctrl-C, what was reached is returned with `interrupted=True`."""
    n, stopped = len(next(canvas.parameters())), list[bool]()
    box.checked(objective, n)

    def part(rows: slice) -> Climb:
        climber = _Climber(box, objective.rows(rows), canvas.rows(rows), plan, plan.constraint.rows(rows), rows)
        climb = climber.start_only() if stopped else climber.run()
        stopped.extend([True] * climb.interrupted)
        return climb

    with torch.inference_mode(False), torch.enable_grad():  # the caller may be in no_grad or inference_mode
        return _joined(in_batches(part, n, *box.splits(n, batch_size, objective.coupled)))


def finished(work: Callable[[], T]) -> tuple[T, bool]:
    """What a short work beside the climb gives, and whether Ctrl-C fell into it: then it is done again."""
    try:
        return work(), False
    except KeyboardInterrupt:
        return work(), True


@dataclass
class _State:
    """All rows of one batch, those that are done too."""

    input: Tensor
    score: Tensor
    done: Tensor
    steps: Tensor
    before_clamp: Tensor
    first: Tensor
    pulled: Tensor


def slow_to_ask(device: torch.device) -> bool:
    """Whether looking at a value waits for work that was handed to the device."""
    return device.type != "cpu"


class _Climber:
    """One batch's climb. `alive` are the rows still climbing; objective, canvas and constraint hold just those."""

    def __init__(
        self, box: Box, objective: Objective, canvas: Canvas, plan: Ascent, constraint: Constraint, rows: slice
    ) -> None:
        self.box, self.objective, self.canvas, self.plan, self.constraint = box, objective, canvas, plan, constraint
        self.until, self.prior = (None if o is None else o.rows(rows) for o in (plan.until, plan.prior))
        self.optimizer = plan.optimizer(list(canvas.parameters()))
        x = canvas().detach().clone()
        self.alive = torch.arange(len(x), device=x.device)
        no = torch.zeros_like(self.alive, dtype=torch.bool)
        zero = torch.zeros_like(x)
        self.state = _State(
            x,
            x.new_zeros(len(x)),
            no,
            torch.zeros_like(self.alive),
            no.clone(),
            zero,
            zero.clone() if plan.sum_pulls else zero,
        )
        self.stuck = False  # on an accelerator: at the last meeting some row's gradient was zero

    def run(self) -> Climb:
        frames, history, interrupted = list[Tensor](), list[Tensor](), False
        try:
            for step in self._steps():
                if self.plan.every and step % self.plan.every == 0:
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
        if not frames or not torch.equal(frames[-1], s.input):
            frames = [*frames, s.input]
        kept = torch.stack(frames) if self.plan.every else None
        scores = torch.stack(history or [s.score])
        pulled = s.pulled if self.plan.sum_pulls else None
        return Climb(s.input, s.score, s.done, s.steps, s.before_clamp, s.first, kept, scores, pulled, interrupted)

    def _steps(self) -> Iterator[int]:
        """Look, then step, until the last look. Nothing of the net is held open at a yield."""
        for step in range(self.plan.steps + 1):
            last = step == self.plan.steps
            grads = self._look(step, last)
            yield step
            grads = self._drop_done(step, grads)
            if last or len(self.alive) == 0 or not grads:
                return
            self._anneal(step)
            self._step(grads, step)

    def _look(self, step: int, last: bool) -> list[Tensor]:
        """Score the rows alive and, unless it is the last look, find the gradient of each parameter."""
        params: list[Tensor] = [] if last else list(self.canvas.parameters())
        with self.box.quiet(grad=not last):
            x = self.canvas()
            moved = self._transformed(x, step, last)
            acts = self.box.forward(moved, self.objective.layers | (self.until.layers if self.until else frozenset()))
            score = self.objective(acts)
            done = torch.zeros_like(score, dtype=torch.bool) if self.until is None else self.until(acts) > 0
            self._note(x, score, done)
            if last or (not self.plan.keep_going and self._meets(step) and bool(done.all())):
                return []
            leaves = [*params, x] if self.plan.sum_pulls else params
            extra = self._prior_grads(x, params)
            grads, clamped = self._pull(score, acts, leaves, step)
        return self._noted_grads(grads, extra, clamped, step)

    def _prior_grads(self, x: Tensor, params: list[Tensor]) -> list[Tensor]:
        """Apart from the score's, so that this is seen to be zero where it is."""
        if self.prior is None:
            return []
        return list(torch.autograd.grad(self.prior({"input": x}).sum(), params, retain_graph=True))

    def _meets(self, step: int) -> bool:
        """Whether this is a step at which the host may wait for values."""
        return not slow_to_ask(self.alive.device) or step % MEET == 0

    def _pull(self, score: Tensor, acts: Acts, leaves: list[Tensor], step: int) -> tuple[list[Tensor], Tensor]:
        """As `pull`; between meetings, what the last one found is taken to hold still."""
        meets = self._meets(step)
        unclamp = self.plan.unclamp if meets or self.stuck else "no"
        grads, clamped = pull(score, acts, self.objective, leaves, unclamp=unclamp, ask=meets)
        if meets and slow_to_ask(self.alive.device):
            self.stuck = bool(clamped.any())
        return grads, clamped

    def _transformed(self, x: Tensor, step: int, last: bool) -> Tensor:
        if self.plan.transform is None or last:
            return x
        return self.plan.transform(x, shared(self.plan.seed, step, x.device))

    def _note(self, x: Tensor, score: Tensor, done: Tensor) -> None:
        s, alive = self.state, self.alive
        fresh = torch.ones_like(done) if self.plan.keep_going else ~s.done[alive]
        s.input[alive] = torch.where(per_row(fresh, x), x.detach().to(s.input.dtype), s.input[alive])
        s.score[alive] = torch.where(fresh, score.detach().to(s.score.dtype), s.score[alive])
        s.done[alive] = done.detach() if self.plan.keep_going else s.done[alive] | done.detach()

    def _noted_grads(self, grads: list[Tensor], extra: list[Tensor], clamped: Tensor, step: int) -> list[Tensor]:
        self.state.before_clamp[self.alive] |= clamped
        if self.plan.sum_pulls:
            *grads, at_image = grads
            self.state.pulled[self.alive] += at_image.abs().to(self.state.pulled.dtype)
        if step == 0 and grads[0].shape == self.state.first.shape:
            self.state.first = grads[0].clone()
        return [g + e for g, e in zip(grads, extra, strict=True)] if extra else grads

    def _drop_done(self, step: int, grads: list[Tensor]) -> list[Tensor]:
        """Let rows that are done leave, with their gradients; a coupled net keeps them, for they change the others."""
        if self.until is None or self.plan.keep_going or self.box.coupled or not self._meets(step):
            return grads
        stay = ~self.state.done[self.alive]
        if stay.all():
            return grads
        self.alive = self.alive[stay]
        self._keep(stay)
        return [g[stay] for g in grads]

    def _keep(self, stay: Tensor) -> None:
        self.objective, self.constraint = self.objective.rows(stay), self.constraint.rows(stay)
        self.until, self.prior = (None if o is None else o.rows(stay) for o in (self.until, self.prior))
        canvas = self.canvas.rows(stay)
        self.optimizer = _kept(self.plan.optimizer, self.optimizer, self.canvas, canvas, stay)
        self.canvas = canvas

    def _anneal(self, step: int) -> None:
        """Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, without restarts."""
        if self.plan.anneal:
            for group in self.optimizer.param_groups:
                group["initial_lr"] = group.get("initial_lr", group["lr"])
                group["lr"] = group["initial_lr"] * (1 + math.cos(math.pi * step / self.plan.steps)) / 2

    def _step(self, grads: Sequence[Tensor], step: int) -> None:
        done = self.state.done[self.alive] & (not self.plan.keep_going)  # such rows stay where they are
        params = list(self.canvas.parameters())
        before = [p.detach().clone() for p in params]
        grads = [g.nan_to_num(0, 0, 0) for g in grads]  # where there is no slope, nothing moves
        for p, grad in zip(params, grads, strict=True):
            p.grad = -self.constraint.steer(grad)
        self.optimizer.step()
        with torch.no_grad():
            for p, old, grad in zip(params, before, grads, strict=True):
                new = p if self.plan.after is None else self.plan.after(p, grad, step)
                new = self.constraint.project(new, self.constraint.centre)
                p.copy_(torch.where(per_row(done, p), old, new))
        self.state.steps[self.alive] += (~done).long()


def _kept(rule: StepRule, old: Optimizer, before: Canvas, after: Canvas, stay: Tensor) -> Optimizer:
    """The step rule with its state for the rows that stay: what is shaped like a parameter has a row an example."""
    new = rule(list(after.parameters()))
    for p, q in zip(before.parameters(), after.parameters(), strict=True):
        new.state[q] = {
            k: v[stay] if isinstance(v, Tensor) and v.shape == p.shape else v for k, v in old.state.get(p, {}).items()
        }
    return new


def _joined(parts: list[Climb]) -> Climb:
    def cat(name: str) -> Tensor:
        return torch.cat([getattr(p, name) for p in parts])

    def over_time(name: str) -> Tensor:  # a batch that was done earlier stays at its last frame
        rows = [getattr(p, name) for p in parts]
        length = max(map(len, rows))
        return torch.cat([torch.cat([r, r[-1:].expand(length - len(r), *r.shape[1:])]) for r in rows], 1)

    frames = None if parts[0].frames is None else over_time("frames")
    ends = {name: cat(name) for name in ("input", "score", "done", "steps", "before_clamp", "first")}
    pulled = None if parts[0].pulled is None else cat("pulled")
    interrupted = any(p.interrupted for p in parts)
    return Climb(**ends, frames=frames, history=over_time("history"), pulled=pulled, interrupted=interrupted)
