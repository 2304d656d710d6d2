"""How robust a model is: clean and robust accuracy over eps, by class, by attack, and whether that can be believed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..adversarial.answers import class_logits
from ..adversarial.attempt import in_range
from ..adversarial.deepfool import deepfool
from ..adversarial.fgsm import fgsm
from ..adversarial.pgd import pgd
from ..adversarial.result import Adversarial
from ..adversarial.square import square
from ..box import Box
from ..checkpointing import Saved, digest
from ..engine.optimize.constraints import ball_of, eps_text, norm_of
from ..engine.read.class_labels import unique
from ..engine.read.examples import labeled
from ..engine.stable_repr import box_answers, box_settings, checkpoint_repr
from ..errors import InputError, NaNError
from ..model.answers import among
from ..model.batching import BatchSize
from ..objectives import margin
from ..validation import check_seed
from .alarms import Alarm, alarms_of
from .norms import check_inputs, check_norms, fitting, same_norm
from .shares import Share

Attack = Callable[..., Adversarial]  # attack(box, x, y, eps=..., norm=...), and seed, batch_size if it has them
ATTACKS: Mapping[str, Attack] = {"fgsm": fgsm, "pgd": pgd, "square": partial(square, queries=500)}
"""What a model is asked by default: a single step, many steps, and no gradient at all."""
PART = 500  # examples at a time, after which a checkpoint is written
LEAST = "least distance"
STATE = ("stood", "least", "queries")


@dataclass(frozen=True, repr=False, eq=False)
class Robustness:
    """Of N examples, E eps, A attacks and K classes."""

    norm: str
    eps: tuple[float, ...]  # (E,), ascending
    attacks: tuple[str, ...]  # (A,)
    classes: tuple[str, ...]  # (K,)
    labels: Tensor  # (N,)
    right: Tensor  # (N,) bool: named right without an attack
    stood: Tensor  # (A, E, N) bool: still named right under each attack
    least: Tensor  # (N,) the distance of the nearest fooling image found; zero: none was needed, infinite: none found
    queries: Tensor  # (A,) forward passes, the mean of an example over all eps
    alarms: tuple[Alarm, ...]
    interrupted: bool = False

    @property
    def clean(self) -> Share:
        return Share(int(self.right.sum()), len(self.right))

    def robust(self, eps: float | None = None, attack: str | None = None) -> Share:
        """Accuracy under all attacks together (or one), at one eps (by default the largest). Raises InputError."""
        if eps is not None and eps not in self.eps:
            raise InputError(f"eps is one of {', '.join(map(eps_text, self.eps))}; got {eps!r}")
        if attack is not None and attack not in self.attacks:
            raise InputError(f"attack is one of {', '.join(self.attacks)}; got {attack!r}")
        at = -1 if eps is None else self.eps.index(eps)
        stood = self.stood[:, at] if attack is None else self.stood[self.attacks.index(attack), at][None]
        return Share(int(stood.all(0).sum()), len(self.right))

    def by_class(self, eps: float | None = None) -> dict[str, tuple[Share, Share]]:
        """Clean and robust accuracy of each class that occurs; classes of one name by their numbers, too: "cat (3)"."""
        at = -1 if eps is None else self.eps.index(eps)
        stood = self.stood[:, at].all(0)
        rows = {name: self.labels == k for k, name in enumerate(unique(self.classes))}
        return {
            name: (Share(int(self.right[own].sum()), int(own.sum())), Share(int(stood[own].sum()), int(own.sum())))
            for name, own in rows.items()
            if own.any()
        }

    @property
    def median(self) -> float:
        """The median distance to the nearest fooling image of the examples named right; infinite: half have none."""
        own = self.least[self.right]
        return float(own.sort().values[(len(own) - 1) // 2]) if len(own) else float("nan")

    def __repr__(self) -> str:
        curve = ", ".join(f"{self.robust(e).value:.1%} within {eps_text(e)}" for e in self.eps)
        told = f"{self.clean.value:.1%} of {len(self.right)} right, {curve} ({self.norm}; {', '.join(self.attacks)})"
        alarms = f", alarms: {', '.join(a.name for a in self.alarms)}" if self.alarms else ""
        return f"Robustness({told}{alarms}{', interrupted' if self.interrupted else ''})"

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "norm": self.norm,
            "n": len(self.right),
            "clean": self.clean.plain(),
            "eps": list(self.eps),
            "robust": {a: [self.robust(e, a).plain() for e in self.eps] for a in self.attacks},
            "all": [self.robust(e).plain() for e in self.eps],
            "classes": {k: [s.plain() for s in both] for k, both in self.by_class().items()},
            "median distance": self.median if self.median < float("inf") else None,
            "queries": dict(zip(self.attacks, self.queries.tolist(), strict=True)),
            "alarms": [a.plain() for a in self.alarms],
            "interrupted": self.interrupted,
        }


def evaluate(
    box: Box,
    data: Any,
    attacks: Mapping[str, Attack] | None = None,
    *,
    eps: Sequence[float],
    norm: str = "linf",
    most: int | None = None,
    minimal: Attack | None = deepfool,
    alarms: bool = True,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    quiet: bool = True,
) -> Robustness:
    """Accuracy on `data` (a Dataset of (input, class), or tensors (x, y)) under each attack and all of them, per eps.

    `attacks` {name: attack}, by default those of FGSM, PGD-40 and Square that take the model's inputs and the norm;
    `ub.adversarial.auto_attack` is the strongest. `eps` is in pixel range; of a table, in each column's own unit. What
    an attack fooled at one eps it is not asked again at a larger one: that image is inside the larger ball. `minimal`
    looks for the least distance. Robust accuracy is an upper bound: the next attack may find more, and alarms say where
    it is a poor one (Carlini et al. 2019, arXiv:1902.06705). On Ctrl-C what was found so far is returned; with a
    `checkpoint` file, the same call goes on from there; an attack of your own is compared by its code and all that it
    refers to. Raises InputError, DataError, OutputError where the model gives NaN, and ModelError where that file is of
    other settings, attacks, weights, answers, examples or labels, or of another order of them.
    """
    seed = check_seed(seed)
    x, y = labeled(box, data, most)
    chosen = fitting(ATTACKS, box, norm) if attacks is None else dict(attacks)
    sizes = tuple(sorted({in_range(box, ball_of(e, norm, None)).eps for e in _listed(eps)}))
    if not chosen:
        raise InputError('give at least one attack, such as {"pgd": ub.adversarial.pgd}')
    check_inputs(chosen, box)
    check_norms({**chosen, LEAST: minimal}, norm)
    run = _Run(box, x, y, norm, sizes, chosen, minimal, {"norm": norm, "seed": seed, "batch_size": batch_size})
    if checkpoint is not None:
        run.resume(Saved(Path(checkpoint), "robustness", run.settings(seed)))
    run.all(quiet)
    if alarms and not run.interrupted:
        run.alarm(seed, batch_size)
    return run.done()


def _listed(eps: Sequence[float] | float) -> list[float]:
    values = [eps] if isinstance(eps, (int, float)) else list(eps)
    if not values:
        raise InputError("give at least one eps, such as eps=[0.1, 0.3]")
    return values


class _Run:
    """One evaluation under way, a part of the examples, one attack and one eps at a time."""

    def __init__(
        self, box: Box, x: Tensor, y: Tensor, norm: str, eps: tuple[float, ...], attacks: dict[str, Attack],
        minimal: Attack | None, common: dict[str, Any],
    ) -> None:  # fmt: skip
        self.box, self.x, self.y, self.norm, self.eps = box, x, y, norm, eps
        self.attacks, self.minimal, self.common = attacks, minimal, common
        logits = class_logits(box, x, common["batch_size"])
        self.right, self.margin = logits.argmax(1) == y, margin(y)({"logits": logits})
        self.stood = self.right.expand(len(attacks), len(eps), len(x)).clone()  # (A, E, N)
        self.least = torch.where(self.right, torch.inf, 0.0).to(x.dtype)
        self.queries = x.new_zeros(len(attacks)).cpu()
        self.alarms: tuple[Alarm, ...] = ()
        self.interrupted, self.finished = False, 0
        self.saved: Saved | None = None

    def all(self, quiet: bool) -> None:
        tasks = self._tasks()
        with tqdm(total=len(tasks), desc="attacking", disable=quiet, file=sys.stderr, leave=False) as bar:
            bar.update(self.finished)
            for name, e, part in tasks[self.finished :]:
                bar.set_description(name if e is None else f"{name}, eps {eps_text(self.eps[e])}")
                try:
                    self._task(name, e, part)
                except KeyboardInterrupt:
                    self.interrupted = True
                if self.interrupted:
                    return
                bar.update()

    def _tasks(self) -> list[tuple[str, int | None, slice]]:
        size = len(self.x) if self.box.coupled else PART
        parts = [slice(i, i + size) for i in range(0, len(self.x), size)]
        told = [(name, e, part) for name in self.attacks for e in range(len(self.eps)) for part in parts]
        return [*told, *((LEAST, None, part) for part in parts if self.minimal is not None)]

    def _task(self, name: str, e: int | None, part: slice) -> None:
        """Attack one part of the examples. What an attack that was stopped has found is kept all the same."""
        attack = self.minimal if e is None else self.attacks[name]
        a = list(self.attacks).index(name) if e is not None else 0
        stands = self.right if e is None else self.stood[a, e]
        alive = stands[part].nonzero()[:, 0] + part.start
        if self.box.coupled and len(alive):  # rows that change one another stay in company
            alive = torch.arange(len(self.x), device=self.x.device)
        if len(alive) and attack is not None:
            at = None if e is None else self.eps[e]
            own = taken(attack, self.common) | self.within(attack)
            try:
                found = attack(self.box, self.box.shaped(self.x[alive]), self.y[alive], eps=at, **own)
            except NaNError as error:
                raise among(error, alive) from None
            same_norm(name, found.norm, self.norm)
            fooled = alive[found.success]
            self.least[fooled] = self.least[fooled].minimum(found.distance[found.success].to(self.least.dtype))
            if e is not None:
                self.stood[a, e:, fooled] = False
                self.queries[a] += found.queries.sum().cpu() / len(self.x)
            self.interrupted |= found.interrupted
        if not self.interrupted:
            self.finished += 1
            self.save()
            if part_file := self.part_file(self.finished - 1):
                part_file.unlink(missing_ok=True)

    def alarm(self, seed: int, batch_size: BatchSize) -> None:
        try:
            self.alarms = alarms_of(
                self.box, self.x, self.y, self.right, self.eps[-1], self.norm, seed=seed, batch_size=batch_size
            )
        except KeyboardInterrupt:
            self.interrupted = True

    # -- going on after an end that nobody chose -------------------------------------------------------------------

    def settings(self, seed: int) -> dict[str, Any]:
        return box_settings(self.box) | {
            "examples": digest(self.x), "labels": digest(self.y), "eps": list(self.eps), "norm": self.norm,
            "seed": seed,
            "attacks": {name: _compared(name, a) for name, a in self.attacks.items()},
            "minimal": _compared("minimal", self.minimal), "answers": box_answers(self.box, self.margin),
        }  # fmt: skip

    def resume(self, saved: Saved) -> None:
        self.saved, held = saved, saved.read()
        if held is not None:
            self.finished = held["finished"]
            for name in STATE:
                setattr(self, name, held[name].to(getattr(self, name).device))

    def part_file(self, task: int) -> Path | None:
        """Where an attack that saves its own state within a task does so, beside the evaluation's file."""
        return None if self.saved is None else self.saved.path.with_name(f"{self.saved.path.name}.{task}")

    def within(self, attack: Attack) -> dict[str, Any]:
        """The checkpoint of the task that runs, for an attack that takes one and was not given its own."""
        file, given = self.part_file(self.finished), attack.keywords if isinstance(attack, partial) else {}
        takes = file is not None and "checkpoint" in signature(attack).parameters and "checkpoint" not in given
        return {"checkpoint": file} if takes else {}

    def save(self) -> None:
        if self.saved is not None:
            self.saved.write({name: getattr(self, name) for name in STATE} | {"finished": self.finished})

    def done(self) -> Robustness:
        return Robustness(
            type(norm_of(self.norm)).__name__.lower(), self.eps, tuple(self.attacks), self.box.classes,
            self.y, self.right, self.stood, self.least, self.queries, self.alarms, self.interrupted,
        )  # fmt: skip


def taken(attack: Attack, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that an attack has a name for: what draws nothing takes no seed."""
    own = signature(attack).parameters
    every = any(p.kind is Parameter.VAR_KEYWORD for p in own.values())
    return {name: value for name, value in settings.items() if every or name in own}


def _compared(name: str, attack: Attack | None) -> str:
    """An attack with all that it is made of. Raises InputError."""
    instead = "give it as functools.partial of an attack with plain values, or leave the checkpoint out"
    return checkpoint_repr(f"the attack {name!r}", attack, instead)
