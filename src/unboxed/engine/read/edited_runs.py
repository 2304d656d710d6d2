"""One input run in many rewritten ways, in bounded batches: what comes before the edit runs once an example."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from ...box import Box
from ...model.batching import BatchSize, in_batches, is_out_of_memory
from ...model.hooks import Edit
from ...model.replay import COARSE_TOLERANCE, ROUNDING_TOLERANCE, is_close
from ...objectives import Objective, mean_over_positions
from .replayed import Before

LOG = logging.getLogger("unboxed")


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

    What comes before the rewritten layer runs once an example and batch, where the model allows it.
    """
    n, work = len(x), _Work(box, x, objective, ways, logits, Before(box, x, objective))
    if box.batch_dependent or objective.batch_dependent:  # then a batch is all examples, rewritten in one way
        every = torch.arange(n, device=box.device)
        parts = in_batches(lambda r: work.run(every, torch.full_like(every, r.start)), count, 1, 1)
        score, *rest = (torch.stack(h, 1) for h in zip(*parts, strict=True))
        return Runs(score, rest[0] if rest else None)
    size, most = box.batch_plan(n, batch_size)
    how = work.cheapest(count) if count > 1 and (most if size == "auto" else size) >= len(TRIAL) else "whole"

    def part(rows: slice) -> list[Tensor]:
        nonlocal how
        index = torch.arange(rows.start, rows.stop, device=box.device)
        pairs = index // count, index % count
        try:
            return work.run(*pairs, how)
        except Exception as error:
            if how == "whole" or is_out_of_memory(error):
                raise
            LOG.info("%s runs failed; whole runs follow", how, exc_info=True)
        how = "whole"  # the model does otherwise than on the trial
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
        with box.isolated(grad=False), before:
            acts = box.forward(self.x[own if thin else examples], wanted, edits, len(examples) if thin else None)
            found = [self.objective.rows(examples)(acts)]
            found += [mean_over_positions(acts["logits"])] if self.logits else []
            return [h.to(box.dtype) for h in found]

    @property
    def rounding(self) -> float:
        """The error that another batch size may make, as a share of the largest number."""
        return (
            ROUNDING_TOLERANCE.get(self.box.model_dtype, COARSE_TOLERANCE)
            if self.box.device.type == "cpu"
            else COARSE_TOLERANCE
        )

    def cheapest(self, count: int) -> How:
        """The cheapest way that gives what whole runs give, on a trial.

        A batch can't grow where a branch around the layer, or a reshape, knows its size; most such models raise.
        Modules can't answer where the model hands values on otherwise than from module to module.
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
        return all(is_close(a, b, self.rounding) for a, b in zip(found, whole, strict=True))


def _multiplied(edit: Edit, at: Tensor) -> Edit:
    return lambda h: edit(h[at])
