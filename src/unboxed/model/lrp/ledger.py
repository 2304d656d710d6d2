"""What becomes of relevance that reaches no input: each part that an op holds back is counted, by its kind.

Relevance that a linear layer's bias, an added constant, the expansion of a softmax or a stabilizer receives is no
error: it is a part of the score that no input is responsible for. What is neither passed on nor counted is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..hooks import tensors_in

Kind = Literal["biases", "constants", "softmax", "epsilon"]
KINDS: tuple[Kind, ...] = ("biases", "constants", "softmax", "epsilon")
"""Biases of layers, and what an activation is at zero; other added tensors: positions, types of tokens, masks; what the
first-order expansion of a softmax leaves; what the stabilizer of a rule absorbs."""

Report = Callable[[Kind, Tensor], None]
"""Called in the backward pass with the relevance of each value of one op that no variable receives."""


def relevance_of(h: Tensor, c: Tensor) -> Tensor:
    """R = h c, also where h is infinite: what a mask excludes has c = 0 and no relevance."""
    return torch.where(c == 0, 0, h * c)


@dataclass
class _Site:
    """One op that ran, and when."""

    order: int | None = None


class RelevanceLedger:
    """Counts what each op of one pass holds back, for each of n examples.

    Args:
        n: Number of rows of the batch.
        n_before: Number of reports of the ops before the model, which make its inputs of the box's: they are no part of
            the account, as an input's relevance is that of its distance from their zero.
    """

    follows_each_op = False  # whether ops that compute in elementary ones should do so in the forward pass

    def __init__(self, n: int, n_before: int = 0) -> None:
        self.n, self.n_before = n, n_before
        self.n_reports = 0
        self.held_back: dict[tuple[int, Kind], Tensor] = {}  # (n,) by when the op ran in the forward pass
        self.is_mixed = False  # whether the first axis of some op was not the batch
        self._new_sites: list[_Site] = []

    def make_report_fn(self) -> Report:
        """A function by which an op that runs now reports, in the backward pass, what it holds back."""
        site = _Site()
        self.n_reports += 1
        if self.n_reports > self.n_before:
            self._new_sites.append(site)
        return lambda kind, relevance: self._record(site, kind, relevance)

    def locate_new_sites(self, out: Any) -> None:
        """Note when the ops that asked for a report ran: at the output of the last."""
        if not self._new_sites:
            return
        node = next((t.grad_fn for t in tensors_in(out) if t.grad_fn is not None), None)
        for site in self._new_sites:
            site.order = None if node is None else node._sequence_nr()
        self._new_sites.clear()

    def follow(self, op: str, variables: list[Tensor], out: Any) -> None:
        """Called for each op that ran; a `RelevanceAudit` compares what it receives with what it passes on."""

    def _record(self, site: _Site, kind: Kind, relevance: Tensor) -> None:
        if site.order is not None:
            total, earlier = self.sum_per_example(relevance), self.held_back.get((site.order, kind))
            self.held_back[site.order, kind] = total if earlier is None else earlier.add_(total)

    def sum_per_example(self, relevance: Tensor) -> Tensor:
        """The sum (n,) of each example, of relevance (n, ...) or (n * heads, ...)."""
        relevance = relevance.detach()
        if self.n == 1 or (relevance.ndim and len(relevance) % self.n == 0):
            return relevance.reshape(self.n, -1).sum(1, dtype=torch.float64)
        self.is_mixed = True
        return relevance.sum(dtype=torch.float64).expand(self.n) / self.n

    def between(self, lower: float, upper: float, kind: Kind) -> Tensor | float:
        """What ops after `lower`, up to and with `upper`, hold back: (n,), or 0 where there is none."""
        parts = [r for (order, k), r in self.held_back.items() if k == kind and lower < order <= upper]
        return torch.stack(parts).sum(0) if parts else 0.0


class OpLedger(RelevanceLedger):
    """What the elementary ops of one op hold back, reported as that op's."""

    def __init__(self, report: Report) -> None:
        super().__init__(1)
        self.report = report

    def make_report_fn(self) -> Report:
        return self.report
