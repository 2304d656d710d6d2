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
from ..objectives import Objective
from .balls import Constraint, per_row
from .canvases import Canvas
from .draws import shared
from .gradients import Unclamp, pull
from .transforms import Transform

T = TypeVar("T")
StepRule = Callable[[list[Tensor]], Optimizer]
FREE = Constraint()
MEET = 8  # on an accelerator, ask every so many steps whether examples are done: each asking waits for the device


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


class _Climber:
    """One batch's climb. `alive` are the rows still climbing; objective, canvas and constraint hold just those."""

    def __init__(
        self, box: Box, objective: Objective, canvas: Canvas, plan: Ascent, constraint: Constraint, rows: slice
    ) -> None:
        self.box, self.objective, self.canvas, self.plan, self.constraint = box, objective, canvas, plan, constraint
        self.until = None if plan.until is None else plan.until.rows(rows)
        self.optimizer = plan.optimizer(list(canvas.parameters()))
        x = canvas().detach().clone()
        self.alive = torch.arange(len(x), device=x.device)
        no = torch.zeros_like(self.alive, dtype=torch.bool)
        self.state = _State(x, x.new_zeros(len(x)), no, torch.zeros_like(self.alive), no.clone(), torch.zeros_like(x))

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
        return Climb(s.input, s.score, s.done, s.steps, s.before_clamp, s.first, kept, scores, interrupted)

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
            self._step(grads)

    def _look(self, step: int, last: bool) -> list[Tensor]:
        """Score the rows alive and, unless it is the last look, find the gradient of each parameter."""
        params = [] if last else list(self.canvas.parameters())
        with self.box.quiet(grad=not last):
            x = self.canvas()
            moved = self._transformed(x, step, last)
            acts = self.box.forward(moved, self.objective.layers | (self.until.layers if self.until else frozenset()))
            score = self.objective(acts)
            done = torch.zeros_like(score, dtype=torch.bool) if self.until is None else self.until(acts) > 0
            self._note(x, score, done)
            if last or (done.all() and not self.plan.keep_going and done.device.type == "cpu"):
                return []
            grads, clamped = pull(score, acts, self.objective, params, unclamp=self.plan.unclamp)
        return self._noted_grads(grads, clamped, step)

    def _transformed(self, x: Tensor, step: int, last: bool) -> Tensor:
        if self.plan.transform is None or last:
            return x
        return self.plan.transform(x, shared(self.plan.seed, step, x.device))

    def _note(self, x: Tensor, score: Tensor, done: Tensor) -> None:
        s, alive = self.state, self.alive
        fresh = alive if self.plan.keep_going else alive[~s.done[alive]]
        mine = slice(None) if len(fresh) == len(alive) else ~s.done[alive]
        s.input[fresh] = x.detach()[mine].to(s.input.dtype)
        s.score[fresh] = score.detach()[mine].to(s.score.dtype)
        s.done[alive] = done.detach() if self.plan.keep_going else s.done[alive] | done.detach()

    def _noted_grads(self, grads: list[Tensor], clamped: Tensor, step: int) -> list[Tensor]:
        self.state.before_clamp[self.alive] |= clamped
        if step == 0 and grads[0].shape == self.state.first.shape:
            self.state.first = grads[0].clone()
        return grads

    def _drop_done(self, step: int, grads: list[Tensor]) -> list[Tensor]:
        """Let rows that are done leave, with their gradients; a coupled net keeps them, for they change the others."""
        waits = self.alive.device.type != "cpu" and step % MEET
        if self.until is None or self.plan.keep_going or self.box.coupled or waits:
            return grads
        stay = ~self.state.done[self.alive]
        if stay.all():
            return grads
        self.alive = self.alive[stay]
        self._keep(stay)
        return [g[stay] for g in grads]

    def _keep(self, stay: Tensor) -> None:
        self.objective, self.constraint = self.objective.rows(stay), self.constraint.rows(stay)
        self.until = self.until.rows(stay) if self.until else None
        canvas = self.canvas.rows(stay)
        self.optimizer = _kept(self.plan.optimizer, self.optimizer, self.canvas, canvas, stay)
        self.canvas = canvas

    def _anneal(self, step: int) -> None:
        """Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, without restarts."""
        if self.plan.anneal:
            for group in self.optimizer.param_groups:
                group["initial_lr"] = group.get("initial_lr", group["lr"])
                group["lr"] = group["initial_lr"] * (1 + math.cos(math.pi * step / self.plan.steps)) / 2

    def _step(self, grads: Sequence[Tensor]) -> None:
        done = self.state.done[self.alive] & (not self.plan.keep_going)  # such rows stay where they are
        params = list(self.canvas.parameters())
        before = [p.detach().clone() for p in params]
        for p, grad in zip(params, grads, strict=True):
            p.grad = -self.constraint.steer(grad.nan_to_num(0, 0, 0))  # where there is no slope, nothing moves
        self.optimizer.step()
        with torch.no_grad():
            for p, old in zip(params, before, strict=True):
                new = self.constraint.project(p, self.constraint.centre)
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
    interrupted = any(p.interrupted for p in parts)
    return Climb(**ends, frames=frames, history=over_time("history"), interrupted=interrupted)
