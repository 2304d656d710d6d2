"""Hiding: x is run with players hidden, that is, replaced by a baseline, in bounded batches."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ...box import Box
from ...errors import InputError, warn
from ...model.answers import check_scores
from ...model.batching import BatchSize, in_batches
from ...objectives import Objective, pooled
from ...objectives.algebra import of as of_layer
from ..read.edits import settled
from .baselines import baseline
from .segments import Default, Players, players

SEGMENT = "segment"
"""A baseline of its own: each player's mean over its pixels, as the lime package hides."""
HIDDEN = "x with parts hidden by the baseline"
"""What is scored, as errors call it."""


@dataclass(frozen=True, eq=False)
class Game:
    """Inputs whose players can be hidden. Those that hide nothing (x is the baseline there) are not played with."""

    box: Box
    x: Tensor  # (N, ...)
    base: Tensor  # (N, ...)
    players: Players
    active: Tensor  # (N, F) bool: hiding the player changes the input

    @property
    def counts(self) -> list[int]:
        """How many active players each row has."""
        return [int(n) for n in self.active.sum(1)]

    @property
    def slots(self) -> Tensor:
        """Beside x: the place of each number's player among the active ones; `most` for those that hide nothing."""
        place = (self.active.cumsum(1) - 1).masked_fill(~self.active, max(self.counts))
        return self.players.gathered(place)

    def placed(self, values: Sequence[Tensor]) -> Tensor:
        """Values of the active players of each row, (A,), among all players, (N, F), in the box's dtype; else 0."""
        found = torch.zeros(self.active.shape, dtype=torch.float64)
        for row, active, own in zip(found, self.active.cpu(), values, strict=True):
            row[active] = own
        return found.to(self.box.dtype).to(self.box.device)


def game(
    box: Box, x: Tensor, segments: Any, base: Any, *,
    default: Default = "slic", most: int | None = None, seed: int = 0, means: bool = False,
) -> Game:  # fmt: skip
    """x (N, ...), as accepted by the box, with its players and what they are hidden by. Raises InputError.

    `default` and `most` are for where no segments are given (see `players`).
    """
    own = players(box, x, segments, default=default, most=most)
    fill = own.mean(x) if means and isinstance(base, str) and base == SEGMENT else baseline(box, x, base, seed=seed)
    return Game(box, x, fill, own, own.differing(x, fill))


def scores(game: Game, masks: Sequence[Tensor], objectives: Sequence[Objective], batch_size: BatchSize) -> list[Tensor]:
    """Scores (K, T) of each row under its own masks (K, A) bool, which say the active players that are kept.

    T objectives are scored in one forward. In double precision, on the CPU, where the estimators work. Raises NaNError
    where some are NaN or infinite.
    """
    found = _scores(game, masks, objectives, batch_size)
    check_scores([v[m.all(1).to(v.device)] for v, m in zip(found, masks, strict=True)])
    check_scores(found, HIDDEN)
    return found


def _scores(
    game: Game, masks: Sequence[Tensor], objectives: Sequence[Objective], batch_size: BatchSize
) -> list[Tensor]:
    work = _Work.of(game, masks, objectives)
    lengths = [len(m) for m in masks]
    coupled = game.box.coupled or any(o.coupled for o in objectives)
    if coupled:  # then a batch is all rows, each under one of its masks
        every = torch.arange(len(masks), device=game.x.device)
        most = torch.tensor(lengths, device=game.x.device) - 1
        each = in_batches(lambda k: work.run(every, most.clamp(max=k.start)), max(lengths), 1, 1)
        found = torch.stack(each, 1).cpu().double()  # (N, K, T)
        return [h[:n] for h, n in zip(found, lengths, strict=True)]
    ends = list(accumulate(lengths))
    last = torch.tensor(ends, device=game.x.device)

    def part(pairs: slice) -> Tensor:
        at = torch.arange(pairs.start, pairs.stop, device=game.x.device)
        rows = torch.bucketize(at, last, right=True)
        first = bisect_right(ends, pairs.start)
        alone = first if pairs.stop <= ends[first] else None
        return work.run(rows, at - last[rows] + work.lengths[rows], alone)

    found = torch.cat(in_batches(part, ends[-1], *splits(game.box, ends[-1], batch_size)))
    return list(torch.split(found.cpu().double(), lengths))


CACHE = 20 * 2**20  # bytes between two layers that a CPU keeps near: larger batches run slower there


def splits(box: Box, n: int, batch_size: BatchSize) -> tuple[BatchSize, int]:
    """(size, most) for `in_batches`, of forward passes alone: as `box.splits`, and on a CPU as its cache holds."""
    size, most = box.splits(n, batch_size)
    near = max(1, CACHE // max(1, box.profile.bytes_peak)) if box.device.type == "cpu" and not box.coupled else most
    return size, min(most, near)


@dataclass(frozen=True)
class _Work:
    game: Game
    masks: Tensor  # (G, K, A + 1) bool, of rows that share them once; the last column is always kept
    group: Tensor  # (N,)
    lengths: Tensor  # (N,)
    slots: Tensor
    objectives: Sequence[Objective]

    @classmethod
    def of(cls, game: Game, masks: Sequence[Tensor], objectives: Sequence[Objective]) -> _Work:
        own = {id(m): m for m in masks}
        names = list(own)
        most, width = max(len(m) for m in masks), max(game.counts)
        table = torch.ones(len(own), most, width + 1, dtype=torch.bool)
        for row, m in zip(table, own.values(), strict=True):
            row[: len(m), : m.shape[1]] = m
        device = game.x.device
        group = torch.tensor([names.index(id(m)) for m in masks], device=device)
        lengths = torch.tensor([len(m) for m in masks], device=device)
        return cls(game, table.to(device), group, lengths, game.slots, objectives)

    def run(self, rows: Tensor, ks: Tensor, alone: int | None = None) -> Tensor:
        """Scores (R, T) of rows (R,) under their masks number ks (R,); `alone` where they are one row."""
        game, box = self.game, self.game.box
        keep, slots = self.masks[self.group[rows], ks], self.slots  # (R, A + 1)
        if alone is not None:  # nothing of it needs copying
            kept = keep[:, slots[alone].flatten()].view(len(rows), *slots.shape[1:])
            points = torch.where(kept, game.x[alone], game.base[alone])
        else:
            kept = keep.gather(1, slots[rows].flatten(1)).view(len(rows), *slots.shape[1:])
            points = torch.where(kept, game.x[rows], game.base[rows])
        return scored(box, points, self.objectives, rows)


def scored(box: Box, points: Tensor, objectives: Sequence[Objective], rows: Tensor) -> Tensor:
    """Scores (R, T) of points (R, ...) made from the examples `rows` (R,), in the box's dtype."""
    layers = frozenset[str]().union(*(o.layers for o in objectives))
    with box.quiet(grad=False):
        acts = box.forward(points, layers)
        each = [o.rows(rows)(acts) for o in objectives]
        return torch.stack([s.to(box.dtype) for s in each], 1)


# -- what is scored ----------------------------------------------------------------------------------------------------


def objective(
    box: Box, target: Any, x: Tensor, batch_size: BatchSize, on: str | None = "score"
) -> tuple[Objective, Tensor | None]:
    """The score that `target` means for x as it is, and the classes (N,) where it means any.

    `on="probability"`: of the class, where there are classes (None: wherever a class is meant). Raises InputError.
    """
    if on not in ("score", "probability", None):
        raise InputError(f'on is "probability" (of a class) or "score" (what target means by itself); got {on!r}')
    if isinstance(target, Objective) or (on is None and box.outputs == "regression"):
        if on == "probability":
            raise InputError('on="probability" goes with a class; the score of an objective is on="score"')
        return settled(box, target, x, batch_size), None
    if on == "probability" and box.outputs == "regression":
        raise InputError('a regression model gives no probabilities: on="score" takes its outputs')
    classes = pooled(box(x, batch_size=batch_size)).argmax(1) if target is None else box.labels(target, len(x))
    score = settled(box, classes, x, batch_size)
    return (score if on == "score" else probability(box, classes)), classes


def probability(box: Box, classes: Tensor) -> Objective:
    """The probability of a class (N,) each; a map of outputs counts by its mean."""

    def score(z: Tensor, own: Tensor) -> Tensor:
        p = box.probs_of(z)
        return pooled(p).gather(1, own[:, None])[:, 0]

    def select(own: Tensor) -> Objective:
        name = "probability of each example's class"
        return of_layer("logits", lambda z: score(z, own), name, lambda i: select(own[i]), len(own))

    return select(classes)


A_PLAYER = 4  # draws, below which what each adds is mostly noise


def few(game: Game, n_samples: int) -> None:
    """Warns where the players that hide something are drawn too rarely, and not all of their subsets are run."""
    a = max(game.counts)
    if n_samples < min(A_PLAYER * a, 2**a):
        said = f"n_samples={n_samples} are few for {a} segments that hide something: the values are mostly noise, and"
        more = f"take n_samples of {A_PLAYER * a} or more, or larger segments"
        warn(f"{said} their errors are rough; {more}")


def beside(box: Box, of: Tensor) -> Any:
    """Players as they are shown: (N, H, W) for images of which all channels go together, else as x came."""
    return of[:, 0] if of.ndim == 4 and of.shape[1] == 1 else box.shaped(of)
