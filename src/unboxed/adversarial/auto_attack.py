"""AutoAttack, the standard ensemble: APGD on the cross-entropy, APGD-T, FAB-T and Square, each on what still stands.

Croce & Hein 2020, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks",
arXiv:2003.01690, section 5.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from ..box import Box
from ..cards import card
from ..checkpointing import Saved, digest
from ..engine.optimize.constraints import L2, Ball, Linf, ball_of
from ..engine.stable_repr import box_answers, box_settings, checkpoint_repr
from ..errors import InputError
from ..inputs.pixels import Pixels
from ..model.batching import BatchSize
from ..objectives import Objective, dlr
from ..validation import check_seed, whole
from .apgd import FURTHER, climb, likeliest, towards
from .attempt import Attempt, in_range
from .fab import Pace
from .fab import Search as Fab
from .levels import levels, saved
from .result import Adversarial
from .square import search

TARGETS = 9
CHUNK = 1000  # rows between two writings of a checkpoint, at most, and
FEWEST = 4  # at least: single rows take several times as long each
OPERATIONS = 2e11  # of the model between two writings: about half a minute of one core
ACCELERATED = 100  # times as many on an accelerator
BOTH_WAYS = 3  # forwards that a gradient costs
P = 0.8  # of the image is in Square's first squares
FOUND = ("images", "distance", "queries", "success", "already", "before", "_offered")  # of an attempt


@dataclass(frozen=True, repr=False, eq=False)
class AutoAdversarial(Adversarial):
    """As `Adversarial`; `stages` says who still stood after each attack."""

    stages: Mapping[str, Tensor] = field(default_factory=dict)  # {name: (N,) bool}: not fooled yet


@card(
    name="AutoAttack",
    source="Croce & Hein 2020, arXiv:2003.01690, section 5",
    tells="An input within eps of this one that the model takes for something else, sought by four unlike attacks.",
    not_tells="That there is none where all four fail, though few such claims have fallen to other attacks since.",
    norms=("linf", "l2"),
    example=lambda method, box, x, y: method(box, x, y, eps=0.1, steps=2, queries=3),
    exempt={"interrupt": "its stages are told apart: tests/adversarial/test_auto_attack.py"},
)
def auto_attack(
    box: Box,
    x: Tensor,
    y: Tensor | int | None = None,
    *,
    eps: float | None = None,
    norm: str = "linf",
    ball: Ball | None = None,
    target: Tensor | int | None = None,
    objective: Objective | None = None,
    steps: int = 100,
    queries: int = 5000,
    checkpoint: str | os.PathLike[str] | None = None,
    tell: Callable[[str, int], None] | None = None,
    bits: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> AutoAdversarial:
    """Images within `eps` of x (`norm` "linf" or "l2", or `ball=`) that the model does not take for y.

    Four attacks in turn, each on the rows that none before it fooled: "apgd-ce", "apgd-t" and "fab-t" (each towards the
    9 likeliest wrong classes), of `steps` steps, and "square" (for images) of `queries`. Models of fewer than four
    classes, for which the targeted DLR is not defined, get the difference of two logits in its place. With a `target`
    the second and third lead to it alone, with an `objective` there is no second. `tell(name, survivors)` is called
    after each. A run with a `checkpoint` file goes on where one that ended stood. Raises InputError, ModelError and
    WriteError.
    """
    ball = in_range(box, _ball(eps, norm, ball))
    if bits is not None:
        levels(box, bits)  # refused now, not after an hour
    plan = _Plan(whole("steps", steps), whole("queries", queries, least=1), check_seed(seed))
    attempt = Attempt(box, x, y, norm=ball, target=target, objective=objective, batch_size=batch_size)
    run = _Run(attempt, ball, plan, attempt.begin())
    if checkpoint is not None:
        run.resume(_file(attempt, ball, plan, Path(checkpoint)))
    with attempt:
        run.through(tell)
    saved(attempt, bits, ball)
    found = attempt.result()
    return AutoAdversarial(**{f.name: getattr(found, f.name) for f in fields(found)}, stages=run.stages)


def _ball(eps: float | None, norm: str, ball: Ball | None) -> Ball:
    ball = ball_of(eps, norm, ball)
    if not isinstance(ball, (Linf, L2)):
        raise InputError('AutoAttack takes norm="linf" or "l2"')
    return ball


@dataclass(frozen=True)
class _Plan:
    steps: int
    queries: int
    seed: int


Attack = Callable[[Tensor], None]  # of some rows (n,)


class _Run:
    """The attacks in their order, chunk by chunk; where it stands can be written down and read."""

    def __init__(self, attempt: Attempt, ball: Ball, plan: _Plan, rows: Tensor) -> None:
        self.attempt, self.ball, self.plan, self.rows = attempt, ball, plan, rows
        self.file: Saved | None = None
        self.stages = dict[str, Tensor]()
        self.part, self.row = 0, 0  # of the stage that runs: which of its parts, and the first row to come
        self.likeliest: Tensor | None = None  # (N, T) classes

    # -- the stages --------------------------------------------------------------------------------------------------

    def through(self, tell: Callable[[str, int], None] | None) -> None:
        for name, parts in self._parts().items():
            if name in self.stages:
                continue
            for part in range(self.part, parts):
                self._each_chunk(name, part)
            self.stages[name], self.part = self._stands(), 0
            self._write()
            if tell is not None:
                tell(name, int(self.stages[name].sum()))

    def _parts(self) -> dict[str, int]:
        """The attacks that are fit, and in how many parts each comes."""
        goal, classes = self.attempt.goal, self.attempt.box.n_outputs
        parts = {"apgd-ce": 1}
        if goal.of_classes:
            parts["apgd-t"] = min(TARGETS, classes - 1) if goal.become is None else 1
        parts["fab-t"] = 1
        if isinstance(self.attempt.box.inputs, Pixels):
            parts["square"] = 1
        return parts

    def _stands(self) -> Tensor:
        return ~self.attempt.success

    def _each_chunk(self, name: str, part: int) -> None:
        """One part of a stage, for the rows that still stand from where it was on."""
        attack, self.part = self._attack(name, part), part
        while len(left := self.rows[self._stands()[self.rows] & (self.rows >= self.row)]):
            chunk = left if self.attempt.box.coupled else left[: self._chunk(name)]
            attack(chunk)
            self.row = int(chunk[-1]) + 1
            self._write()
        self.part, self.row = part + 1, 0

    def _chunk(self, name: str) -> int:
        """How many rows go between two writings: by the operations that they take, never by the clock."""
        box, plan = self.attempt.box, self.plan
        forwards = {"square": plan.queries, "fab-t": TARGETS * (BOTH_WAYS + 1) * plan.steps}
        each = forwards.get(name, BOTH_WAYS * plan.steps) * max(box.flops, 1)
        budget = OPERATIONS * (1 if box.device.type == "cpu" else ACCELERATED)
        return min(CHUNK, max(FEWEST, int(budget / max(each, 1))))

    def _attack(self, name: str, part: int) -> Attack:
        attempt, ball, plan = self.attempt, self.ball, self.plan
        if name == "square":
            return lambda rows: search(attempt, ball, rows, queries=plan.queries, p=P, seed=plan.seed)
        if name == "fab-t":
            return self._fab
        way = None if name == "apgd-ce" else self._way(part)
        seed = plan.seed + FURTHER * (part + (name == "apgd-t"))
        return lambda rows: climb(attempt, ball, rows, way, steps=plan.steps, seed=seed)

    def _way(self, part: int) -> Objective:
        """Towards the likeliest wrong class but `part`, or to the target."""
        goal, classes = self.attempt.goal, self.attempt.box.n_outputs
        if goal.become is not None:
            return -dlr(goal.become) if classes >= 3 else goal.fooled
        if self.likeliest is None:
            self.likeliest = likeliest(self.attempt, self.rows[self._stands()[self.rows]], TARGETS)
        return towards(self.attempt, self.likeliest[:, part])

    def _fab(self, rows: Tensor) -> None:
        """FAB-T, which looks for the nearest image: those beyond eps are no success here."""
        attempt, plan, eps = self.attempt, self.plan, self.ball.eps
        tries = attempt.images[rows]
        pace = Pace(type(self.ball).__name__.lower(), plan.steps, alpha_max=0.1, eta=1.05, beta=0.9, enough=eps)
        try:
            for block in attempt.blocks(rows):
                Fab(attempt, pace, eps, plan.seed).run(block, TARGETS, 1)
        finally:  # Ctrl-C too
            far = attempt.distance[rows] > eps * (1 + 1e-6)
            at = rows[far]
            attempt.images[at], attempt.distance[at], attempt.success[at] = tries[far], math.inf, False

    # -- the checkpoint ----------------------------------------------------------------------------------------------

    def resume(self, file: Saved) -> None:
        self.file, state = file, file.read()
        if state is not None:
            self._load(state)

    def _write(self) -> None:
        if self.file is None:
            return
        at = {name: getattr(self, name) for name in ("rows", "part", "row", "likeliest", "stages")}
        self.file.write({**at, "found": {name: getattr(self.attempt, name) for name in FOUND}})

    def _load(self, state: Mapping[str, Any]) -> None:
        device = self.attempt.x.device
        for name, held in state["found"].items():
            setattr(self.attempt, name, held.to(device))
        self.part, self.row, self.rows = state["part"], state["row"], state["rows"].to(device)
        self.likeliest = None if state["likeliest"] is None else state["likeliest"].to(device)
        self.stages = {name: stood.to(device) for name, stood in state["stages"].items()}


def _file(attempt: Attempt, ball: Ball, plan: _Plan, path: Path) -> Saved:
    """The checkpoint of this very call: the same model, images, goal, ball and plan. Raises InputError."""
    goal = attempt.goal
    settings = box_settings(attempt.box) | {
        "examples": digest(attempt.x),
        "labels": digest(*(k for k in (goal.right, goal.become) if k is not None)),
        "goal": goal.fooled.name if goal.of_classes else _objective(goal.fooled),
        "ball": (type(ball).__name__, ball.eps),
        "steps": plan.steps, "queries": plan.queries, "seed": plan.seed,
        "answers": box_answers(attempt.box, attempt.before),
    }  # fmt: skip
    return Saved(path, "AutoAttack", settings)


def _objective(objective: Objective) -> str:
    return checkpoint_repr(f"objective={objective.name}", objective, "leave it out")
