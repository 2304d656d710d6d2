"""Rewriting activations: ready-made edits of a unit, and one input run in many rewritten ways, in bounded batches."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..arguments import number, whole
from ..box import Box
from ..errors import InputError, LayerError
from ..net.batching import BatchSize, in_batches, out_of_memory
from ..net.replay import COARSE, ROUNDING, same
from ..net.taps import Edit
from ..objectives import Objective, held, logit, pooled
from .replayed import Before

LOG = logging.getLogger("unboxed")

Units = int | Sequence[int] | None
"""A channel, several of them, or None for all."""


@dataclass(frozen=True, eq=False)
class Change:
    """h <- factor * h + value for some channels k, at one position or at all of them.

    `value` is a number, or values beside h's own: (1, ...) for all examples, (N, ...) one an example; (N,) is a number
    for each example.
    """

    factor: float
    value: float | Tensor = 0.0
    k: Units = None
    at: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.value, Real | Tensor):
            raise InputError(f"a value is a number or a tensor; got {self.value!r}")
        if self.k is not None:
            object.__setattr__(self, "k", _channels(self.k))
        if self.at is not None:
            object.__setattr__(self, "at", _position(self.at))

    def __call__(self, h: Tensor) -> Tensor:
        place = self._place(h)
        new, value = h.clone(), self.value
        if isinstance(value, Tensor):
            value = _beside(held(value, h).to(h.dtype), h[place])
        try:
            new[place] = value if self.factor == 0 else self.factor * h[place] + value  # 0 * inf would be NaN
        except RuntimeError as error:
            given = tuple(value.shape) if isinstance(value, Tensor) else ()
            raise InputError(f"a value of shape {given} does not fit into {tuple(h[place].shape)}") from error
        return new

    def _place(self, h: Tensor) -> tuple[slice | int | list[int], ...]:
        """The index of what is changed. Raises InputError where h has no such channel or position."""
        ks = [] if self.k is None else [self.k] if isinstance(self.k, int) else list(self.k)
        if h.ndim < 2 or any(not -h.shape[1] <= k < h.shape[1] for k in ks):
            raise InputError(f"the layer has {h.shape[1] if h.ndim > 1 else 0} channels; an edit names {ks or 'all'}")
        at = self.at or ()
        if at and (len(at) != h.ndim - 2 or any(not -s <= i < s for i, s in zip(at, h.shape[2:], strict=True))):
            raise InputError(f"the layer has positions {tuple(h.shape[2:])}; {at} is none of them")
        return slice(None), slice(None) if self.k is None else self.k if isinstance(self.k, int) else ks, *at

    def rows(self, index: slice | Tensor) -> Change:
        """The same edit for some of the examples."""
        many = isinstance(self.value, Tensor) and self.value.ndim > 0 and len(self.value) > 1
        return replace(self, value=self.value[index]) if isinstance(self.value, Tensor) and many else self

    def fits(self, n: int) -> Change:
        """This edit, if it goes with n examples. Raises InputError."""
        if isinstance(self.value, Tensor) and self.value.ndim and len(self.value) not in (1, n):
            raise InputError(f"an edit holds values for {len(self.value)} examples; there are {n}")
        return self


def _channels(k: object) -> int | list[int]:
    """A channel, or several. Raises InputError."""
    if isinstance(k, Tensor) and k.ndim < 2:
        k = k.tolist()
    if isinstance(k, str) or not isinstance(k, Integral | Iterable):
        raise InputError(f"a channel is a whole number; got {k!r}")
    return [_whole("a channel", i) for i in k] if isinstance(k, Iterable) else _whole("a channel", k)


def _position(at: object) -> tuple[int, ...]:
    if isinstance(at, str) or not isinstance(at, Iterable):
        raise InputError(f"at is a position, such as (3,) or (2, 5); got {at!r}")
    return tuple(_whole("a position", i) for i in at)


def _whole(name: str, i: object) -> int:
    """A whole number; negative ones count from the end. Raises InputError."""
    if isinstance(i, bool) or not isinstance(i, Integral):
        raise InputError(f"{name} is a whole number; got {i!r}")
    return int(i)


def _beside(value: Tensor, h: Tensor) -> Tensor:
    """Values with as many axes as h (N, ...). Broadcasting alone would lay (N,) along the last axis."""
    if value.ndim == 1:
        return value.view(-1, *[1] * (h.ndim - 1))
    if 0 < value.ndim < h.ndim:
        raise InputError(f"a value of shape {tuple(value.shape)} has not the axes of {tuple(h.shape)}")
    return value


def ablate(k: Units = None, *, at: tuple[int, ...] | None = None) -> Change:
    """Silence channel k (several; None: all), at one position or all of them."""
    return Change(0.0, 0.0, k, at)


def scale(k: Units, factor: float, *, at: tuple[int, ...] | None = None) -> Change:
    """Multiply channel k."""
    return Change(number("factor", factor), 0.0, k, at)


def put(k: Units, value: float | Tensor, *, at: tuple[int, ...] | None = None) -> Change:
    """Set channel k to a number, (N,) one an example, or values beside h[:, k], (1, ...) for all or (N, ...)."""
    return Change(0.0, value, k, at)


# -- many rewritten runs ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Exchange:
    """Values in place of h's own where the mask (R, ...) says so; both are broadcast to h."""

    mask: Tensor
    value: Tensor

    def __call__(self, h: Tensor) -> Tensor:
        return torch.where(self.mask.to(h.device), self.value.to(h), h)


class Ways(Protocol):
    def __call__(self, n: Tensor, p: Tensor) -> Mapping[str, Edit]:
        """The edits of a batch whose rows are the examples n (R,), rewritten in the ways p (R,)."""


@dataclass(frozen=True, eq=False)
class Runs:
    score: Tensor  # (N, P)
    logits: Tensor | None  # (N, P, K): a map of outputs counts by its mean


def runs(
    box: Box,
    x: Tensor,
    objective: Objective,
    ways: Ways | None = None,
    count: int = 1,
    *,
    logits: bool = True,
    batch_size: BatchSize = "auto",
) -> Runs:
    """Run x (N, ...) rewritten in each of `count` ways (None: as it is): pairs of example and way share batches.

    What comes before the rewritten layer runs once an example and batch, where the net allows it.
    """
    n, work = len(x), _Work(box, x, objective, ways, logits, Before(box, x, objective))
    if box.coupled or objective.coupled:  # then a batch is all examples, rewritten in one way
        every = torch.arange(n, device=box.device)
        parts = in_batches(lambda r: work.run(every, torch.full_like(every, r.start)), count, 1, 1)
        score, *rest = (torch.stack(h, 1) for h in zip(*parts, strict=True))
        return Runs(score, rest[0] if rest else None)
    size, most = box.splits(n, batch_size)
    how = work.cheapest(count) if count > 1 and (most if size == "auto" else size) >= len(TRIAL) else "whole"

    def part(rows: slice) -> list[Tensor]:
        nonlocal how
        index = torch.arange(rows.start, rows.stop, device=box.device)
        pairs = index // count, index % count
        try:
            return work.run(*pairs, how)
        except Exception as error:
            if how == "whole" or out_of_memory(error):
                raise
            LOG.info("%s runs failed; whole runs follow", how, exc_info=True)
        how = "whole"  # the net does otherwise than on the trial
        return work.run(*pairs)

    both = [torch.cat(h) for h in zip(*in_batches(part, n * count, size, most), strict=True)]
    score, *rest = (h.view(n, count, *h.shape[1:]) for h in both)
    return Runs(score, rest[0] if rest else None)


How = Literal["thin", "replayed", "whole", "checked"]
"""Examples are multiplied at the edit; modules before it answer from one run of each example; all runs in full; so it
does, and it is found out which modules can't answer."""

TRIAL = (1, 0, 1)  # rows of two inputs: another order and number, and one twice


@dataclass(frozen=True)
class _Work:
    box: Box
    x: Tensor
    objective: Objective
    ways: Ways | None
    logits: bool
    before: Before

    def run(self, examples: Tensor, way: Tensor, how: How = "whole") -> list[Tensor]:
        """Scores (R,) and logits (R, K) of pairs."""
        box, edits = self.box, {} if self.ways is None else self.ways(examples, way)
        (own, at), thin = torch.unique(examples, return_inverse=True), how == "thin"
        before: AbstractContextManager[None] = nullcontext()
        if how == "replayed":
            self.before.record(examples, edits)
            before = self.before.answering(examples)
        elif how == "checked":
            before = self.before.checking(examples, edits, self.rounding)
        if thin:
            edits = {a: _multiplied(edit, at) for a, edit in edits.items()}
        wanted = {*self.objective.layers, *(["logits"] if self.logits else [])}
        with box.quiet(grad=False), before:
            acts = box.forward(self.x[own if thin else examples], wanted, edits, len(examples) if thin else None)
            found = [self.objective.rows(examples)(acts)]
            found += [pooled(acts["logits"])] if self.logits else []
            return [h.to(box.dtype) for h in found]

    @property
    def rounding(self) -> float:
        """The error that another batch size may make, as a share of the largest number."""
        return ROUNDING.get(self.box.net_dtype, COARSE) if self.box.device.type == "cpu" else COARSE

    def cheapest(self, count: int) -> How:
        """The cheapest way that gives what whole runs give, on a trial.

        A batch can't grow where a branch around the layer, or a reshape, knows its size; most such nets raise. Modules
        can't answer where the net hands values on otherwise than from module to module.
        """
        trial = self.trial()
        examples = torch.tensor(TRIAL, device=self.box.device)
        ways = torch.arange(len(TRIAL), device=self.box.device) % 2 * (count - 1)
        try:
            whole = trial.run(examples, ways)
        except Exception:  # out of memory, too: then the runs themselves find a size that fits
            LOG.info("a batch of %d rewritten runs failed", len(TRIAL), exc_info=True)
            return "whole"
        if trial.gives(whole, examples, ways, "thin"):
            return "thin"
        if not self.before.possible or not trial.gives(whole, examples, ways, "checked"):
            return "whole"
        self.before.without = trial.before.without
        return "replayed" if trial.gives(whole, examples, ways, "replayed") else "whole"

    def trial(self) -> _Work:
        """This work on an example and noise: rows that are sure to differ, whatever x is like."""
        box, objective, ways = self.box, self.objective, self.ways
        own = torch.arange(2, device=box.device).clamp_max(len(self.x) - 1)
        x = torch.cat([self.x[:1], box.noise(1)])
        objective = objective.rows(own)
        return replace(
            self,
            x=x,
            objective=objective,
            ways=None if ways is None else lambda n, p: ways(own[n], p),
            before=Before(box, x, objective),
        )

    def gives(self, whole: list[Tensor], examples: Tensor, ways: Tensor, how: How) -> bool:
        """Whether pairs run in a cheaper way come out as whole runs do, up to rounding."""
        try:
            found = self.run(examples, ways, how)
        except Exception:
            LOG.info("%s runs are not taken", how, exc_info=True)
            return False
        return all(same(a, b, self.rounding) for a, b in zip(found, whole, strict=True))


def _multiplied(edit: Edit, at: Tensor) -> Edit:
    return lambda h: edit(h[at])


def settled(box: Box, target: int | Tensor | Objective | None, x: Tensor, batch_size: BatchSize) -> Objective:
    """The score that `target` means for x, the same after any edit: None is the class predicted for x as it is."""
    if target is None:
        return logit(pooled(box(x, batch_size=batch_size)).argmax(1))
    return box.checked(box.objective(target, len(x)), len(x))


AFTER_LOGITS = ("Softmax", "LogSoftmax", "Sigmoid", "LogSigmoid")


def addresses(box: Box) -> tuple[str, ...]:
    """Every call of every leaf that a tensor goes into and rows with units come out of, as they first run.

    A softmax at the end is none of them: scores are of logits, which it comes after. Raises LayerError without any.
    """
    rows = [row for row in box.layers.leaves if row.takes and row.rows and row.shape]
    if rows and rows[-1].type in AFTER_LOGITS:
        rows = rows[:-1]
    found = tuple(address for row in rows for address in row.addresses)
    if not found:
        raise LayerError("no module of this net runs by itself; name functional ops, such as ':relu#0'")
    return found


def with_units(box: Box, address: str) -> str:
    """The full address of a layer that has units. Raises LayerError."""
    real = box.layers.resolve(address)
    if not box.has_rows(real) or (":" not in real and not box.layers[real].shape):
        gives = f"gives {box.layers[real].shape} for a batch" if ":" not in real else "mixes examples"
        raise LayerError(f"{address!r} {gives}: its first axis is not the batch, or it has no units")
    return real


def chosen(units: Sequence[int] | int | None, channels: int, layer: str) -> list[int]:
    """The units meant, each a number below `channels`. Raises InputError."""
    if units is None:
        return list(range(channels))
    if isinstance(units, (str, bytes)) or not isinstance(units, Sequence):
        units = units.tolist() if isinstance(units, Tensor) and units.ndim == 1 else [units]  # type: ignore[list-item]
    ks = [whole("a unit", k) for k in units]
    if not ks or max(ks) >= channels:
        raise InputError(f"{layer} has units 0 to {channels - 1}; got {f'up to {max(ks)}' if ks else 'none'}")
    return ks


def one_of(parts: Tensor, count: int, shape: Sequence[int], axis: int | None) -> Tensor:
    """Masks (R, ...) over activations of `shape` that mark part p of each row: one channel, one position, or all."""
    if axis is None:
        return torch.ones(len(parts), *[1] * len(shape), dtype=torch.bool, device=parts.device)
    one = torch.nn.functional.one_hot(parts, count).bool()
    return one.view(-1, count, *[1] * (len(shape) - 1)) if axis == 1 else one.view(-1, 1, *shape[1:])


def parts_of(shape: Sequence[int], axis: int | None) -> int:
    """How many parts `one_of` knows in activations of this shape (without N)."""
    return 1 if axis is None else shape[0] if axis == 1 else math.prod(shape[1:])
